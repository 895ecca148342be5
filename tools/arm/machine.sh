#!/usr/bin/env bash
# Brings an ARM machine to be emulated by qemu-system.sh's programs: Debian's kernel with the drivers of a camera that draws colour
# bars (vivid), of the network and of a shared folder, and an initramfs that loads them and runs a script of the host's (see `init`).
# Nothing is installed and nobody need be root. 97 MB to download, 45 MB unpacked.
#
# Prints the folder with `vmlinuz` and `initramfs.cpio`. Where it cannot be had it prints why instead, and exits with 3.
set -euo pipefail
export LC_ALL=C
here=$(cd "$(dirname "$0")" && pwd)

name="arm machine"
release=trixie
kernel=linux-image-arm64
packages=(busybox-static:arm64 libc6:arm64 libgcc-s1:arm64)
# gpio_keys must not be among them: it would take the line of the machine's button.
modules=(vivid virtio_net 9p 9pnet_virtio)
# What a program of Rust is linked to.
libraries=(ld-linux-aarch64.so.1 libc.so.6 libm.so.6 libgcc_s.so.1 libdl.so.2 libpthread.so.0 librt.so.1)
# Raise when anything below changes what the folder holds.
layout=1
cache="${XDG_CACHE_HOME:-$HOME/.cache}/glimpse/machine"
key=$(printf '%s\n' "$release" "$kernel" "${packages[@]}" "${modules[@]}" "${libraries[@]}" "$layout" | cksum | cut -d ' ' -f 1)
tree="$cache/$key"
work="$tree.part"
# shellcheck source=debian.sh
. "$here/debian.sh"

# Each time, for it is made in no time, and `init` may be another.
finish() {
    "${PYTHON:-python3}" "$here/initramfs.py" pack "$tree/.initramfs.$$" "$here/init" "$tree" >&2
    mv "$tree/.initramfs.$$" "$tree/initramfs.cpio"
    echo "$tree"
    exit
}
# The folder gets its name only when it is whole.
debian_begin "$tree" 500

debian_lists "$release" </dev/null
# The package without a number is empty, and needs that with the number of now.
image=$(APT_CONFIG="$work/apt.conf" apt-cache show "$kernel:arm64" | sed -n 's/^Depends: \(linux-image-[^ ,]*\).*/\1/p' | head -n 1)
[ "$image" ] || cannot "Debian $release has no $kernel"
say "downloading Debian's kernel for ARM (97 MB)"
debian_fetch_alone "$image:arm64" "${packages[@]}"

say "unpacking"
new="$work/tree"
rm -rf "$new" "$work/unpacked"
mkdir -p "$new/modules" "$new/lib" "$work/unpacked"
for package in "$work"/archives/*.deb; do debian_unpack "$package" "$work/unpacked" --exclude=./usr/share .; done
mv "$work"/unpacked/boot/vmlinuz-* "$new/vmlinuz"
mv "$work/unpacked/usr/bin/busybox" "$new/busybox"
"${PYTHON:-python3}" "$here/initramfs.py" modules "$work/unpacked/usr/lib/modules" "$new/modules" "${modules[@]}" >&2
for library in "${libraries[@]}"; do cp "$work/unpacked/usr/lib/aarch64-linux-gnu/$library" "$new/lib/"; done
mv "$new" "$tree"
rm -rf "$work"
say "ready: $tree ($(du -sm "$tree" | cut -f 1) MB)"
finish
