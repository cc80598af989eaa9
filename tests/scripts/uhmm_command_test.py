#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The `uhmm` command as a user calls it: what it prints, and how it ends."""
import json
import os
import pathlib
import platform
import subprocess
import sys
import unittest

SOURCE = pathlib.Path(os.environ["UHMM_SOURCE_DIR"])
UHMM = pathlib.Path(os.environ["UHMM_BUILD_DIR"]) / "tools" / "uhmm"


def uhmm(*arguments, **more):
    return subprocess.run([UHMM, *arguments], capture_output=True, text=True, check=False, **more)


def version():
    words = [line.split() for line in (SOURCE / "include/uhmm/uhmm.h").read_text().splitlines()]
    numbers = {w[1]: w[2] for w in words if len(w) > 2 and w[0] == "#define" and w[1].startswith("UHMM_VERSION_")}
    return ".".join(numbers[f"UHMM_VERSION_{part}"] for part in ("MAJOR", "MINOR", "PATCH"))


class Command(unittest.TestCase):
    def test_version(self):
        done = uhmm("--version")
        self.assertEqual((done.returncode, done.stdout), (0, f"uhmm {version()}\n"))

    def test_help_names_every_verb_and_bad_words_fail(self):
        self.assertIn("doctor", uhmm("--help").stdout)
        for arguments in ([], ["nonsense"], ["doctor", "--nonsense"], ["doctor", "more"]):
            done = uhmm(*arguments)
            self.assertNotEqual(done.returncode, 0, arguments)
            self.assertNotEqual(done.stderr, "", arguments)

    def check_doctor(self, **more):
        done = uhmm("doctor", "--json", **more)
        findings = json.loads(done.stdout)
        by_name = {finding["name"]: finding for finding in findings}
        self.assertEqual(len(by_name), len(findings))
        self.assertEqual(by_name["kernel"]["value"], platform.release())
        bad = [finding for finding in findings if finding["verdict"] == "bad"]
        self.assertEqual(done.returncode, 1 if bad else 0)
        for finding in findings:
            if finding["verdict"] in ("bad", "limit"):
                self.assertTrue(finding["meaning"] and finding["fix"], finding)
        table = uhmm("doctor", **more)
        self.assertEqual(table.returncode, done.returncode)
        for finding in findings:
            self.assertIn(finding["name"], table.stdout)
        return by_name

    def test_doctor(self):
        found = self.check_doctor()
        self.assertEqual(found["vm.max_map_count"]["value"],
                         pathlib.Path("/proc/sys/vm/max_map_count").read_text().strip())

    def test_doctor_sees_a_limit(self):
        found = self.check_doctor(preexec_fn=lambda: __import__("resource").setrlimit(
            __import__("resource").RLIMIT_NOFILE, (100, 100)))
        self.assertEqual(found["open files limit"]["verdict"], "limit")

    @unittest.skipUnless(os.geteuid() == 0, "needs root, to give it up")
    def test_doctor_without_privilege(self):
        privileged = self.check_doctor()["userfaultfd"]
        found = self.check_doctor(user=65534, group=65534, extra_groups=[])["userfaultfd"]
        allowed = pathlib.Path("/proc/sys/vm/unprivileged_userfaultfd")
        if privileged["verdict"] == "good" and allowed.exists() and allowed.read_text().strip() == "0" \
                and not os.stat("/dev/userfaultfd").st_mode & 0o006:
            self.assertEqual((found["verdict"], found["value"]), ("limit", "user mode only"))
        else:
            self.assertEqual(found["verdict"], privileged["verdict"])


if __name__ == "__main__":
    result = unittest.main(exit=False).result
    sys.exit(1 if not result.wasSuccessful() else 77 if result.skipped else 0)
