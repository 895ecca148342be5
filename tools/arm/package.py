#!/usr/bin/env python3
"""Makes the Debian package of glimpse-edge from a binary, with Python alone: dpkg is not needed, nor root.

The same inputs give the same bytes: files are root's, sorted, and all of one time, SOURCE_DATE_EPOCH.
"""

import argparse
import datetime
import email.utils
import gzip
import hashlib
import io
import lzma
import os
import re
import struct
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "edge" / "deploy"

NAME = "glimpse-edge"
MAINTAINER = "The Glimpse authors <authors@glimpse.invalid>"
DESCRIPTION = """image recognition for small cameras that keeps photos on the device
 A tiny network turns each photo of the camera into a few hundred bytes, and a
 gallery server answers with the best matches over MQTT. Photos never leave the
 device.
 .
 The service glimpse-edge starts once /etc/glimpse/device.toml describes the
 device."""

# Debian's name of the architecture, the machine in an ELF header (ELF's numbers), and its class: 1 for 32 bits, 2 for 64.
MACHINES = {(183, 2): "arm64", (40, 1): "armhf"}
BINARY_BYTES_MAX = 25_000_000
# Debian 11 and Raspberry Pi OS of 2021.
GLIBC_MAX = (2, 31)

CONFIGURATION_HEAD = """\
# The service glimpse-edge runs it as the user glimpse, once it is described here: remove the "# " before server, camera and
# bundle, let them say what is true here, then `systemctl restart glimpse-edge`, and `journalctl -u glimpse-edge` to see how it goes.
"""


class PackageError(Exception):
    """What is wrong with an input, and what to do."""


def architecture_of(binary: bytes) -> str:
    """Debian's name of the architecture that an ELF program is for; refuses what should not be shipped."""
    if len(binary) < 52 or binary[:4] != b"\x7fELF" or binary[5] != 1:
        raise PackageError("it is no ELF program of a little-endian machine")
    bits, machine = binary[4], struct.unpack_from("<H", binary, 18)[0]
    architecture = MACHINES.get((machine, bits))
    if architecture is None:
        raise PackageError(f"it is for the ELF machine {machine}, which is neither arm64 nor armhf")
    if len(binary) > BINARY_BYTES_MAX:
        raise PackageError(f"it has {len(binary)} bytes, and {BINARY_BYTES_MAX} are the most")
    if has_symbols(binary):
        raise PackageError("it has a table of symbols: strip it")
    return architecture


def has_symbols(binary: bytes) -> bool:
    """Whether there is a section of type SHT_SYMTAB."""
    if binary[4] == 2:
        table = struct.unpack_from("<Q", binary, 40)[0] if len(binary) >= 64 else 0
        size, count = struct.unpack_from("<HH", binary, 58) if len(binary) >= 64 else (0, 0)
    else:
        table = struct.unpack_from("<I", binary, 32)[0]
        size, count = struct.unpack_from("<HH", binary, 46)
    if table == 0 or table + size * count > len(binary):
        return False
    return any(struct.unpack_from("<I", binary, table + size * i + 4)[0] == 2 for i in range(count))


def glibc_of(binary: bytes) -> tuple[int, int]:
    """The newest version of glibc whose symbols it wants."""
    versions = {tuple(int(part) for part in found) for found in re.findall(rb"\0GLIBC_(\d+)\.(\d+)", binary)}
    newest = max(versions, default=(2, 4))
    if newest > GLIBC_MAX:
        text = "it wants glibc %d.%d, and %d.%d is the newest that it may want: link it by tools/arm/cargo.sh"
        raise PackageError(text % (*newest, *GLIBC_MAX))
    return newest


def unset(configuration: str) -> str:
    """A device.toml of `glimpse-firmware init` with every key behind a comment sign, and what to do above it."""
    lines = [f"# {line}" if re.match(r"[a-z_]+ *=|\[", line) else line for line in configuration.splitlines()]
    head = next((i for i, line in enumerate(lines) if not line), len(lines))
    return "\n".join(lines[:head]) + "\n#\n" + CONFIGURATION_HEAD + "\n".join(lines[head:]) + "\n"


def version_of_workspace() -> str:
    """The version in the workspace's manifest."""
    manifest = (ROOT / "Cargo.toml").read_text()
    found = re.search(r'^\[workspace\.package\]\nversion = "([0-9][0-9A-Za-z.+~]*)"', manifest, re.MULTILINE)
    if not found:
        raise PackageError("Cargo.toml has no version where it should be: first below [workspace.package]")
    return found[1]


def compressed(data: bytes) -> bytes:
    """As gzip -9n."""
    out = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=out, mtime=0) as file:
        file.write(data)
    return out.getvalue()


def tar(files: dict[str, tuple[bytes, int]], epoch: int) -> bytes:
    """Files by path (with their mode), and the folders above them, as tar.xz."""
    folders = {parent for path in files for parent in Path(path).parents if parent != Path(".")}
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:

        def entry(path: str) -> tarfile.TarInfo:
            info = tarfile.TarInfo(path)
            info.uid = info.gid = 0
            info.uname = info.gname = "root"
            info.mtime = epoch
            return info

        for path in ["./", *sorted(f"./{folder.as_posix()}/" for folder in folders)]:
            info = entry(path)
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(info)
        for path, (data, mode) in sorted(files.items()):
            info = entry(f"./{path}")
            info.size, info.mode = len(data), mode
            archive.addfile(info, io.BytesIO(data))
    # The form that every dpkg since 2010 reads; one thread, or the bytes would depend on how many there are.
    return lzma.compress(out.getvalue(), preset=6)


def ar(members: list[tuple[str, bytes]], epoch: int) -> bytes:
    """The outermost form of a package."""
    out = b"!<arch>\n"
    for name, data in members:
        out += f"{name:<16}{epoch:<12}{0:<6}{0:<6}{0o100644:<8o}{len(data):<10}`\n".encode() + data
        out += b"\n" * (len(data) % 2)
    return out


def package(binary: bytes, configuration: str, version: str, epoch: int, crates: str | None) -> tuple[str, bytes]:
    """The name of the package's file, and its bytes."""
    architecture = architecture_of(binary)
    glibc = "%d.%d" % glibc_of(binary)
    date = email.utils.format_datetime(datetime.datetime.fromtimestamp(epoch, datetime.timezone.utc))
    news = "  * CHANGELOG.md of the sources has what is new."
    changelog = f"{NAME} ({version}) unstable; urgency=medium\n\n{news}\n\n -- {MAINTAINER}  {date}\n"
    documents = f"usr/share/doc/{NAME}"
    files = {
        f"usr/bin/{NAME}": (binary, 0o755),
        f"usr/lib/systemd/system/{NAME}.service": ((DEPLOY / f"{NAME}.service").read_bytes(), 0o644),
        "etc/glimpse/device.toml": (unset(configuration).encode(), 0o644),
        f"{documents}/copyright": ((DEPLOY / "debian" / "copyright").read_bytes(), 0o644),
        f"{documents}/changelog.gz": (compressed(changelog.encode()), 0o644),
    }
    if crates is not None:
        files[f"{documents}/crates.gz"] = (compressed(crates.encode()), 0o644)
    kilobytes = sum(-(-len(data) // 1024) for data, _ in files.values())
    control = (
        f"Package: {NAME}\nVersion: {version}\nArchitecture: {architecture}\nMaintainer: {MAINTAINER}\n"
        f"Installed-Size: {kilobytes}\nDepends: libc6 (>= {glibc}), passwd\nRecommends: ca-certificates\nSection: misc\n"
        f"Priority: optional\nDescription: {DESCRIPTION}\n"
    )
    sums = "".join(
        f"{hashlib.md5(data, usedforsecurity=False).hexdigest()}  {path}\n"
        for path, (data, _) in sorted(files.items())
        if not path.startswith("etc/")
    )
    scripts = {name: ((DEPLOY / "debian" / name).read_bytes(), 0o755) for name in ("postinst", "prerm", "postrm")}
    about = {
        "control": (control.encode(), 0o644),
        "conffiles": (b"/etc/glimpse/device.toml\n", 0o644),
        "md5sums": (sums.encode(), 0o644),
        **scripts,
    }
    members = [("debian-binary", b"2.0\n"), ("control.tar.xz", tar(about, epoch)), ("data.tar.xz", tar(files, epoch))]
    return f"{NAME}_{version}_{architecture}.deb", ar(members, epoch)


def main() -> int:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="Makes the Debian package of glimpse-edge; prints its path.")
    parser.add_argument("binary", type=Path, help="glimpse-edge for arm64 or armhf, stripped")
    parser.add_argument("--configuration", type=Path, required=True, help="a device.toml of `glimpse-firmware init`")
    parser.add_argument("--crates", type=Path, help="a list of the crates in the binary, with their licences")
    parser.add_argument("--version", help="of the package [default: the workspace's]")
    parser.add_argument("--out", type=Path, default=Path("."), help="folder for the package")
    args = parser.parse_args()
    try:
        epoch = int(os.environ.get("SOURCE_DATE_EPOCH", "0"))
        crates = args.crates.read_text() if args.crates else None
        configuration = args.configuration.read_text()
        version = args.version or version_of_workspace()
        name, data = package(args.binary.read_bytes(), configuration, version, epoch, crates)
        args.out.mkdir(parents=True, exist_ok=True)
        draft = args.out / f".{name}.new"
        draft.write_bytes(data)
        draft.replace(args.out / name)
    except PackageError as error:
        print(f"package.py: {args.binary}: {error}", file=sys.stderr)
        return 1
    except (OSError, ValueError) as error:
        print(f"package.py: {error}", file=sys.stderr)
        return 1
    print(args.out / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
