#!/usr/bin/env bash
# Makes an image for a card, of what base.sh brought, the files of `device`, and the package of glimpse-edge. Nobody need be root. The same inputs give
# the same bytes: files are root's, sorted, and all of one time; numbers of disks and file systems are made of what is in them.
#
# Usage: assemble.sh FAMILY BASE PROGRAM FILES OPTIONS OUT
#   FAMILY   uefi, or raspberry-pi
#   BASE     the folder that base.sh printed
#   PROGRAM  glimpse-edge_.._arm64.deb
#   FILES    a folder whose files go onto the first partition, for a person to edit; may be empty
#   OPTIONS  more for the kernel's command line
#   OUT      the image; where UPDATE is set, a folder with the parts of a program update in its place
#
# The layout is told in docs/image.md; `init` and flashing rely on it.
set -euo pipefail
export LC_ALL=C TZ=UTC
here=$(cd "$(dirname "$0")" && pwd)
family=$1 base=$2 program=$3 files=$4 options=$5
out=$(realpath "$6")
export SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-1735689600}"
boot_mib=256 root_mib=128 data_mib=16 first_mib=4

say() { echo "image: $*" >&2; }
cannot() { echo "$*"; exit 3; }
bin=$("$here/tools.sh") || { echo "$bin"; exit 3; }
work=$(mktemp -d "$out.part.XXXXXX")
trap 'rm -rf "$work"' EXIT

# --- the root file system
say "laying out the root file system"
root="$work/root"
mkdir "$root"
tar -C "$root" -xf "$base/root.tar"
[ "$(dpkg-deb --field "$program" Architecture)" = arm64 ] || cannot "$program is not for arm64"
[ "$(dpkg-deb --field "$program" Package)" = glimpse-edge ] || cannot "$program is not a package of glimpse-edge"
dpkg-deb --fsys-tarfile "$program" | tar -x --no-same-owner -C "$root"
mv "$root/etc/glimpse/device.toml" "$work/device.toml"
rm -rf "$root/etc/glimpse" "$root/usr/share/doc"
cp -r "$here/device/." "$root/"
chmod -R u=rwX,go=rX "$root"
chmod 755 "$root"/usr/lib/glimpse/*
# The configuration is on the first partition, that a person can edit.
ln -s ../boot "$root/etc/glimpse"
ln -s ../lib/glimpse/update "$root/usr/bin/glimpse-update"
ln -sf ../run/systemd/resolve/stub-resolv.conf "$root/etc/resolv.conf"
mkdir -p "$root"/{boot,dev,proc,sys,run,tmp,var,root,mnt,home}
# The initramfs lays the device's own over it.
: >"$root/etc/machine-id"

units="$root/etc/systemd/system"
enable() { # UNIT TARGET
    mkdir -p "$units/$2.wants"
    ln -sf "/usr/lib/systemd/system/$1" "$units/$2.wants/$1"
}
mkdir -p "$units"
ln -sf /usr/lib/systemd/system/multi-user.target "$units/default.target"
enable systemd-networkd.service multi-user.target
enable systemd-networkd.socket sockets.target
enable systemd-resolved.service sysinit.target
enable systemd-timesyncd.service sysinit.target
enable glimpse-configure.service sysinit.target
enable glimpse-health.service multi-user.target
enable glimpse-ssh.service multi-user.target
enable glimpse-update.service multi-user.target
enable glimpse-edge.service multi-user.target
# What asks a person, wants to write to /usr or /etc, or has nobody to serve: there are no logins but by SSH.
for unit in systemd-firstboot.service systemd-sysusers.service systemd-hwdb-update.service systemd-update-done.service ldconfig.service \
    systemd-machine-id-commit.service systemd-logind.service systemd-user-sessions.service getty.target systemd-ask-password-wall.path \
    systemd-ask-password-console.path systemd-journal-catalog-update.service systemd-journal-flush.service systemd-hibernate-clear.service systemd-pcrmachine.service \
    systemd-pcrphase.service systemd-pcrphase-sysinit.service systemd-tpm2-setup.service systemd-tpm2-setup-early.service \
    systemd-binfmt.service proc-sys-fs-binfmt_misc.automount dev-hugepages.mount sys-kernel-debug.mount sys-kernel-tracing.mount \
    sys-fs-fuse-connections.mount systemd-rfkill.service systemd-rfkill.socket e2scrub_reap.service systemd-sysext.socket \
    systemd-pcrextend.socket systemd-pcrlock.socket systemd-creds.socket systemd-hostnamed.socket systemd-initctl.socket \
    systemd-networkd-persistent-storage.service sys-kernel-config.mount modprobe@configfs.service systemd-networkd-wait-online.service \
    systemd-remount-fs.service systemd-udev-load-credentials.service systemd-tmpfiles-setup-dev-early.service; do
    ln -sf /dev/null "$units/$unit"
done
mkdir -p "$root/etc/systemd/system-generators"
for generator in systemd-getty-generator systemd-gpt-auto-generator systemd-cryptsetup-generator systemd-hibernate-resume-generator \
    systemd-tpm2-generator systemd-ssh-generator systemd-rc-local-generator systemd-run-generator; do
    ln -sf /dev/null "$root/etc/systemd/system-generators/$generator"
done

say "packing it"
"$bin/mksquashfs" "$root" "$work/root.squashfs" -quiet -no-progress -noappend -all-root -no-xattrs -no-exports -reproducible \
    -comp zstd -Xcompression-level 15 -b 128K >&2
rm -rf "$root"
[ "$(stat -c %s "$work/root.squashfs")" -le $((root_mib << 20)) ] || cannot "the root file system has more than $root_mib MiB"

# --- what starts it
boot="$work/boot"
fixed="ro panic=10 net.ifnames=0 loglevel=4${options:+ $options}"
mkdir -p "$boot/slot-a"
cp -r "$base/firmware/." "$boot/"
cp "$base/vmlinuz" "$base/initramfs" "$boot/slot-a/"
if [ "$family" = raspberry-pi ]; then mv "$boot"/*.dtb "$boot/slot-a/"; fi
if [ "${UPDATE:-}" ]; then
    # Signed and put into one file by `glimpse-firmware`; /usr/lib/glimpse/update takes it.
    say "making the parts of an update"
    mkdir "$work/parts"
    tar -C "$boot/slot-a" --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" -c . | "$bin/xz" -6 -T2 >"$work/parts/slot.tar.xz"
    mv "$work/root.squashfs" "$work/parts/root.squashfs"
    {
        printf 'glimpse program update 1\nfamily %s\nversion %s\noptions %s\n' "$family" "$(dpkg-deb --field "$program" Version)" "$fixed"
        for part in slot.tar.xz root.squashfs; do
            echo "$part $(stat -c %s "$work/parts/$part") $(sha256sum <"$work/parts/$part" | cut -d ' ' -f 1)"
        done
    } >"$work/parts/manifest"
    mv "$work/parts"/* "$out/"
    exit
fi

# --- the first partition
say "making the partitions"
tr -d '\r' <"$work/device.toml" | sed 's/$/\r/' >"$boot/device.toml"
sed 's/$/\r/' "$here/README.txt" >"$boot/README.txt"
cp -r "$files/." "$boot/"
# Of what the card holds: another image is another disk, the same one is the same.
sum=$({ cd "$work" && sha256sum <root.squashfs && cd boot && find . -type f | sort | xargs -d '\n' sha256sum && echo "$family $options"; } | sha256sum)
uuid() { echo "${sum:$1:8}-${sum:$(($1 + 8)):4}-4${sum:$(($1 + 12)):3}-8${sum:$(($1 + 15)):3}-${sum:$(($1 + 18)):12}" | tr "[:lower:]" "[:upper:]"; }
serial=$(echo "${sum:40:8}" | tr "[:lower:]" "[:upper:]")
disk="${serial:0:4}-${serial:4:4}"
command_line="glimpse.disk=$disk glimpse.slot=a $fixed"
if [ "$family" = uefi ]; then
    mkdir -p "$boot/loader/entries"
    printf 'timeout 0\neditor no\nauto-entries no\nauto-firmware no\n' >"$boot/loader/loader.conf"
    printf 'title Glimpse, root file system A\nsort-key glimpse\nversion 1\nlinux /slot-a/vmlinuz\ninitrd /slot-a/initramfs\noptions %s\n' \
        "$command_line" >"$boot/loader/entries/glimpse-a.conf"
else
    echo "$command_line" >"$boot/slot-a/cmdline.txt"
    cp "$here/config.txt" "$boot/config.txt"
fi
find "$boot" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
"$bin/mkfs.fat" -F 32 -s 4 -n GLIMPSE -i "$serial" -C "$work/boot.fat" $((boot_mib << 10)) >/dev/null
export MTOOLS_SKIP_CHECK=1
(
    cd "$boot"
    find . -mindepth 1 -type d | sort | while read -r folder; do "$bin/mtools" -c mmd -i "$work/boot.fat" "::${folder#.}"; done
    find . -type f | sort | while read -r file; do "$bin/mtools" -c mcopy -m -i "$work/boot.fat" "$file" "::${file#.}"; done
)

# --- the card
draft="$work/card"
truncate -s $(((first_mib + boot_mib + 2 * root_mib + data_mib + 1) << 20)) "$draft"
at=$first_mib
{
    if [ "$family" = uefi ]; then
        printf 'label: gpt\nlabel-id: %s\nunit: sectors\n' "$(uuid 0)"
        kinds=(C12A7328-F81F-11D2-BA4B-00A0C93EC93B 0FC63DAF-8483-4772-8E79-3D69D8477DE4)
    else
        # The first Raspberry Pis with 64 bits read no other.
        printf 'label: dos\nlabel-id: 0x%s\nunit: sectors\n' "${sum:48:8}"
        kinds=(c 83)
    fi
    number=0
    for part in "glimpse-boot $boot_mib 0" "glimpse-root-a $root_mib 1" "glimpse-root-b $root_mib 1" "glimpse-data $data_mib 1"; do
        read -r label mib kind <<<"$part"
        number=$((number + 1))
        printf 'start=%d, size=%d, type=%s' $((at << 11)) $((mib << 11)) "${kinds[$kind]}"
        if [ "$family" = uefi ]; then printf ', uuid=%s, name=%s' "$(uuid $((number * 4)))" "$label"; fi
        echo
        at=$((at + mib))
    done
} | "$bin/sfdisk" --quiet --no-reread --no-tell-kernel "$draft"
dd if="$work/boot.fat" of="$draft" bs=1M seek=$first_mib conv=notrunc,sparse status=none
dd if="$work/root.squashfs" of="$draft" bs=1M seek=$((first_mib + boot_mib)) conv=notrunc,sparse status=none

case $out in
*.zst) say "compressing" && "$bin/zstd" -q -10 -T2 "$draft" -o "$work/packed" ;;
*.xz) say "compressing" && "$bin/xz" -c -6 -T2 "$draft" >"$work/packed" ;;
*) mv "$draft" "$work/packed" ;;
esac
mv "$work/packed" "$out"
