#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What the preloaded library shows to other libraries: the calls of uhmm.h and the functions of preload/symbols.hpp and kernel_calls.hpp, which
preload.map lists once more for the linker; nothing else, nothing less."""
import os
import pathlib
import re
import subprocess
import sys

SOURCE = pathlib.Path(os.environ["UHMM_SOURCE_DIR"])
LIBRARY = pathlib.Path(os.environ["UHMM_BUILD_DIR"]) / "preload" / "libuhmm_preload.so"


def main():
    lists = [(SOURCE / "preload" / name).read_text() for name in ("symbols.hpp", "kernel_calls.hpp")]
    listed = {name for text in lists for name in re.findall(r"^  X\((\w+)[,)]", text, flags=re.M)}
    calls = set(re.findall(r"^    (uhmm_\w+);", (SOURCE / "runtime/api/uhmm.map").read_text(), flags=re.M))
    mapped = set(re.findall(r"^    (\w+);", (SOURCE / "preload/preload.map").read_text(), flags=re.M))
    lines = subprocess.run(["nm", "-D", "--defined-only", LIBRARY], capture_output=True, text=True, check=True).stdout
    shown = {line.split()[-1].split("@")[0] for line in lines.splitlines()}
    problems = [f"{name} is in one of the lists and preload.map only" for name in sorted(listed ^ mapped)]
    problems += [f"{name} is not shown" for name in sorted((listed | calls) - shown)]
    problems += [f"{name} is shown" for name in sorted(shown - listed - calls)]
    print("\n".join(problems) or f"{len(shown)} symbols, 0 problems")
    return 1 if problems or not listed or not calls else 0


sys.exit(main())
