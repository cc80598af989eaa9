#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A setuid program runs on uhmm, and its caller's UHMM_* variables mean nothing to it."""
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

HELLO = pathlib.Path(os.environ["UHMM_BUILD_DIR"]) / "samples" / "hello"
NOBODY = 65534


def hello(program, user, **variables):
    return subprocess.run([program], capture_output=True, text=True, check=False, timeout=120, user=user,
                          env={"PATH": os.environ["PATH"], **variables})


class Setuid(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        os.chmod(folder.name, 0o755)
        if os.statvfs(folder.name).f_flag & os.ST_NOSUID:
            self.skipTest(f"{folder.name} is mounted nosuid")
        self.program = pathlib.Path(folder.name) / "hello"
        shutil.copy(HELLO, self.program)
        self.program.chmod(0o755)
        self.right = hello(self.program, 0)
        self.assertEqual(self.right.returncode, 0, self.right.stderr)

    def test_variables_count_without_setuid(self):
        done = hello(self.program, 0, UHMM_SERVICE_THREADS="nonsense")
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("UHMM_SERVICE_THREADS", done.stderr)

    def test_variables_are_ignored_with_setuid(self):
        self.program.chmod(0o4755)
        for variables in ({}, {"UHMM_SERVICE_THREADS": "nonsense"}, {"UHMM_LOG": "nonsense"}):
            done = hello(self.program, NOBODY, **variables)
            self.assertEqual((done.returncode, done.stdout), (0, self.right.stdout), done.stderr)


if __name__ == "__main__":
    if os.geteuid() != 0:
        print("needs root, to make a setuid program")
        sys.exit(77)
    result = unittest.main(exit=False).result
    sys.exit(1 if not result.wasSuccessful() else 77 if result.skipped else 0)
