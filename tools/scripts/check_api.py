#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The exported interface has one source, the declarations in include/uhmm/*.h. Compares with them
  - the version map runtime/api/uhmm.map
  - the dynamic symbols of libuhmm.so, if --library is given
  - the man pages in docs/man: a page, or an alias, for each call
--write rewrites the map instead. A released version's node keeps its symbols; new ones go to a new node: while 0.1 is
not released, everything is in UHMM_0.1."""
import argparse
import pathlib
import re
import subprocess
import sys

NODE = "UHMM_0.1"


def declared(root):
    names = []
    for header in sorted((root / "include/uhmm").glob("*.h")):
        text = re.sub(r"/\*.*?\*/", " ", header.read_text(), flags=re.S)
        text = re.sub(r"^\s*#.*(?:\\\n.*)*$", "", text, flags=re.M)
        for statement in text.split(";"):
            if "UHMM_API" in statement or 'visibility("default")' in statement:
                found = re.search(r"\b(uhmm_\w+)\s*\(", statement)
                if found:
                    names.append(found.group(1))
    return sorted(set(names))


def map_text(names):
    lines = ["/* Generated from include/uhmm/*.h by tools/scripts/check_api.py --write. */", NODE + " {", "  global:"]
    lines += ["    %s;" % name for name in names]
    lines += ["  local:", "    *;", "};", ""]
    return "\n".join(lines)


def exported(library):
    output = subprocess.run(["nm", "-D", "--defined-only", str(library)], check=True, capture_output=True, text=True)
    symbols = {}
    for line in output.stdout.splitlines():
        kind, name = line.split()[-2:]
        base, _, version = name.partition("@")
        if kind != "A":  # the version node itself
            symbols[base] = version.lstrip("@")
    return symbols


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parents[2])
    parser.add_argument("--library", type=pathlib.Path)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    root = options.root
    names = declared(root)
    map_file = root / "runtime/api/uhmm.map"
    if options.write:
        if not map_file.exists() or map_file.read_text() != map_text(names):
            map_file.write_text(map_text(names))
        return 0

    problems = []
    if map_file.read_text() != map_text(names):
        problems.append("%s differs from the headers; `./dev format` rewrites it" % map_file.relative_to(root))
    for name in names:
        if not (root / "docs/man" / (name + ".3")).exists():
            problems.append("%s has no man page docs/man/%s.3" % (name, name))
    if options.library:
        symbols = exported(options.library)
        problems += ["%s is declared but not exported" % name for name in names if name not in symbols]
        for name, version in sorted(symbols.items()):
            if name not in names:
                problems.append("%s is exported but not declared in a header" % name)
            elif version != NODE:
                problems.append("%s has version '%s', not %s" % (name, version, NODE))
    for problem in problems:
        print("check_api: " + problem)
    print("check_api: %d calls, %d problems" % (len(names), len(problems)))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
