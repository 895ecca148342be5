"""Tests of package.py, on a stand-in for the program: `python3 -m unittest discover -s tools/arm`."""

import gzip
import hashlib
import io
import lzma
import shutil
import struct
import subprocess
import tarfile
import tempfile
import unittest
from pathlib import Path

import package

CONFIGURATION = """# A Glimpse device.

# The gallery server's address.
server = "gallery.local:1883"

# Its name.
# device = "camera-1"

# Where photos come from.
camera = "folder:/var/lib/glimpse-edge/photos"
"""
EPOCH = 1_700_000_000


def elf(machine: int, bits: int, text: bytes = b"\0GLIBC_2.28\0GLIBC_2.4\0", section: int | None = None) -> bytes:
    """A header, and what is looked for in a program; with one section of a type."""
    size = 64 if bits == 2 else 52
    header = bytearray(b"\x7fELF" + bytes([bits, 1, 1]) + bytes(size - 7))
    struct.pack_into("<H", header, 18, machine)
    body = bytes(header) + text
    if section is not None:
        struct.pack_into("<Q" if bits == 2 else "<I", header, 40 if bits == 2 else 32, len(body))
        struct.pack_into("<HH", header, 58 if bits == 2 else 46, 64 if bits == 2 else 40, 1)
        body = bytes(header) + text + struct.pack("<II", 0, section) + bytes(56)
    return body


def members(deb: bytes) -> dict[str, bytes]:
    """The parts of an ar archive, in order."""
    assert deb[:8] == b"!<arch>\n"
    found, at = {}, 8
    while at < len(deb):
        name, size = deb[at : at + 16].decode().strip(), int(deb[at + 48 : at + 58])
        assert deb[at + 58 : at + 60] == b"`\n"
        found[name] = deb[at + 60 : at + 60 + size]
        at += 60 + size + size % 2
    return found


def files(archive: bytes) -> dict[str, tuple[tarfile.TarInfo, bytes | None]]:
    """What is in a tar.xz."""
    with tarfile.open(fileobj=io.BytesIO(lzma.decompress(archive))) as tar:
        return {info.name: (info, tar.extractfile(info).read() if info.isfile() else None) for info in tar}


def made(binary: bytes, crates: str | None = "serde v1: MIT\n") -> tuple[str, dict[str, bytes]]:
    """A package's name and its parts."""
    name, deb = package.package(binary, CONFIGURATION, "0.1.0", EPOCH, crates)
    return name, members(deb)


class Package(unittest.TestCase):
    def test_each_architecture_has_its_name_in_the_package(self):
        for (machine, bits), architecture in package.MACHINES.items():
            name, parts = made(elf(machine, bits))
            self.assertEqual(name, f"glimpse-edge_0.1.0_{architecture}.deb")
            self.assertEqual(list(parts), ["debian-binary", "control.tar.xz", "data.tar.xz"])
            self.assertEqual(parts["debian-binary"], b"2.0\n")
            control = files(parts["control.tar.xz"])["./control"][1].decode()
            self.assertIn(f"\nArchitecture: {architecture}\n", control)
            self.assertIn("\nDepends: libc6 (>= 2.28), passwd\n", control)

    def test_it_holds_program_service_configuration_and_documents(self):
        binary = elf(183, 2)
        _, parts = made(binary)
        data = files(parts["data.tar.xz"])
        found = {name: info.mode for name, (info, content) in data.items() if content is not None}
        documents = "./usr/share/doc/glimpse-edge"
        expected = {
            "./usr/bin/glimpse-edge": 0o755,
            "./usr/lib/systemd/system/glimpse-edge.service": 0o644,
            "./etc/glimpse/device.toml": 0o644,
            f"{documents}/copyright": 0o644,
            f"{documents}/changelog.gz": 0o644,
            f"{documents}/crates.gz": 0o644,
        }
        self.assertEqual(found, expected)
        self.assertEqual(data["./usr/bin/glimpse-edge"][1], binary)
        self.assertIn("glimpse-edge (0.1.0) unstable", gzip.decompress(data[f"{documents}/changelog.gz"][1]).decode())
        for name, (info, _) in data.items():
            self.assertEqual((info.uid, info.gid, info.uname, info.mtime), (0, 0, "root", EPOCH), name)
            parent = name.rsplit("/", 1)[0]
            self.assertTrue(parent in data or parent == ".", f"{name} is in a folder that is not there")

    def test_the_sums_are_of_what_is_installed_and_no_configuration_is_among_them(self):
        _, parts = made(elf(183, 2))
        data, control = files(parts["data.tar.xz"]), files(parts["control.tar.xz"])
        self.assertEqual(control["./conffiles"][1], b"/etc/glimpse/device.toml\n")
        sums = dict(reversed(line.split("  ")) for line in control["./md5sums"][1].decode().splitlines())
        self.assertEqual(len(sums), 5)
        for path, digest in sums.items():
            self.assertEqual(hashlib.md5(data[f"./{path}"][1], usedforsecurity=False).hexdigest(), digest, path)
        self.assertFalse(any(path.startswith("etc") for path in sums))

    def test_the_configuration_says_nothing_until_somebody_describes_the_device(self):
        text = package.unset(CONFIGURATION)
        self.assertTrue(all(line.startswith("#") or not line for line in text.splitlines()), text)
        self.assertIn('\n# server = "gallery.local:1883"\n', text)
        # What stood behind a sign already stands behind one.
        self.assertIn('\n# device = "camera-1"\n', text)
        self.assertIn("systemctl restart glimpse-edge", text.split("\n\n")[0])

    def test_the_service_waits_for_a_described_device_and_takes_little_of_the_machine(self):
        unit = (package.DEPLOY / "glimpse-edge.service").read_text()
        condition = next(line for line in unit.splitlines() if line.startswith("ExecCondition="))
        command = condition.removeprefix("ExecCondition=").removesuffix(" /etc/glimpse/device.toml")
        with tempfile.NamedTemporaryFile("w") as file:

            def is_described(text: str) -> bool:
                Path(file.name).write_text(text)
                return subprocess.run(f"{command} {file.name}", shell=True, check=False).returncode == 0

            self.assertFalse(is_described(package.unset(CONFIGURATION)))
            self.assertTrue(is_described(CONFIGURATION))
        for line in [
            "NoNewPrivileges=yes",
            "ProtectSystem=strict",
            "StateDirectory=glimpse-edge",
            "Restart=always",
            "RestartPreventExitStatus=2 78",
            "Wants=network-online.target",
            "User=glimpse",
        ]:
            self.assertIn(f"\n{line}\n", unit)
        self.assertIn("\nMemoryMax=", unit)
        # A group that a system lacks would keep the service from starting.
        self.assertNotIn("SupplementaryGroups", unit)

    def test_scripts_are_shell_and_can_be_run(self):
        control = files(made(elf(183, 2))[1]["control.tar.xz"])
        for name in ["postinst", "prerm", "postrm"]:
            info, script = control[f"./{name}"]
            self.assertEqual(info.mode, 0o755)
            self.assertTrue(script.startswith(b"#!/bin/sh\n"), name)
            subprocess.run(["sh", "-n"], input=script, check=True)

    def test_the_same_inputs_give_the_same_bytes(self):
        first, again = (package.package(elf(40, 1), CONFIGURATION, "1.2", EPOCH, "a\n") for _ in range(2))
        self.assertEqual(first, again)
        other = package.package(elf(40, 1), CONFIGURATION, "1.2", EPOCH + 1, "a\n")
        self.assertNotEqual(first[1], other[1])

    def test_what_should_not_be_shipped_is_refused(self):
        for binary, said in [
            (b"#!/bin/sh\n" + bytes(100), "no ELF program"),
            (b"\x7fELF", "no ELF program"),
            (elf(62, 2), "neither arm64 nor armhf"),
            (elf(183, 2, b"\0GLIBC_2.34\0"), "glibc 2.34"),
            (elf(183, 2, section=2), "strip it"),
            (elf(40, 1, section=2), "strip it"),
            (elf(183, 2) + bytes(package.BINARY_BYTES_MAX), "are the most"),
        ]:
            with self.assertRaisesRegex(package.PackageError, said):
                made(binary)
        for allowed in (elf(183, 2, section=3), elf(40, 1, section=3), elf(183, 2, b"")):
            made(allowed)

    def test_the_version_is_the_workspaces(self):
        self.assertRegex(package.version_of_workspace(), r"^\d+\.\d+\.\d+")

    @unittest.skipUnless(shutil.which("dpkg-deb"), "there is no dpkg-deb")
    def test_debians_own_program_reads_it(self):
        with tempfile.TemporaryDirectory() as folder:
            name, deb = package.package(elf(40, 1), CONFIGURATION, "0.1.0", EPOCH, None)
            path = Path(folder) / name
            path.write_bytes(deb)
            field = subprocess.run(["dpkg-deb", "--field", path, "Package", "Architecture"], capture_output=True, text=True, check=True)
            self.assertEqual(field.stdout, "Package: glimpse-edge\nArchitecture: armhf\n")
            subprocess.run(["dpkg-deb", "--extract", path, folder], check=True)
            self.assertEqual((Path(folder) / "usr/bin/glimpse-edge").read_bytes(), elf(40, 1))


if __name__ == "__main__":
    unittest.main()
