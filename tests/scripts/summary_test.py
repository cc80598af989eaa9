#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The test runner's last line: what it counts, and that nothing that didn't run counts as passed."""
import pathlib
import subprocess
import sys
import tempfile

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "tools/scripts/test_summary.py"
JUNIT = """<?xml version="1.0" encoding="UTF-8"?>
<testsuite name="x" tests="6" failures="1" disabled="1" skipped="3">
<testcase name="a" classname="a" time="1" status="run"><system-out></system-out></testcase>
<testcase name="b" classname="b" time="1" status="fail"><failure message=""/></testcase>
<testcase name="c" classname="c" time="1" status="notrun"><skipped message="SKIP_RETURN_CODE=77"/></testcase>
<testcase name="d" classname="d" time="1" status="notrun"><skipped message="SKIP_REGULAR_EXPRESSION_MATCHED"/></testcase>
<testcase name="e" classname="e" time="1" status="disabled"><skipped message="Disabled"/></testcase>
<testcase name="f" classname="f" time="1" status="notrun"><skipped message="Unable to find executable"/></testcase>
</testsuite>
"""


def last_line(*arguments):
    done = subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True)
    return done.stdout.splitlines()[-1], done.returncode


def main():
    with tempfile.TemporaryDirectory() as folder:
        mixed, good = pathlib.Path(folder, "mixed.xml"), pathlib.Path(folder, "good.xml")
        mixed.write_text(JUNIT)
        good.write_text('<testsuite><testcase name="a" status="run"/></testsuite>')
        cases = [
            ([f"x={mixed}"], ("1 passed, 2 failed, 3 skipped", 1)),
            ([f"x={good}"], ("1 passed, 0 failed, 0 skipped", 0)),
            ([f"x={good}", f"y={good}", "lint=failed"], ("2 passed, 1 failed, 0 skipped", 1)),
            ([f"x={good}", f"y={folder}/none.xml"], ("1 passed, 1 failed, 0 skipped", 1)),
            ([], ("0 passed, 0 failed, 0 skipped", 1)),
        ]
        wrong = [(arguments, last_line(*arguments)) for arguments, wanted in cases if last_line(*arguments) != wanted]
    for case in wrong:
        print("wrong:", case)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
