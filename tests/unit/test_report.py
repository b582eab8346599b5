"""The report: its figures beside the same computed otherwise, its page beside its figures, and odd indexes."""

from __future__ import annotations

import functools
import importlib.util
import json
import re
import subprocess
import sys
from bisect import bisect_left
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lemur_ann import LemurIndex
from lemur_ann.insight import metrics
from lemur_ann.report import report

NASTY = "<script>alert(1)</script> & \"quotes' </svg></title>"


class Page(HTMLParser):
    """The elements of a page, its ids, and its tables by their label."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.texts: list[str] = []
        self._open: list[str] = []
        self._label = ""
        self.feed(html)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in ("meta", "link", "br", "col"):
            self._open.append(tag)
        own = dict(attributes)
        if own.get("role") == "region":
            self._label = own["aria-label"]
            self.tables[self._label] = []
        elif self._label and tag == "tr":
            self.tables[self._label].append([])
        elif self._label and tag in ("td", "th"):
            self.tables[self._label][-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self._open.pop() == tag
        if tag == "table":
            self._label = ""

    def handle_data(self, data):
        self.texts.append(data)
        if self._label and self._open[-1] in ("td", "th"):
            self.tables[self._label][-1][-1] += data

    @property
    def ids(self):
        return [value for name, value in self.attributes if name == "id"]


def maxsim(query, document):
    return float((query.astype(np.float64) @ document.astype(np.float64).T).max(1).sum())


@pytest.fixture
def living(small_index, make_matrices, request):
    """An index with deleted and recent documents, its documents by id, and new queries."""
    index, documents, _ = small_index(num_candidates=20, candidates=getattr(request, "param", "hnsw"))
    more = make_matrices(20, dim=16)
    known = {f"doc-{i}": document for i, document in enumerate(documents)} | {f"new-{i}": d for i, d in enumerate(more)}
    index.add(more, ids=[f"new-{i}" for i in range(20)])
    gone = [f"doc-{i}" for i in range(0, 60, 2)]
    index.delete(gone)
    for name in gone:
        del known[name]
    return index, known, make_matrices(40, dim=16, low=2, high=9)


def ranks_by_estimate(index, queries, missed):
    """Of each (query, id) the fewest candidates of a full scan that find it: all of the exact best among them are hits."""
    counts = range(5, len(index) + 1)

    def finds(i, name, num_candidates):
        return name in index.search(queries[i], 5, num_candidates=num_candidates, ef_search=len(index)).ids

    ranks = {(i, n): counts[bisect_left(counts, True, key=functools.partial(finds, i, n))] for i, n in missed}
    table = index.to_arrow(tokens=False).read_all()
    vectors = np.array(table.column("vector").to_pylist(), np.float32)
    order = table.column("id").to_pylist()
    estimated = index.encoder.encode_queries(queries) @ vectors.T
    by_vectors = {(i, n): 1 + int((estimated[i] > estimated[i][order.index(n)]).sum()) for i, n in missed}
    if index.options.candidates == "exact":
        assert ranks == by_vectors
    else:  # it scans codes of the vectors
        assert metrics.rank_correlation([ranks[key] for key in missed], [by_vectors[key] for key in missed]) > 0.95
    return ranks


@pytest.mark.parametrize("living", ["hnsw", "exact"], indirect=True)
def test_figures_beside_the_same_computed_otherwise(living):
    index, documents, queries = living
    data = report(index, queries, k=5).data
    names = list(documents)
    scores = np.array([[maxsim(query, documents[name]) for name in names] for query in queries])
    exact = [{names[j] for j in np.argsort(-own)[:5]} for own in scores]
    count, beam = data["in_use"]["num_candidates"], data["in_use"]["ef_search"]
    assert (count, beam) == (20, 20)
    found = [set(index.search(q, 5).ids.tolist()) for q in queries]
    shared = [len(a & b) for a, b in zip(found, exact, strict=True)]
    recall, low, high = metrics.share_found(shared, [5] * len(queries))
    assert data["in_use"]["recall"] == pytest.approx(recall)
    assert data["in_use"]["recall_interval"] == pytest.approx([low, high])
    assert recall < 1, "the figures below are of what is missed"
    for point in data["curve"]:
        hits = index.search(queries, 5, num_candidates=point["num_candidates"], ef_search=point["ef_search"])
        own = np.mean([len(set(h.ids.tolist()) & e) / 5 for h, e in zip(hits, exact, strict=True)])
        assert point["recall"] == pytest.approx(own), point
        assert 0 < point["p50_ms"] <= point["p95_ms"]

    # misses: where each missed document stands among all by estimate
    missed = [(i, name) for i, (a, b) in enumerate(zip(found, exact, strict=True)) for name in b - a]
    ranks = ranks_by_estimate(index, queries, missed)
    by_map = sum(rank > count for rank in ranks.values())
    assert data["misses"] == {
        "num_wanted": 200,
        "num_missed": len(missed),
        "by_map": by_map,
        "by_graph": len(missed) - by_map,
    }
    worst = data["worst_queries"]
    assert [q["num_found"] for q in worst] == sorted(shared)[: len(worst)]
    for query in worst:
        row = query["row"]
        assert query["num_tokens"] == len(queries[row])
        assert {m["id"] for m in query["missed"]} == exact[row] - found[row]
        for one in query["missed"]:
            assert one["estimated_rank"] == ranks[row, one["id"]]
            assert one["score"] == pytest.approx(scores[row][names.index(one["id"])], rel=1e-5)
            assert one["rank"] == 1 + int((scores[row] > scores[row][names.index(one["id"])] + 1e-9).sum())

    # by length
    bins = data["recall_by_query_length"]
    assert sum(own["num_queries"] for own in bins) == len(queries)
    assert len(bins) > 1
    for own in bins:
        inside = [i for i, q in enumerate(queries) if own["tokens"][0] <= len(q) <= own["tokens"][1]]
        assert own["num_queries"] == len(inside)
        assert own["recall"] == pytest.approx(np.mean([shared[i] / 5 for i in inside]))
    bins = data["recall_by_document_length"]
    assert sum(own["num_wanted"] for own in bins) == 200
    for own in bins:
        wanted = [
            name in found[i]
            for i, names_of in enumerate(exact)
            for name in names_of
            if own["tokens"][0] <= len(documents[name]) <= own["tokens"][1]
        ]
        assert own["num_wanted"] == len(wanted)
        assert own["recall"] == pytest.approx(np.mean(wanted))


def test_estimates_beside_a_fit_by_numpy(living):
    """With fewer documents than the sample has, it is all of them, and the fit can be made again."""
    index, _, queries = living
    index.delete(list(index)[90:])
    data = report(index, queries, k=5).data["estimates"]
    table = index.to_arrow().read_all()
    vectors = np.array(table.column("vector").to_pylist(), np.float32)
    tokens = [np.array(rows, np.float32) for rows in table.column("tokens").to_pylist()]
    ids = table.column("id").to_pylist()
    expected, errors, correlations = {}, {"random": [], "top": []}, []
    for i, query in enumerate(queries):
        exact = np.array([maxsim(query, document) for document in tokens]) / len(query)
        raw = vectors @ index.encoder.encode_queries(query)
        top = np.argsort(-exact)[:5]
        both = np.concatenate([np.arange(90), top])
        fitted = np.polyval(np.polyfit(raw[both], exact[both], 1), raw)
        correlations.append(metrics.rank_correlation(raw, exact))
        errors["random"] += (fitted - exact).tolist()
        errors["top"] += (fitted - exact)[top].tolist()
        expected |= {(i, name): (exact[j], fitted[j]) for j, name in enumerate(ids)}
    assert data["rank_correlation"] == pytest.approx(np.mean(correlations), abs=1e-3)
    assert data["num_documents"] == {"random": 90 * 40, "top": 5 * 40}
    for kind, own in errors.items():
        assert data["error"][kind] == pytest.approx(np.sqrt(np.mean(np.square(own))), rel=1e-3)
        assert data["bias"][kind] == pytest.approx(np.mean(own), abs=1e-5)
    assert len(data["points"]) == 400
    for point in data["points"]:
        assert (point["exact"], point["estimate"]) == pytest.approx(expected[point["query"], point["id"]], abs=1e-4)


def test_the_curve_marks_what_is_in_use_and_tuned(small_index, make_matrices):
    index, _, queries = small_index()
    tuned = index.tune(queries, 0.8, k=5)
    points = report(index, make_matrices(30, dim=16), k=5).data["curve"]
    assert [(p["num_candidates"], p["ef_search"]) for p in points if p["in_use"]] == [(40, 40)]
    (marked,) = [p for p in points if p["tuned_for"]]
    assert (marked["num_candidates"], marked["ef_search"]) == (tuned.num_candidates, max(tuned.ef_search, tuned.num_candidates))
    assert marked["tuned_for"] == [{"target_recall": 0.8, "k": 5}]
    assert len({(p["num_candidates"], p["ef_search"]) for p in points}) == len(points) > 10
    assert sum(p["exact"] for p in points) == 1, "all 200 documents reranked are an exact search, whatever the beam"
    assert [p["p50_ms"] for p in points] == sorted(p["p50_ms"] for p in points)
    for i, point in enumerate(points):
        assert point["quickest"] == all(before["recall"] < point["recall"] for before in points[:i])


TIMED = ("created", "exact_p50_ms", "time_of_a_query", "environment")


def settled(data):
    """The figures without those that are of time or of the machine, and by setting what the curve holds."""
    kept = {name: value for name, value in data.items() if name not in TIMED}
    # the rows of ids by their names are handed on to what comes after a change
    kept["sizes"] = [(part["part"], part["size"] if part["part"] != "ids" else None) for part in data["sizes"]]
    times = ("p50_ms", "p95_ms", "quickest")
    kept["in_use"] = {name: value for name, value in data["in_use"].items() if name not in times}
    points = [{name: value for name, value in point.items() if name not in times} for point in data["curve"]]
    kept["curve"] = sorted(points, key=lambda point: (point["num_candidates"], point["ef_search"]))
    return kept


@pytest.mark.parametrize("fitted", [True, False])
def test_all_figures_are_of_one_moment(small_index, make_matrices, fitted):
    index, documents, queries = small_index()
    if not fitted:
        index = LemurIndex(num_features=64, epochs=0, rank=15, num_candidates=40)
        index.add(documents, ids=[f"doc-{i}" for i in range(200)])
    before, steps = index.version, []
    asked = queries[:10]
    expected = report(index, asked, k=5).data

    def change(*step):
        steps.append(step)
        if len(steps) == 1:  # better ones than there were, for every query
            index.add([np.concatenate([own, 2 * own]) for own in asked], ids=[f"new-{i}" for i in range(10)])
        if len(steps) == 2:
            index.delete(["doc-1"])
            if fitted:
                index.tune(queries, 0.5, k=5)
                index.refit(queries=queries)
            else:
                index.fit(queries=queries)

    data = report(index, asked, k=5, progress=change).data
    assert index.version > before
    assert len(steps) > 2
    assert "doc-1" not in index
    assert (data["index"]["num_documents"], data["index"]["is_fitted"]) == (200, fitted)
    assert settled(data) == settled(expected)
    assert settled(report(index, asked, k=5).data) != settled(expected)


def test_without_a_map_a_search_in_use_scores_all_documents(make_matrices):
    data = report(LemurIndex(num_candidates=20).add(make_matrices(100, dim=16)), make_matrices(5, dim=16)).data
    assert [(p["num_candidates"], p["exact"], p["recall"]) for p in data["curve"]] == [(100, True, 1.0)]
    assert data["in_use"] == data["curve"][0]


def test_what_is_missed_is_what_explain_miss_says(living):
    index, _, queries = living
    data = report(index, queries, k=5).data
    assert data["worst_queries"]
    for query in data["worst_queries"]:
        for one in query["missed"]:
            miss = index.explain_miss(queries[query["row"]], one["id"], 5)
            assert (one["rank"], one["estimated_rank"]) == (miss.rank, miss.estimate_rank)
            assert one["score"] == miss.score
            assert miss.stage == ("estimate" if one["estimated_rank"] > 20 else "graph")


def test_time_of_a_query_adds_up(small_index, make_matrices):
    index, _, _ = small_index()
    found = report(index, make_matrices(20, dim=16)).data["time_of_a_query"]
    assert [part["part"] for part in found["parts"]] == ["features", "graph", "rerank", "the rest"]
    assert all(part["p50_ms"] > 0 for part in found["parts"][:3])
    assert sum(part["p50_ms"] for part in found["parts"]) >= found["p50_ms"] * 0.999


def test_the_page_shows_the_figures(demo_index, demo_data):
    made = report(demo_index, demo_data.queries, title="The demo")
    data, page = made.data, Page(made.html)
    assert json.loads(made.json) == data
    assert len(made.html.encode()) < 1_000_000

    def rows(label):
        return page.tables[label][1:]

    for shown, point in zip(rows("All settings"), data["curve"], strict=True):
        low, high = point["recall_interval"]
        assert shown[:2] == [f"{point['num_candidates']:,}", f"{point['ef_search']:,}"]
        assert shown[2:4] == [f"{point['recall']:.3f}", f"{low:.3f}\N{EN DASH}{high:.3f}"]
        assert float(shown[4]) == pytest.approx(point["p50_ms"], abs=0.0051)
        assert float(shown[5]) == pytest.approx(point["p95_ms"], rel=0.01)
        assert ("in use" in shown[6]) == point["in_use"]
    quickest = [p for p in data["curve"] if p["quickest"] or p["in_use"]]
    assert [row[:2] for row in rows("The quickest settings")] == [
        [str(p["num_candidates"]), str(p["ef_search"])] for p in quickest
    ]
    stages = data["time_of_a_query"]
    assert [row[0] for row in rows("Time of each stage")] == [*(part["part"] for part in stages["parts"]), "whole"]
    for shown, part in zip(rows("Time of each stage"), stages["parts"], strict=False):
        assert float(shown[2]) == pytest.approx(part["p50_ms"], abs=0.0051)
    assert rows("Estimated and exact scores") == [
        [str(p["query"]), p["id"], p["kind"], f"{p['exact']:.4f}", f"{p['estimate']:.4f}"] for p in data["estimates"]["points"]
    ]
    losses = zip(data["training"]["training_loss"], data["training"]["validation_loss"], strict=True)
    assert rows("Losses") == [[str(i), f"{a:.4f}", f"{b:.4f}"] for i, (a, b) in enumerate(losses, start=1)]
    for what, count in (("query", "num_queries"), ("document", "num_wanted")):
        shown = [row[:3] for row in rows(f"Recall by the length of a {what}")]
        bins = data[f"recall_by_{what}_length"]
        assert [row[1:] for row in shown] == [[str(own[count]), f"{own['recall']:.3f}"] for own in bins]
    sizes = rows("Megabytes by part")
    assert [row[:2] for row in sizes[:-1]] == [[part["part"], f"{part['size'] / 1e6:,.2f}"] for part in data["sizes"]]
    assert sizes[-1][1] == f"{sum(part.size for part in demo_index.stats().parts.values()) / 1e6:,.2f}"
    text = " ".join(page.texts)
    texts = dict(zip(demo_data.queries.column("id").to_pylist(), demo_data.queries.column("text").to_pylist(), strict=True))
    for query in data["worst_queries"]:
        assert query["text"] == texts[query["id"]]
        assert query["text"] in text
        for one in query["missed"]:
            whole = demo_index.metadata([one["id"]]).column("text")[0].as_py()
            assert " ".join(whole.split()).startswith(one["text"].removesuffix("…"))
            assert one["text"] in text
    for value in (*data["environment"]["versions"].values(), data["environment"]["cpu"], "ef_construction"):
        assert value in text
    assert f"{data['in_use']['recall']:.3f}" in text
    assert page.tags.count("title") > len(data["estimates"]["points"]), "points say what they are"


def test_plots_share_a_page(demo_index, demo_data):
    page = Page(report(demo_index, demo_data.queries).html)
    assert page.tags.count("figure") >= 6
    assert len(page.ids) == len(set(page.ids))
    references = [value for _, value in page.attributes if value and re.search(r"(^|\()#", value)]
    wanted = {re.search(r"#([\w-]+)", value)[1] for value in references}
    assert wanted, "markers are drawn by reference"
    assert wanted <= set(page.ids)
    assert "style" not in page.tags[page.tags.index("body") :], "styles of one plot would be those of the page"
    assert not {tag for tag in page.tags if tag in ("script", "img", "iframe", "object")}
    external = [v for name, v in page.attributes if name in ("src", "href") and not v.startswith(("#", "data:"))]
    assert not external
    assert [value for name, value in page.attributes if name == "role"].count("img") == page.tags.count("figure")


def test_texts_and_ids_are_shown_as_they_are(make_matrices):
    documents = make_matrices(60, dim=16)
    ids = [f"{i} {NASTY}" for i in range(60)]
    tokens = pa.array([document.tolist() for document in documents], pa.list_(pa.list_(pa.float32(), 16)))
    table = pa.table({"id": ids, "text": [f"text of {NASTY} {i}" for i in range(60)], "tokens": tokens})
    index = LemurIndex(num_features=32, epochs=0, rank=7, num_candidates=5, ef_search=None)
    index.fit(table, queries=documents[:20])
    queries = pa.table({"id": ids[:20], "text": [f"{NASTY} asked"] * 20, "tokens": tokens[:20].take(np.arange(20)[::-1])})
    made = report(index, queries, k=5, title=NASTY)
    assert "<script" not in made.html
    page = Page(made.html)
    assert "script" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert NASTY in page.texts
    assert made.data["worst_queries"], "there is something to show"
    for query in made.data["worst_queries"]:
        assert f"{NASTY} asked" in page.texts
        assert query["missed"][0]["id"] in page.texts
        assert query["missed"][0]["text"] in page.texts
    assert {row[1] for row in page.tables["Estimated and exact scores"][1:]} <= set(ids)


def odd(name, make_matrices):
    """An index out of the ordinary, and queries."""
    documents, queries = make_matrices(100, dim=16), make_matrices(25, dim=16)
    small = {"num_features": 32, "epochs": 0, "rank": 7, "num_candidates": 20, "ef_search": None}
    if name == "not fitted":
        return LemurIndex().add(documents), queries
    if name == "random features":
        return LemurIndex(**small).fit(documents, queries=make_matrices(30, dim=16)), queries
    if name == "one query":
        return LemurIndex(**small).fit(documents, queries=make_matrices(30, dim=16)), queries[0]
    if name == "fewer documents than k":
        return LemurIndex(**small).fit(documents[:4], queries=make_matrices(30, dim=16)), queries
    if name == "one document":
        return LemurIndex(**small).fit(documents[:1], queries=make_matrices(30, dim=16)), queries[:2]
    if name == "a scan":
        return LemurIndex(**small, candidates="exact").fit(documents, queries=make_matrices(30, dim=16)), queries
    if name == "no token codes":
        return LemurIndex(**small, token_codes=None).fit(documents, queries=make_matrices(30, dim=16)), queries
    index = LemurIndex(**small | {"epochs": 1}).fit(documents, queries=make_matrices(30, dim=16))
    assert name == "no record of training"
    index.encoder.training.clear()
    return index, queries


@pytest.mark.parametrize(
    ("name", "sentences", "absent"),
    [
        ("not fitted", ["has no learned map yet", "Environment"], ["Training", "What is missed", "Recall and latency"]),
        ("random features", ["were not trained", "Recall and latency"], ["loss, of standardised"]),
        ("one query", ["Measured with 1 query", "Too few queries"], ["tokens of a query"]),
        ("fewer documents than k", ["k is 10, and there are 4 documents", "scores all 4 documents"], ["What is missed"]),
        ("one document", ["k is 10, and there are 1 documents", "1 document, "], ["Recall by length"]),
        ("a scan", ["of all vectors, for candidates", "Recall and latency"], ["the walk that finds"]),
        ("no token codes", ["Recall and latency"], ["token codes"]),
        ("no record of training", ["no record of its training", "not recorded"], ["best epoch"]),
    ],
)
def test_odd_indexes(name, sentences, absent, make_matrices):
    index, queries = odd(name, make_matrices)
    made = report(index, queries)
    assert json.loads(made.json) == made.data
    text = " ".join(" ".join(Page(made.html).texts).split())
    for sentence in sentences:
        assert sentence in text
    for sentence in absent:
        assert sentence not in text
    if name == "not fitted":
        assert [p["recall"] for p in made.data["curve"]] == [1.0]
    if name == "a scan":
        assert all(p["ef_search"] == p["num_candidates"] for p in made.data["curve"])


def test_a_sample_of_the_queries(small_index, make_matrices):
    index, _, _ = small_index()
    queries = make_matrices(50, dim=16)
    data = report(index, queries, num_queries=7, seed=3).data
    assert data["queries"]["num_queries"] == 7
    assert data["queries"]["num_given"] == 50
    again = report(index, queries, num_queries=7, seed=3).data
    assert again["misses"] == data["misses"]
    assert again["estimates"] == data["estimates"]
    assert "drawn from 50" in report(index, queries, num_queries=7).html


def test_bad_input(small_index, make_matrices, monkeypatch):
    index, _, _ = small_index()
    queries = make_matrices(3, dim=16)
    with pytest.raises(ValueError, match="report needs at least one query, got none"):
        report(index, [])
    with pytest.raises(ValueError, match="index has dim 16"):
        report(index, make_matrices(3, dim=8))
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        report(index, queries, k=0)
    with pytest.raises(ValueError, match="num_threads must be at least 1, got 0"):
        report(index, queries, num_threads=0)
    with pytest.raises(ValueError, match="the index holds none"):
        report(LemurIndex(), queries)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find_spec(name))
    with pytest.raises(ImportError, match=r"pip install 'lemur_ann\[plots\]'"):
        report(index, queries)


def test_what_smaller_tokens_would_lose(demo_index, demo_data):
    made = report(demo_index, demo_data.queries, relevant="id")
    codes = made.data["codes"]
    found = demo_index.tune_codes(demo_data.queries, relevant="id", max_loss=1.0)
    measured = [(1, width) for width in found.widths] + [own for own in found.pooled if own[0] == 2]
    assert codes["loss_of"] == "relevance"
    assert [(w["pool_factor"], w["token_codes"], w["loss"], w["recall"]) for w in codes["widths"]] == [
        (factor, width.token_codes, width.loss, width.recall) for factor, width in measured
    ]
    assert "bytes a token, " in made.html
    without = report(demo_index, demo_data.queries[:20]).data["codes"]
    assert without["loss_of"] == "recall"
    assert all(w["loss"] == pytest.approx(1 - w["recall"]) for w in without["widths"])
    last = [[hits.ids[-1]] for hits in demo_index.search(demo_data.queries[:5], k=len(demo_index), exact=True)]
    of_nobody = report(demo_index, demo_data.queries[:5], relevant=last).data["codes"]
    assert of_nobody["loss_of"] == "recall"
    unfitted = LemurIndex()
    unfitted.add(demo_data.documents[:20])
    assert report(unfitted, demo_data.queries[:3]).data["codes"] is None
    alone = LemurIndex(num_features=64, epochs=0, rank=15, token_codes="int4", keep_tokens="none")
    alone.fit(demo_data.documents[:200], demo_data.training_queries)
    made = report(alone, demo_data.queries[:3])
    assert made.data["codes"] is None
    assert "Smaller tokens" not in made.html


def test_the_guide_names_the_figures(demo_index, demo_data):
    guide = (Path(__file__).parent.parent.parent / "docs/guides/report.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?) \| (.*) \|$", guide, re.M)
    named = [key for keys, _ in rows for key in re.findall(r"`(\w+)`", keys)]
    data = report(demo_index, demo_data.queries[:5]).data
    assert sorted(named) == sorted(data)
    holds = {key: text for keys, text in rows for key in re.findall(r"`(\w+)`", keys)}
    for key in ("index", "queries", "estimates", "training", "misses"):
        assert all(f"`{name}`" in holds[key] for name in data[key]), key
    assert all(f"`{name}`" in holds["curve"] for name in data["in_use"])
    assert all(f"`{name}`" in holds["sizes"] for name in data["sizes"][0])


def test_importing_it_is_light():
    program = "import sys, lemur_ann.report; print(any(name in sys.modules for name in ('matplotlib', 'torch')))"
    result = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


@pytest.mark.slow
def test_on_the_command_line(tmp_path, small_index, make_matrices):
    index, _, _ = small_index()
    index.save(tmp_path / "index")
    tokens = pa.array([m.tolist() for m in make_matrices(30, dim=16)], pa.list_(pa.list_(pa.float32(), 16)))
    pq.write_table(pa.table({"tokens": tokens}), tmp_path / "queries.parquet")

    def run(*arguments):
        script = str(Path(sys.executable).parent / "lemur-ann")
        command = [script, "report", "index", "--queries", "queries.parquet", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)

    result = run("--out", "report.html", "--json", "report.json", "-k", 5, "--num-queries", 20)
    assert result.returncode == 0, result.stderr
    assert "20 queries over 200 documents: report.html and report.json written" in " ".join(result.stdout.split())
    data = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert (data["k"], data["title"], data["queries"]["num_given"]) == (5, "index", 30)
    assert "<h1>index</h1>" in html
    assert f'recall@5</dt><dd><span class="value">{data["in_use"]["recall"]:.3f}' in html
    result = run("--out", "nowhere/report.html")
    assert result.returncode == 1
    assert "'nowhere' is not" in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("low", np.geomspace(0.2, 3.0, 40))
def test_ticks_keep_clear_of_the_corner(low):
    """There the label of an x would lie on that of the lowest y; where a tick falls depends on the times that were measured."""
    pytest.importorskip("matplotlib", reason="pip install lemur_ann[plots]")
    from lemur_ann.report.plots import Plot

    plot = Plot("curve")
    plot.logarithmic_x(low, 8 * low)
    ticks = plot.axes.get_xticks()
    assert len(ticks) >= 2
    assert (np.log(ticks / low) / np.log(8) >= 0.039).all()
