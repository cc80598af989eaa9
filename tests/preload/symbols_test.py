#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What the preloaded libraries show to other libraries: the calls of uhmm.h and the functions of preload/symbols.hpp and
kernel_calls.hpp, which the linker's maps list once more; nothing else, nothing less. And nothing of them is left for the
loader to look up later: its tables are memory of the program's heap, which may be away when a thread of the runtime
needs them."""
import os
import pathlib
import re
import subprocess
import sys

SOURCE = pathlib.Path(os.environ["UHMM_SOURCE_DIR"])
BUILD = pathlib.Path(os.environ["UHMM_BUILD_DIR"]) / "preload"
# library: linker's map, lists
LIBRARIES = {"libuhmm_preload.so": ("preload.map", ("UHMM_INTERPOSED_LIST", "UHMM_INTERPOSED_MEMORY_LIST",
                                               "UHMM_RETRIED_CALL_LIST")),
             "libuhmm_malloc.so": ("malloc.map", ("UHMM_INTERPOSED_MEMORY_LIST", "UHMM_INTERPOSED_PROCESS_LIST",
                                               "UHMM_INTERPOSED_HEAP_LIST", "UHMM_INTERPOSED_OPERATOR_LIST"))}


def listed_in(name):
    text = "\n\n".join((SOURCE / "preload" / file).read_text() for file in ("symbols.hpp", "kernel_calls.hpp"))
    body = re.search(rf"#define {name}\(X\)(.*?)(?:\n\n|\Z)", text, flags=re.S).group(1)
    return set(re.findall(r"^  X\((\w+)[,)]", body, flags=re.M))


def check(library, map_file, lists, calls):
    listed = set().union(*map(listed_in, lists))
    mapped = set(re.findall(r"^    (\w+);", (SOURCE / "preload" / map_file).read_text(), flags=re.M))
    lines = subprocess.run(["nm", "-D", "--defined-only", BUILD / library], capture_output=True, text=True, check=True).stdout
    shown = {line.split()[-1].split("@")[0] for line in lines.splitlines()}
    problems = [f"{name} is in one of the lists and {map_file} only" for name in sorted(listed ^ mapped)]
    problems += [f"{library} does not show {name}" for name in sorted((listed | calls) - shown)]
    problems += [f"{library} shows {name}" for name in sorted(shown - listed - calls)]
    dynamic = subprocess.run(["readelf", "-dW", BUILD / library], capture_output=True, text=True, check=True).stdout
    problems += [] if "NOW" in dynamic else [f"{library} looks symbols up when it needs them"]
    print(f"{library}: {len(shown)} symbols, {len(problems)} problems")
    return problems + ([] if listed else [f"{library} has no list"])


def main():
    calls = set(re.findall(r"^    (uhmm_\w+);", (SOURCE / "runtime/api/uhmm.map").read_text(), flags=re.M))
    problems = [problem for library, (map_file, lists) in LIBRARIES.items() if (BUILD / library).exists()
                for problem in check(library, map_file, lists, calls)]
    print("\n".join(problems))
    return 1 if problems or not calls else 0


sys.exit(main())
