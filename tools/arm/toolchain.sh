#!/usr/bin/env bash
# Brings what builds and runs programs for ARM on x86-64 Linux: Debian's rustc with the standard library for aarch64 and the source
# of it for armv7, a linker, the C libraries and qemu. Nothing is installed and nobody need be root: apt resolves and downloads with
# a state of its own, the packages are unpacked under the cache, and what is dynamic runs with the C library that lies beside it, so
# that the machine may be older than Debian $release. 230 MB to download, 0.8 GB unpacked.
#
# Usage: toolchain.sh [aarch64 | armv7 | thumbv7em]
# For armv7 the standard library is compiled here the first time, which takes two minutes; for thumbv7em, which has no operating
# system, what there is of it.
#
# Prints the toolchain's folder. Where it cannot be had it prints why instead, and exits with 3.
# shellcheck disable=SC2016 # what apt and the wrappers expand is in single quotes
set -euo pipefail
export LC_ALL=C
here=$(cd "$(dirname "$0")" && pwd)
target=${1:-aarch64}

release=trixie
# Its rustc is too old for the workspace; that of its backports is not. They come with all that they depend on.
host=(rustc binutils-aarch64-linux-gnu "qemu-user/$release")
# These come alone: the rest of what they depend on is for a compiler that runs on ARM.
# libstdc++ is for libraries that a benchmark loads.
arm=(libstd-rust-dev:arm64 libc6:arm64 libc6-dev:arm64 libgcc-s1:arm64 libgcc-14-dev:arm64 libstdc++6:arm64)
# For 32 bits all are packages of the machine's own architecture, for Debian's list of armhf packages does not match its signature
# everywhere. So the standard library is built from its source, which has what it depends on beside it.
armv7=(rust-src libc6-armhf-cross libgcc-s1-armhf-cross)
# Raise when anything below changes what the folder holds.
layout=3
space_mb=2000

case $target in aarch64 | armv7 | thumbv7em) ;; *) echo "toolchain.sh: $target is no target: aarch64, armv7 or thumbv7em" >&2; exit 2 ;; esac

cache="${XDG_CACHE_HOME:-$HOME/.cache}/glimpse/arm"
key=$(printf '%s\n' "$release" "${host[@]}" "${arm[@]}" "${armv7[@]}" "$layout" | cksum | cut -d ' ' -f 1)
tree="$cache/$key"
name="arm toolchain"
# What was downloaded stays here until all is done.
work="$cache/$key.part"
# shellcheck source=debian.sh
. "$here/debian.sh"

# Debian's rustc finds it where it looks for those that came as packages. Cargo could build it with each program (`build-std`), but
# that form of it belongs to one version of cargo.
standard_library() { # TRIPLE TIME PACKAGE-AND-FEATURES..
    local triple=$1 time=$2
    shift 2
    local place="$tree/usr/lib/rustlib/$triple" work="$cache/$key.std"
    [ ! -d "$place" ] || return 0
    debian_lock "$cache"
    [ ! -d "$place" ] || return 0
    say "compiling the standard library for $target ($time)"
    rm -rf "$work"
    mkdir -p "$work/$triple/lib"
    dpkg-deb --fsys-tarfile "$tree/rust-src.deb" |
        tar -x --no-same-owner -C "$work" --wildcards --strip-components=4 './usr/src/rustc-*/library'
    # A shared one would want a linker.
    sed -i 's/^crate-type = \["dylib", "rlib"\]/crate-type = ["rlib"]/' "$work/library/std/Cargo.toml"
    # In the repository's folder, for rustup takes the version of cargo from there. With bitcode, for programs that are optimized as
    # a whole when they are linked.
    (cd "$here/../.." && env -u CARGO_ENCODED_RUSTFLAGS RUSTC="$tree/usr/bin/rustc" RUSTC_BOOTSTRAP=1 \
        RUSTFLAGS="-Zforce-unstable-if-unmarked -Cembed-bitcode=yes" CARGO_TARGET_DIR="$work/target" "${CARGO:-cargo}" build --release --offline --locked \
        --manifest-path "$work/library/Cargo.toml" --config "$work/library/.cargo/config.toml" --target "$triple" "$@") \
        >"$work/log" 2>&1 || { tail -n 20 "$work/log" >&2; exit 1; }
    cp "$work/target/$triple/release/deps/"*.rlib "$work/$triple/lib/"
    mv "$work/$triple" "$place"
    rm -rf "$work"
}
finish() {
    case $target in
    armv7) standard_library armv7-unknown-linux-gnueabihf "two minutes" -p sysroot --features panic-unwind,backtrace ;;
    # Without an operating system there are `core` and `alloc` alone, and nobody else has `memcpy`.
    thumbv7em) standard_library thumbv7em-none-eabihf "half a minute" -p alloc --features compiler-builtins-mem ;;
    esac
    echo "$tree"
    exit
}
# The folder gets its name only when it is whole.
if [ -d "$tree" ]; then finish; fi

debian_possible
command -v cc >/dev/null || cannot "there is no cc: install a C compiler"

debian_lock "$cache"
if [ -d "$tree" ]; then finish; fi
debian_room "$cache" "$space_mb"

# rustc wants a C compiler and a linker for x86-64, and the machine has them: no need to bring others.
debian_lists "$release-backports" "$release" <<END
Package: of-the-machine
Status: install ok installed
Version: 1
Architecture: all
Multi-Arch: foreign
Maintainer: nobody
Description: what the machine has
Provides: gcc (= 99), libc-dev, binutils (= 99)

END
say "downloading Debian's rustc, linker and qemu (230 MB)"
debian_fetch "${host[@]}"
debian_fetch_alone "${arm[@]}" "${armv7[@]}"

say "unpacking"
new="$work/tree"
rm -rf "$new"
mkdir -p "$new/usr/lib" "$new/usr/lib64"
ln -s usr/lib "$new/lib"
ln -s usr/lib64 "$new/lib64"
for package in "$work"/archives/*.deb; do
    # qemu's package has forty emulators.
    case $package in
    */rust-src_*) mv "$package" "$new/rust-src.deb"; continue ;;
    */qemu-user_*) what=(./usr/bin/qemu-aarch64 ./usr/bin/qemu-arm) ;;
    *) what=(--exclude=./usr/share --exclude=./usr/include --exclude=gconv .) ;;
    esac
    debian_unpack "$package" "$new" "${what[@]}"
done

# `usr` is what rustc and rustdoc take for their sysroot.
debian_wrap "$new" rustc '"$@"'
debian_wrap "$new" rustdoc '"$@"'
# What gcc would add when it calls the linker, so that gcc is not needed.
lib='$usr/lib/aarch64-linux-gnu' gcc='$usr/lib/gcc/aarch64-linux-gnu/14'
debian_wrap "$new" aarch64-linux-gnu-ld "--sysroot=\"\$usr/..\" -dynamic-linker /lib/ld-linux-aarch64.so.1 -L \"$lib\" -L \"$gcc\" \\
    \"$lib/Scrt1.o\" \"$lib/crti.o\" \"$gcc/crtbeginS.o\" \"\$@\" \"$gcc/crtendS.o\" \"$lib/crtn.o\""

say "trying it"
cat >"$work/try.rs" <<'END'
fn main() {
    assert!(std::arch::is_aarch64_feature_detected!("neon"));
    assert!(std::panic::catch_unwind(|| panic!("on purpose")).is_err());
}
END
"$new/usr/bin/rustc" -O --target aarch64-unknown-linux-gnu -C linker="$new/usr/bin/aarch64-linux-gnu-ld" \
    -o "$work/try" "$work/try.rs" >&2
"$new/usr/bin/qemu-aarch64" -cpu cortex-a72 -L "$new" "$work/try" >>"$log" 2>&1 || { cat "$log" >&2; exit 1; }

mv "$new" "$tree"
rm -rf "$work"
say "ready: $tree ($(du -sm "$tree" | cut -f 1) MB)"
finish
