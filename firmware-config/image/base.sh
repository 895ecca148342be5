#!/usr/bin/env bash
# Makes what the images of all devices have in common, of Debian's packages for arm64: kernel, initramfs, boot loader, and the root
# file system without the edge program. Nothing is installed, nobody need be root, and no program of the packages runs here: what their
# scripts would have done is done below. 150 MB to download, 180 MB kept.
#
# Usage: base.sh uefi|raspberry-pi [PACKAGES]
# PACKAGES is a list that an earlier image left beside it (name, version, SHA-256): these packages and no others are taken. Without it
# those of Debian's archive now, or of the last time where they are at hand; REFRESH=1 asks the archive in any case.
#
# Prints the folder with `vmlinuz`, `initramfs`, `root.tar`, `firmware` (for the first partition) and `packages`. Where it cannot be
# had it prints why instead, and exits with 3.
set -euo pipefail
export LC_ALL=C TZ=UTC
here=$(cd "$(dirname "$0")" && pwd)

family=$1
list=${2:-}
name="image base"
release=trixie
kernel=linux-image-arm64
packages=(systemd systemd-resolved systemd-timesyncd udev dbus kmod mount util-linux fdisk e2fsprogs dosfstools ca-certificates netbase
    libgcc-s1 busybox-static dropbear-bin wpasupplicant wireless-regdb openssl)
case $family in
uefi) packages+=(systemd-boot-efi) ;;
raspberry-pi) packages+=(raspi-firmware firmware-brcm80211) ;;
*) echo "usage: base.sh uefi|raspberry-pi [PACKAGES]" >&2; exit 2 ;;
esac
# What others depend on to be installed, and busybox or nobody does here.
without=(adduser base-passwd bash coreutils cpio dash dbus-bin dbus-session-bus-common debconf debianutils diffutils dpkg dracut-install
    findutils gawk grep init-system-helpers initramfs-tools initramfs-tools-bin initramfs-tools-core klibc-utils libklibc libpam-runtime
    libsemanage-common libsqlite3-0 libtext-charwidth-perl linux-base login.defs logsave mawk openssl-provider-legacy passwd perl-base
    readline-common sed tar)
# Commands of busybox in the root file system, where no package has them.
applets=(sh ash awk basename cat chmod chown chroot clear cmp cp cut date dd df dirname dmesg du echo env expr false find free
    fuser grep gzip gunzip head hostname id ifconfig kill killall less ln logger ls md5sum mkdir mkfifo mktemp mv nc nice nohup nslookup od
    pgrep pidof ping printf ps pwd readlink realpath rm rmdir sed seq sha256sum sleep sort stat stty sync tail tar tee test time timeout
    top touch tr traceroute true tty uname uniq unlink uptime vi wc wget which who xargs xzcat zcat "[" diff egrep hexdump more nproc rev
    sha512sum sysctl usleep watch yes)

cache="${XDG_CACHE_HOME:-$HOME/.cache}/glimpse/image-base"
# shellcheck source=../../tools/arm/debian.sh
. "$here/../../tools/arm/debian.sh"
sources=$(cat "$here/base.sh" "$here/modules" "$here/init" | cksum | cut -d ' ' -f 1)
# The list of the last time is one of these packages.
last="$cache/$family-$(printf '%s\n' "${packages[@]}" "${without[@]}" | cksum | cut -d ' ' -f 1).packages"
mkdir -p "$cache"
if [ -z "$list" ] && [ -z "${REFRESH:-}" ] && [ -e "$last" ]; then list=$last; fi

work="$cache/$family.part"
# Where the packages themselves stay, by name and version.
store="$cache/packages"
tree_of() { echo "$cache/$family-$sources-$(cksum <"$1" | cut -d ' ' -f 1)"; }
finish() { echo "$tree"; exit; }
if [ "$list" ]; then tree=$(tree_of "$list"); else tree=; fi
if [ "$tree" ] && [ -d "$tree" ]; then finish; fi
debian_possible
debian_lock "$cache"
if [ "$tree" ] && [ -d "$tree" ]; then finish; fi
debian_room "$cache" 1500
bin=$("$here/tools.sh") || { echo "$bin"; exit 3; }

# Which packages, if nobody says.
mkdir -p "$store" "$work"
if [ -z "$list" ]; then
    # shellcheck disable=SC2034 # debian_lists takes them
    machine=arm64 architectures='"arm64";' components="main non-free-firmware"
    debian_lists "$release" </dev/null
    say "downloading Debian's packages for the image (150 MB)"
    # The package without a number is empty, and needs that with the number of now.
    image=$(APT_CONFIG="$work/apt.conf" apt-cache show "$kernel:arm64" | sed -n 's/^Depends: \(linux-image-[^ ,]*\).*/\1/p' | head -n 1)
    [ "$image" ] || cannot "Debian $release has no $kernel"
    APT_CONFIG="$work/apt.conf" apt-get -y -qq --print-uris install "$image" "${packages[@]}" 2>>"$log" | cut -d ' ' -f 2 >"$work/wanted" || true
    while read -r file; do if [ -e "$store/$file" ]; then cp "$store/$file" "$work/archives/"; fi; done <"$work/wanted"
    debian_fetch "$image" "${packages[@]}"
    : >"$work/packages"
    for package in "$work"/archives/*.deb; do
        file=${package##*/}
        for skip in "${without[@]}"; do if [ "${file%%_*}" = "$skip" ]; then continue 2; fi; done
        echo "${file%%_*} $(dpkg-deb --field "$package" Version) $(sha256sum <"$package" | cut -d ' ' -f 1)" >>"$work/packages"
        mv "$package" "$store/$file"
    done
    rm -f "$work"/archives/*.deb
    list="$work/packages"
fi
file_of() {
    local version=${2/:/%3a}
    find "$store" -name "$1_${version}_*.deb" -print -quit
}
while read -r package version sum; do
    file=$(file_of "$package" "$version")
    if [ -z "$file" ]; then
        [ -e "$work/apt.conf" ] || {
            # shellcheck disable=SC2034
            machine=arm64 architectures='"arm64";' components="main non-free-firmware"
            debian_lists "$release" </dev/null
        }
        debian_fetch_alone "$package=$version"
        mv "$work/archives/$package"_*.deb "$store/"
        file=$(file_of "$package" "$version")
    fi
    [ "$(sha256sum <"$file" | cut -d ' ' -f 1)" = "$sum" ] || cannot "$file is not the package that the list names: remove it"
done <"$list"
tree=$(tree_of "$list")

say "unpacking"
new="$work/new" root="$work/root"
rm -rf "$new" "$root"
mkdir -p "$new" "$root/usr/bin" "$root/usr/sbin" "$root/usr/lib"
for folder in bin sbin lib; do ln -s "usr/$folder" "$root/$folder"; done
while read -r package version _; do
    debian_unpack "$(file_of "$package" "$version")" "$root" --keep-directory-symlink
done <"$list"

# What the first partition gets.
version=$(basename "$root"/usr/lib/modules/*)
mv "$root/boot/vmlinuz-$version" "$new/vmlinuz"
mkdir -p "$new/firmware"
if [ "$family" = uefi ]; then
    mkdir -p "$new/firmware/EFI/BOOT"
    cp "$root/usr/lib/systemd/boot/efi/systemd-bootaa64.efi" "$new/firmware/EFI/BOOT/BOOTAA64.EFI"
else
    cp "$root"/usr/lib/raspi-firmware/{bootcode.bin,start*.elf,fixup*.dat} "$new/firmware/"
    cp "$root/usr/lib/linux-image-$version/broadcom"/bcm2[78]*-rpi-*.dtb "$new/firmware/"
fi

# Drivers: those of `modules`, with all that they need.
say "choosing drivers"
all="$root/usr/lib/modules/$version"
"$bin/depmod" -b "$root" "$version" 2>/dev/null
choose() {
    awk -v kinds="$1" '
        FNR == NR { if ($0 !~ /^#/ && NF == 2 && index(kinds, $1)) wanted[++count] = "kernel/" $2; next }
        { sub(":", "", $1); for (i = 1; i <= count; i++) if (index($1, wanted[i]) == 1) { for (j = 1; j <= NF; j++) print $j; break } }
    ' "$here/modules" "$all/modules.dep" | sort -u
}
choose early >"$work/early"
choose "early late" >"$work/late"
keep() { # LIST TREE
    mkdir -p "$2/usr/lib/modules/$version"
    cp "$all"/modules.{order,builtin,builtin.modinfo} "$2/usr/lib/modules/$version/"
    tar -C "$all" --files-from "$1" -c | tar -C "$2/usr/lib/modules/$version" -x
}
start="$work/start"
rm -rf "$start" "$work/kept"
mkdir -p "$start"/{bin,dev,proc,sys,run,new}
keep "$work/late" "$work/kept"
keep "$work/early" "$start"
ln -s usr/lib "$start/lib"
# Where the kernel looks for modprobe.
ln -s bin "$start/sbin"
rm -rf "$all"
mv "$work/kept/usr/lib/modules/$version" "$all"
"$bin/depmod" -b "$root" "$version"

# The initramfs has them without compression, for it is compressed as a whole.
find "$start/usr/lib/modules" -name '*.ko.xz' -print0 | xargs -0 "$bin/xz" -d
sed -i 's/\.xz$//' "$start/usr/lib/modules/$version/modules.order"
"$bin/depmod" -b "$start" "$version"
cp "$root/usr/bin/busybox" "$start/bin/busybox"
cp "$here/init" "$start/init"
chmod 755 "$start/init"
find "$start" -exec touch -h -d @0 {} +
(cd "$start" && find . | sort | "$bin/cpio" --quiet --reproducible -R 0:0 -o -H newc) | "$bin/zstd" -q -15 -o "$new/initramfs"

say "doing what the packages' scripts would have done"
find "$root" -depth \( -path "$root/usr/share/doc/*" -o -path "$root/usr/share/man/*" -o -path "$root/usr/share/locale/*" \
    -o -path "$root/usr/share/info/*" -o -path "$root/usr/share/lintian/*" -o -path "$root/usr/share/bash-completion/*" \
    -o -path "$root/usr/share/zsh/*" -o -path "$root/usr/lib/udev/hwdb.d/*" -o -path "$root/usr/lib/udev/hwdb.bin" \
    -o -path "$root/usr/lib/linux-image-*" -o -path "$root/boot/*" -o -path "$root/usr/lib/systemd/boot/*" -o -path "$root/usr/lib/raspi-firmware/*" \
    -o -path "$root/usr/share/polkit-1/*" -o -path "$root/usr/lib/*/gconv/*" -o -path "$root/usr/share/i18n/*" -o -path "$root/var/*" \
    -o -path "$root/usr/lib/systemd/catalog/*" -o -path "$root/usr/share/initramfs-tools/*" -o -path "$root/etc/kernel/*" \
    -o -path "$root/usr/lib/tmpfiles.d/provision.conf" -o -path "$root/usr/lib/tmpfiles.d/credstore.conf" \
    -o -path "$root/usr/lib/tmpfiles.d/debian.conf" -o -path "$root/usr/lib/tmpfiles.d/home.conf" -o -path "$root/usr/lib/tmpfiles.d/etc.conf" \
    -o -path "$root/usr/share/perl5/*" -o -path "$root/usr/lib/kernel/*" -o -path "$root/etc/initramfs-tools/*" \) -delete
cat "$root"/usr/share/ca-certificates/mozilla/*.crt >"$root/etc/ssl/certs/ca-certificates.crt"
rm -rf "$root/usr/share/ca-certificates"
for applet in "${applets[@]}"; do
    if [ ! -e "$root/usr/bin/$applet" ] && [ ! -e "$root/usr/sbin/$applet" ]; then ln -s busybox "$root/usr/bin/$applet"; fi
done
# Debian's kernel takes what Debian has signed.
for file in regulatory.db regulatory.db.p7s; do ln -sf "$file-debian" "$root/usr/lib/firmware/$file"; done
# Of which packages: for whoever looks after devices.
mkdir -p "$root/usr/share/glimpse"
cp "$list" "$root/usr/share/glimpse/packages"
cp "$list" "$new/packages"
echo "$version" >"$new/kernel"
tar -C "$root" --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -cf "$new/root.tar" .
if [ -z "${2:-}" ]; then cp "$list" "$last.new" && mv "$last.new" "$last"; fi
mv "$new" "$tree"
rm -rf "$work"
say "ready: $tree ($(du -sm "$tree" | cut -f 1) MB)"
finish
