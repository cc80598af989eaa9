#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs the benchmarks and prints their table: each row's floor and subject, measured in turn in one process, the ratio
of the two, and whether the target is reached. --write FILE puts the table, the command, the machine and the commit
between the markers of FILE (docs/benchmarks.md), with the ratios of the table that was there before beside the new ones.
--from FILE takes an earlier run's JSON instead of running.
Other arguments go to the program, for instance --benchmark_filter=fault."""
import argparse
import datetime
import json
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
BEGIN = "<!-- begin: ./dev bench --write -->"
END = "<!-- end -->"


def run(binary, repetitions, arguments):
    """Runs the program, says on stderr where it is, returns its JSON."""
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "out.json"
        command = [binary, f"--benchmark_out={out}", "--benchmark_out_format=json", "--benchmark_color=false",
                   f"--benchmark_repetitions={repetitions}", "--benchmark_report_aggregates_only=false", *arguments]
        names = [line.split("/iterations")[0] for line in
                 subprocess.run([*command, "--benchmark_list_tests"], text=True, stdout=subprocess.PIPE,
                                check=True).stdout.splitlines()]
        process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        done = 0
        for line in process.stdout:
            name = line.split("/iterations")[0]
            if name not in names or "_mean " in line or "_median " in line or "_stddev " in line or "_cv " in line:
                continue
            done += 1
            if sys.stderr.isatty():
                print(f"\r\033[K[{done}/{len(names) * repetitions}] {name}", end="", file=sys.stderr, flush=True)
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr)
        if process.wait() != 0:
            sys.exit(f"{binary} failed")
        return json.loads(out.read_text())


class Row:
    def __init__(self, name, runs):
        self.name = name
        self.error = next((run["error_message"] for run in runs if run.get("error_occurred")), None)
        runs = [run for run in runs if not run.get("error_occurred")]
        self.what, self.floor_text, self.unit = (runs[0]["label"].split("|") if runs else ("", "", ""))

        def middle(key):
            values = [run[key] for run in runs if key in run]
            return statistics.median(values) if values else None
        self.value, self.floor, self.ratio = middle("value"), middle("floor"), middle("ratio")
        self.target, self.at_least = middle("target"), middle("at_least")
        ratios = [run["ratio"] for run in runs if "ratio" in run]
        self.spread = (min(ratios), max(ratios)) if ratios else None

    def met(self):
        if self.error:
            return "error"
        if self.target is None:
            return ""
        good = self.ratio >= self.target if self.at_least else self.ratio <= self.target
        return "yes" if good else "**no**"

    def cells(self):
        if self.error:
            return [self.name, self.error, "", "", "", "", "", "error"]
        goal = "" if self.target is None else ("≥ " if self.at_least else "≤ ") + f"{self.target:g}"
        return [self.name, self.what, self.floor_text, figure(self.floor, self.unit), figure(self.value, self.unit),
                "" if self.ratio is None else f"{self.ratio:.3g} ({self.spread[0]:.3g} to {self.spread[1]:.3g})",
                goal, self.met()]


def figure(value, unit):
    return "" if value is None else f"{value:.3g} {unit}"


def rows_of(result):
    runs = {}
    for entry in result["benchmarks"]:
        if entry.get("run_type") == "iteration":
            runs.setdefault(entry["name"].split("/iterations")[0], []).append(entry)
    return [Row(name, entries) for name, entries in runs.items()]


def earlier(page):
    """The commit of the table in the page, and its rows' ratios."""
    found = re.search(r"commit (\w+)", page)
    ratios = {}
    header = []
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if "row" in cells:
            header = cells
        elif len(cells) == len(header) and header:
            ratio = cells[next(i for i, name in enumerate(header) if name.startswith("ratio"))]
            ratios[cells[0]] = ratio.split(" ")[0]
    return (found.group(1) if found else "?"), ratios


def table(rows, before=None):
    header = ["row", "what", "floor", "floor's figure", "figure", "ratio (over repetitions)", "target", "met"]
    lines = [header, ["---"] * len(header), *(row.cells() for row in rows)]
    if before:
        commit_before, ratios = before
        lines[0].insert(6, f"before ({commit_before})")
        lines[1].insert(6, "---")
        for line in lines[2:]:
            line.insert(6, ratios.get(line[0], ""))
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def machine():
    model = next((line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo", encoding="utf-8")
                  if line.startswith("model name")), platform.machine())
    memory = next((int(line.split()[1]) for line in open("/proc/meminfo", encoding="utf-8")
                   if line.startswith("MemTotal")), 0)
    return (f"{model}, {len(os.sched_getaffinity(0))} CPUs, {memory / 2**20:.0f} GiB memory, "
            f"Linux {platform.release()}")


def commit():
    def git(*arguments):
        return subprocess.run(["git", "-C", ROOT, *arguments], text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, check=False).stdout.strip()
    name = git("rev-parse", "--short", "HEAD") or "unknown"
    return name + (" with changes" if git("status", "--porcelain", "--untracked-files=no") else "")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", nargs="?", default=str(ROOT / "build/release/bench/uhmm_bench"))
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--write", type=pathlib.Path, metavar="FILE")
    parser.add_argument("--save", type=pathlib.Path, metavar="FILE", help="keep the run's JSON")
    parser.add_argument("--from", type=pathlib.Path, metavar="FILE", dest="source")
    options, rest = parser.parse_known_args()
    result = json.loads(options.source.read_text()) if options.source else run(options.binary, options.repetitions, rest)
    if options.save:
        options.save.write_text(json.dumps(result, indent=1))
    rows = rows_of(result)
    bytes_used = int(result["context"]["large_bytes"])
    loads = ", ".join(f"{load:.1f}" for load in result["context"]["load_avg"])
    about = "\n".join([
        f"- Command: `{' '.join(['./dev bench', *sys.argv[2:]])}`; {options.repetitions} repetitions, medians; "
        f"large rows work on {bytes_used / 2**30:g} GiB",
        f"- Machine: {machine()}; load average at the start {loads}",
        f"- Date: {datetime.datetime.now().astimezone().strftime('%Y-%m-%d %H:%M %Z')}; commit {commit()}",
    ])
    page = options.write.read_text() if options.write else ""
    text = about + "\n\n" + table(rows, earlier(page.split(BEGIN)[1].split(END)[0]) if page else None) + "\n"
    print(text)
    if options.write:
        before, rest_of_page = page.split(BEGIN)
        after = rest_of_page.split(END, 1)[1]
        options.write.write_text(f"{before}{BEGIN}\n{text}{END}{after}")
    missed = [row.name for row in rows if row.met() == "**no**"]
    failed = [row.name for row in rows if row.error]
    print(f"{len(rows)} rows; missed: {', '.join(missed) or 'none'}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
