#!/usr/bin/env bash
# Brings the programs that make an image on x86-64 Linux: mksquashfs, mkfs.fat, mtools, sfdisk, depmod, cpio, xz and zstd of Debian's
# packages, with the libraries that they need, so that the same inputs give the same image on every machine; and the firmware of an
# emulated board (UEFI). Nothing is installed and nobody need be root. 20 MB to download.
#
# Prints the folder with the programs. Where they cannot be had it prints why instead, and exits with 3.
# shellcheck disable=SC2016 # what the wrappers expand is in single quotes
set -euo pipefail
export LC_ALL=C
here=$(cd "$(dirname "$0")" && pwd)

name="image tools"
release=trixie
# kmod finds the library of xz by its name alone.
packages=(squashfs-tools dosfstools mtools fdisk kmod liblzma5 cpio xz-utils zstd qemu-efi-aarch64)
programs=(mksquashfs unsquashfs mkfs.fat mtools sfdisk kmod cpio xz zstd)
# Raise when anything below changes what the folder holds.
layout=2
cache="${XDG_CACHE_HOME:-$HOME/.cache}/glimpse/image-tools"
key=$(printf '%s\n' "$release" "${packages[@]}" "${programs[@]}" "$layout" | cksum | cut -d ' ' -f 1)
tree="$cache/$key"
work="$tree.part"
# shellcheck source=../../tools/arm/debian.sh
. "$here/../../tools/arm/debian.sh"

finish() { echo "$tree/usr/bin"; exit; }
# The folder gets its name only when it is whole.
debian_begin "$tree" 200

debian_lists "$release" </dev/null
say "downloading Debian's programs for file systems (20 MB)"
debian_fetch "${packages[@]}"

say "unpacking"
new="$work/tree"
rm -rf "$new"
mkdir -p "$new/usr/bin" "$new/usr/sbin" "$new/usr/lib" "$new/usr/lib64"
ln -s usr/lib "$new/lib"
ln -s usr/lib64 "$new/lib64"
for package in "$work"/archives/*.deb; do
    case ${package##*/} in
    qemu-efi-aarch64_*) debian_unpack "$package" "$new" ./usr/share/qemu-efi-aarch64/QEMU_EFI.fd; continue ;;
    esac
    debian_unpack "$package" "$new" --exclude=./usr/share --exclude=gconv --exclude=./etc --exclude=./var --exclude=./usr/lib/systemd .
done
for program in "${programs[@]}"; do
    [ -e "$new/usr/bin/$program" ] || mv "$new/usr/sbin/$program" "$new/usr/bin/$program"
    debian_wrap "$new" "$program" '"$@"'
done
# What these do depends on the name that they are called by.
sed 's|--library-path|--argv0 depmod --library-path|' "$new/usr/bin/kmod" >"$new/usr/bin/depmod"
sed -i 's|--library-path|--argv0 mtools --library-path|' "$new/usr/bin/mtools"
chmod +x "$new/usr/bin/depmod"

say "trying them"
for program in mksquashfs sfdisk zstd depmod; do
    "$new/usr/bin/$program" --version </dev/null >>"$log" 2>&1 || [ "$program" = mksquashfs ] || { cat "$log" >&2; exit 1; }
done
mv "$new" "$tree"
rm -rf "$work"
say "ready: $tree ($(du -sm "$tree" | cut -f 1) MB)"
finish
