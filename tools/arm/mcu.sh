#!/usr/bin/env bash
# What `make microcontroller` runs: glimpse-mcu for a Cortex-M4F without an operating system, and the emulator that has such a board.
#
# Usage: mcu.sh FOLDER
# Where there is no toolchain or no emulator it says why, and exits with 3.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=$1
emulator=$(tools/arm/qemu-system.sh) || { status=$?; echo "$emulator" >&2; exit "$status"; }
tools/arm/cargo.sh thumbv7em build --profile board -p glimpse-mcu --bin glimpse-mcu ${JOBS:+-j "$JOBS"} >&2
built="${XDG_CACHE_HOME:-$HOME/.cache}/glimpse/target-arm/thumbv7em-none-eabihf/board/glimpse-mcu"
mkdir -p "$out"
cp "$built" "$out/.glimpse-mcu.new"
mv "$out/.glimpse-mcu.new" "$out/glimpse-mcu"
printf '%6.1f MB  %s\n' "$(stat -c %s "$built" | awk '{ print $1 / 1e6 }')" "$out/glimpse-mcu"
