#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Every public call has a man page that agrees with the header, and every page is clean roff.

Checked for each function declared in uhmm.h and trace.h: docs/man/<function>.3 exists (a page of its own, or `.so` of
the page it shares), names it in NAME, shows its exact prototype in SYNOPSIS, has the usual sections, and lists each
status that the header's comment lists under "Errors". Pages of calls that do not exist are errors too.
groff, where it is installed, must format each page without a warning.
"""
import pathlib
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
MAN = ROOT / "docs" / "man"
SECTIONS = ["NAME", "LIBRARY", "SYNOPSIS", "DESCRIPTION", "RETURN VALUE", "ERRORS", "ATTRIBUTES", "SEE ALSO"]
PROTOTYPE = re.compile(
    r"^(?:UHMM_API )?((?:const )?\w+\*? )(uhmm_\w+)\(([^;]*?)\)\s*(?:__attribute__\(\(.*?\)\))?;", re.M | re.S)


def squeeze(text):
    """A prototype without the spaces that carry no meaning."""
    return re.sub(r"\s+", " ", re.sub(r"\s*([*(),;])\s*", r"\1", text)).strip()


def declarations(header):
    """{function: (prototype, comment)}; a comment covers the run of prototypes that follows it."""
    found = {}
    comment = ""
    for part in re.split(r"(/\*.*?\*/)", header, flags=re.S):
        if part.startswith("/*"):
            comment = re.sub(r"\n\s*\*? ?", " ", part[2:-2])
            continue
        for match in PROTOTYPE.finditer(part):
            if not match.group(0).startswith("typedef"):
                found[match.group(2)] = (squeeze(f"{match.group(1)}{match.group(2)}({match.group(3)});"), comment)
    return found


def documented_errors(name, calls, seen=()):
    """Statuses after "Errors:" in the header comment of `name`, with "as uhmm_other" followed."""
    comment = calls[name][1]
    known = set(re.findall(r"X\(UHMM_(ERR_\w+),", HEADER))
    match = re.search(r"Errors(?: here)?:(.*)", comment, re.S)
    if not match:
        return set()
    text = match.group(1)
    errors = {f"UHMM_ERR_{word}" for word in re.findall(r"\b[A-Z][A-Z_]+\b", text) if f"ERR_{word}" in known}
    for other in re.findall(r"[Aa]s (uhmm_\w+)", text):
        if other in calls and other not in seen:
            errors |= documented_errors(other, calls, (*seen, name))
    return errors


def without_fonts(roff):
    return re.sub(r"\\f[BIRP]", "", roff)


def sections(page):
    parts = re.split(r"^\.SH (.*)$", without_fonts(page), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2]))


def plain(roff):
    """Text of a SYNOPSIS: macros and fonts away."""
    lines = []
    for line in roff.splitlines():
        if line.startswith((".BI ", ".BR ", ".B ")):
            line = line.split(" ", 1)[1]
            # In alternating macros a quoted piece keeps its spaces, pieces are joined without any.
            line = "".join(a or b for a, b in re.findall(r'"([^"]*)"|(\S+)', line)) if '"' in line else line
        elif line.startswith("."):
            continue
        lines.append(line)
    return squeeze(" ".join(lines))


def check_call(name, calls, complain):
    path = MAN / f"{name}.3"
    if not path.exists():
        complain(name, "has no page")
        return
    page = path.read_text()
    link = re.fullmatch(r"\.so man3/(\w+\.3)\n", page)
    if link:
        target = MAN / link.group(1)
        if not target.exists():
            complain(name, f"links to {link.group(1)}, which is absent")
            return
        page = target.read_text()
    parts = sections(page)
    for missing in [s for s in SECTIONS if s not in parts]:
        complain(name, f"has no section {missing}")
        return
    if not re.search(rf"\b{name}\b", parts["NAME"]):
        complain(name, "is not in NAME")
    if calls[name][0] not in plain(parts["SYNOPSIS"]):
        complain(name, f"SYNOPSIS lacks '{calls[name][0]}'")
    if not re.search(rf"\b{name}\b", parts["ATTRIBUTES"]):
        complain(name, "is not in ATTRIBUTES")
    for status in sorted(documented_errors(name, calls)):
        if not re.search(rf"\b{status}\b", parts["ERRORS"]):
            complain(name, f"ERRORS lacks {status}")


def check_references(path, pages, complain):
    for name, section in re.findall(r"\b(uhmm\w*) ?\((\d)\)", without_fonts(path.read_text())):
        if f"{name}.{section}" not in pages:
            complain(path.name, f"refers to {name}({section}), which is absent")


def check_roff(path, complain):
    run = subprocess.run(["groff", "-man", "-t", "-Tutf8", "-ww", "-z", str(path)], capture_output=True, text=True,
                         cwd=MAN, check=False)
    if run.returncode != 0 or run.stderr:
        complain(path.name, run.stderr.strip() or f"groff ended with {run.returncode}")


HEADER = "".join((ROOT / "include" / "uhmm" / name).read_text() for name in ("uhmm.h", "trace.h"))


def main():
    problems = []

    def complain(where, what):
        problems.append(f"{where}: {what}")

    calls = declarations(HEADER)
    if len(calls) < 40:  # a header that this script can't read must not pass
        complain("uhmm.h", f"only {len(calls)} declarations found")
    for name in sorted(calls):
        check_call(name, calls, complain)
    pages = {path.name for path in MAN.iterdir()}
    for name in sorted(pages):
        if name.endswith(".3") and name[:-2] not in calls:
            complain(name, "is the page of no declared call")
        if not (MAN / name).read_text().startswith(".so "):
            check_references(MAN / name, pages, complain)
    if "uhmm.7" not in pages:
        complain("uhmm.7", "is absent")
    if shutil.which("groff"):
        for name in sorted(pages):
            if not (MAN / name).read_text().startswith(".so "):
                check_roff(MAN / name, complain)
    else:
        print("groff is not installed: formatting not checked")
    for problem in problems:
        print(problem)
    print(f"{len(calls)} calls, {len(pages)} pages, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
