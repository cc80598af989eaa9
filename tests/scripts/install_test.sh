#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs the build tree into a temporary prefix, moves it, and builds and runs programs of tests/install against it:
# C and C++ with find_package(uhmm), C with pkg-config.
set -euo pipefail
source_dir=${UHMM_SOURCE_DIR:-$(cd "$(dirname "$0")/../.." && pwd)}
build_dir=${UHMM_BUILD_DIR:-$source_dir/build/dev}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cmake --install "$build_dir" --prefix "$work/first" >/dev/null
mv "$work/first" "$work/prefix" # an installed tree has no absolute paths
prefix=$work/prefix
library=$(find "$prefix" -name libuhmm.so)
[ -n "$library" ] || { echo "libuhmm.so is not installed"; exit 1; }
library_dir=$(dirname "$library")

for file in include/uhmm/uhmm.h include/uhmm/uhmm.hpp include/uhmm/trace.h share/man/man3/uhmm_init.3; do
  [ -f "$prefix/$file" ] || { echo "$file is not installed"; exit 1; }
done
if grep -rIlF -e "$source_dir" -e "$build_dir" "$prefix"; then
  echo "the files above name the source or build tree"
  exit 1
fi

skipped=0
run() {
  local status=0
  LD_LIBRARY_PATH=$library_dir timeout 60 "$@" || status=$?
  case $status in
    0) ;;
    77) skipped=1 ;;
    *) echo "$1: exit status $status"; exit 1 ;;
  esac
}

for program in c cpp; do
  cmake -S "$source_dir/tests/install/$program" -B "$work/$program" -G Ninja -DCMAKE_BUILD_TYPE=Release \
    -DCMAKE_PREFIX_PATH="$prefix" >/dev/null
  cmake --build "$work/$program" >"$work/log" || { cat "$work/log"; exit 1; }
  run "$work/$program/foreign_$program"
done

mkdir "$work/pc"
PKG_CONFIG_PATH="$library_dir/pkgconfig" make -s -C "$work/pc" -f "$source_dir/tests/install/pkgconfig/Makefile" \
  VPATH="$source_dir/tests/install/c"
run "$work/pc/foreign_pc"

# Where it was built (not with sanitizers): the command finds the library it puts ahead of programs.
if [ -f "$build_dir/preload/libuhmm_preload.so" ]; then
  [ "$("$prefix/bin/uhmm" run --dmirror -- printenv LD_PRELOAD)" = "$library_dir/uhmm/libuhmm_preload.so" ] ||
    { echo "uhmm run does not find its library"; exit 1; }
fi

[ $skipped = 0 ] || { echo "built, but this machine doesn't let the runtime start: skipped"; exit 77; }
