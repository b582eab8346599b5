"""The page of a report: one HTML document, of the figures in measuring.py and the plots in plots.py."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from lemur_ann.report import plots

Data = Mapping[str, Any]
NOTHING, TO = "\N{EN DASH}", plots.TO

# Neither scripts nor anything from elsewhere, whatever a text may hold
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

MARKS = {
    "line": '<path d="M0 6h12" stroke="var(--{})" stroke-width="2"/>',
    "dot": '<circle cx="6" cy="6" r="4" fill="var(--{})"/>',
    "ring": '<circle cx="6" cy="6" r="3.5" fill="none" stroke="var(--{})"/>',
    "diamond": '<path d="M6 0l6 6-6 6-6-6z" fill="var(--{})"/>',
    "triangle": '<path d="M6 1l5.5 10H.5z" fill="var(--{})"/>',
}


def page(data: Data) -> str:
    """The whole document."""
    sections = [
        _curve(data),
        _relevance(data),
        _time(data),
        _estimates(data),
        _training(data),
        _lengths(data),
        _sizes(data),
        _codes(data),
        _worst(data),
        _environment(data),
    ]
    style = files("lemur_ann.report").joinpath("page.css").read_text(encoding="utf-8")
    title = escape(data["title"])
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
<main>
{_header(data)}
{"".join(section for section in sections if section)}
<footer class="small">lemur_ann {escape(data["environment"]["versions"]["lemur_ann"])}, {escape(data["created"])}</footer>
</main>
</body>
</html>
"""


# Pieces


def _section(name: str, title: str, text: str, body: str) -> str:
    """``text`` and ``body`` are HTML."""
    return f'<section id="{name}">\n<h2>{escape(title)}</h2>\n<p>{text}</p>\n{body}\n</section>\n'


def _pair(left: str, right: str, kind: str = "pair") -> str:
    return f'<div class="{kind}">\n{left}\n<div>{right}</div>\n</div>'


def _figure(svg: str, table: str, legend: Sequence[tuple[str, str, str]] = ()) -> str:
    """A plot, what its marks mean (shape, colour, words), and its numbers, if they do not stand beside it."""
    marks = "".join(
        f'<li><svg viewBox="0 0 12 12" aria-hidden="true">{MARKS[shape].format(color)}</svg>{escape(words)}</li>'
        for shape, color, words in legend
    )
    legend_html = f'<ul class="legend">{marks}</ul>' if marks else ""
    return f"<figure>\n{svg}\n{legend_html}{_details('Numbers', table) if table else ''}\n</figure>"


def _details(summary: str, body: str, *, is_open: bool = False) -> str:
    return f"<details{' open' if is_open else ''}><summary>{escape(summary)}</summary>{body}</details>"


def _table(
    label: str, head: Sequence[str], rows: Iterable[Sequence[Any]], *, text: Sequence[int] = (), marked: Sequence[bool] = ()
) -> str:
    """Cells are escaped; all but those of the columns ``text`` are numbers, and stand to the right."""

    def row(cells: Sequence[Any], tag: str, kind: str = "") -> str:
        scope = " scope=col" if tag == "th" else ""
        kinds = ["wide" if i in text else "n" for i in range(len(cells))]
        html = "".join(f"<{tag} class={own}{scope}>{escape(str(cell))}</{tag}>" for own, cell in zip(kinds, cells, strict=True))
        return f"<tr{kind}>{html}</tr>"

    body = [row(cells, "td", ' class="marked"' if i < len(marked) and marked[i] else "") for i, cells in enumerate(rows)]
    table = f"<table><thead>{row(head, 'th')}</thead><tbody>{''.join(body)}</tbody></table>"
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">{table}</div>'


def _facts(caption: str, rows: Iterable[tuple[str, Any]]) -> str:
    """Names and values."""
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td class="wide">{escape(str(value))}</td></tr>' for name, value in rows
    )
    return f'<table class="facts"><caption>{escape(caption)}</caption><tbody>{body}</tbody></table>'


def share(value: float | None) -> str:
    """A recall or a correlation."""
    return NOTHING if value is None else f"{value:.3f}"


def interval(bounds: Sequence[float]) -> str:
    """Of a recall."""
    return f"{bounds[0]:.3f}{TO}{bounds[1]:.3f}"


def milliseconds(value: float) -> str:
    """Three digits, and all that stand before the point."""
    decimals = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:,.{decimals}f}"


def megabytes(size_bytes: int | None) -> str:
    """Of bytes."""
    return NOTHING if size_bytes is None else f"{size_bytes / 1e6:,.2f}"


# Sections


def _header(data: Data) -> str:
    index, queries = data["index"], data["queries"]
    used, environment = data["in_use"], data["environment"]
    deleted = f" ({index['num_deleted']:,} more are deleted)" if index["num_deleted"] else ""
    drawn = "" if queries["num_given"] == queries["num_queries"] else f", drawn from {queries['num_given']:,}"
    lede = (
        f"{_count(index['num_documents'], 'document')}{deleted}, {_count(index['num_tokens'], 'token')} of {index['dim']} "
        f"dimensions in {index['token_dtype']}. Measured with {_count(queries['num_queries'], 'query', 'queries')}{drawn}, "
        f"one at a time on {_count(environment['threads'], 'thread')} of {environment['cpu']}."
    )
    low, high = used["recall_interval"]
    times = data["exact_p50_ms"] / used["p50_ms"]
    size, unit = sum(part["size"] for part in data["sizes"]) / 1e6, "MB"
    if size >= 1000:
        size, unit = size / 1e3, "GB"
    tiles = [
        (f"recall@{data['k']}", share(used["recall"]), "", f"95% interval {low:.3f} to {high:.3f}"),
        ("median latency", milliseconds(used["p50_ms"]), "ms", f"95% of queries within {milliseconds(used['p95_ms'])} ms"),
        ("exact search", milliseconds(data["exact_p50_ms"]), "ms", f"{times:,.{0 if times >= 10 else 1}f} times as long"),
        ("size", f"{size:,.1f}", unit, "all parts, in memory or mapped"),
    ]
    items = "".join(
        f'<div><dt>{escape(name)}</dt><dd><span class="value">{escape(value)} <span class="unit">{unit}</span></span>'
        f'<span class="small">{escape(more)}</span></dd></div>'
        for name, value, unit, more in tiles
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in data["notes"])
    return (
        f'<header>\n<h1>{escape(data["title"])}</h1>\n<p class="lede">{escape(lede)}</p>\n<dl class="key">{items}</dl>\n'
        f'<p class="small">With the setting in use: num_candidates {used["num_candidates"]:,}, ef_search '
        f"{used['ef_search']:,}. Recall is the share of the exact MaxSim top {data['k']:,} that a search finds; it is fair for "
        "queries that the index did not learn from.</p>\n"
        + (f'<ul class="notes">{notes}</ul>\n' if notes else "")
        + "</header>"
    )


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


STAGES = {
    "features": "the query through the learned map",
    "graph": "the walk that finds candidates",
    "scan": "of all vectors, for candidates",
    "second look": "which chooses candidates from a shortlist of these",
    "rerank": "exact MaxSim of the candidates",
    "the rest": "around them",
}
CURVE_HEAD = ("candidates", "beam", "recall", "95% interval", "median ms", "95% ms", "")


def _curve_row(point: Data, k: int) -> list[str]:
    marks = plots.marks_of(point, k)
    marks += ["exact"] if point["exact"] else []
    times = (milliseconds(point["p50_ms"]), milliseconds(point["p95_ms"]))
    found = (share(point["recall"]), interval(point["recall_interval"]))
    return [f"{point['num_candidates']:,}", f"{point['ef_search']:,}", *found, *times, ", ".join(marks)]


def _curve(data: Data) -> str:
    points, k = data["curve"], data["k"]
    if len(points) == 1:
        return ""
    text = (
        "Each point is a setting: <code>num_candidates</code>, the documents reranked, and <code>ef_search</code>, the beam of "
        "the graph search. Bars are 95% intervals over queries. Of each query the quicker of two searches counts. Which "
        "settings are quickest is read off these same queries; <code>tune</code> chooses and measures on different ones."
    )
    legend = [
        ("dot", "accent", "no other finds as much sooner"),
        ("ring", "muted", "others"),
        ("diamond", "second", "in use"),
        *([("triangle", "second", "tuned")] if any(point["tuned_for"] for point in points) else []),
    ]
    rows = [_curve_row(point, k) for point in points]
    table = _table("All settings", CURVE_HEAD, rows, text=(6,), marked=[p["in_use"] for p in points])
    shown = [i for i, point in enumerate(points) if point["quickest"] or point["in_use"] or point["tuned_for"]]
    head, *short = [[row[column] for column in (0, 1, 2, 4, 6)] for row in (CURVE_HEAD, *(rows[i] for i in shown))]
    in_use = [points[i]["in_use"] for i in shown]
    beside = _table("The quickest settings", head, short, text=(4,), marked=in_use)
    body = _pair(_figure(plots.curve(points, k, data["exact_p50_ms"]), table, legend), beside)
    return _section("curve", "Recall and latency", text, body)


def _relevance(data: Data) -> str:
    found = data["relevance"]
    if found is None:
        return ""
    text = (
        f"Of {_count(found['num_queries'], 'query', 'queries')} with a relevant document, with the setting in use and by "
        "exact MaxSim; <em>success</em> is the share of queries with a relevant document among so many hits. Recall can be "
        "high where answers are lost: they are few among the neighbours."
    )
    rows = [
        (
            name,
            share(own["found"]),
            share(own["exact"]),
            f"{own['loss']:+.1%}",
            TO.join(f"{v:+.1%}" for v in own["loss_interval"]),
        )
        for name, own in found["measures"].items()
    ]
    table = _table("Relevance", ("measure", "search", "exact", "lost", "95% interval"), rows, text=(0,))
    return _section("relevance", "Relevant documents", text, table)


def _time(data: Data) -> str:
    found = data["time_of_a_query"]
    if found is None:
        return ""
    text = (
        "Medians over queries of whole searches with the setting in use, and of their stages made one after the other; the "
        "rest is the difference: checks of arguments, ids, Python."
    )
    whole = found["p50_ms"]
    rows = [
        [part["part"], STAGES[part["part"]], milliseconds(part["p50_ms"]), f"{part['p50_ms'] / whole:.0%}"]
        for part in found["parts"]
    ]
    rows.append(["whole", "", milliseconds(whole), ""])
    table = _table("Time of each stage", ("stage", "", "median ms", "share"), rows, text=(0, 1))
    body = _pair(_figure(plots.stages(found), ""), _details("Numbers", table, is_open=True))
    return _section("time", "Where the time of a query goes", text, body)


def _estimates(data: Data) -> str:
    found = data["estimates"]
    if found is None:
        return ""
    text = (
        "The learned map estimates a score up to an affine map of each query, which is fitted here by least squares over the "
        "query's documents. Scores are divided by the number of query tokens. On the line, estimates are exact."
    )
    legend = [
        ("dot", "accent", f"the exact top {data['k']:,}"),
        ("dot", "muted", "random documents"),
        ("line", "muted", "equal"),
    ]
    rows = [
        (point["query"], point["id"], point["kind"], f"{point['exact']:.4f}", f"{point['estimate']:.4f}")
        for point in found["points"]
    ]
    head = ("query", "document", "kind", "exact", "estimated")
    table = _table("Estimated and exact scores", head, rows, text=(1, 2))
    kinds = (("top", f"top {data['k']:,}"), ("random", "random"))
    beside = _table(
        "How far estimates are off",
        ("", "pairs", "error", "bias"),
        [
            [name, f"{found['num_documents'][kind]:,}", f"{found['error'][kind]:.4f}", f"{found['bias'][kind]:+.4f}"]
            for kind, name in kinds
        ],
        text=(0,),
    )
    words = (
        f'<p class="small">Rank correlation over random documents, mean of queries: {share(found["rank_correlation"])}. '
        "Error is the root mean square of estimate less exact score, bias its mean: below 0, estimates are too low.</p>"
    )
    return _section(
        "estimates", "Estimated and exact scores", text, _pair(_figure(plots.estimates(found), table, legend), words + beside)
    )


def _training(data: Data) -> str:
    found = data["training"]
    if found is None:
        return ""
    training, validation = found["training_loss"], found["validation_loss"]
    facts = [("learned from", found["learned_from"] or "not recorded")]
    facts += [("epochs", len(training))] if training else []
    if validation or training:
        own = validation or training
        facts.append(("best epoch", f"{own.index(min(own)) + 1}, loss {min(own):.4f}"))
    if found["distilled"] is not None:
        facts.append(("distilled", "yes" if found["distilled"] else "no"))
    seconds = found["seconds"]
    facts += [("seconds", f"{sum(seconds.values()):,.1f}")] if seconds else []
    beside = _facts("The map", facts)
    if seconds:
        stages = sorted(seconds.items(), key=lambda item: -item[1])
        table = _table("Seconds of each stage", ("stage", "seconds"), [(n, f"{s:,.2f}") for n, s in stages], text=(0,))
        beside += _details("Seconds by stage", table)
    if not training and not validation:
        text = "The features are random, and were not trained: there are no losses to show."
        text = text if data["options"]["epochs"] == 0 else "The index has no record of its training."
        return _section("training", "Training", text, beside)
    text = (
        "Mean squared error of standardised token maxima, where 1 is what predicting the mean would give. The best epoch by "
        f"{'validation' if validation else 'training'} loss was kept."
    )
    rows = [
        (i + 1, *(f"{own[i]:.4f}" if i < len(own) else NOTHING for own in (training, validation)))
        for i in range(max(len(training), len(validation)))
    ]
    table = _table("Losses", ("epoch", "training", "validation"), rows)
    legend = [("line", "accent", "validation")] if validation else []
    figure = _figure(plots.training(found), table, [*legend, ("line", "muted", "training")])
    return _section("training", "Training", text, _pair(figure, beside))


def _lengths(data: Data) -> str:
    if data["in_use"]["exact"]:
        return ""
    k = data["k"]
    text = (
        f"Recall@{k} with the setting in use: of queries of so many tokens; and of the documents that queries want, by the "
        "documents' tokens. Bars are 95% intervals over queries."
    )
    figures = []
    for what, count, counted in (("query", "num_queries", "queries"), ("document", "num_wanted", "wanted")):
        bins = data[f"recall_by_{what}_length"]
        rows = [
            (plots.range_of(own["tokens"]), f"{own[count]:,}", share(own["recall"]), interval(own["recall_interval"]))
            for own in bins
        ]
        table = _table(f"Recall by the length of a {what}", ("tokens", counted, "recall", "95% interval"), rows)
        if len(bins) > 1:
            figures.append(_figure(plots.by_length(f"by-{what}-length", bins, k, what), table))
        else:
            low, high = bins[0]["tokens"]
            each = "Each query" if what == "query" else "Each document that they want"
            why = f"{each} has {_count(low, 'token')}" if low == high else "Too few queries to tell lengths apart"
            figures.append(f'<div><p class="small">{why}.</p>{table}</div>')
    return _section("lengths", "Recall by length", text, _pair(figures[0], figures[1], kind="pair even"))


def _sizes(data: Data) -> str:
    parts = data["sizes"]
    text = "What each part takes. What is mapped lies in files, and the system reads it when it is first used."
    rows: list[tuple[str, ...]] = [
        (part["part"], megabytes(part["size"]), megabytes(part["mapped"]), megabytes(part["resident"])) for part in parts
    ]
    totals = [[part[key] for part in parts] for key in ("size", "mapped", "resident")]
    rows.append(("all", *(megabytes(None if None in own else sum(own)) for own in totals)))
    table = _table("Megabytes by part", ("MB", "size", "mapped", "in memory"), rows, text=(0,))
    index = data["index"]
    size, stored = sum(totals[0]), index["num_documents"] + index["num_deleted"]
    facts = [
        ("bytes of a document", f"{size / stored:,.0f}"),
        ("bytes of a token", f"{size / index['num_tokens']:,.1f}"),
        ("tokens of a document", f"{index['num_tokens'] / stored:,.1f}"),
    ]
    beside = _details("Numbers", table, is_open=True) + _facts("On average", facts)
    return _section("sizes", "Size", text, _pair(_figure(plots.sizes(parts), ""), beside))


def _codes(data: Data) -> str:
    found = data["codes"]
    if found is None:
        return ""
    measured = f"of success and MRR at {data['k']:,}, the larger" if found["loss_of"] == "relevance" else "of recall"
    text = (
        "What a search would lose if small codes were kept in the place of the tokens, by the bytes that each token as it came "
        f"takes; {measured}, with 95% intervals over queries. The candidates in use are ranked by codes alone. "
        "<code>recode</code> makes it so; pooled tokens take an index made anew with <code>pool_factor</code>."
    )
    rows = [
        (
            plots.name_of(width),
            f"{width['bytes_per_token']:.0f}",
            share(width["recall"]),
            f"{width['loss']:+.1%}",
            TO.join(f"{v:+.1%}" for v in width["loss_interval"]),
        )
        for width in found["widths"]
    ]
    table = _table("Codes of tokens", ("kept", "bytes a token", "recall", "lost", "95% interval"), rows, text=(0,))
    legend = [("dot", "accent", "tokens as they came"), ("ring", "muted", "pooled by two")]
    body = _pair(_figure(plots.codes(found), "", legend), _details("Numbers", table, is_open=True))
    return _section("codes", "Smaller tokens", text, body)


def _worst(data: Data) -> str:
    worst, misses = data["worst_queries"], data["misses"]
    if data["in_use"]["exact"]:
        return ""
    if not worst:
        count = _count(data["queries"]["num_queries"], "query", "queries")
        return _section("worst", "What is missed", f"Nothing: each of {count} found its exact top {data['k']:,}.", "")
    shortlist = data["in_use"].get("shortlist", 0)
    listed = max(data["in_use"]["num_candidates"], shortlist)
    other = "the graph did not find it (a wider beam would)"
    if shortlist:
        other = "the graph did not find it (a wider beam would), or the second look chose others (more candidates would)"
    text = (
        f"Of {misses['num_wanted']:,} places in the exact top {data['k']:,}, {misses['num_missed']:,} were missed: "
        f"{misses['by_map']:,} because the map puts the document behind all {listed:,} candidates "
        f"(more candidates would find it, or a better map), {misses['by_graph']:,} because {other}. "
        "Below are the queries that miss most, and the best of what they miss."
    )
    heads = (("n", "rank"), ("n", "score"), ("n", "rank by estimate"), ("wide", "missed document"))
    head = "".join(f'<th class="{kind}" scope="col">{words}</th>' for kind, words in heads)
    body = f"<colgroup>{'<col>' * len(heads)}</colgroup><thead><tr>{head}</tr></thead>{''.join(map(_query, worst))}"
    return _section("worst", "What is missed", text, f'<table class="missed">{body}</table>')


def _query(query: Data) -> str:
    """A query and what it misses, as a group of rows."""
    name = query["text"] or (f"Query {query['id']}" if query["id"] is not None else f"Query {query['row']}")
    told = f"row {query['row']}" + ("" if query["id"] is None else f", id {query['id']}")
    told += f", {_count(query['num_tokens'], 'token')}: found {query['num_found']:,} of {query['num_wanted']:,}"
    more = query["num_wanted"] - query["num_found"] - len(query["missed"])
    told += f"; {more:,} more than these are missed" if more else ""
    rows = "".join(
        f'<tr><td class="n">{missed["rank"]:,}</td><td class="n">{missed["score"]:.3f}</td>'
        f'<td class="n">{missed["estimated_rank"]:,}</td>'
        f'<td class="wide">{escape(missed["text"] or "")}<span class="id">{escape(str(missed["id"]))}</span></td></tr>'
        for missed in query["missed"]
    )
    return (
        f'<tbody class="query"><tr><th colspan="4" scope="rowgroup"><span class="name">{escape(name)}</span>{escape(told)}</th>'
        f"</tr>{rows}</tbody>"
    )


def _environment(data: Data) -> str:
    own = data["environment"]
    where = [
        ("processor", own["cpu"]),
        ("cores", own["cores"]),
        ("threads of a search", own["threads"]),
        ("instruction set", own["instruction_set"]),
        ("system", own["system"]),
        ("Python", own["python"]),
        *((name, version or "not installed") for name, version in own["versions"].items()),
    ]
    options = [(name, "None" if value is None else value) for name, value in data["options"].items()]
    body = _pair(f"<div>{_facts('Where it ran', where)}</div>", _facts("Options of the index", options), kind="pair even")
    text = "Latencies are of this machine at this time: compare them within a report."
    return _section("environment", "Environment", text, body)
