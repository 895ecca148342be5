"""Checks the committed data tables and demo photos: python3 -m unittest discover -s tools/data -p 'test_*.py'

Needs no network, no data/ and nothing beyond the standard library.
"""
import csv
import hashlib
import re
import unittest
from pathlib import Path

TOOLS = Path(__file__).resolve().parent
DEMO = TOOLS.parent.parent / "demo"
PHOTOS = DEMO / "photos"


def read(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


class Split(unittest.TestCase):
    def setUp(self):
        self.rows = read(TOOLS / "split.csv")

    def sides(self, column):
        sides = {}
        for row in self.rows:
            sides.setdefault(row[column], set()).add(row["split"])
        return sides

    def test_no_source_is_on_two_sides_or_listed_twice(self):
        names = [(row["package"], row["source"]) for row in self.rows]
        self.assertEqual(len(names), len(set(names)))

    def test_no_bytes_are_on_two_sides(self):
        self.assertEqual([], [digest for digest, sides in self.sides("sha256").items() if len(sides) > 1])

    def test_resized_copies_of_a_wallpaper_are_on_one_side(self):
        sides = {}
        for row in self.rows:
            if "/wallpapers/" in row["source"]:
                sides.setdefault(row["source"].split("/wallpapers/")[1].split("/")[0], []).append(row["split"])
        self.assertEqual([], [name for name, of in sides.items() if len(of) > 1])

    def test_every_row_is_filled_in(self):
        for row in self.rows:
            self.assertIn(row["kind"], ("object", "scene", "distractor"))
            self.assertIn(row["split"], ("train", "val", "test"))
            self.assertTrue(row["author"] and row["licence"], row)
            self.assertRegex(row["sha256"], "^[0-9a-f]{64}$")

    def test_there_are_enough_test_objects_and_all_are_photographs(self):
        for split, least in (("test", 215), ("val", 40)):
            objects = [row for row in self.rows if row["kind"] == "object" and row["split"] == split]
            self.assertGreaterEqual(len(objects), least)
            self.assertEqual({"photo"}, {row["medium"] for row in objects})

    def test_checksums_cover_every_source_and_the_weights(self):
        lines = [line for line in (TOOLS / "checksums.txt").read_text().splitlines() if not line.startswith("#")]
        sums = dict(reversed(line.split("  ", 1)) for line in lines)
        for row in self.rows:
            self.assertEqual(row["sha256"], sums["unpacked/%s/%s" % (row["package"], row["source"])])
        for name in ("efficientnet-lite0.pth", "efficientnet-lite2.pth", "mobilenetv2.pt"):
            self.assertIn("weights/" + name, sums)


class Demo(unittest.TestCase):
    def setUp(self):
        self.gallery, self.queries = read(DEMO / "gallery.csv"), read(DEMO / "queries.csv")
        self.rights = {row["path"]: row for row in read(DEMO / "photos.csv")}
        self.files = {path.relative_to(PHOTOS).as_posix(): path for path in PHOTOS.rglob("*") if path.is_file()}

    def test_tables_name_exactly_the_files_that_exist(self):
        paths = [row["path"] for row in self.gallery + self.queries]
        self.assertEqual(len(paths), len(set(paths)))
        self.assertEqual(set(self.files), set(paths))
        self.assertEqual(set(self.files), set(self.rights))

    def test_there_are_enough_photos_and_they_are_small_enough(self):
        self.assertGreaterEqual(len(self.queries), 230)
        self.assertGreaterEqual(len(self.gallery), 320)
        self.assertLessEqual(sum(path.stat().st_size for path in DEMO.rglob("*") if path.is_file()), 15_000_000)

    def test_every_answer_is_a_gallery_photo_of_the_same_label(self):
        labels = {row["path"]: row["label"] for row in self.gallery}
        for row in self.queries:
            self.assertEqual(row["label"], labels[row["answer"]])

    def test_no_two_photos_are_the_same(self):
        digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in self.files.values()]
        self.assertEqual(len(digests), len(set(digests)))

    def test_no_photo_comes_from_the_training_or_validation_side(self):
        split = {"%s: %s" % (row["package"], row["source"]): row for row in read(TOOLS / "split.csv")}
        query_scenes = {row["scene_source"] for row in self.rights.values() if row["role"] == "query"}
        for row in self.rights.values():
            sources = [row[column] for column in ("object_source", "scene_source") if row[column]]
            self.assertTrue(sources, row)
            self.assertEqual({"test"}, {split[source]["split"] for source in sources})
            if row["role"] == "distractor":
                self.assertEqual([], [source for source in sources if source in query_scenes])

    def test_every_photo_has_a_licence_that_lets_it_be_passed_on(self):
        free = re.compile(r"^(GPL|LGPL|CC0|CC-BY-4\.0|CC-BY-SA-4\.0|public domain)")
        for row in self.rights.values():
            self.assertRegex(row["licence"], free)
            self.assertNotRegex(row["licence"], r"NC|ND|GFDL|not stated")
            self.assertTrue(row["object_author"] or row["scene_author"])

    def test_some_queries_are_stored_turned(self):
        turned = [row for row in self.queries if b"Exif\0\0" in self.files[row["path"]].read_bytes()[:64]]
        self.assertGreaterEqual(len(turned), 5)
        self.assertLessEqual(len(turned), len(self.queries) // 10)


if __name__ == "__main__":
    unittest.main()
