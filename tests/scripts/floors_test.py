#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The floor check catches every kind of violation (its self-test), and this tree has none."""
import pathlib
import subprocess
import sys

script = pathlib.Path(__file__).resolve().parents[2] / "tools/scripts/check_floors.py"
for arguments in (["--self-test"], []):
    if subprocess.run([sys.executable, str(script)] + arguments).returncode != 0:
        sys.exit(1)
