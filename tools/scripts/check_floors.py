#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The house has floors; a file may include files of its own room and of rooms on lower floors, never of another room
on the same floor or of a higher one. The public headers lie under everything: every room may include them, they
include only each other. Further rules:
  - <linux/...> and liburing only in runtime/os, the seam to Linux. (bench/ and tests/ may: they measure and probe the
    kernel by themselves.)
  - headers of GPU drivers (cuda.h, hip/...) only in backends/vmm. (tests/ and samples/ may: they double and use them.)
  - a concrete backend (backends/...) is named only by itself and by runtime/api. (bench/ and tests/ may: a suite has an
    instantiation per backend.)
  - runtime/state and runtime/policy are pure: they don't include runtime/os. Only runtime/engine joins state and OS.
  - samples/ use the public headers only, as a user does.
  - a source file has at most 600 lines.
Prints every offender as file:line. --self-test builds trees that break each rule and checks that each is caught."""
import argparse
import pathlib
import re
import sys
import tempfile

PUBLIC = "include/uhmm"
FLOORS = {
    PUBLIC: 0,
    "runtime/base": 0,
    "runtime/os": 1,
    "runtime/backend": 1,
    "runtime/trace": 1,
    "runtime/state": 2,
    "backends/*": 2,  # each backend is a room of its own
    "runtime/policy": 3,
    "runtime/engine": 4,
    "runtime/api": 5,
    "runtime/alloc": 6,
    "preload": 7,
    "tools": 7,
    "bench": 8,
    "samples": 8,
    "tests": 8,
}
TOP = 8
MOST_LINES = 600
SUFFIXES = {".h", ".hpp", ".c", ".cpp"}
VENDOR_HEADERS = ("cuda", "nv", "hip/", "hsa/")
FOREIGN = ("tests/install/",)  # programs of somebody else: they see the installed headers only
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')


def room_of(path):
    """The room of a path relative to the root, or None."""
    parts = path.split("/")
    if parts[0] == "backends" and len(parts) > 2:
        return "/".join(parts[:2])
    for room in FLOORS:
        if path.startswith(room + "/"):
            return room
    return None


def floor_of(room):
    return FLOORS["backends/*" if room.startswith("backends/") else room]


def resolve(root, file, name):
    """Path of an included file relative to the root, or None when it isn't in the tree."""
    for base in (file.parent, root, root / "include"):
        target = (base / name).resolve()
        if target.is_file() and target.is_relative_to(root):
            return target.relative_to(root).as_posix()
    return None


def include_problem(root, file, bracket, name):
    room = room_of(file.relative_to(root).as_posix())
    top = floor_of(room) == TOP
    if name.startswith("linux/") or name == "liburing.h":
        if room != "runtime/os" and not (top and room != "samples"):
            return "<%s> belongs to runtime/os alone" % name
        return None
    if name.startswith(VENDOR_HEADERS):
        if room != "backends/vmm" and room not in ("tests", "samples"):
            return "<%s> belongs to backends/vmm alone" % name
        return None
    if bracket == "<" and not name.startswith("uhmm/"):
        return None
    target = resolve(root, file, name)
    if target is None:
        return '"%s" is not in the tree' % name
    other = room_of(target)
    if other is None:
        return '"%s" lies in no room of the house' % name
    if other in (room, PUBLIC):
        return None
    if room == "samples":
        return '"%s": samples use the public headers only' % name
    if floor_of(other) >= floor_of(room):
        return '"%s": %s (floor %d) may not include %s (floor %d)' % (name, room, floor_of(room), other, floor_of(other))
    if other.startswith("backends/") and room != "runtime/api" and not top:
        return '"%s": only runtime/api names a concrete backend' % name
    if room in ("runtime/state", "runtime/policy") and other == "runtime/os":
        return '"%s": %s makes no system calls' % (name, room)
    if room == PUBLIC:
        return '"%s": public headers include only each other' % name
    return None


def check(root):
    root = root.resolve()
    problems = []
    files = 0
    for top in sorted({room.split("/")[0] for room in FLOORS}):
        for file in sorted((root / top).rglob("*")):
            path = file.relative_to(root).as_posix()
            if file.suffix not in SUFFIXES or path.startswith(FOREIGN):
                continue
            files += 1
            if room_of(path) is None:
                problems.append("%s: lies in no room of the house" % path)
                continue
            lines = file.read_text(errors="replace").splitlines()
            if len(lines) > MOST_LINES:
                problems.append("%s: %d lines; %d are the most" % (path, len(lines), MOST_LINES))
            for number, line in enumerate(lines, 1):
                match = INCLUDE.match(line)
                problem = match and include_problem(root, file, *match.groups())
                if problem:
                    problems.append("%s:%d: %s" % (path, number, problem))
    return files, problems


def self_test():
    good = {
        "include/uhmm/uhmm.h": "",
        "include/uhmm/uhmm.hpp": '#include "uhmm/uhmm.h"\n',
        "runtime/base/a.hpp": '#include "uhmm/uhmm.h"\n#include <vector>\n',
        "runtime/os/a.hpp": '#include <linux/userfaultfd.h>\n#include <liburing.h>\n#include "runtime/base/a.hpp"\n',
        "runtime/backend/a.hpp": '#include "runtime/base/a.hpp"\n',
        "runtime/state/a.hpp": '#include "runtime/backend/a.hpp"\n',
        "runtime/policy/a.hpp": '#include "runtime/state/a.hpp"\n',
        "runtime/engine/a.hpp": '#include "runtime/state/a.hpp"\n#include "runtime/os/a.hpp"\n',
        "backends/soft/a.hpp": '#include "runtime/os/a.hpp"\n#include "runtime/backend/a.hpp"\n',
        "backends/vmm/a.hpp": "#include <cuda.h>\n#include <hip/hip_runtime_api.h>\n",
        "runtime/api/a.cpp": '#include "backends/soft/a.hpp"\n#include "runtime/engine/a.hpp"\n',
        "tests/conformance/a_test.cpp": '#include "backends/soft/a.hpp"\n#include <linux/userfaultfd.h>\n',
        "samples/a.cpp": "#include <uhmm/uhmm.hpp>\n",
    }
    bad = [
        ("runtime/base/b.hpp", '#include "runtime/os/a.hpp"\n', "floor 0"),
        ("runtime/state/b.hpp", '\n#include "runtime/engine/a.hpp"\n', "b.hpp:2"),
        ("runtime/state/b.hpp", '#include "runtime/os/a.hpp"\n', "no system calls"),
        ("runtime/policy/b.hpp", '#  include "../os/a.hpp"\n', "no system calls"),
        ("runtime/backend/b.hpp", '#include "runtime/os/a.hpp"\n', "floor 1"),
        ("runtime/engine/b.cpp", '#include "backends/soft/a.hpp"\n', "names a concrete backend"),
        ("runtime/engine/b.cpp", "#include <linux/userfaultfd.h>\n", "runtime/os alone"),
        ("runtime/base/b.cpp", "#include <liburing.h>\n", "runtime/os alone"),
        ("backends/soft/b.cpp", "#include <linux/memfd.h>\n", "runtime/os alone"),
        ("backends/soft/b.cpp", "#include <cuda.h>\n", "backends/vmm alone"),
        ("runtime/api/b.cpp", "#include <hip/hip_runtime_api.h>\n", "backends/vmm alone"),
        ("backends/soft/b.cpp", '#include "backends/vmm/a.hpp"\n', "floor 2"),
        ("backends/soft/b.cpp", '#include "runtime/state/a.hpp"\n', "floor 2"),
        ("include/uhmm/b.hpp", '#include "runtime/base/a.hpp"\n', "floor 0"),
        ("samples/b.cpp", '#include "runtime/base/a.hpp"\n', "public headers only"),
        ("samples/b.cpp", "#include <linux/userfaultfd.h>\n", "runtime/os alone"),
        ("bench/b.cpp", '#include "samples/a.cpp"\n', "floor 8"),
        ("runtime/base/b.cpp", '#include "runtime/base/nowhere.hpp"\n', "not in the tree"),
        ("runtime/attic/b.cpp", "", "no room"),
        ("runtime/base/b.cpp", "\n" * (MOST_LINES + 1), "lines"),
    ]
    failures = 0
    for name, text, expected in [(None, None, None)] + bad:
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            for path, content in list(good.items()) + ([(name, text)] if name else []):
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                (root / path).write_text(content)
            problems = check(root)[1]
        caught = len(problems) == 1 and expected in problems[0] and problems[0].startswith(name) if name else not problems
        if not caught:
            failures += 1
            print("check_floors: self-test: %s with %r gave %s" % (name or "the good tree", text, problems))
    print("check_floors: self-test: %d trees, %d failures" % (len(bad) + 1, failures))
    return failures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parents[2])
    parser.add_argument("--self-test", action="store_true")
    options = parser.parse_args()
    if options.self_test:
        return 1 if self_test() else 0
    files, problems = check(options.root)
    for problem in problems:
        print("check_floors: " + problem)
    print("check_floors: %d files, %d problems" % (files, len(problems)))
    return 1 if problems or files == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
