#!/usr/bin/env python3
"""Takes drivers out of an unpacked kernel package, and makes an initramfs without being root.

Usage: initramfs.py modules FOLDER-OF-MODULES OUT NAME..   the drivers and what they need, decompressed and numbered as they are loaded
       initramfs.py pack OUT INIT FOLDER                   a cpio archive: /init, and the folder's busybox, lib and modules

The same inputs give the same bytes.
"""

import lzma
import re
import sys
from pathlib import Path

# What a kernel's program loader takes, in cpio's "new ASCII" form.
MAGIC = "070701"
FOLDER, FILE, DEVICE = 0o040755, 0o100755, 0o020600
LIBRARIES = "lib/aarch64-linux-gnu"


class InitramfsError(Exception):
    """What is wrong with an input."""


def name_of(text: str) -> str:
    """The kernel's name of a module: a file's dashes are its underscores."""
    return text.replace("-", "_")


def needs_of(module: bytes) -> list[str]:
    """The modules that one asks for, from its `.modinfo`: strings that end with a zero byte."""
    found = re.search(rb"\0depends=([^\0]*)\0", module)
    if found is None:
        raise InitramfsError("it is no kernel module: it does not say what it depends on")
    return [name_of(name) for name in found[1].decode("ascii").split(",") if name]


def resolve(folder: Path, names: list[str]) -> list[tuple[str, bytes]]:
    """The modules of these names with all that they need, each behind what it needs."""
    files = {name_of(path.name.removesuffix(".xz").removesuffix(".ko")): path for path in folder.rglob("*.ko*")}
    found: dict[str, bytes] = {}
    begun: set[str] = set()

    def take(name: str, asked_by: str) -> None:
        if name in found:
            return
        if name not in files:
            raise InitramfsError(f"the kernel has no module {name}, which {asked_by} asks for")
        if name in begun:
            raise InitramfsError(f"{name} needs itself")
        begun.add(name)
        path = files[name]
        module = path.read_bytes()
        if path.suffix == ".xz":
            module = lzma.decompress(module)
        for need in needs_of(module):
            take(need, name)
        found[name] = module

    for name in names:
        take(name_of(name), "the command line")
    return list(found.items())


def cpio(entries: list[tuple[str, int, bytes, tuple[int, int]]]) -> bytes:
    """An archive of (name, mode, content, device): all of it root's."""
    archive = bytearray()
    for inode, (name, mode, content, (major, minor)) in enumerate([*entries, ("TRAILER!!!", 0, b"", (0, 0))], 1):
        path = name.encode() + b"\0"
        links, owner, time = 1, 0, 0
        fields = [inode, mode, owner, owner, links, time, len(content), 0, 0, major, minor, len(path), 0]
        archive += MAGIC.encode() + "".join(f"{field:08x}" for field in fields).encode() + path
        archive += bytes(-len(archive) % 4)
        archive += content
        archive += bytes(-len(archive) % 4)
    return bytes(archive)


def pack(init: bytes, busybox: bytes, modules: dict[str, bytes], libraries: dict[str, bytes]) -> bytes:
    """What a machine starts with."""
    nothing = (0, 0)
    folders = ["bin", "dev", "host", "lib", LIBRARIES, "modules", "proc", "sys", "tmp"]
    files = {"init": init, "bin/busybox": busybox}
    files |= {f"modules/{name}": content for name, content in sorted(modules.items())}
    # Programs name the loader by its first place, and it finds the others in the second.
    for name, content in sorted(libraries.items()):
        files[f"lib/{name}" if name.startswith("ld-") else f"{LIBRARIES}/{name}"] = content
    entries = [(name, FOLDER, b"", nothing) for name in folders]
    entries += [(name, FILE, content, nothing) for name, content in files.items()]
    # Until init has mounted /dev, its messages go here.
    return cpio([*entries, ("dev/console", DEVICE, b"", (5, 1))])


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder, by their names."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def main(arguments: list[str]) -> None:
    if len(arguments) > 3 and arguments[0] == "modules":
        folder, out, *names = arguments[1:]
        for number, (name, module) in enumerate(resolve(Path(folder), names)):
            Path(out, f"{number:02}-{name}.ko").write_bytes(module)
    elif len(arguments) == 4 and arguments[0] == "pack":
        out, init, folder = arguments[1:]
        of = Path(folder)
        archive = pack(Path(init).read_bytes(), (of / "busybox").read_bytes(), contents(of / "modules"), contents(of / "lib"))
        Path(out).write_bytes(archive)
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (InitramfsError, OSError, lzma.LZMAError) as error:
        sys.exit(f"initramfs.py: {error}")
