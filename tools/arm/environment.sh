# shellcheck shell=bash
# Sourced by what runs cargo for ARM: with $toolchain from toolchain.sh and $target (aarch64 or armv7) it sets $triple and what cargo
# reads. Programs and tests run in the emulator.
# shellcheck disable=SC2034,SC2154 # it takes and gives variables
case $target in
aarch64)
    triple=aarch64-unknown-linux-gnu emulator=qemu-aarch64 root=$toolchain
    # Qemu's default processor is slower by far; this one has the dot product, and kernels without it are tested as well.
    processor=cortex-a76
    ;;
armv7)
    triple=armv7-unknown-linux-gnueabihf emulator=qemu-arm root=$toolchain/usr/arm-linux-gnueabihf
    processor=cortex-a7
    ;;
esac

# Whoever tunes builds for their own processor does not mean this one.
unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS
export CARGO_TARGET_DIR="${XDG_CACHE_HOME:-$HOME/.cache}/glimpse/target-arm"
export RUSTC="$toolchain/usr/bin/rustc" RUSTDOC="$toolchain/usr/bin/rustdoc"
# The path and the C library go by variables, for cargo splits the runner at spaces.
export PATH="$toolchain/usr/bin:$PATH" QEMU_LD_PREFIX="$root"
variable=${triple^^}
variable=CARGO_TARGET_${variable//-/_}
export "${variable}_RUNNER=$emulator -cpu ${CPU:-$processor}"
