#!/usr/bin/env bash
# Runs cargo for ARM with all that crates want which have C and assembly in them, such as the engine's: the toolchain of toolchain.sh
# and, as C compiler and linker, Zig's, which is one wheel. Zig knows the symbols of every glibc, so that what is built here runs on
# Debian 10 and whatever is newer. Programs and tests run in the emulator.
#
# Usage: cargo.sh [aarch64 | armv7] COMMAND ARGUMENTS.., as `cargo.sh build --release -p glimpse-embedder`; without a target it is
# aarch64. Exits with 3 and the reason where there is no toolchain.
set -euo pipefail
here=$(dirname "$0")
target=aarch64
case ${1:-} in aarch64 | armv7) target=$1; shift ;; esac
toolchain=$("$here/toolchain.sh" "$target") || { echo "$toolchain" >&2; exit 3; }
# shellcheck source-path=SCRIPTDIR
. "$here/environment.sh"

caches="${XDG_CACHE_HOME:-$HOME/.cache}/glimpse"
zig=0.13.0
if [ ! -e "$caches/zig/.done-$zig" ]; then
    PIP_ROOT_USER_ACTION=ignore "${PYTHON:-python3}" -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
        --target "$caches/zig" "ziglang==$zig" >&2
    touch "$caches/zig/.done-$zig"
fi
export ZIG_GLOBAL_CACHE_DIR="$caches/zig/cache"
case $target in
aarch64) machine=(-target aarch64-linux-gnu.2.28) ;;
# As Rust's target: without NEON, but for what asks for it. Zig's own choice for this target is a version older.
armv7) machine=(-target arm-linux-gnueabihf.2.28 -mcpu=cortex_a8-neon-d32) ;;
esac
script() { # NAME, with the text on standard input. Whoever runs this at the same time writes the same.
    cat >"$caches/zig/$1.$$"
    chmod +x "$caches/zig/$1.$$"
    mv "$caches/zig/$1.$$" "$caches/zig/$1"
}
# Rust's names for target, unwinder and levels of optimization are not Zig's.
script "cc-$target" <<END
#!/usr/bin/env bash
for argument; do
    shift
    case \$argument in
    --target=* | -Wl,-O?) ;;
    -lgcc_s) set -- "\$@" -lunwind ;;
    *) set -- "\$@" "\$argument" ;;
    esac
done
exec "$caches/zig/ziglang/zig" cc ${machine[@]} "\$@"
END
script ar <<END
#!/bin/sh
exec "$caches/zig/ziglang/zig" ar "\$@"
END
export "CC_${triple//-/_}=$caches/zig/cc-$target" "AR_${triple//-/_}=$caches/zig/ar"
export "${variable}_LINKER=$caches/zig/cc-$target"
command=$1
shift
exec "${CARGO:-cargo}" "$command" --target "$triple" "$@"
