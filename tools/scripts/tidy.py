#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs clang-tidy over runtime/ and backends/, several files at a time. A file that passed is not looked at again until
it, a header, its compile command or .clang-tidy changes: stamps are in BUILD/tidy."""
import argparse
import concurrent.futures
import hashlib
import json
import os
import pathlib
import subprocess
import sys

ROOMS = ("runtime/", "backends/")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=pathlib.Path, required=True, help="folder with compile_commands.json")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--timeout", type=int, default=300, help="seconds for one file")
    options = parser.parse_args()
    root = pathlib.Path(__file__).resolve().parents[2]

    common = hashlib.sha256(subprocess.run(["clang-tidy", "--version"], check=True, capture_output=True).stdout)
    common.update((root / ".clang-tidy").read_bytes())
    headers = [file for top in ("include", "runtime", "backends") for file in (root / top).rglob("*.h*")]
    for header in sorted(headers):
        common.update(header.read_bytes())

    stamps = options.build / "tidy"
    stamps.mkdir(exist_ok=True)
    work = {}
    for entry in json.loads((options.build / "compile_commands.json").read_text()):
        file = pathlib.Path(entry["file"])
        path = file.relative_to(root).as_posix() if file.is_relative_to(root) else ""
        if path.startswith(ROOMS) and file.exists():
            key = common.copy()
            key.update(entry["command"].encode())
            key.update(file.read_bytes())
            work[path] = stamps / key.hexdigest()

    def look(path):
        command = ["clang-tidy", "-p", str(options.build), "--quiet", "--warnings-as-errors=*", str(root / path)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=options.timeout)
            return path, done.returncode == 0, done.stdout
        except subprocess.TimeoutExpired:
            return path, False, "took more than %d seconds\n" % options.timeout

    todo = sorted(path for path, stamp in work.items() if not stamp.exists())
    failures = 0
    with concurrent.futures.ThreadPoolExecutor(max(1, options.jobs)) as pool:
        for path, clean, output in pool.map(look, todo):
            if clean:
                work[path].touch()
            else:
                failures += 1
                print("clang-tidy: %s\n%s" % (path, output), flush=True)
    for stale in set(stamps.iterdir()) - set(work.values()):
        stale.unlink()
    print("clang-tidy: %d files, %d looked at, %d with problems" % (len(work), len(todo), failures))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
