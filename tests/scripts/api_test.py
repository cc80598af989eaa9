#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Header, version map, exported symbols and man pages name the same calls."""
import os
import pathlib
import subprocess
import sys

root = pathlib.Path(__file__).resolve().parents[2]
build = pathlib.Path(os.environ.get("UHMM_BUILD_DIR", root / "build/dev"))
check = [sys.executable, str(root / "tools/scripts/check_api.py"), "--library", str(build / "libuhmm.so")]
sys.exit(subprocess.run(check).returncode)
