"""The plots of a report as inline SVG.

matplotlib lays them out; the colours it is given are names in disguise, which become CSS variables, so that one drawing is
right on light and dark screens and on paper. Text stays text, in the page's font.
"""

from __future__ import annotations

import importlib.util
import io
import itertools
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from typing import Any

INK, MUTED, RULE, ACCENT, SECOND, PAPER = (f"#00000{i}" for i in range(1, 7))
VARIABLES = {INK: "ink", MUTED: "muted", RULE: "rule", ACCENT: "accent", SECOND: "second", PAPER: "paper"}
WIDTH, HEIGHT = 400, 280  # of a plot, in CSS pixels; on a phone it is shown a little smaller
FONT_SIZE = 12
CLEAR_OF_CORNER = 0.04  # of the x axis, where the label of a tick would lie on that of the lowest y
STEPS = (1, 1.5, 2, 3, 5, 7)  # of a logarithmic axis
SVG = "http://www.w3.org/2000/svg"
XLINK = "{http://www.w3.org/1999/xlink}href"
DRAWN = ("use", "path")
TO = "\N{EN DASH}"


def check_installed() -> None:
    """ImportError where matplotlib is not there."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError("a report needs matplotlib, which is not installed: pip install 'lemur_ann[plots]'")


class Plot:
    """One pair of axes, and what its points say when they are pointed at."""

    def __init__(self, name: str, *, height: int = HEIGHT, left: int = 44, right: int = 14, top: int = 30) -> None:
        from matplotlib.figure import Figure

        self.name = name
        self._tips: dict[str, list[str]] = {}
        self._size = (WIDTH, height)
        self.figure = Figure(figsize=(WIDTH / 72, height / 72))  # of 72 points an inch, which become CSS pixels
        box = (left / WIDTH, 40 / height, (WIDTH - left - right) / WIDTH, (height - top - 40) / height)
        self.axes = self.figure.add_axes(box)
        self.figure.patch.set_visible(False)
        self.axes.patch.set_visible(False)
        for side in ("left", "right", "top"):
            self.axes.spines[side].set_visible(False)
        self.axes.spines["bottom"].set_color(MUTED)
        self.axes.tick_params(colors=MUTED, labelsize=FONT_SIZE, length=0, pad=6)
        self.axes.tick_params(axis="x", which="major", length=4, pad=4)
        self.axes.grid(axis="y", color=RULE, linewidth=1)
        self.axes.set_axisbelow(True)

    def labels(self, x: str, y: str) -> None:
        """What the axes show: y above its axis, where it is read without turning the head, x below the end of its own."""
        height = self._size[1]
        self.figure.text(0, 1 - 8 / height, y, va="top", color=INK, fontsize=FONT_SIZE)
        right = self.axes.get_position().x1
        self.figure.text(right, 4 / height, x, ha="right", va="bottom", color=INK, fontsize=FONT_SIZE)

    def points(self, x: Sequence[float], y: Sequence[float], tips: Sequence[str], **how: Any) -> None:
        """Markers that say something."""
        if not len(x):
            return
        gid = f"points{len(self._tips)}"
        self._tips[gid] = list(tips)
        self.axes.scatter(x, y, gid=gid, clip_on=False, **{"linewidths": 1.5, "zorder": 4, **how})

    def bar(self, row: float, begin: float, end: float, tip: str, color: str) -> None:
        """A horizontal bar that says something."""
        gid = f"bar{len(self._tips)}"
        self._tips[gid] = [tip]
        (bar,) = self.axes.barh(row, end - begin, left=begin, height=0.62, color=color, linewidth=0)
        bar.set_gid(gid)

    def intervals(self, x: Sequence[float], low: Sequence[float], high: Sequence[float], color: str) -> None:
        """Vertical bars."""
        self.axes.vlines(x, low, high, color=color, linewidth=1.25, zorder=2)

    def logarithmic_x(self, low: float, high: float) -> None:
        """From ``low`` to ``high``, with ticks at round numbers."""
        from matplotlib.ticker import MaxNLocator

        self.axes.set_xscale("log")
        self.axes.set_xlim(low, high)
        every = [step * 10.0**power for power in range(-7, 9) for step in STEPS]
        first = low * (high / low) ** CLEAR_OF_CORNER
        inside = [tick for tick in every if first <= tick <= high]
        for steps in (STEPS, (1, 2, 5), (1, 3), (1,)):
            ticks = [tick for tick in inside if any(math.isclose(_mantissa(tick), step) for step in steps)]
            if len(ticks) <= 6:
                break
        if len(ticks) < 2:
            ticks = [tick for tick in MaxNLocator(4).tick_values(low, high) if first <= tick <= high]
        self.axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        self.axes.set_xticks([], minor=True)

    def svg(self, label: str) -> str:
        """The drawing, with ``label`` for those who cannot see it."""
        import matplotlib

        sink = io.StringIO()
        with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": self.name}):
            self.figure.savefig(
                sink, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")), transparent=True
            )
        root = ET.fromstring(sink.getvalue())
        self._say(root)
        return _inlined(root, self.name, label)

    def _say(self, root: ET.Element) -> None:
        """Put the tips of points and bars where browsers look for them."""
        groups = {element.get("id"): element for element in root.iter()}
        for gid, tips in self._tips.items():
            drawn = _drawn(groups[gid])
            assert len(drawn) == len(tips), f"{self.name}: {len(drawn)} marks for {len(tips)} tips"
            for element, tip in zip(drawn, tips, strict=True):
                ET.SubElement(element, f"{{{SVG}}}title").text = tip


def _mantissa(value: float) -> float:
    return float(f"{value:e}".partition("e")[0])


def _drawn(group: ET.Element) -> list[ET.Element]:
    """The marks in a group, without what is only defined there."""
    found = []
    for child in group:
        tag = child.tag.rpartition("}")[2]
        if tag in DRAWN:
            found.append(child)
        elif tag != "defs":
            found += _drawn(child)
    return found


def _inlined(root: ET.Element, name: str, label: str) -> str:
    """A whole SVG file as an element of a page, beside others: ids of its own, no styles that leak, colours of the page."""
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        if element.get(XLINK):
            element.set("href", element.attrib.pop(XLINK))
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in ("metadata", "style"):
                parent.remove(child)
    used = set(re.findall(r"#([\w.-]+)", " ".join(value for element in root.iter() for value in element.attrib.values())))
    for element in root.iter():
        if "id" in element.attrib:
            if element.get("id") in used:
                element.set("id", f"{name}-{element.get('id')}")
            else:
                del element.attrib["id"]
        for key in ("href", "clip-path"):
            if key in element.attrib:
                element.set(key, element.attrib[key].replace("#", f"#{name}-"))
        if "style" in element.attrib:
            element.set("style", _styled(element.attrib["style"]))
    view = root.attrib["viewBox"]
    root.attrib.clear()
    root.attrib.update({"viewBox": view, "role": "img", "aria-label": label})
    return ET.tostring(root, encoding="unicode")


def _styled(style: str) -> str:
    """With variables for colours, and with sizes alone of fonts."""
    for color, variable in VARIABLES.items():
        style = style.replace(color, f"var(--{variable})")
    style = re.sub(r"font: (?:[\w-]+ )*?([\d.]+)px [^;]*", r"font-size: \1px", style)  # of older versions of matplotlib
    return re.sub(r"font-family: [^;]*(; )?", "", style)


# The plots


def curve(points: Sequence[Mapping[str, Any]], k: int, exact_ms: float) -> str:
    """Recall against latency."""
    plot = Plot("curve", height=310)
    quickest = [point for point in points if point["quickest"]]
    others = [point for point in points if not point["quickest"] and not _is_marked(point)]
    milliseconds = [point["p50_ms"] for point in points]
    low = min(0.9, math.floor(20 * min(point["recall"] for point in points)) / 20)
    plot.logarithmic_x(min(milliseconds) / 1.15, max(milliseconds) * 1.15)
    plot.axes.set_ylim(low, 1.0)
    _recall_ticks(plot, low)
    plot.axes.plot([p["p50_ms"] for p in quickest], [p["recall"] for p in quickest], color=ACCENT, linewidth=1.75, zorder=3)
    shown = [p for p in points if p["quickest"] or _is_marked(p)]
    lows, highs = zip(*(p["recall_interval"] for p in shown), strict=True)
    plot.intervals([p["p50_ms"] for p in shown], [max(value, low) for value in lows], highs, MUTED)
    groups: list[tuple[list[Mapping[str, Any]], dict[str, Any]]] = [
        (others, {"s": 22, "facecolors": PAPER, "edgecolors": MUTED, "linewidths": 1}),
        ([p for p in quickest if not _is_marked(p)], {"s": 30, "facecolors": ACCENT, "edgecolors": ACCENT}),
        ([p for p in points if p["tuned_for"] and not p["in_use"]], {"s": 100, "marker": "^", "facecolors": SECOND}),
        ([p for p in points if p["in_use"]], {"s": 105, "marker": "D", "facecolors": SECOND}),
    ]
    for group, how in groups:
        how = {"edgecolors": PAPER, **how}
        plot.points([p["p50_ms"] for p in group], [p["recall"] for p in group], [point_tip(p, k) for p in group], **how)
    plot.labels("median ms a query", f"recall@{k}")
    used = next(point for point in points if point["in_use"])
    return plot.svg(
        f"Recall at {k} against median latency for {len(points)} settings. The setting in use finds "
        f"{used['recall']:.3f} in {used['p50_ms']:.3g} milliseconds; exact search takes {exact_ms:.3g}."
    )


def _is_marked(point: Mapping[str, Any]) -> bool:
    return bool(point["in_use"] or point["tuned_for"])


def point_tip(point: Mapping[str, Any], k: int) -> str:
    """What a setting's point says."""
    low, high = point["recall_interval"]
    marks = marks_of(point, k)
    return (
        f"num_candidates {point['num_candidates']:,}, ef_search {point['ef_search']:,}"
        f"{' (' + ', '.join(marks) + ')' if marks else ''}: recall@{k} {point['recall']:.3f} ({low:.3f} to {high:.3f}), "
        f"median {point['p50_ms']:.3g} ms"
    )


def marks_of(point: Mapping[str, Any], k: int) -> list[str]:
    """What is special about a setting, in a report of recall@k."""
    tuned = [
        (f"tuned for a loss of {own['max_loss']:g}" if "max_loss" in own else f"tuned for {own['target_recall']:g}")
        + ("" if own["k"] == k else f" at k {own['k']}")
        for own in point["tuned_for"]
    ]
    return [*(["in use"] if point["in_use"] else []), *tuned]


def _recall_ticks(plot: Plot, low: float) -> None:
    step = next(step for step in (0.02, 0.05, 0.1, 0.2) if (1 - low) / step <= 6)
    ticks = [1 - step * i for i in range(round((1 - low) / step) + 1)]
    plot.axes.set_yticks(ticks, [f"{tick:.2f}" for tick in ticks])


def stages(time_of_a_query: Mapping[str, Any]) -> str:
    """A bar for each stage, which begins where the one before it ended."""
    parts, whole = time_of_a_query["parts"], time_of_a_query["p50_ms"]
    plot = _bars("stages", [part["part"] for part in parts])
    ends = list(itertools.accumulate(part["p50_ms"] for part in parts))
    for row, (part, end) in enumerate(zip(parts, ends, strict=True)):
        color = MUTED if part["part"] == "the rest" else ACCENT
        tip = f"{part['part']}: {part['p50_ms']:.3f} ms"
        plot.bar(row, end - part["p50_ms"], end, tip, color)
    _linear_x(plot, max([*ends, whole]))
    plot.labels("ms of a query, medians", "")
    told = ", ".join(f"{part['part']} {part['p50_ms']:.3g}" for part in parts)
    return plot.svg(f"Where the {whole:.3g} milliseconds of a query go: {told}.")


def sizes(parts: Sequence[Mapping[str, Any]]) -> str:
    """A bar for each part of the index."""
    plot = _bars("sizes", [part["part"] for part in parts])
    for row, part in enumerate(parts):
        plot.bar(row, 0, part["size"] / 1e6, f"{part['part']}: {part['size'] / 1e6:,.2f} MB", ACCENT)
    _linear_x(plot, max(part["size"] / 1e6 for part in parts))
    plot.labels("MB", "")
    told = ", ".join(f"{part['part']} {part['size'] / 1e6:.3g}" for part in parts)
    return plot.svg(f"Megabytes of each part: {told}.")


def name_of(width: Mapping[str, Any]) -> str:
    """Of codes, or of pooled tokens."""
    return str(width["token_codes"]) + (f", pool_factor {width['pool_factor']}" if width["pool_factor"] > 1 else "")


def codes(found: Mapping[str, Any]) -> str:
    """Bytes of a token against what is lost."""
    plot = Plot("codes")
    widths = found["widths"]
    sizes = [width["bytes_per_token"] for width in widths]
    plot.logarithmic_x(min(sizes) / 1.2, max(sizes) * 1.2)
    lows, highs = zip(*((100 * low, 100 * high) for low, high in (width["loss_interval"] for width in widths)), strict=True)
    low, high = min([0.0, *lows]), max([1.0, *highs])
    plot.axes.set_ylim(low - 0.04 * (high - low), high + 0.04 * (high - low))
    plot.axes.axhline(0, color=MUTED, linewidth=1, zorder=1)
    plot.intervals(sizes, lows, highs, MUTED)
    for is_pooled, how in (
        (False, {"s": 40, "facecolors": ACCENT, "edgecolors": PAPER}),
        (True, {"s": 34, "facecolors": PAPER, "edgecolors": MUTED}),
    ):
        own = [width for width in widths if (width["pool_factor"] > 1) == is_pooled]
        tips = [
            f"{name_of(width)}: {width['bytes_per_token']:.0f} bytes a token, {width['loss']:+.1%} lost "
            f"({width['loss_interval'][0]:+.1%} to {width['loss_interval'][1]:+.1%})"
            for width in own
        ]
        plot.points([w["bytes_per_token"] for w in own], [100 * w["loss"] for w in own], tips, **how)
    plot.labels("bytes a token", "% lost")
    told = ", ".join(f"{name_of(width)} {width['loss']:+.1%}" for width in widths)
    return plot.svg(f"What is lost by the bytes of a token: {told}.")


def _bars(name: str, labels: Sequence[str]) -> Plot:
    plot = Plot(name, height=52 + 30 * len(labels), left=96, top=8)
    plot.axes.set_ylim(len(labels) - 0.5, -0.5)
    plot.axes.set_yticks(range(len(labels)), labels)
    plot.axes.tick_params(axis="y", colors=INK)
    plot.axes.grid(False, axis="y")
    plot.axes.grid(axis="x", color=RULE, linewidth=1)
    return plot


def _linear_x(plot: Plot, most: float) -> None:
    from matplotlib.ticker import MaxNLocator

    plot.axes.set_xlim(0, most * 1.02 or 1.0)
    ticks = [tick for tick in MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(0, most or 1.0) if tick <= most * 1.02]
    plot.axes.set_xticks(ticks, [f"{tick:,g}" for tick in ticks])


def estimates(found: Mapping[str, Any]) -> str:
    """Estimated against exact scores."""
    plot = Plot("estimates", height=310)
    exact = [point["exact"] for point in found["points"]]
    estimated = [point["estimate"] for point in found["points"]]
    low, high = min([*exact, *estimated]), max([*exact, *estimated])
    margin = 0.04 * (high - low) or 0.5
    plot.axes.set_xlim(low - margin, high + margin)
    plot.axes.set_ylim(low - margin, high + margin)
    plot.axes.plot([low - margin, high + margin], [low - margin, high + margin], color=MUTED, linewidth=1, zorder=1)
    for kind, color in (("random", MUTED), ("top", ACCENT)):
        own = [point for point in found["points"] if point["kind"] == kind]
        tips = [
            f"query {point['query']}, document {_short(point['id'])}: "
            f"exact {point['exact']:.3f}, estimated {point['estimate']:.3f}"
            for point in own
        ]
        x, y = [p["exact"] for p in own], [p["estimate"] for p in own]
        plot.points(x, y, tips, s=14, facecolors=color, edgecolors="none", linewidths=0, alpha=0.55)
    _few_ticks(plot)
    plot.labels("exact score, of a query token", "estimated score, of a query token")
    correlation = found["rank_correlation"]
    told = "" if correlation is None else f" Their rank correlation is {correlation:.2f}."
    return plot.svg(f"Estimated against exact scores of {len(found['points'])} documents.{told}")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:59] + "…"


def _few_ticks(plot: Plot) -> None:
    from matplotlib.ticker import MaxNLocator

    plot.axes.xaxis.set_major_locator(MaxNLocator(6))
    plot.axes.yaxis.set_major_locator(MaxNLocator(6))


def training(losses: Mapping[str, Any]) -> str:
    """The losses of each epoch."""
    from matplotlib.ticker import MaxNLocator

    plot = Plot("training")
    every = [*losses["training_loss"], *losses["validation_loss"]]
    epochs = max(len(losses["training_loss"]), len(losses["validation_loss"]))
    for name, color in (("training", MUTED), ("validation", ACCENT)):
        own = losses[f"{name}_loss"]
        x = list(range(1, len(own) + 1))
        plot.axes.plot(x, own, color=color, linewidth=1.75, zorder=3)
        plot.points(x, own, [f"epoch {i}: {name} loss {loss:.4f}" for i, loss in zip(x, own, strict=True)], s=30, color=color)
    margin = 0.05 * (max(every) - min(every)) or 0.05
    plot.axes.set_ylim(min(every) - margin, max(every) + margin)
    plot.axes.set_xlim(0.75, epochs + 0.25)
    plot.axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    plot.labels("epoch", "loss, of standardised targets")
    return plot.svg(f"Training and validation loss over {epochs} epochs; the last are {_last(losses)}.")


def _last(losses: Mapping[str, Any]) -> str:
    named = [(name, losses[f"{name}_loss"]) for name in ("training", "validation")]
    return " and ".join(f"{own[-1]:.3f} ({name})" for name, own in named if own)


def by_length(name: str, bins: Sequence[Mapping[str, Any]], k: int, what: str) -> str:
    """Recall of each range of lengths."""
    plot = Plot(name, height=250)
    x = list(range(len(bins)))
    recall = [own["recall"] for own in bins]
    lows, highs = zip(*(own["recall_interval"] for own in bins), strict=True)
    low = min(0.8, math.floor(10 * min(lows)) / 10)
    plot.axes.set_xlim(-0.5, len(bins) - 0.5)
    plot.axes.set_ylim(low, 1.0)
    _recall_ticks(plot, low)
    plot.intervals(x, lows, highs, MUTED)
    tips = [
        f"{range_of(own['tokens'])} tokens: recall@{k} {own['recall']:.3f} "
        f"({own['recall_interval'][0]:.3f} to {own['recall_interval'][1]:.3f})"
        for own in bins
    ]
    plot.points(x, recall, tips, s=42, facecolors=ACCENT, edgecolors=PAPER)
    plot.axes.set_xticks(x, [range_of(own["tokens"]) for own in bins])
    plot.labels(f"tokens of a {what}", f"recall@{k}")
    told = ", ".join(f"{range_of(own['tokens'])} tokens {own['recall']:.3f}" for own in bins)
    return plot.svg(f"Recall at {k} by the length of a {what}: {told}.")


def range_of(tokens: Sequence[int]) -> str:
    """A range of lengths in words."""
    low, high = tokens
    return f"{low:,}" if low == high else f"{low:,}{TO}{high:,}"
