#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Breaks the program on purpose, one promise at a time, and looks whether a test fails: a test that can't fail shows
nothing. tests/mutations.json says for each promise what to replace in which file and which tests have to notice.
The tree is copied to build/mutate first; the working tree is left alone. Arguments: parts of promises' names, to run
only those. The exit status is 1 unless every mutation is noticed and the same tests pass without any."""
import json
import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
TREE = ROOT / "build" / "mutate" / "tree"
BUILD = TREE / "build" / "dev"
SECONDS = 60


def copy_tree():
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True,
                            text=True).stdout.split("\n")
    for name in filter(None, listed):
        source, target = ROOT / name, TREE / name
        if not source.is_file() or (target.exists() and target.read_bytes() == source.read_bytes()):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)


# Programs that are run by `uhmm run --dmirror`, and what the environment has for their first word.
PROGRAMS = {
    "memory_calls": {},
    "system_calls": {"user-mode": ["UHMM_FAULTS=user-mode"], "signal": ["UHMM_FAULTS=signal"]},
    "map_matrix": {"copy": ["UHMM_NO_MOVE=1"], "coherent": ["UHMM_SOFT_KIND=coherent"],
                   "user-mode": ["UHMM_FAULTS=user-mode"]},
}


def command_of(entry):
    if entry["test"] in PROGRAMS:
        settings = PROGRAMS[entry["test"]].get(entry["filter"], [])
        name = f"uhmm_{entry['test']}"
        return (["env", *settings, BUILD / "tools/uhmm", "run", "--dmirror", "--", BUILD / "tests" / name,
                 entry["filter"]], ["uhmm_command", "uhmm_preload", name])
    program = f"uhmm_{entry['test']}_tests"
    return [BUILD / "tests" / program, f"--gtest_filter={entry['filter']}"], [program]


def build(targets):
    # What a mutation leaves unused is not what is looked for.
    done = subprocess.run(["cmake", "--build", BUILD, "--target", *targets], capture_output=True, text=True)
    return done.returncode == 0, done.stdout


def running_in(output, command):
    running = [line for line in output.split("\n") if line.startswith("[ RUN      ]")]
    return running[-1].split("]")[1].strip() if running else pathlib.Path(command[-2]).name


def run(command):
    """None when it passes, else what noticed it."""
    environment = {**os.environ, "UHMM_STRESS_SECONDS": "10"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=environment)
    except subprocess.TimeoutExpired as endless:
        return f"{running_in((endless.stdout or b'').decode(errors='replace'), command)} (it never ended)"
    if done.returncode == 0:
        if "[  SKIPPED ]" in done.stdout and "[       OK ]" not in done.stdout:
            raise SystemExit(f"skipped here, which shows nothing: {command}")
        return None
    for line in done.stdout.split("\n"):
        if line.startswith("[  FAILED  ]"):
            return line.split("]")[1].split("(")[0].split(", where")[0].strip()
    return f"{running_in(done.stdout, command)} (exit status {done.returncode})"


def main(names):
    entries = [entry for entry in json.loads((ROOT / "tests" / "mutations.json").read_text())
               if not names or any(name in entry["line"] for name in names)]
    copy_tree()
    subprocess.run(["cmake", "--preset", "dev", "-DCMAKE_COMPILE_WARNING_AS_ERROR=OFF", "-DUHMM_BUILD_BENCH=OFF"],
                   cwd=TREE, check=True, stdout=subprocess.DEVNULL)
    good = True
    for entry in entries:
        command, targets = command_of(entry)
        file = TREE / entry["file"]
        text = file.read_text()
        if text.count(entry["old"]) != 1:
            print(f"{entry['line']}: what to replace is not there once in {entry['file']}")
            good = False
            continue
        try:
            file.write_text(text.replace(entry["old"], entry["new"]))
            built, output = build(targets)
            noticed = run(command) if built else None
        finally:
            file.write_text(text)
        if not built:
            print(output[-3000:])
        good = good and noticed is not None
        print(f"{entry['line']}\n  broken: {entry['broken']}\n  noticed by: {noticed or 'NOTHING'}", flush=True)
    targets = sorted({target for entry in entries for target in command_of(entry)[1]})
    built, output = build(targets)
    for command in {tuple(command_of(entry)[0]) for entry in entries} if built else ():
        if failed := run(list(command)):
            print(f"without any mutation {failed} fails")
            good = False
    print(f"{len(entries)} mutations: {'all noticed' if good and built else 'NOT all noticed'}")
    return 0 if good and built else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
