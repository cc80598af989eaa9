#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes docs/locking.md from runtime/base/lock_list.hpp. --check compares instead of writing."""
import argparse
import pathlib
import re
import sys

ENTRY = re.compile(r'X\(\s*(\w+)\s*,\s*(\d+)\s*,\s*"([^"]*)"\s*,\s*"([^"]*)"\s*\)')

HEAD = """\
<!-- Generated from runtime/base/lock_list.hpp by tools/scripts/locking_doc.py; `./dev format` rewrites it. -->
# Locks

Every lock of the runtime has a rank. A thread may take a lock only if its rank is greater than that of every lock it
holds, so no two threads can wait for each other. Builds with `UHMM_CHECKS` (dev, asan, tsan) stop at the first lock
taken out of order. While a lock is held, nothing of the user's is called and no managed memory is touched: a fault
there would need the locks that its service takes.

Outermost first:

| Rank | Lock | Protects | May be held across |
|---:|---|---|---|
"""


def text(root):
    source = (root / "runtime/base/lock_list.hpp").read_text().replace("\\\n", "\n")
    entries = ENTRY.findall(source)
    if not entries or len(entries) != len(re.findall(r"^\s+X\(", source, re.MULTILINE)):
        raise SystemExit("locking_doc: can't read every entry of runtime/base/lock_list.hpp")
    ranks = [int(rank) for _, rank, _, _ in entries]
    if ranks != sorted(set(ranks)):
        raise SystemExit("locking_doc: ranks must be different and ascending")
    return HEAD + "".join("| %s | `%s` | %s | %s |\n" % (rank, name, protects, across)
                          for name, rank, protects, across in entries)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parents[2])
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    page = options.root / "docs/locking.md"
    wanted = text(options.root)
    same = page.exists() and page.read_text() == wanted
    if options.check:
        print("locking_doc: docs/locking.md " + ("is current" if same else "differs; `./dev format` rewrites it"))
        return 0 if same else 1
    if not same:
        page.parent.mkdir(exist_ok=True)
        page.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
