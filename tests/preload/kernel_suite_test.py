#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The kernel's own HMM tests, unmodified, by `uhmm conformance`: all of them pass on every rung, none is skipped, and without
uhmm none does. Skipped where the kernel's source is not installed, or where no huge page can be had for the tests that need one."""
import json
import os
import pathlib
import subprocess
import sys

UHMM = pathlib.Path(os.environ["UHMM_BUILD_DIR"]) / "tools" / "uhmm"
KINDS = ("private", "coherent")
RUNGS = ("auto", "user-mode", "signal")
NEED_HUGE_PAGES = ("compound", "anon_write_hugetlbfs")


def run_on(rung):
    """Problems, and whether tests were skipped; None: there is no source of the suite."""
    environment = {**os.environ, "UHMM_FAULTS": rung}
    done = subprocess.run([UHMM, "conformance", "--json"], capture_output=True, text=True, check=False, env=environment)
    if done.returncode == 2 and "linux-source" in done.stderr:
        print(done.stderr)
        return None, False
    if not done.stdout:
        return [done.stderr], False
    out = json.loads(done.stdout)
    problems = []
    for kind in KINDS:
        counts = out["uhmm"][kind]
        print(f"{rung}, {kind}: {counts}")
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
    return problems, skipped


def main():
    any_problem = any_skipped = False
    for rung in RUNGS:
        problems, skipped = run_on(rung)
        if problems is None:
            return 77
        for problem in problems:
            print(f"{rung}: {problem}")
        any_problem = any_problem or bool(problems)
        any_skipped = any_skipped or skipped
    if any_problem:
        return 1
    if any_skipped:
        print("no huge page can be had here: the tests that need one are not counted as passed")
        return 77
    return 0


sys.exit(main())
