"""The picture in README: recall against the time of a query, from the tables in docs/performance.md.

    python benchmarks/compare/picture.py [--out docs/images/recall.svg]

The tables hold what run_*.py measured. Systems that find less than LEAST of the exact top 10 are not in the picture.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
LEAST = 0.88
COLOURS = {"lemur_ann": "#6f42c1", "hnswlib": "#0969da", "reference": "#bf5b04", "TACHIOM": "#cf222e", "Qdrant": "#1a7f37"}
NAMES = {  # the word in the first cell of a row; what the picture says, at which point, how far from it, and aligned how
    "lemur_ann": ("lemur_ann", 4, (10, -6), "left"),
    "hnswlib": ("hnswlib by inner product,\nour exact rerank", 0, (-8, 4), "right"),
    "reference": ("the reference implementation,\nby a scan", -1, (9, 0), "left"),
    "TACHIOM": ("TACHIOM,\nour exact rerank", 0, (9, 2), "left"),
    "Qdrant": ("Qdrant, by a scan\nof all tokens", 0, (0, -24), "center"),
}

Points = list[tuple[float, float]]  # (ms, recall)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def own_curve(page: str) -> Points:
    """The rows of the table whose first column is `ef_search, candidates`."""
    table = page.split("| ef_search, candidates |")[1].split("\n\n")[0]
    return [(float(row[2]), float(row[1])) for row in map(cells, table.splitlines()[2:])]


def other_curve(row: list[str]) -> Points:
    """What a row of the table of all contenders says: ms at three recalls, and the best recall with its ms."""
    points = [(float(cell.split()[0]), recall) for cell, recall in zip(row[1:4], (0.9, 0.95, 0.98), strict=True) if cell]
    best = re.match(r"(\S+) in ([\d,.]+)", row[4])
    assert best is not None, row
    return sorted({*points, (float(best[2].replace(",", "")), float(best[1]))})


def curves(page: str) -> dict[str, Points]:
    table = page.split("| | ms at recall@10")[1].split("\n\n")[0]
    found = {"lemur_ann": own_curve(page)}
    for row in map(cells, table.splitlines()[2:]):
        name = next((name for name in list(NAMES)[1:] if name in row[0] and row[0] != "lemur_ann"), None)
        if name is not None and name not in found:
            found[name] = other_curve(row)
    return {name: [point for point in points if point[1] >= LEAST] for name, points in found.items()}


def draw(found: dict[str, Points], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update(
        {"svg.fonttype": "none", "svg.hashsalt": "lemur_ann", "font.family": "sans-serif", "font.size": 11}
    )
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8, 3.6))
    for name, points in found.items():
        text, at, offset, align = NAMES[name]
        axis.plot(
            *zip(*points, strict=True), "o-", color=COLOURS[name], linewidth=3 if name == "lemur_ann" else 1.5, markersize=5
        )
        axis.annotate(text, points[at], offset, textcoords="offset points", color=COLOURS[name], ha=align, va="center")
    axis.set_xscale("log")
    axis.set_xlim(1, 5000)
    axis.set_ylim(LEAST, 1.005)
    axis.set_xticks([1, 10, 100, 1000], ["1 ms", "10 ms", "100 ms", "1 s"])
    axis.set_yticks([0.9, 0.95, 1.0], ["90%", "95%", "100%"])
    axis.set_xlabel("time of one query on one thread")
    axis.set_ylabel("of the exact top 10 found")
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs/images/recall.svg")
    args = parser.parse_args()
    draw(curves((ROOT / "docs/performance.md").read_text()), args.out)


if __name__ == "__main__":
    main()
