#!/usr/bin/env bash
# Runs cargo for ARM: with the toolchain of toolchain.sh and, as C compiler and linker, Zig's, which is one wheel. Zig knows the
# symbols of every glibc, so that what is built here runs on Debian 10 and whatever is newer. Programs and tests run in the emulator.
# For thumbv7em, a microcontroller without an operating system, Zig's wheel has the linker, and nothing runs what is built here.
#
# Usage: cargo.sh [aarch64 | armv7 | thumbv7em] COMMAND ARGUMENTS.., as `cargo.sh build --release -p glimpse-embedder`; without a
# target it is aarch64. CPU names another processor to emulate. Exits with 3 and the reason where there is no toolchain.
set -euo pipefail
here=$(dirname "$0")
caches="${XDG_CACHE_HOME:-$HOME/.cache}/glimpse"
target=aarch64
case ${1:-} in aarch64 | armv7 | thumbv7em) target=$1; shift ;; esac
toolchain=$("$here/toolchain.sh" "$target") || { echo "$toolchain" >&2; exit 3; }
case $target in
aarch64)
    triple=aarch64-unknown-linux-gnu root=$toolchain
    # Qemu's default processor is slower by far; this one has the dot product, and kernels without it are tested as well.
    emulator="qemu-aarch64 -cpu ${CPU:-cortex-a76}"
    machine=(-target aarch64-linux-gnu.2.28)
    ;;
armv7)
    triple=armv7-unknown-linux-gnueabihf root=$toolchain/usr/arm-linux-gnueabihf
    emulator="qemu-arm -cpu ${CPU:-cortex-a7}"
    # As Rust's target: without NEON, but for what asks for it. Zig's own choice for this target is a version older.
    machine=(-target arm-linux-gnueabihf.2.28 -mcpu=cortex_a8-neon-d32)
    ;;
thumbv7em)
    triple=thumbv7em-none-eabihf root=
    emulator=false
    machine=(-target thumb-freestanding-eabihf -mcpu=cortex_m4)
    ;;
esac

zig=0.13.0
if [ ! -e "$caches/zig/.done-$zig" ]; then
    PIP_ROOT_USER_ACTION=ignore "${PYTHON:-python3}" -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
        --target "$caches/zig" "ziglang==$zig" >&2
    touch "$caches/zig/.done-$zig"
fi
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
# Rust says which of lld's flavours it means.
script lld <<END
#!/bin/sh
if [ "\$1" = -flavor ]; then shift 2; fi
exec "$caches/zig/ziglang/zig" ld.lld "\$@"
END
script ar <<END
#!/bin/sh
exec "$caches/zig/ziglang/zig" ar "\$@"
END

# Whoever tunes builds for their own processor does not mean this one.
unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS
export CARGO_TARGET_DIR="$caches/target-arm" ZIG_GLOBAL_CACHE_DIR="$caches/zig/cache"
export RUSTC="$toolchain/usr/bin/rustc" RUSTDOC="$toolchain/usr/bin/rustdoc"
export "CC_${triple//-/_}=$caches/zig/cc-$target" "AR_${triple//-/_}=$caches/zig/ar"
# The path and the C library go by variables, for cargo splits the runner at spaces.
export PATH="$toolchain/usr/bin:$PATH" QEMU_LD_PREFIX="$root"
variable=${triple^^}
variable=CARGO_TARGET_${variable//-/_}
linker="$caches/zig/cc-$target"
if [ "$target" = thumbv7em ]; then linker="$caches/zig/lld"; fi
# Cargo builds everything anew for another linker, so all that is in this folder has this one.
export "${variable}_LINKER=$linker" "${variable}_RUNNER=$emulator"
command=$1
shift
exec "${CARGO:-cargo}" "$command" --target "$triple" "$@"
