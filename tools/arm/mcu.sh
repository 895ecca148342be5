#!/usr/bin/env bash
# Builds glimpse-mcu for a Cortex-M4F without an operating system, and prints the program's path.
#
# Usage: mcu.sh
# Where there is no toolchain it says why, and exits with 3.
set -euo pipefail
cd "$(dirname "$0")/../.."
tools/arm/cargo.sh thumbv7em build --quiet --profile board -p glimpse-mcu --bin glimpse-mcu ${JOBS:+-j "$JOBS"} >&2
echo "${XDG_CACHE_HOME:-$HOME/.cache}/glimpse/target-arm/thumbv7em-none-eabihf/board/glimpse-mcu"
