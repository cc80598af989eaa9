#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The `uhmm` command as a user calls it: what it prints, and how it ends."""
import json
import os
import pathlib
import platform
import signal
import socket
import subprocess
import sys
import unittest

SOURCE = pathlib.Path(os.environ["UHMM_SOURCE_DIR"])
UHMM = pathlib.Path(os.environ["UHMM_BUILD_DIR"]) / "tools" / "uhmm"
LIBRARY = pathlib.Path(os.environ["UHMM_BUILD_DIR"]) / "libuhmm.so"

# A program that has 10 of 16 pages on a device, and does what it is told.
PROGRAM = """
import ctypes, mmap, sys
uhmm = ctypes.CDLL(sys.argv[1])
assert uhmm.uhmm_init(None) == 0
memory = mmap.mmap(-1, 16 * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.write(b"x" * len(memory))
address = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(memory)))
assert uhmm.uhmm_register(address, ctypes.c_size_t(len(memory))) == 0
assert uhmm.uhmm_migrate(address, ctypes.c_size_t(10 * 4096), 1, None) == 0
print(address.value, flush=True)
sys.stdin.readline()
assert uhmm.uhmm_shutdown() == 0
print("over", flush=True)
sys.stdin.readline()
"""


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
        for verb in ("doctor", "maps", "run", "conformance"):
            self.assertIn(verb, uhmm("--help").stdout)
        for arguments in ([], ["nonsense"], ["doctor", "--nonsense"], ["doctor", "more"], ["maps"], ["maps", "-1"],
                          ["maps", "0"], ["maps", "x"], ["maps", "1", "2"], ["maps", "99999999999"], ["run"], ["run", "--dmirror"],
                          ["run", "--nonsense", "--", "true"], ["conformance", "more"], ["conformance", "--source", "/nonexistent"]):
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

    def start_program(self, **more):
        program = subprocess.Popen([sys.executable, "-c", PROGRAM, LIBRARY], stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE, text=True, **more)
        self.addCleanup(program.communicate)
        self.addCleanup(program.kill)
        return program

    def refused(self, process, *words, **more):
        done = uhmm("maps", str(process), **more)
        self.assertEqual((done.returncode, done.stdout), (1, ""), done.stderr)
        for word in words:
            self.assertIn(word, done.stderr)

    def test_maps(self):
        program = self.start_program()
        address = int(program.stdout.readline())
        done = uhmm("maps", "--json", str(program.pid))
        self.assertEqual(done.returncode, 0, done.stderr)
        told = json.loads(done.stdout)
        self.assertEqual((told["process"], told["version"]), (program.pid, version()))
        self.assertEqual([device["current_bytes"] for device in told["devices"]], [10 * 4096])
        self.assertEqual(len(told["ranges"]), 1)
        memory = told["ranges"][0]
        self.assertEqual((memory["begin"], memory["end"]), (address, address + 16 * 4096))
        self.assertEqual((memory["pages"], memory["system_pages"], memory["device_pages"]), (16, 6, 10))
        table = uhmm("maps", str(program.pid))
        self.assertEqual(table.returncode, 0)
        self.assertRegex(table.stdout, rf"(?m)^0*{address:x}-\w+ +64 +24 +40 ")
        # Stopped: not there, as far as anybody can tell.
        program.send_signal(signal.SIGSTOP)
        self.refused(program.pid, "does not answer")
        program.send_signal(signal.SIGCONT)
        program.stdin.write("on\n")
        program.stdin.flush()
        self.assertEqual(program.stdout.readline(), "over\n")
        self.refused(program.pid, "no uhmm runtime")

    def test_maps_when_the_program_does_not_want_to(self):
        program = self.start_program(env={**os.environ, "UHMM_NO_REPORT": "1"})
        program.stdout.readline()
        self.refused(program.pid, "no uhmm runtime")

    def test_maps_of_other_programs(self):
        self.refused(os.getpid(), str(os.getpid()), "no uhmm runtime")
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as impostor:
            impostor.bind(f"\0uhmm-{os.getppid()}")
            impostor.listen()
            self.refused(os.getppid(), str(os.getpid()), "taken the place")

    @unittest.skipUnless(os.geteuid() == 0, "needs root, to give it up")
    def test_maps_for_other_users(self):
        program = self.start_program()
        program.stdout.readline()
        self.refused(program.pid, "does not answer this user", user=65534, group=65534, extra_groups=[])


if __name__ == "__main__":
    result = unittest.main(exit=False).result
    sys.exit(1 if not result.wasSuccessful() else 77 if result.skipped else 0)
