#!/usr/bin/env bash
# Brings what emulates whole ARM machines on x86-64 Linux: qemu-system-aarch64 and qemu-system-arm of Debian's package, with the
# libraries that they need. Nothing is installed and nobody need be root: apt resolves and downloads with a state of its own, the
# packages are unpacked under the cache, and the programs run with the C library that lies beside them, so that the machine may be
# older than Debian $release. 36 MB to download, 125 MB unpacked. There is no firmware for network cards: give them `romfile=`.
#
# Prints the folder with the two programs. Where they cannot be had it prints why instead, and exits with 3.
# shellcheck disable=SC2016 # what the wrappers expand is in single quotes
set -euo pipefail
export LC_ALL=C
here=$(cd "$(dirname "$0")" && pwd)

name="qemu-system"
release=trixie
packages=(qemu-system-arm)
# Raise when anything below changes what the folder holds.
layout=1
cache="${XDG_CACHE_HOME:-$HOME/.cache}/glimpse/qemu-system"
key=$(printf '%s\n' "$release" "${packages[@]}" "$layout" | cksum | cut -d ' ' -f 1)
tree="$cache/$key"
work="$tree.part"
# shellcheck source=debian.sh
. "$here/debian.sh"

finish() { echo "$tree/usr/bin"; exit; }
# The folder gets its name only when it is whole.
debian_begin "$tree" 500

debian_lists "$release" </dev/null
say "downloading Debian's qemu with its libraries (36 MB)"
debian_fetch "${packages[@]}"

say "unpacking"
new="$work/tree"
rm -rf "$new"
mkdir -p "$new/usr/bin" "$new/usr/lib" "$new/usr/lib64" "$new/usr/share"
ln -s usr/lib "$new/lib"
ln -s usr/lib64 "$new/lib64"
for package in "$work"/archives/*.deb; do
    # What qemu depends on to be installed, and not to run.
    case ${package##*/} in
    qemu-system-arm_*) debian_unpack "$package" "$new" ./usr/bin/qemu-system-arm ./usr/bin/qemu-system-aarch64 ;;
    qemu-system-data_*) debian_unpack "$package" "$new" ./usr/share/qemu ;;
    qemu-system-common_*) ;;
    *) debian_unpack "$package" "$new" --exclude=./usr/share --exclude=./usr/bin --exclude=./usr/sbin --exclude=gconv --exclude=./etc \
        --exclude=./var --exclude=./usr/lib/systemd . ;;
    esac
done
for program in qemu-system-aarch64 qemu-system-arm; do
    # Its place does not tell it where its files are, for the loader is the program that runs.
    debian_wrap "$new" "$program" '-L "$usr/share/qemu" "$@"'
done

say "trying it"
for program in qemu-system-aarch64 qemu-system-arm; do
    "$new/usr/bin/$program" -M help </dev/null >>"$log" 2>&1 || { cat "$log" >&2; exit 1; }
done
mv "$new" "$tree"
rm -rf "$work"
say "ready: $tree ($(du -sm "$tree" | cut -f 1) MB)"
finish
