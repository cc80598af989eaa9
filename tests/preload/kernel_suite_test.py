#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The kernel's own HMM tests, unmodified, by `uhmm conformance`: all of them pass, none is skipped, and without uhmm none
does. Skipped where the kernel's source is not installed, or where no huge page can be had for the tests that need one."""
import json
import os
import pathlib
import subprocess
import sys

UHMM = pathlib.Path(os.environ["UHMM_BUILD_DIR"]) / "tools" / "uhmm"
KINDS = ("private", "coherent")
NEED_HUGE_PAGES = ("compound", "anon_write_hugetlbfs")


def main():
    done = subprocess.run([UHMM, "conformance", "--json"], capture_output=True, text=True, check=False)
    if done.returncode == 2 and "linux-source" in done.stderr:
        print(done.stderr)
        return 77
    if not done.stdout:
        print(done.stderr)
        return 1
    out = json.loads(done.stdout)
    problems = []
    for kind in KINDS:
        counts = out["uhmm"][kind]
        print(f"{kind}: {counts}")
        if counts["failed"] or counts["passed"] + counts["skipped"] != 29:
            problems.append(f"{kind}: {counts}, not 29 that pass")
        if out["control"][kind]["passed"]:
            problems.append(f"{kind}: the control run passes tests too")
    for test in out["uhmm"]["tests"]:
        if test["result"] == "failed":
            problems.append(f"{test['name']}: {test['why']}")
        if test["result"] == "skipped" and not test["name"].endswith(NEED_HUGE_PAGES):
            problems.append(f"{test['name']} was skipped: {test['why']}")
    skipped = any(test["result"] == "skipped" for test in out["uhmm"]["tests"])
    if skipped and out["huge_pages"]:
        problems.append("tests were skipped though there are huge pages")
    if (done.returncode == 0) == bool(problems or skipped):
        problems.append(f"the command says {done.returncode}")
    print("\n".join(problems))
    if problems:
        return 1
    if skipped:
        print("no huge page can be had here: the tests that need one are not counted as passed")
        return 77
    return 0


sys.exit(main())
