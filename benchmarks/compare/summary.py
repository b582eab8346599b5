"""One table and one plot of all contenders' results.

    python benchmarks/compare/summary.py DIR [--plot curves.png] [--markdown table.md]

DIR is the --work folder of the runs. Times at a recall are read off each contender's curve, on the line between the best
measured settings below and above it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

TARGETS = (0.9, 0.95, 0.98)
OURS = "lemur_ann"


def frontier(curve: list[dict], k: int) -> list[tuple[float, float]]:
    """(recall, ms) of the settings that no other beats in both, quickest first."""
    points: list[tuple[float, float]] = []
    for point in sorted((p for p in curve if p["k"] == k), key=lambda p: p["mean_ms"]):
        if not points or point["recall"] > points[-1][0]:
            points.append((point["recall"], point["mean_ms"]))
    return points


def ms_at(curve: list[dict], target: float, k: int) -> float | None:
    points = frontier(curve, k)
    if not points or points[-1][0] < target:
        return None
    if points[0][0] >= target:
        return points[0][1]
    return float(np.interp(target, *zip(*points, strict=True)))


def rows(results: list[dict]) -> list[list[str]]:
    ours = next((r["curve"] for r in results if r["name"] == OURS), [])
    table = []
    for result in results:
        curve = result.get("curve", [])
        if not curve:
            continue
        cells = [result["name"]]
        for target in TARGETS:
            own, best = ms_at(curve, target, 10), ms_at(ours, target, 10)
            cells.append("-" if own is None else f"{own:.2f} ({own / best:.1f}x)" if best else f"{own:.2f}")
        reached = max(frontier(curve, 10))
        there = ms_at(ours, reached[0], 10)
        cells.append(f"{reached[0]:.3f} in {reached[1]:.2f}" + ("" if there is None else f" ({reached[1] / there:.1f}x)"))
        best100 = max(frontier(curve, 100), default=None)
        cells.append("-" if best100 is None else f"{best100[0]:.3f} in {best100[1]:.2f}")
        cells += [f"{result.get('build_s', 0):,.0f}", f"{sum(result.get('bytes', {}).values()) / 1e6:,.0f}"]
        table.append(cells)
    return table


def markdown(results: list[dict]) -> str:
    head = ["", *(f"ms at recall@10 {t}" for t in TARGETS), "best recall@10 in ms", "best recall@100 in ms", "build s", "MB"]
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    lines += ["| " + " | ".join(cells) + " |" for cells in rows(results)]
    missing = [f"- {r['name']}: {r['reason']}" for r in results if "reason" in r]
    first = results[0]
    notes = f"{first['num_queries']} queries one at a time, one thread, {first['cpu']}; in brackets: times that of {OURS}."
    return "\n".join([*lines, "", notes, *missing]) + "\n"


def plot(results: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(12, 5), sharey=False)
    for axis, k in zip(axes, (10, 100), strict=True):
        for result in results:
            points = frontier(result.get("curve", []), k)
            if points:
                recall, ms = zip(*points, strict=True)
                axis.plot(
                    ms, recall, marker="o", markersize=4, linewidth=2.5 if result["name"] == OURS else 1.2, label=result["name"]
                )
        axis.set_xscale("log")
        axis.set_xlabel("ms per query, one thread")
        axis.set_ylabel(f"recall@{k} of exact MaxSim")
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--markdown", type=Path)
    args = parser.parse_args()
    results = [json.loads(path.read_text()) for path in sorted((args.work / "results").glob("*.json"))]
    results.sort(key=lambda r: (r["name"] != OURS, r["name"]))
    text = markdown(results)
    print(text)
    if args.markdown:
        args.markdown.write_text(text)
    if args.plot:
        plot(results, args.plot)


if __name__ == "__main__":
    main()
