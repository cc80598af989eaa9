#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Documentation that can be compared with the tree is compared with it.

 - README.md shows samples/hello.cpp, word for word.
 - Every relative link in README.md, CONTRIBUTING.md and docs/*.md leads to a file of the tree.
 - docs/tuning.md names every UHMM_* environment variable that the runtime or its header names, and every field of
   uhmm_config; and none that does not exist.
 - docs/testing.md names every suite: each folder of tests/ with sources.
 - Every file of a backend that docs/backends.md names exists.
"""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]


def text(path):
    return (ROOT / path).read_text()


def settings():
    """({environment variables}, {fields of uhmm_config})"""
    header = text("include/uhmm/uhmm.h")
    struct = re.search(r"typedef struct uhmm_config \{(.*?)\} uhmm_config;", header, re.S).group(1)
    fields = set(re.findall(r"^\s*\w+ (\w+);", struct, re.M))
    variables = set(re.findall(r"\(env (UHMM_\w+)", header)) | set(re.findall(r"\((UHMM_[A-Z_]+)\) \*/", struct))
    for folder in ("runtime", "backends"):
        for path in (ROOT / folder).rglob("*.[ch]pp"):
            source = path.read_text()
            variables |= set(re.findall(r'getenv\("(UHMM_\w+)"\)', source))
            if path.parent.name == "api":
                variables |= {name for name in re.findall(r'"(UHMM_[A-Z_]+)"', source)}
    return {name.split("=")[0] for name in variables}, fields - {"size"}


def check_example(complain):
    sample = text("samples/hello.cpp").split("\n", 1)[1].strip()
    blocks = [block.strip() for block in re.findall(r"```cpp\n(.*?)```", text("README.md"), re.S)]
    if sample not in blocks:
        complain("README.md", "its example is not samples/hello.cpp")


def check_links(complain):
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
            if re.match(r"\w+:", target) or target.startswith("#"):
                continue
            if not (path.parent / target.split("#")[0]).exists():
                complain(path.name, f"links to {target}, which is absent")


def check_settings(complain):
    variables, fields = settings()
    if len(variables) < 8 or len(fields) < 9:
        complain("settings", "can't be read from the sources")
    tuning = text("docs/tuning.md")
    for name in sorted(variables | fields):
        if not re.search(rf"`{name}\b", tuning):
            complain("docs/tuning.md", f"lacks {name}")
    for name in sorted(set(re.findall(r"`(UHMM_[A-Z_]+)(?:=\w+)?`", tuning)) - variables):
        if name not in text("include/uhmm/uhmm.h"):
            complain("docs/tuning.md", f"names {name}, which does not exist")


def check_suites(complain):
    testing = text("docs/testing.md")
    for folder in sorted((ROOT / "tests").iterdir()):
        if folder.is_dir() and any(path.is_file() for path in folder.rglob("*")) and f"`{folder.name}/`" not in testing:
            complain("docs/testing.md", f"lacks the suite {folder.name}/")


def check_files(complain):
    for name in re.findall(r"`(\w+\.[ch]pp)`", text("docs/backends.md")):
        if not any((ROOT / "backends").glob("*/" + name)):
            complain("docs/backends.md", f"names {name}, which is in no backend")


def main():
    problems = []

    def complain(where, what):
        problems.append(f"{where}: {what}")

    for check in (check_example, check_links, check_settings, check_suites, check_files):
        check(complain)
    for problem in problems:
        print(problem)
    print(f"{len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
