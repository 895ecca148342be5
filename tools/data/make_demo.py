#!/usr/bin/env python3
"""Writes demo/: the test split's gallery and query photos, their tables, and whose each photo is.

The photos are copied from data/scenes/test as they are, so figures measured there and here agree. The result is
committed, so that `make demo` runs on a machine without any network.
"""
import argparse
import os
import shutil

import common
from common import DEMO, SCENES, DataError, say

SIZE_BYTES_MAX = 14 * 1000 * 1000
FOLDERS = {"gallery": "gallery", "distractor": "gallery", "query": "queries"}
PHOTO_COLUMNS = ["path", "role", "licence", "object_source", "object_author", "object_licence",
                 "scene_source", "scene_author", "scene_licence"]


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    table = SCENES / "test.csv"
    if not table.exists():
        raise DataError("data/scenes/test.csv is missing: run `python3 tools/data/scenes.py test` first")
    photos = common.read_csv(table)
    sources = {row["source"]: row for row in common.read_split()}
    for photo in photos:
        photo["from"] = SCENES / photo["path"]
        photo["path"] = "%s/%s" % (FOLDERS[photo["role"]], photo["path"].rsplit("/", 1)[1])
    size = sum(photo["from"].stat().st_size for photo in photos)
    if size > SIZE_BYTES_MAX:
        raise DataError("the photos take %d bytes, %d are allowed: lower the quality in scenes.py" % (size, SIZE_BYTES_MAX))
    copy(photos)

    gallery = [photo for photo in photos if photo["role"] != "query"]
    queries = [photo for photo in photos if photo["role"] == "query"]
    answer = {photo["object"]: photo["path"] for photo in gallery if photo["role"] == "gallery"}
    for photo in queries:
        photo["answer"] = answer[photo["object"]]
    write("gallery.csv", ["path", "label"], gallery)
    write("queries.csv", ["path", "label", "answer"], queries)
    write("photos.csv", PHOTO_COLUMNS, [rights(photo, sources) for photo in photos])
    say("demo: %d gallery photos, %d queries, %.1f MB" % (len(gallery), len(queries), size / 1e6))
    return 0


def copy(photos):
    """The photos into a fresh folder, which then takes the old one's place."""
    fresh, place = DEMO / (common.TEMP_PREFIX + "photos"), DEMO / "photos"
    if fresh.exists():
        shutil.rmtree(fresh)
    for photo in photos:
        target = fresh / photo["path"]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(photo["from"], target)
    if place.exists():
        shutil.rmtree(place)
    os.replace(fresh, place)


def write(name, columns, rows):
    common.write_atomically(DEMO / name, common.csv_bytes(columns, sorted(rows, key=lambda row: row["path"])))


def rights(photo, sources):
    """Whose a photo is, and under what licence it may be passed on."""
    row = {"path": photo["path"], "role": photo["role"]}
    licences = []
    for part in ("object", "scene"):
        source = sources.get(photo["source_" + part])
        if source:
            row[part + "_source"] = "%s: %s" % (source["package"], source["source"])
            row[part + "_author"], row[part + "_licence"] = source["author"], source["licence"]
            licences.append(source["licence"])
    row["licence"] = licences[0] if len(licences) == 1 else licence_together(licences)
    return row


# A composition is a derivative work of both photos. What GPL 2 or later can be combined with, and under which GPL.
TOGETHER = {"GPL-2.0-or-later": "GPL-2.0-or-later", "CC0-1.0": "GPL-2.0-or-later", "CC-BY-4.0": "GPL-3.0-or-later"}


def licence_together(licences):
    thing, scene = licences
    if "GPL-2.0-or-later" not in thing or scene not in TOGETHER:
        raise DataError("a composition of %r and %r may not be passed on" % (thing, scene))
    return TOGETHER[scene]


if __name__ == "__main__":
    common.run(main)
