#!/usr/bin/env bash
# Runs cargo for 64-bit ARM with all that crates want which have C and assembly in them, such as the engine's: the toolchain of
# toolchain.sh and, as C compiler, Zig's, which is one wheel. Programs and tests run in the emulator.
#
# Usage: cargo.sh COMMAND ARGUMENTS.., as `cargo.sh build --release -p glimpse-embedder`. Exits with 3 and the reason where there is
# no toolchain.
set -euo pipefail
here=$(dirname "$0")
caches="${XDG_CACHE_HOME:-$HOME/.cache}/glimpse"
toolchain=$("$here/toolchain.sh") || { echo "$toolchain" >&2; exit 3; }

zig=0.13.0
if [ ! -e "$caches/zig/.done-$zig" ]; then
    PIP_ROOT_USER_ACTION=ignore "${PYTHON:-python3}" -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
        --target "$caches/zig" "ziglang==$zig" >&2
    touch "$caches/zig/.done-$zig"
fi
# Rust's name for the target is not Zig's. Whoever runs this at the same time writes the same.
cat >"$caches/zig/cc.$$" <<END
#!/usr/bin/env bash
for argument; do
    shift
    [[ \$argument == --target=* ]] || set -- "\$@" "\$argument"
done
exec "$caches/zig/ziglang/zig" cc -target aarch64-linux-gnu "\$@"
END
printf '#!/bin/sh\nexec "%s" ar "$@"\n' "$caches/zig/ziglang/zig" >"$caches/zig/ar.$$"
chmod +x "$caches/zig/cc.$$" "$caches/zig/ar.$$"
mv "$caches/zig/cc.$$" "$caches/zig/cc"
mv "$caches/zig/ar.$$" "$caches/zig/ar"
export CC_aarch64_unknown_linux_gnu="$caches/zig/cc" AR_aarch64_unknown_linux_gnu="$caches/zig/ar"

# Whoever tunes builds for their own processor does not mean this one.
unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS
export CARGO_TARGET_DIR="$caches/target-arm"
export RUSTC="$toolchain/usr/bin/rustc" RUSTDOC="$toolchain/usr/bin/rustdoc"
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER="$toolchain/usr/bin/aarch64-linux-gnu-ld"
export PATH="$toolchain/usr/bin:$PATH" QEMU_LD_PREFIX="$toolchain"
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -cpu ${CPU:-cortex-a76}"
command=$1
shift
exec "${CARGO:-cargo}" "$command" --target aarch64-unknown-linux-gnu "$@"
