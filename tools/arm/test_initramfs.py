"""Tests of initramfs.py, on stand-ins for modules: `python3 -m unittest discover -s tools/arm`."""

import lzma
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

import initramfs


def module(needs: str) -> bytes:
    return b"\x7fELF what a module holds\0license=GPL\0depends=" + needs.encode() + b"\0name=some\0"


class Modules(unittest.TestCase):
    def setUp(self) -> None:
        place = tempfile.TemporaryDirectory()
        self.addCleanup(place.cleanup)
        self.folder = Path(place.name)

    def put(self, name: str, needs: str) -> None:
        path = self.folder / "kernel" / "drivers" / f"{name}.ko.xz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(lzma.compress(module(needs)))

    def names(self, *names: str) -> list[str]:
        return [name for name, _ in initramfs.resolve(self.folder, list(names))]

    def test_each_comes_behind_what_it_needs_and_once(self) -> None:
        self.put("camera", "video-core,colours")
        self.put("video-core", "media")
        self.put("colours", "")
        self.put("media", "")
        self.put("net", "media")
        self.assertEqual(self.names("camera", "net"), ["media", "video_core", "colours", "camera", "net"])
        # As it is before it is compressed, too.
        (self.folder / "plain.ko").write_bytes(module("net"))
        self.assertEqual(self.names("plain"), ["media", "net", "plain"])
        self.assertEqual(initramfs.resolve(self.folder, ["colours"])[0][1], module(""))

    def test_what_is_missing_is_named_with_who_asked(self) -> None:
        self.put("camera", "video-core")
        with self.assertRaisesRegex(initramfs.InitramfsError, "no module video_core, which camera asks for"):
            self.names("camera")

    def test_a_circle_and_a_file_that_is_no_module_are_refused(self) -> None:
        self.put("a", "b")
        self.put("b", "a")
        with self.assertRaisesRegex(initramfs.InitramfsError, "a needs itself"):
            self.names("a")
        (self.folder / "c.ko").write_bytes(b"nothing of the kind")
        with self.assertRaisesRegex(initramfs.InitramfsError, "no kernel module"):
            self.names("c")


class Archive(unittest.TestCase):
    def setUp(self) -> None:
        self.archive = initramfs.pack(
            b"#!/bin/busybox sh\n", b"busybox", {"01-b.ko": b"12345", "00-a.ko": b""}, {"ld-linux.so.1": b"l", "libc.so.6": b"c"}
        )

    def test_the_same_files_give_the_same_bytes_aligned_as_the_kernel_wants_them(self) -> None:
        again = initramfs.pack(
            b"#!/bin/busybox sh\n", b"busybox", {"00-a.ko": b"", "01-b.ko": b"12345"}, {"libc.so.6": b"c", "ld-linux.so.1": b"l"}
        )
        self.assertEqual(self.archive, again)
        self.assertEqual(len(self.archive) % 4, 0)
        self.assertIn(b"TRAILER!!!", self.archive)

    @unittest.skipIf(shutil.which("cpio") is None, "there is no cpio")
    def test_cpio_can_read_it(self) -> None:
        listed = subprocess.run(["cpio", "-itv"], input=self.archive, capture_output=True, check=True).stdout.decode()
        names = [line.split()[-1] for line in listed.splitlines()]
        for name in ["init", "bin/busybox", "modules/00-a.ko", "lib/ld-linux.so.1", "lib/aarch64-linux-gnu/libc.so.6", "dev/console"]:
            self.assertIn(name, names)

    def test_the_first_entry_is_a_folder_of_roots(self) -> None:
        fields = [int(self.archive[6 + 8 * place : 14 + 8 * place], 16) for place in range(13)]
        self.assertEqual(self.archive[:6], b"070701")
        _inode, mode, owner, group, _links, time, size, *_device, name_length, check = fields
        self.assertEqual((mode, owner, group, time, size, check), (0o040755, 0, 0, 0, 0, 0))
        self.assertEqual(self.archive[110 : 110 + name_length], b"bin\0")


if __name__ == "__main__":
    unittest.main()
