"""What the data scripts share: where things lie, how files are written, and the split table.

Every path is relative to the repository root, found from this file, so the scripts run from any folder.
"""
import csv
import hashlib
import os
import sys
import tempfile
from pathlib import Path

TOOLS = Path(__file__).resolve().parent
ROOT = TOOLS.parent.parent
DATA = ROOT / "data"
PYTHON_LIBS = DATA / "python"
UNPACKED = DATA / "unpacked"
SCENES = DATA / "scenes"
DEMO = ROOT / "demo"
SPLIT_CSV = TOOLS / "split.csv"
CHECKSUMS = TOOLS / "checksums.txt"
STAMPS = "tuxpaint-stamps-default"
TEMP_PREFIX = ".tmp-"


class DataError(Exception):
    """A failure that the person running the script can act on; the message says how."""


def say(message):
    print(message, file=sys.stderr, flush=True)


def run(main):
    """Runs `main` and turns an expected failure into one line and exit code 2."""
    try:
        sys.exit(main())
    except DataError as error:
        say("error: %s" % error)
        sys.exit(2)
    except KeyboardInterrupt:
        say("stopped; run it again to go on from here")
        sys.exit(130)


def use_libraries():
    """Makes the pinned Pillow and numpy in `data/python` importable."""
    sys.path.insert(0, str(PYTHON_LIBS))
    try:
        import numpy  # noqa: F401
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise DataError(
            "Pillow and numpy are not usable from %s (%s): run `python3 tools/data/fetch.py` with this Python first"
            % (PYTHON_LIBS.relative_to(ROOT), error)
        )


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def write_atomically(path, content):
    """Writes bytes under a temporary name and renames, so that no half file is ever seen."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=TEMP_PREFIX, dir=str(path.parent))
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def csv_bytes(columns, rows):
    """`rows` (dicts) as CSV with Unix line ends."""
    import io

    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode("utf-8")


def read_csv(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_split():
    return read_csv(SPLIT_CSV)


def source_path(row):
    """Where the source photo of a split row lies once fetched."""
    return UNPACKED / row["package"] / row["source"]


def read_checksums():
    """`checksums.txt` as {path: sha256}; the paths are those that fetch.py gives the files under data/."""
    table = {}
    for line in CHECKSUMS.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            digest, name = line.split("  ", 1)
            table[name] = digest
    return table
