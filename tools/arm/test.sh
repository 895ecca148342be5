#!/usr/bin/env bash
# What `make test-arm` runs: the tests of the quantizer and of the embedder's kernels for 64-bit ARM, in an emulator, so that what
# is written for NEON is tested on a machine that has none. Arguments go to `cargo test`.
set -euo pipefail
cd "$(dirname "$0")/../.."

case $(uname -m) in
aarch64 | arm64)
    echo "not needed: NEON kernels under emulation: this machine has NEON, and its own tests ran them"
    exit
    ;;
esac

status=0
toolchain=$(tools/arm/toolchain.sh) || status=$?
if [ "$status" = 3 ]; then
    echo "skipped: NEON kernels under emulation: $toolchain" >&2
    if [ "${CI:-}" = true ]; then exit 1; else exit 0; fi
fi
[ "$status" = 0 ] || exit "$status"

log="${XDG_CACHE_HOME:-$HOME/.cache}/glimpse/test-arm.log"
tools/arm/cargo.sh test --release -p glimpse-quantizer -p glimpse-kernels --no-fail-fast "$@" | tee "$log"

# A kernel that is not compiled in, or not chosen, would pass unnoticed.
if grep -rqE 'arch::\{?aarch64' quantizer/src embedder/kernels/src; then
    passed=$(grep -cE '^test .*neon.* \.\.\. ok$' "$log" || true)
    if [ "$passed" = 0 ]; then
        echo "no test with neon in its name ran, and quantizer/src has kernels for it" >&2
        exit 1
    fi
    echo "NEON kernels under emulation: passed ($passed)"
fi
