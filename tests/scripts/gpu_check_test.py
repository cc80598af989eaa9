#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tools/scripts/gpu_check.py says what its programs said: passed, failed, skipped; in its status, summary and JSON."""
import json
import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(os.environ.get("UHMM_SOURCE_DIR", pathlib.Path(__file__).resolve().parents[2]))


def outcome(programs):
    """(status of the whole, verdict, {step: result}) for programs given as {name: (exit status, text)}."""
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        for name, (status, text) in programs.items():
            path = place / name
            path.write_text(f"#!/bin/sh\necho '{text}'\nexit {status}\n")
            path.chmod(0o755)
        command = [sys.executable, ROOT / "tools/scripts/gpu_check.py", "--programs", place, "--out", place / "out"]
        environment = {**os.environ, "PATH": "/usr/bin:/bin"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        report = json.loads((place / "out" / "gpu-check.json").read_text())
        summary = (place / "out" / "summary.txt").read_text()
        results = {one["step"]: one["result"] for one in report["steps"] if one["step"] in programs}
        for name, (_, text) in programs.items():
            assert (place / "out" / f"{name}.txt").read_text() == text + "\n", name
            assert name in summary and text in summary, summary
        return done.returncode, report["verdict"], results


CASES = [
    ({}, (77, "SKIP", {})),
    ({"cuda_ordinary_memory": (77, "no GPU")}, (77, "SKIP", {"cuda_ordinary_memory": "SKIP"})),
    ({"cuda_ordinary_memory": (0, "OK")}, (0, "PASS", {"cuda_ordinary_memory": "PASS"})),
    ({"cuda_ordinary_memory": (0, "OK"), "hip_ordinary_memory": (77, "no GPU")},
     (0, "PASS", {"cuda_ordinary_memory": "PASS", "hip_ordinary_memory": "SKIP"})),
    ({"cuda_ordinary_memory": (0, "OK"), "hip_ordinary_memory": (1, "WRONG")},
     (1, "FAIL", {"cuda_ordinary_memory": "PASS", "hip_ordinary_memory": "FAIL"})),
]


def main():
    failures = 0
    for programs, expected in CASES:
        got = outcome(programs)
        if got != expected:
            failures += 1
            print(f"{programs}: {got}, expected {expected}")
    print(f"{len(CASES)} cases, {failures} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
