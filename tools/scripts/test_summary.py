#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Sums the JUnit files that `ctest --output-junit` wrote. Arguments: NAME=FILE for a ctest run, NAME=failed for a step
outside ctest that failed (a build, the lint): it counts as one failure. A run without a readable file is one failure
too. The last line printed is "N passed, N failed, N skipped"; the exit status is 1 if anything failed or nothing
passed."""
import pathlib
import sys
import xml.etree.ElementTree as xml


def read(file):
    """Names of the tests that passed, failed, were skipped."""
    passed, failed, skipped = [], [], []
    for case in xml.parse(file).getroot().iter("testcase"):
        if case.find("failure") is not None or case.get("status") == "fail":
            failed.append(case.get("name"))
        elif case.find("skipped") is not None or case.get("status") != "run":
            reason = case.find("skipped")
            # A test that could not be started is not one that decided to skip.
            could_not_run = reason is None or reason.get("message") in ("", "Unable to find executable", None)
            disabled = case.get("status") == "disabled"
            (failed if could_not_run and not disabled else skipped).append(case.get("name"))
        else:
            passed.append(case.get("name"))
    return passed, failed, skipped


def main(runs):
    total = [0, 0, 0]
    for run in runs:
        name, _, file = run.partition("=")
        if file == "failed":
            print("%-12s failed" % name)
            total[1] += 1
            continue
        try:
            results = read(pathlib.Path(file))
        except (OSError, xml.ParseError) as problem:
            print("%-12s has no results: %s" % (name, problem))
            total[1] += 1
            continue
        print("%-12s %d passed, %d failed, %d skipped" % (name, *map(len, results)))
        for test in results[1]:
            print("  failed:  " + test)
        for test in results[2]:
            print("  skipped: " + test)
        for i, tests in enumerate(results):
            total[i] += len(tests)
    print("%d passed, %d failed, %d skipped" % tuple(total))
    return 1 if total[1] or not total[0] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
