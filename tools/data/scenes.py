#!/usr/bin/env python3
"""Composes the photos of the instance benchmark: objects on plain backgrounds (gallery) and in scenes (queries).

These are synthetic compositions of real photographs. Every photo depends only on the seed, the split, its source and
its number, never on the order of work, so a run that was stopped goes on where it was and gives the same photos.

Writes data/scenes/{train,val,test}/{gallery,query,crop}/*.jpg and data/scenes/{train,val,test}.csv. The CSV comes last:
where it is, the split is whole. Labels are for evaluation; training never reads them.
"""
import argparse
import functools
import hashlib
import io
import multiprocessing
import os
import signal
import shutil
import time

import common
from common import SCENES, STAMPS, DataError, say

SEED = 1
# Changed whenever the same row would give another photo; a folder of another recipe is made anew.
RECIPE = 1
COLUMNS = ["path", "role", "object", "label", "source_object", "source_scene"]
SPLITS = ["train", "val", "test"]
# Few training objects are photographs, so each of those is shown more often than a drawing.
TRAIN_VIEWS = {"photo": 16, "drawing": 6}
VAL_VIEWS, TEST_QUERIES = 8, 250
TRAIN_CROPS, VAL_DISTRACTORS, TEST_DISTRACTORS = 3000, 54, 110
# Distractor crops of one photo do not overlap: each is a cell of a grid, the ones with most to see first.
CELLS_ACROSS, CELLS_DOWN = 3, 2

GALLERY_SIDE_PX = 352
QUERY_LONG_PX, QUERY_SHORT_PX = 448, 336
OBJECT_SCALE = (0.55, 0.90)  # longest side of the object over the short side of the photo
ROTATION_DEG_MAX = 20
COLOUR_CHANGE_MAX = 0.35  # brightness, contrast and saturation, each
SCENE_LONG_PX_MAX = 2000  # larger scenes are reduced first
UPRIGHT, ROTATED = 1, (6, 8, 3)  # EXIF orientations
ROTATED_SHARE = 0.05


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("splits", nargs="*", metavar="train|val|test", help="which splits to make (default: all)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one a core)")
    options = parser.parse_args()
    for name in options.splits:
        if name not in SPLITS:
            raise DataError("no split %r: choose from %s" % (name, ", ".join(SPLITS)))
    common.use_libraries()
    rows = [row for row in common.read_split() if is_fetched(row)]
    for split in options.splits or SPLITS:
        make_split([row for row in rows if row["split"] == split], split, options.jobs)
    return 0


def is_fetched(row):
    """Only a training scene may be missing (another release of a package lacks some)."""
    if common.source_path(row).is_file():
        return True
    if row["split"] == "train":
        say("not fetched, left out of training: %s" % row["source"])
        return False
    raise DataError("%s is missing: run `python3 tools/data/fetch.py` first" % common.source_path(row).relative_to(common.ROOT))


def make_split(rows, split, jobs):
    """Plans every photo of a split, makes those not there yet, and writes the CSV last."""
    folder, table, stamp = SCENES / split, SCENES / (split + ".csv"), SCENES / (".%s.recipe" % split)
    recipe = recipe_of(rows)
    if folder.exists() and (not stamp.exists() or stamp.read_text() != recipe):
        say("%s: made by another recipe, starting anew" % split)
        shutil.rmtree(folder)
    common.write_atomically(stamp, recipe.encode())
    sweep(folder)
    plan = PLANS[split](rows)
    todo = [photo for photo in plan if not (SCENES / photo["path"]).exists()]
    if todo and table.exists():
        table.unlink()
    say("%s: %d photos, %d to make" % (split, len(plan), len(todo)))
    # One scene's photos in a row, so that a worker decodes it once.
    todo.sort(key=lambda photo: (photo["source_scene"], photo["path"]))
    try:
        work(todo, split, jobs)
    finally:
        sweep(folder)
    common.write_atomically(table, common.csv_bytes(COLUMNS, plan))
    say("%s: done, %s" % (split, table.relative_to(common.ROOT)))


def recipe_of(rows):
    text = repr((RECIPE, SEED, [(row["kind"], row["source"], row["sha256"]) for row in rows]))
    return hashlib.sha256(text.encode()).hexdigest()


def sweep(folder):
    """Removes what a killed worker left half written."""
    for path in folder.rglob(common.TEMP_PREFIX + "*"):
        path.unlink()


def work(todo, split, jobs):
    if not todo:
        return
    began, said = time.time(), 0.0
    pool = multiprocessing.Pool(min(jobs, 8), initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN))
    try:
        for done, _ in enumerate(pool.imap_unordered(make_photo, todo, chunksize=16), 1):
            if time.time() - said > 5 or done == len(todo):
                said = time.time()
                say("%s: %d of %d photos, %d s" % (split, done, len(todo), said - began))
        pool.close()
    except BaseException:
        pool.terminate()
        raise
    finally:
        pool.join()


# ---- the plan: what each photo is, before any is made -------------------------------------------------------------


def plan_train(rows):
    objects, scenes = kinds(rows, "object"), kinds(rows, "scene")
    plan = [gallery_photo("train", row) for row in objects]
    for row in objects:
        chosen = rng_for("train", row["source"], "scenes").permutation(len(scenes))
        plan += [query_photo("train", row, scenes[chosen[view % len(scenes)]], view) for view in range(TRAIN_VIEWS[row["medium"]])]
    shares = shares_by_size(scenes, TRAIN_CROPS)
    for row, share in zip(scenes, shares):
        plan += [crop_photo("train", "unlabelled", "crop", row, number) for number in range(share)]
    return plan


def plan_val(rows):
    objects, scenes = kinds(rows, "object"), kinds(rows, "scene")
    plan = [gallery_photo("val", row) for row in objects]
    plan += queries("val", objects, scenes, VAL_VIEWS * len(objects))
    for row, share in zip(scenes, even_shares(scenes, VAL_DISTRACTORS)):
        plan += [crop_photo("val", "distractor", "gallery", row, number) for number in range(share)]
    return plan


def plan_test(rows):
    objects, scenes, others = kinds(rows, "object"), kinds(rows, "scene"), kinds(rows, "distractor")
    plan = [gallery_photo("test", row) for row in objects]
    plan += queries("test", objects, scenes, TEST_QUERIES)
    plan += [gallery_photo("test", row) for row in others if row["package"] == STAMPS]
    photos = [row for row in others if row["package"] != STAMPS]
    for row, share in zip(photos, even_shares(photos, TEST_DISTRACTORS)):
        plan += [crop_photo("test", "distractor", "gallery", row, number) for number in range(share)]
    return plan


PLANS = {"train": plan_train, "val": plan_val, "test": plan_test}


def queries(split, objects, scenes, count):
    """`count` query photos, as evenly over objects and over scenes as goes; the two of one object differ in scene."""
    order = rng_for(split, "queries", "order").permutation(len(objects))
    plan = []
    for number in range(count):
        view, turn = divmod(number, len(objects))
        row = objects[order[turn]]
        plan.append(query_photo(split, row, scenes[(number + view) % len(scenes)], view))
    return plan


def kinds(rows, kind):
    return sorted((row for row in rows if row["kind"] == kind), key=lambda row: (row["package"], row["source"]))


def even_shares(rows, total):
    return [total // len(rows) + (i < total % len(rows)) for i in range(len(rows))]


def shares_by_size(rows, total):
    """How many crops of each scene: in proportion to the square root of its area, as a large photo has more to show."""
    from PIL import Image

    weights = []
    for row in rows:
        with Image.open(common.source_path(row)) as image:
            reduction = min(1.0, SCENE_LONG_PX_MAX / max(image.size))
            weights.append(reduction * (image.size[0] * image.size[1]) ** 0.5)
    ends = [round(total * sum(weights[: i + 1]) / sum(weights)) for i in range(len(weights))]
    return [end - start for start, end in zip([0] + ends, ends)]


def gallery_photo(split, row):
    role = "distractor" if row["kind"] == "distractor" else "gallery"
    name = object_of(row)
    label = label_of(row)
    return photo(split, "gallery", name, role, name, label, row, None)


def query_photo(split, row, scene, view):
    name = object_of(row)
    return photo(split, "query", "%s_%d" % (name, view), "query", name, label_of(row), row, scene)


def crop_photo(split, role, folder, scene, number):
    name = object_of(scene)
    label = "distractor: %s" % label_of(scene) if role == "distractor" else ""
    return photo(split, folder, "%s_%03d" % (name, number), role, name if label else "", label, None, scene)


def photo(split, folder, name, role, thing, label, row, scene):
    if role == "distractor" and row:
        label = "distractor: " + label
    return {
        "path": "%s/%s/%s.jpg" % (split, folder, name),
        "role": role,
        "object": thing,
        "label": label,
        "source_object": row["source"] if row else "",
        "source_scene": scene["source"] if scene else "",
        "package": (row or scene)["package"],
        "scene_package": scene["package"] if scene else "",
    }


NAMELESS = {"usr", "share", "doc", "tuxpaint", "stamps", "backgrounds", "wallpapers", "contents", "images", "mate", "nature",
            "opencv-doc", "opencv4", "html", "examples", "data", "templates", "collection", "palapeli", "abstract",
            "input_images"}


def object_of(row):
    """A short name of a source, good as a file name and distinct among all sources: its folders that say something."""
    parts = row["source"].rsplit(".", 1)[0].split("/")
    if "wallpapers" in parts:
        parts = parts[:-1]  # the file is named after its size
    name = "_".join(part for part in parts[:-1] if part not in NAMELESS)
    kept = parts[-1] if parts[-1] not in NAMELESS else ""
    return "_".join(part for part in (name, kept) if part).lower().replace(" ", "-")


def label_of(row):
    """A name for people: `apple_red` -> `apple red`."""
    if "/wallpapers/" in row["source"]:
        name = row["source"].split("/wallpapers/")[1].split("/")[0]
    else:
        name = row["source"].rsplit("/", 1)[-1].rsplit(".", 1)[0].split("_by_")[0]
    words = "".join(" " + c.lower() if c.isupper() and i and name[i - 1].islower() else c for i, c in enumerate(name))
    words = words.replace("_", " ").replace("-", " ").lower().split()
    if len(words) > 1 and words[0].isdigit():
        words = words[1:]  # planets are numbered: `2_venus`
    return " ".join(words)


# ---- the photos ---------------------------------------------------------------------------------------------------


def make_photo(plan):
    """Makes one photo of the plan and writes it whole or not at all."""
    split, folder, _ = plan["path"].split("/")
    rng = rng_for(plan["path"])
    orientation = UPRIGHT
    if folder == "query":
        image = query_view(plan, rng)
        if split == "test" and rng.random() < ROTATED_SHARE:
            orientation = ROTATED[rng.integers(len(ROTATED))]
    elif plan["source_object"]:
        image = gallery_view(plan, rng)
    else:
        image = crop_view(plan, rng)
    quality = 88 if folder == "gallery" else int(rng.integers(80, 91))
    common.write_atomically(SCENES / plan["path"], jpeg(image, quality, orientation))


def gallery_view(plan, rng):
    """The object, centred on a plain light background."""
    from PIL import Image

    thing = load_object(plan["package"], plan["source_object"])
    tint = tuple(int(v) for v in rng.integers(226, 250) + rng.integers(-3, 4, 3))
    canvas = Image.new("RGB", (GALLERY_SIDE_PX, GALLERY_SIDE_PX), tint)
    # A small photograph is not blown up more than fourfold.
    longest = min(0.82 * GALLERY_SIDE_PX, 4 * max(thing.size))
    thing = fit(thing, longest)
    canvas.paste(thing, ((canvas.width - thing.width) // 2, (canvas.height - thing.height) // 2), thing)
    return canvas


def query_view(plan, rng):
    """The object somewhere in a scene, as a camera might take it: turned, lit otherwise, a little blurred and noisy."""
    import numpy as np
    from PIL import Image, ImageEnhance, ImageFilter

    size = (QUERY_LONG_PX, QUERY_SHORT_PX) if rng.random() < 0.7 else (QUERY_SHORT_PX, QUERY_LONG_PX)
    canvas = scene_crop(load_scene(plan["scene_package"], plan["source_scene"]), size, rng)
    thing = fit(load_object(plan["package"], plan["source_object"]), rng.uniform(*OBJECT_SCALE) * min(size))
    thing = thing.rotate(rng.uniform(-ROTATION_DEG_MAX, ROTATION_DEG_MAX), Image.BICUBIC, expand=True)
    thing = thing.crop(thing.getchannel("A").getbbox())
    if thing.width > size[0] or thing.height > size[1]:
        thing.thumbnail(size, Image.LANCZOS)
    at = (int(rng.integers(size[0] - thing.width + 1)), int(rng.integers(size[1] - thing.height + 1)))
    canvas.paste(thing, at, thing)
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        canvas = enhance(canvas).enhance(rng.uniform(1 - COLOUR_CHANGE_MAX, 1 + COLOUR_CHANGE_MAX))
    canvas = canvas.filter(ImageFilter.GaussianBlur(rng.uniform(0.0, 1.1)))
    pixels = np.asarray(canvas, np.float32) + rng.normal(0, rng.uniform(0.0, 3.0), (size[1], size[0], 3)).astype(np.float32)
    return Image.fromarray(np.clip(pixels + 0.5, 0, 255).astype(np.uint8))


def scene_crop(scene, size, rng):
    """A window of the scene in the shape of `size`, anything between all of it and the photo's own size."""
    from PIL import Image

    largest = min(scene.width / size[0], scene.height / size[1])
    zoom = rng.uniform(min(0.6, largest) if largest < 1 else min(largest, 0.8), largest)
    width, height = min(scene.width, round(size[0] * zoom)), min(scene.height, round(size[1] * zoom))
    left, top = int(rng.integers(scene.width - width + 1)), int(rng.integers(scene.height - height + 1))
    return scene.resize(size, Image.LANCZOS, (left, top, left + width, top + height))


def crop_view(plan, rng):
    """A crop of a scene on its own: random size, shape and place; sometimes mirrored or a few degrees askew."""
    from PIL import Image, ImageOps

    scene = load_scene(plan["scene_package"], plan["source_scene"])
    if plan["role"] == "distractor":
        return cell(scene, int(plan["path"].rsplit("_", 1)[1].split(".")[0]))
    aspect = [4 / 3, 3 / 4, 1.0, 3 / 2, 2 / 3, 16 / 9][rng.integers(6)]
    long_px = int(rng.integers(256, 449))
    size = (long_px, round(long_px / aspect)) if aspect >= 1 else (round(long_px * aspect), long_px)
    # The largest window of this shape, then a random share of it, not below 160 px on the short side where there is that much.
    width = min(scene.width, scene.height * aspect)
    height = width / aspect
    share = max(min(1.0, 160 / min(width, height)), float(rng.uniform(0.28, 1.0)))
    width, height = width * share, height * share
    left, top = rng.uniform(0, scene.width - width), rng.uniform(0, scene.height - height)
    image = scene.resize(size, Image.LANCZOS, (left, top, left + width, top + height))
    if rng.random() < 0.3:
        image = image.rotate(rng.uniform(-8, 8), Image.BICUBIC)
        # What the rotation leaves undefined: at 8 degrees and 16:9, an eighth of the height at each edge.
        dx, dy = image.width * 0.125, image.height * 0.125
        image = image.resize(size, Image.LANCZOS, (dx, dy, image.width - dx, image.height - dy))
    return ImageOps.mirror(image) if rng.random() < 0.5 else image


def cell(scene, number):
    """The `number`-th most detailed cell of a scene's grid."""
    from PIL import Image, ImageStat

    width, height = scene.width / CELLS_ACROSS, scene.height / CELLS_DOWN
    boxes = [(x * width, y * height, (x + 1) * width, (y + 1) * height) for y in range(CELLS_DOWN) for x in range(CELLS_ACROSS)]
    detail = [ImageStat.Stat(scene.convert("L").resize((64, 64), Image.BOX, box)).stddev[0] for box in boxes]
    box = boxes[sorted(range(len(boxes)), key=lambda i: -detail[i])[number]]
    zoom = min(QUERY_LONG_PX / max(width, height), 1.5)
    return scene.resize((round(width * zoom), round(height * zoom)), Image.LANCZOS, box)


@functools.lru_cache(maxsize=4)
def load_scene(package, source):
    from PIL import Image

    with Image.open(common.UNPACKED / package / source) as image:
        image.draft("RGB", (SCENE_LONG_PX_MAX, SCENE_LONG_PX_MAX))
        image = image.convert("RGB")
    if max(image.size) > SCENE_LONG_PX_MAX:
        image.thumbnail((SCENE_LONG_PX_MAX, SCENE_LONG_PX_MAX), Image.LANCZOS)
    return image


@functools.lru_cache(maxsize=64)
def load_object(package, source):
    """A stamp with its transparency, cut to what can be seen."""
    from PIL import Image

    with Image.open(common.UNPACKED / package / source) as image:
        image = image.convert("RGBA")
    return image.crop(image.getchannel("A").point(lambda a: 255 if a > 24 else 0).getbbox())


def fit(thing, longest_px):
    """Scaled so that the longest side has that many pixels."""
    from PIL import Image

    zoom = longest_px / max(thing.size)
    return thing.resize((max(1, round(thing.width * zoom)), max(1, round(thing.height * zoom))), Image.LANCZOS)


def jpeg(image, quality, orientation):
    """JPEG bytes; with an EXIF orientation, the pixels lie turned as a camera held that way would store them."""
    from PIL import Image

    turns = {3: Image.ROTATE_180, 6: Image.ROTATE_90, 8: Image.ROTATE_270}
    extra = {}
    if orientation != UPRIGHT:
        image = image.transpose(turns[orientation])
        exif = Image.Exif()
        exif[0x0112] = orientation
        exif[0x010E] = "synthetic composition"
        extra["exif"] = exif
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality, optimize=True, **extra)
    return out.getvalue()


def rng_for(*words):
    """A random generator that depends on these words and the seed alone."""
    import numpy as np

    digest = hashlib.sha256("/".join([str(SEED)] + list(words)).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))


if __name__ == "__main__":
    common.run(main)
