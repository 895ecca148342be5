#!/usr/bin/env bash
# Runs every fuzz target of the workspace for so many seconds each, one after the other, from the seeds beside it and from what
# earlier runs found. The first finding ends it, with the input that shows it.
#
# Usage: fuzz.sh SECONDS [CRATE:TARGET..]
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=$1
shift
targets=("$@")
[ $# -gt 0 ] || targets=(
    quantizer:codebook protocol:{messages,device_toml,manifest} server-gallery:{configuration,registry,rollouts,index,gallery}
)
cache="${XDG_CACHE_HOME:-$HOME/.cache}/glimpse"
export PATH="$cache/cargo-fuzz/bin:$PATH" CARGO_TARGET_DIR="$cache/target-fuzz" RUSTC_BOOTSTRAP=1

for target in "${targets[@]}"; do
    crate=${target%%:*} name=${target#*:}
    seeds="$PWD/$crate/fuzz/seeds/$name"
    [ "$target" != quantizer:codebook ] || seeds="$PWD/quantizer/tests/fixtures"
    # What was found stays for the next run, outside the clone.
    corpus="$cache/fuzz/$name"
    mkdir -p "$corpus"
    echo "fuzz: $crate: $name, for $seconds s" >&2
    [ -d "$seeds" ] || seeds=""
    (cd "$crate" && cargo fuzz run "$name" "$corpus" $seeds -- \
        -max_total_time="$seconds" -rss_limit_mb=2048 -timeout=10 -print_final_stats=1)
done
