"""The tables of docs/performance.md and the plot docs/search-scaling.svg from a report: report.py search.json docs"""
import json
import math
import pathlib
import sys

FROM = "<!-- written by server-gallery/bench/report.py: from here -->"
TO = "<!-- to here -->"


def number(value, digits=2):
    return "-" if value is None else f"{value:,.{digits}f}"


def table(header, rows):
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def searches(rows):
    header = [
        "data", "index", "nprobe", "ratio, batch", "ratio, single", "recall@10, ours (Faiss)", "q/s, batch",
        "p50 / p99 us, ours", "p50 / p99 us, Faiss", "bytes a vector", "built in s, ours (Faiss)",
    ]
    return table(header, [
        [
            r["dataset"], f"`{r['index']}`", str(r["nprobe"] or "-"), f"**{number(r['ratio_batch'])}**", number(r["ratio_single"]),
            f"{r['recall_ours']:.3f} ({number(r['recall_peer'], 3)})", number(r["queries_per_second"], 0),
            f"{r['p50_us']:.0f} / {r['p99_us']:.0f}", f"{number(r['peer_p50_us'], 0)} / {number(r['peer_p99_us'], 0)}",
            number(r["bytes_per_vector"], 0), f"{r['build_s_ours']:.1f} ({number(r['build_s_peer'], 1)})",
        ]
        for r in rows
    ])


def training(rows):
    return table(["data", "quantizer", "error, ours / Faiss", "seconds, ours", "seconds, Faiss", "ratio"], [
        [
            r["dataset"], r["index"], f"{r['error_ours'] / r['error_peer']:.4f}", number(r["train_s_ours"]),
            number(r["train_s_peer"]), f"**{r['train_s_peer'] / r['train_s_ours']:.2f}**",
        ]
        for r in rows
    ])


def limits(rows):
    """A query alone reads all of its codes from memory; a batch does not."""
    out = []
    for r in rows:
        if not r["memory_gb_per_second"]:
            continue
        least = r["bytes_read"] / r["memory_gb_per_second"] / 1e3
        out.append([
            r["dataset"], f"`{r['index']}`", str(r["nprobe"] or "-"), f"{r['bytes_read'] / 1e6:.2f}", number(r["memory_gb_per_second"], 1),
            number(least, 0), number(r["p50_us"], 0), f"{least / r['p50_us']:.2f}", number(1e6 / r["queries_per_second"], 0),
        ])
    return table(
        ["data", "index", "nprobe", "MB read", "GB/s here", "us to read them", "us, single (p50)", "share of the limit", "us a query, batch"], out
    )


def plot(rows):
    """Microseconds a query by number of vectors, both axes logarithmic."""
    size = {"k": 1e3, "m": 1e6}
    points = {}
    for r in rows:
        name = r["dataset"]
        if not name.endswith("128") or r["index"] != "PQ32x4fs":
            continue
        text = name[:-3]
        n = float(text[:-1]) * size[text[-1]]
        batch = 1e6 / r["queries_per_second"]
        entries = [("ours, batch", batch), ("ours, single", r["p50_us"])]
        if r["ratio_batch"]:
            entries += [("Faiss, batch", batch * r["ratio_batch"]), ("Faiss, single", r["peer_p50_us"])]
        if r["memory_gb_per_second"]:
            entries.append(("memory, read once", r["bytes_read"] / r["memory_gb_per_second"] / 1e3))
        for series, us in entries:
            points.setdefault(series, []).append((n, us))
    if not points:
        return None
    every = [point for series in points.values() for point in series]
    x0, x1 = (f(math.log10(x) for x, _ in every) for f in (min, max))
    y0, y1 = math.floor(min(math.log10(y) for _, y in every)), math.ceil(max(math.log10(y) for _, y in every))
    width, height, left, top = 790, 460, 70, 30
    wide, high = width - left - 200, height - top - 60
    x = lambda n: left + wide * (math.log10(n) - x0) / max(x1 - x0, 1e-9)
    y = lambda us: top + high * (y1 - math.log10(us)) / (y1 - y0)
    styles = {
        "ours, batch": ("#0b6e4f", ""), "ours, single": ("#0b6e4f", "6 4"), "Faiss, batch": ("#b5452c", ""),
        "Faiss, single": ("#b5452c", "6 4"), "memory, read once": ("#555555", "1 4"),
    }
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="13">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{left}" y="18">32 x 4-bit codes of 128-d vectors, full scan, one thread: microseconds a query</text>',
    ]
    for decade in range(y0, y1 + 1):
        at = y(10**decade)
        out.append(f'<line x1="{left}" x2="{left + wide}" y1="{at:.1f}" y2="{at:.1f}" stroke="#dddddd"/>')
        out.append(f'<text x="{left - 8}" y="{at + 4:.1f}" text-anchor="end">{10**decade:g}</text>')
    for n in sorted({n for n, _ in every}):
        label = f"{n / 1e6:g} M" if n >= 1e6 else f"{n / 1e3:g} k"
        out.append(f'<text x="{x(n):.1f}" y="{top + high + 22}" text-anchor="middle">{label}</text>')
    out.append(f'<text x="{left + wide / 2}" y="{height - 14}" text-anchor="middle">vectors</text>')
    for place, (series, (colour, dash)) in enumerate(styles.items()):
        if series not in points:
            continue
        line = " ".join(f"{x(n):.1f},{y(us):.1f}" for n, us in sorted(points[series]))
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        out.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"{dashed}/>')
        if not series.startswith("memory"):
            out += [f'<circle cx="{x(n):.1f}" cy="{y(us):.1f}" r="3" fill="{colour}"/>' for n, us in points[series]]
        at = top + 20 + 20 * place
        out.append(f'<line x1="{width - 185}" x2="{width - 155}" y1="{at}" y2="{at}" stroke="{colour}" stroke-width="2"{dashed}/>')
        out.append(f'<text x="{width - 148}" y="{at + 4}">{series}</text>')
    return "\n".join(out + ["</svg>", ""])


def main():
    report, docs = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    rows = json.loads(report.read_text())
    found = [r for r in rows if "recall_ours" in r]
    trained = [r for r in rows if "error_ours" in r]
    first = found[0]
    lines = [FROM, "", f"{first['machine']}; kernel `{first['kernel']}`; peer {first['peer']}; seed {first['seed']}.", "", "### Search", ""]
    lines += searches(found)
    lines += ["", "![Microseconds a query by number of vectors](search-scaling.svg)", "", "### Against the speed of memory", ""]
    lines += limits(found)
    if trained:
        lines += ["", "### Training", ""] + training(trained)
    lines += ["", TO]
    page = docs / "performance.md"
    text = page.read_text()
    before, rest = text.split(FROM)
    page.write_text(before + "\n".join(lines) + rest.split(TO)[1])
    picture = plot(found)
    if picture:
        (docs / "search-scaling.svg").write_text(picture)
    print(f"wrote {page}")


main()
