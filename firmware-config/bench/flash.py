#!/usr/bin/env python3
"""Times `glimpse-firmware flash` beside dd, on a file, with blocks of the same size, and both until the disk has it all.

The two take turns, and who begins changes. `flash` is timed without reading back, which dd does not do, and with it, for its own sake.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BLOCK = 4 << 20


def processor() -> str:
    """What /proc/cpuinfo calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def seconds(command: list[str], card: Path) -> float:
    """How long a command takes that makes the card, which is not there before."""
    card.unlink(missing_ok=True)
    os.sync()
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--megabytes", type=int, default=1024)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--folder", type=Path, help="where the image and the card are made")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        image, card = Path(folder) / "image", Path(folder) / "card"
        with image.open("wb") as file:
            # The table of partitions that an image has; noise, so that no file system stores it in less.
            file.write(bytes(510) + b"\x55\xaa")
            while file.tell() < arguments.megabytes << 20:
                file.write(os.urandom(BLOCK))
        program = str(arguments.program.resolve())
        commands = {
            "dd": ["dd", f"if={image}", f"of={card}", f"bs={BLOCK}", "conv=fsync"],
            "flash": [program, "flash", str(image), str(card), "--no-verify"],
            "flash_and_verify": [program, "flash", str(image), str(card)],
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for turn in range(arguments.turns + 1):
            names = list(commands)
            for name in names if turn % 2 else reversed(names):
                took = seconds(commands[name], card)
                # The first turn is the caches'.
                if turn > 0:
                    times[name].append(took)
        size = image.stat().st_size
    ratios = [dd / flash for dd, flash in zip(times["dd"], times["flash"])]
    report = {
        "machine": f"{processor()}, {os.cpu_count()} cores",
        "bytes": size,
        "block_bytes": BLOCK,
        "turns": arguments.turns,
        "speed_ratio_to_dd": round(statistics.median(ratios), 3),
        "speed_ratio_to_dd_least": round(min(ratios), 3),
        "speed_ratio_to_dd_most": round(max(ratios), 3),
        "mb_per_s": {name: round(size / 1e6 / statistics.median(took), 1) for name, took in times.items()},
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
