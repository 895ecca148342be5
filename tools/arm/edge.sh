#!/usr/bin/env bash
# What `make edge-arm` runs: glimpse-edge for aarch64 and armv7, stripped, and a Debian package of each.
#
# Usage: edge.sh FOLDER [TARGET..]
# Where there is no toolchain it says why, and exits with 3.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=$1
shift
[ $# -gt 0 ] || set -- aarch64 armv7
cargo=${CARGO:-cargo} python=${PYTHON:-python3}
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The text of the configuration is the program's that writes configurations.
"$cargo" run --quiet --release -p glimpse-firmware -- init "$work/device.toml" --server gallery.local:1883 \
    --camera folder:/var/lib/glimpse-edge/photos --bundle space --outbox /var/lib/glimpse-edge/outbox >&2
# Outside git, as in a tarball of the sources, it has the time that the user says, or none.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}
export SOURCE_DATE_EPOCH

for target; do
    tools/arm/cargo.sh "$target" build --profile board -p glimpse-edge --bin glimpse-edge ${JOBS:+-j "$JOBS"} >&2
    case $target in
    aarch64) triple=aarch64-unknown-linux-gnu ;;
    armv7) triple=armv7-unknown-linux-gnueabihf ;;
    esac
    built="${XDG_CACHE_HOME:-$HOME/.cache}/glimpse/target-arm/$triple/board/glimpse-edge"
    cp "$built" "$out/.glimpse-edge-$target.new"
    mv "$out/.glimpse-edge-$target.new" "$out/glimpse-edge-$target"
    "$cargo" tree --quiet -p glimpse-edge --target "$triple" --edges normal --prefix none --format '{p}: {l}' |
        sed 's/ (proc-macro)//; s/ (\/[^)]*)//; s/ (\*)$//' | sort -u >"$work/crates"
    package=$("$python" tools/arm/package.py "$out/glimpse-edge-$target" --configuration "$work/device.toml" --crates "$work/crates" \
        --out "$out")
    for file in "$out/glimpse-edge-$target" "$package"; do printf '%6.1f MB  %s\n' "$(stat -c %s "$file" | awk '{ print $1 / 1e6 }')" "$file"; done
done
