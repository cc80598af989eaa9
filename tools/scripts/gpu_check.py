#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What a machine with a GPU says of this tree (`./dev gpu-check`). Runs what was built for it, one step after the other, and
writes summary.txt and gpu-check.json into a folder: PASS, FAIL or SKIP for each step, with its output beside it.

A step that ends with 0 has passed, with 77 it was skipped, with anything else it has failed. The whole ends with 0 when
nothing failed and something passed, with 77 when everything was skipped, else with 1."""
import argparse
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import time

SKIPPED = 77
STEP_SECONDS = 120


def steps(programs):
    """(name, command) of everything that there is to run."""
    found = []
    if shutil.which("nvidia-smi"):
        found.append(("nvidia-smi", ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv"]))
    if shutil.which("rocm-smi"):
        found.append(("rocm-smi", ["rocm-smi", "--showproductname", "--showdriverversion"]))
    doctor = programs / "uhmm"
    if doctor.exists():
        found.append(("uhmm doctor", [str(doctor), "doctor"]))
    for sample in sorted(programs.glob("*_ordinary_memory")):
        found.append((sample.name, [str(sample)]))
    cuda = programs / "cuda_ordinary_memory"
    if cuda.exists() and shutil.which("compute-sanitizer"):
        found.append(("compute-sanitizer", ["compute-sanitizer", "--error-exitcode", "1", str(cuda)]))
    return found


def run(name, command, environment, folder):
    started = time.monotonic()
    try:
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              errors="replace", timeout=STEP_SECONDS, check=False)
        status, output = done.returncode, done.stdout
    except subprocess.TimeoutExpired as expired:
        status, output = 124, (expired.stdout or b"").decode(errors="replace") + "\nstopped at its time limit\n"
    except OSError as error:
        status, output = 126, str(error) + "\n"
    (folder / (name.replace(" ", "-") + ".txt")).write_text(output)
    result = {0: "PASS", SKIPPED: "SKIP"}.get(status, "FAIL")
    last = output.strip().splitlines()[-1] if output.strip() else ""
    return {"step": name, "result": result, "status": status, "seconds": round(time.monotonic() - started, 2),
            "says": last[:200]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=pathlib.Path, required=True, help="folder with what was built, and its libraries")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder for the results")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ)
    libraries = [str(options.programs.resolve()), environment.get("LD_LIBRARY_PATH", "")]
    environment["LD_LIBRARY_PATH"] = ":".join(part for part in libraries if part)
    results = [run(name, command, environment, options.out) for name, command in steps(options.programs.resolve())]
    samples = [one for one in results if one["step"].endswith("_ordinary_memory")]
    failed = any(one["result"] == "FAIL" for one in results if one in samples or one["step"] == "compute-sanitizer")
    passed = any(one["result"] == "PASS" for one in samples)
    lines = ["%-4s  %-24s %7.2f s  %s" % (one["result"], one["step"], one["seconds"], one["says"]) for one in results]
    verdict = "FAIL" if failed else "PASS" if passed else "SKIP: no GPU was used"
    head = "gpu-check, Linux %s: %s" % (platform.release(), verdict)
    text = "\n".join([head] + lines) + "\n"
    (options.out / "summary.txt").write_text(text)
    (options.out / "gpu-check.json").write_text(
        json.dumps({"kernel": platform.release(), "verdict": verdict.split(":")[0], "steps": results}, indent=2) + "\n")
    print(text, end="")
    return 1 if failed else 0 if passed else SKIPPED


if __name__ == "__main__":
    sys.exit(main())
