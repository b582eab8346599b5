"""Why a document has its score, against NumPy; and why a search does not find it, against the search."""

from __future__ import annotations

import html.parser
import io
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow.compute as pc
import pytest
from rich.console import Console

from lemur_ann import LemurIndex, reference
from lemur_ann.candidates.kinds import LIBRARIES
from lemur_ann.demo import demo_encoder
from lemur_ann.insight.case import Case
from lemur_ann.insight.miss import explain_miss
from lemur_ann.searching.device import DeviceSearch
from lemur_ann.searching.searcher import Searcher
from lemur_ann.searching.settings import Settings

QUERY = np.array([[1, 0, 0], [0, 2, 0]], np.float32)
DOCUMENTS = [  # scores 1.5 + 0.4, 1 + 2, 0.5 + 2
    np.array([[0, 0, 1], [1.5, 0, 0], [0, 0.2, 0]], np.float32),
    np.array([[1, 0, 0], [0, 1, 0]], np.float32),
    np.array([[0.5, 1, 0]], np.float32),
]


@pytest.fixture
def by_hand():
    return LemurIndex().add(DOCUMENTS, ids=["a", "b", "c"])


def test_by_hand(by_hand):
    explanation = by_hand.explain(QUERY, "a")
    np.testing.assert_array_equal(explanation.similarities, np.float32([[0, 1.5, 0], [0, 0, 0.4]]))
    assert explanation.best_tokens.tolist() == [1, 2]
    assert explanation.shares == pytest.approx([1.5 / 1.9, 0.4 / 1.9])
    assert explanation.document_shares == pytest.approx([0, 1.5 / 1.9, 0.4 / 1.9])
    assert explanation.usual_similarities == pytest.approx([1, 4.4 / 3])
    assert explanation.gains == pytest.approx([0.5, 0.4 - 4.4 / 3])
    assert explanation.document_gains == pytest.approx([0, 0.5, 0.4 - 4.4 / 3])
    assert (explanation.score, explanation.rank, explanation.num_documents) == (pytest.approx(1.9), 3, 3)
    assert (explanation.estimate, explanation.estimate_rank, explanation.found_at) == (None, None, 3)
    assert by_hand.explain(QUERY, "a", k=2).found_at is None


def test_against_numpy(small_index):
    index, documents, queries = small_index()
    index.delete(["doc-3", "doc-150"])
    live = [i for i in range(200) if i not in (3, 150)]
    for query in queries[:3]:
        oracle = reference.maxsim(query, documents)[live]
        maxima = reference.token_maxima(query, documents)[:, live]
        hits = index.search(query, k=10)
        exact = dict(index.search(query, k=200, exact=True))
        for row in (0, 4, 99, 199):
            doc_id = f"doc-{row}"
            explanation = index.explain(query, doc_id)
            products = query.astype(np.float64) @ documents[row].astype(np.float64).T
            np.testing.assert_allclose(explanation.similarities, products, atol=1e-6)
            assert explanation.best_tokens.tolist() == products.argmax(axis=1).tolist()
            assert explanation.score == exact[doc_id], "the score of a search, to the last bit"
            assert explanation.score == np.float32(explanation.best_similarities.sum(dtype=np.float64))
            assert explanation.rank == 1 + np.count_nonzero(oracle > oracle[live.index(row)])
            assert explanation.num_documents == 198
            np.testing.assert_allclose(explanation.usual_similarities, maxima.mean(axis=1), atol=1e-6)
            assert explanation.gains.sum() == pytest.approx(explanation.score - oracle.mean(), abs=1e-5)
            assert abs(explanation.shares).sum() == pytest.approx(1)
            assert explanation.document_shares.sum() == pytest.approx(explanation.shares.sum())
            places = hits.ids.tolist()
            assert explanation.found_at == (places.index(doc_id) + 1 if doc_id in places else None)


def test_the_estimate_against_numpy(small_index):
    index, documents, queries = small_index(candidates="exact")
    index.delete(["doc-7"])
    live = [i for i in range(200) if i != 7]
    encoder = index.encoder
    products = encoder.encode_documents(documents)[live].astype(np.float64) @ encoder.encode_queries(queries[1])
    fitted = np.polyval(np.polyfit(products, reference.maxsim(queries[1], documents)[live], 1), products)
    for place in (0, 50, 198):
        explanation = index.explain(queries[1], f"doc-{live[place]}")
        assert explanation.estimate == pytest.approx(fitted[place], abs=1e-3)
        assert explanation.estimate_rank == 1 + np.count_nonzero(products > products[place])


def test_ties_are_in_the_order_of_a_search():
    index = LemurIndex().add([DOCUMENTS[2], DOCUMENTS[1], DOCUMENTS[2], DOCUMENTS[2]], ids=[10, 11, 12, 13])
    order = index.search(QUERY, k=4).ids.tolist()
    assert [index.explain(QUERY, doc_id).rank for doc_id in order] == [1, 2, 3, 4]
    index.delete([10])
    assert [index.explain(QUERY, doc_id).rank for doc_id in (11, 12, 13)] == [1, 2, 3]
    miss = index.explain_miss(QUERY, 13, k=2)
    assert (miss.stage, miss.rank, miss.lacking) == ("score", 3, 0.0)
    assert "equal to that of rank 2. k=3 finds it." in str(miss)


def test_similarities_below_zero():
    index = LemurIndex().add([np.float32([[-1, 0]]), np.float32([[0, 0]])])
    explanation = index.explain(np.float32([[1, 0], [-3, 0]]), 0)
    assert explanation.shares == pytest.approx([-0.25, 0.75])
    assert index.explain(np.float32([[1, 0]]), 1).shares.tolist() == [0]
    assert "-25.0%" in str(explanation)
    assert explanation._repr_html_()


def test_numpy_ids_torch_and_float16(by_hand):
    import torch

    index = LemurIndex().add([document.astype(np.float16) for document in DOCUMENTS])
    for query in (QUERY, QUERY.astype(np.float16), torch.from_numpy(QUERY)):
        explanation = index.explain(query, np.int64(1))
        assert (explanation.doc_id, explanation.score) == (1, 3)


def test_what_it_refuses(by_hand, small_index):
    by_hand.delete(["c"])
    for doc_id in ("c", "nobody", 3):
        for explain in (by_hand.explain, by_hand.explain_miss):
            with pytest.raises(KeyError, match="no document has the id"):
                explain(QUERY, doc_id)
    with pytest.raises(TypeError, match=r"query_tokens must be one query, a matrix \(num_tokens, dim\), got list"):
        by_hand.explain([QUERY, QUERY], "a")
    with pytest.raises(ValueError, match="^query has dim 4, index has dim 3"):
        by_hand.explain(np.ones((2, 4), np.float32), "a")
    with pytest.raises(ValueError, match="has a NaN, infinite or huge value"):
        by_hand.explain(np.full((2, 3), np.nan), "a")
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        by_hand.explain(QUERY, "a", k=0)
    with pytest.raises(ValueError, match="query_words must have a string for each of 2 tokens, got 1"):
        by_hand.explain(QUERY, "a", query_words=["red"])
    with pytest.raises(ValueError, match="document_words must have a string for each of 3 tokens, got 2"):
        by_hand.explain(QUERY, "a", document_words=["red", "fox"])
    for words in ("ab", [1, 2]):
        with pytest.raises(TypeError, match="query_words must be a list of strings, one for each token"):
            by_hand.explain(QUERY, "a", query_words=words)
    index, _, queries = small_index()
    with pytest.raises(ValueError, match=r"not tuned for target_recall 0\.9"):
        index.explain_miss(queries[0], "doc-0", target_recall=0.9)


# How it looks


@pytest.fixture(scope="module")
def shown(demo_data):
    """A query and the document it was written for, with their words."""
    encoder, n = demo_encoder(demo_data), 3
    query, doc_id = demo_data.queries["text"][n].as_py(), demo_data.queries["id"][n].as_py()
    text = demo_data.documents.filter(pc.field("id") == doc_id)["text"][0].as_py()
    words = {"query_words": encoder.query_words([query])[0], "document_words": encoder.document_words([text])[0]}
    return LemurIndex().add(demo_data.documents).explain(encoder.queries([query])[0], doc_id, **words)


def test_as_text(shown):
    lines = str(shown).splitlines()
    assert lines[0] == f"{shown.doc_id!r}: score 27.457 (+3.415 over the mean), rank 1 of 600; a search finds it at 1"
    assert "\x1b" not in str(shown)
    rows = lines[3:]
    assert len(rows) == 32
    assert max(map(len, lines[2:])) <= 80
    assert re.fullmatch(r"lad +the col«lad»a document +0\.979 +3\.6% +\+0\.387 █+", rows[3])
    assert re.fullmatch(r"\[SEP\] +«\[CLS\]» \[D\] the +0\.994 +3\.6% +\+0\.001", rows[20])
    ends = {row.index("%") for row in rows}
    assert len(ends) == 1, "aligned"
    bars = [row.count("█") for row in rows]
    assert bars.index(max(bars)) == shown.gains.argmax() == 3
    assert repr(shown) == f"<Explanation of {lines[0]}>"


def test_in_a_terminal(shown):
    file = io.StringIO()
    Console(file=file, force_terminal=True, width=100, color_system="standard").print(shown)
    assert "\x1b[" in file.getvalue()
    assert re.sub(r"\x1b\[[0-9;]*m", "", file.getvalue()).count("«") == 32


def test_numbers_where_there_are_no_words(by_hand):
    assert re.search(r"^1 +2 +0\.400 +21\.1% ", str(by_hand.explain(QUERY, "a")), re.MULTILINE)
    assert "«" not in str(by_hand.explain(QUERY, "a", query_words=["red", "[/bold]"]))
    assert "[/bold]" in str(by_hand.explain(QUERY, "a", query_words=["red", "[/bold]"]))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["a", "fox", "##es"], "a «fox»es"),
        (["▁a", "▁fox", "es"], "a «fox»es"),
        (["Ġa", "Ġfox", "es"], "a «fox»es"),
        (["a", " fox", "es"], "a «fox»es"),
        (["a", "fox", "##"], "a «fox» ##"),
    ],
)
def test_words_are_put_together_as_the_text_was(by_hand, words, expected):
    assert expected in str(by_hand.explain(QUERY, "a", document_words=words))


class Spans(html.parser.HTMLParser):
    """The text, and the opacity of the background of each span."""

    def __init__(self, given):
        super().__init__()
        self.text, self.open, self.opacities, self.titles = "", [], [], []
        self.feed(given)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        assert {"src", "href", "class"}.isdisjoint(attrs), "it needs nothing else"
        if tag == "br":
            return
        self.open.append(tag)
        if tag == "span":
            found = re.search(r"rgba\(255,140,0,([0-9.]+)\)", attrs.get("style", ""))
            self.opacities.append(float(found[1]) if found else 0.0)
            self.titles.append(attrs["title"])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_in_a_notebook(shown):
    spans = Spans(shown._repr_html_())
    assert "provides a c + + object representation of a collada xml instance document" in spans.text
    query, document = np.array(spans.opacities[:32]), np.array(spans.opacities[32:])
    assert len(document) == len(shown.document_words)
    np.testing.assert_allclose(query, 0.6 * np.clip(shown.gains, 0, None) / shown.gains.max(), atol=0.011)
    assert document.argmax() == shown.document_gains.argmax()
    assert document[shown.document_words.index("xml")] == 0
    assert spans.titles[3] == "lad: 0.979, 3.6% of the score, gain +0.387"
    assert spans.titles[32 + shown.document_words.index("##lad")] == "lad: 0.979, 3.6% of the score, gain +0.387"


def test_words_are_escaped(by_hand):
    words = ["<script>alert(1)</script>", "'\"", "&amp;"]
    page = by_hand.explain(QUERY, "a", query_words=["<b>", "'"], document_words=words)._repr_html_()
    assert "<script" not in page
    assert "<b>" not in page
    assert "<script>alert(1)</script> '\" &amp;" in Spans(page).text


# Pictures


def test_a_matrix(shown, tmp_path):
    pytest.importorskip("matplotlib", reason="pip install lemur_ann[plots]")
    axes = shown.picture(tmp_path / "matrix.png")
    assert (tmp_path / "matrix.png").read_bytes().startswith(b"\x89PNG")
    np.testing.assert_array_equal(axes.images[0].get_array(), shown.similarities)
    assert [label.get_text() for label in axes.get_yticklabels()][3] == "lad"
    assert [label.get_text() for label in axes.get_xticklabels()][:3] == ["[CLS]", "[D]", "the"]
    np.testing.assert_array_equal(axes.lines[0].get_xdata(), shown.best_tokens)
    np.testing.assert_array_equal(shown.picture(query_token=3).images[0].get_array(), shown.similarities[3:4])


@pytest.fixture
def page(rng):
    """Of 2 tokens before and 1 after 4 x 6 patches; the query's second token is that of the patch in row 1, column 4."""
    tokens = rng.normal(size=(27, 16)).astype(np.float32)
    tokens /= np.linalg.norm(tokens, axis=1, keepdims=True)
    query = np.stack([tokens[5], tokens[2 + 1 * 6 + 4]])
    return LemurIndex().add([tokens]).explain(query, 0)


@pytest.mark.parametrize("form", ["array", "gray", "pil", "path", "none"])
def test_a_heat_map_over_a_page(page, tmp_path, form):
    pytest.importorskip("matplotlib", reason="pip install lemur_ann[plots]")
    from PIL import Image

    pixels = np.full((80, 120, 3), 200, np.uint8)
    Image.fromarray(pixels).save(tmp_path / "page.png")
    image = {
        "array": pixels,
        "gray": pixels[:, :, 0],
        "pil": Image.fromarray(pixels),
        "path": tmp_path / "page.png",
        "none": None,
    }
    axes = page.picture(tmp_path / "map.png", image=image[form], grid=(4, 6), offset=2, query_token=1)
    patches = axes.images[-1].get_array()
    np.testing.assert_array_equal(patches, page.similarities[1, 2:26].reshape(4, 6))
    assert np.unravel_index(patches.argmax(), patches.shape) == (1, 4)
    assert len(axes.images) == (1 if form == "none" else 2)
    drawn = np.asarray(Image.open(tmp_path / "map.png").convert("RGB")).astype(int)
    box = axes.get_window_extent().get_points() * 120 / axes.figure.dpi  # pixels of the file, from its bottom
    (left, bottom), (right, top) = box
    yellow = np.argwhere((drawn[:, :, 0] > 180) & (drawn[:, :, 1] > 180) & (drawn[:, :, 2] < 150))
    inside = yellow[yellow[:, 1] < right]  # without the colour bar
    y, x = inside.mean(axis=0)
    assert 4 <= (x - left) / (right - left) * 6 <= 5, "the brightest spot is over column 4"
    assert 1 <= (len(drawn) - y - bottom) / (bottom - top) * 4 + 4 <= 2, "and over row 1"
    total = page.picture(grid=(4, 6), offset=2)
    np.testing.assert_allclose(total.images[-1].get_array(), page.similarities[:, 2:26].sum(axis=0).reshape(4, 6))


def test_on_axes_of_the_callers(page):
    figure = pytest.importorskip("matplotlib.figure", reason="pip install lemur_ann[plots]").Figure()
    left, right = figure.subplots(1, 2)
    assert page.picture(left, grid=(4, 6), offset=2, query_token=0) is left
    assert page.picture(right) is right
    assert len(left.images) == len(right.images) == 1


def test_pictures_it_refuses(page):
    with pytest.raises(ValueError, match="grid 4 x 6 from token 4 needs 28 document tokens, and there are 27"):
        page.picture(grid=(4, 6), offset=4)
    with pytest.raises(ValueError, match="query_token must be below 2, the number of query tokens, got 2"):
        page.picture(query_token=2)
    with pytest.raises(ValueError, match=r"image= and offset= go with grid=\(rows, columns\)"):
        page.picture(image="page.png")
    for grid in (24, (4, 6, 1)):
        with pytest.raises(TypeError, match=r"grid must be \(rows, columns\), got"):
            page.picture(grid=grid)
    with pytest.raises(TypeError, match="target must be a path or matplotlib axes, got int"):
        page.picture(3)


def test_an_image_it_refuses(page):
    pytest.importorskip("matplotlib", reason="pip install lemur_ann[plots]")
    with pytest.raises(ValueError, match=r"image must have shape \(height, width\) or .*, got \(4,\)"):
        page.picture(image=np.ones(4), grid=(4, 6))


def test_without_matplotlib(page, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(
        ImportError, match=r"a picture needs matplotlib, which is not installed: pip install 'lemur_ann\[plots\]'"
    ):
        page.picture()


def test_it_imports_what_it_needs_when_it_needs_it():
    program = (
        "import sys, numpy, lemur_ann; m = numpy.ones((2, 3)); i = lemur_ann.LemurIndex().add([m]);"
        "before = 'lemur_ann.insight.explanation' in sys.modules; e = i.explain(m, 0);"
        "print(before, *(name in sys.modules for name in ('rich', 'matplotlib', 'torch')), len(str(e)) > 0)"
    )
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "False", "False", "True"]


# Misses


def check(index, query, doc_id, k=10, **how):
    """A miss whose settings find the document, where those that it was asked for do not."""
    miss = index.explain_miss(query, doc_id, k, **how)
    assert (doc_id in index.search(query, k, **how).ids) == (miss.stage == "found")
    found = index.search(query, **miss.settings).ids.tolist()
    assert doc_id in found
    assert miss.settings.items() >= miss.changed.items()
    assert bool(miss.changed) or miss.stage in ("found", "filter")
    for name, value in miss.changed.items():
        assert f"{name}={value}" in str(miss)
    return miss


def test_found(small_index):
    index, _, queries = small_index()
    for place, doc_id in enumerate(index.search(queries[0], k=5).ids, start=1):
        miss = check(index, queries[0], doc_id, k=5)
        assert (miss.stage, miss.found_at, miss.settings, miss.num_reranked) == ("found", place, {"k": 5}, 40)
        assert f"is found, at {place} of 5" in str(miss)


@pytest.mark.parametrize("fitted", [True, False])
def test_lost_by_score(small_index, fitted):
    index, documents, queries = small_index()
    if not fitted:
        index = LemurIndex().add(documents, ids=[f"doc-{i}" for i in range(200)])
    oracle = np.sort(reference.maxsim(queries[0], documents))[::-1]
    exact = index.search(queries[0], k=200, exact=True).ids.tolist()
    for rank in (30, 200):  # the next ones may be found, in the place of some that are lost
        miss = check(index, queries[0], exact[rank - 1], k=5)
        assert (miss.stage, miss.rank, miss.num_documents, miss.changed["k"]) == ("score", rank, 200, rank)
        assert miss.lacking == pytest.approx(oracle[4] - oracle[rank - 1], abs=1e-5)
        assert f"has rank {rank} of 200, {miss.lacking:.3f} below rank 5" in str(miss)
        assert (miss.estimate_rank is not None) == fitted


def test_lost_by_the_filter(small_index):
    index, _, queries = small_index()
    exact = index.search(queries[0], k=200, exact=True).ids.tolist()
    allowed = exact[100:]
    miss = check(index, queries[0], exact[0], filter=allowed)
    assert (miss.stage, miss.rank, miss.num_documents) == ("filter", 1, 200)
    assert "kept out by the filter: without it, its exact score" in str(miss)
    assert "filter" not in miss.settings
    miss = check(index, queries[0], exact[50], k=3, filter=pc.field("id") == exact[1])
    assert (miss.stage, miss.rank, miss.changed["k"]) == ("filter", 51, 51)
    assert "Without the filter, k=51" in str(miss)
    miss = check(index, queries[0], allowed[0], filter=allowed)  # which passes
    assert (miss.stage, miss.rank, miss.num_documents) == ("found", 1, 100)
    miss = check(index, queries[0], allowed[-1], filter=allowed)
    assert (miss.stage, miss.rank, miss.num_documents) == ("score", 100, 100)
    assert miss.settings["filter"] == allowed


@pytest.mark.parametrize("candidates", ["hnsw", "exact"])
def test_lost_by_estimate(small_index, candidates):
    index, _, queries = small_index(candidates=candidates)
    stages = Counter()
    for query in queries[:10]:
        for doc_id in index.search(query, k=5, exact=True).ids:
            miss = check(index, query, doc_id, k=5, num_candidates=6)
            stages[miss.stage] += 1
            if miss.stage == "estimate":
                assert miss.num_reranked == 6 < miss.estimate_rank == miss.changed["num_candidates"]
                assert f"its estimate has rank {miss.estimate_rank}, and the search reranked 6 candidates" in str(miss)
                fewer = {**miss.settings, "num_candidates": miss.estimate_rank - 1}
                assert doc_id not in index.search(query, **fewer).ids, "it says the least that finds it"
    assert stages.keys() == {"found", "estimate"}
    assert stages["estimate"] > 5


def test_a_recall_it_was_tuned_for(small_index):
    index, _, queries = small_index(candidates="exact")
    index.tune(queries[:30], 0.5, k=5, progress=False)
    stages = Counter()
    for query in queries[30:50]:
        for doc_id in index.search(query, k=6, exact=True).ids:
            miss = check(index, query, doc_id, k=5, target_recall=0.5)
            stages[miss.stage] += 1
            assert ("target_recall" in miss.settings) == (miss.stage == "found")
    assert stages.keys() == {"found", "estimate", "score"}


def walked_through(**options):
    """Documents enough for searches to walk a graph, which has few links; and queries."""
    random = np.random.default_rng(0)

    def matrices(count):
        for size in random.integers(2, 9, count):
            matrix = random.normal(size=(size, 16)).astype(np.float32)
            yield matrix / np.linalg.norm(matrix, axis=1, keepdims=True)

    documents, queries = list(matrices(6000)), list(matrices(300))
    poor = {"num_candidates": 20, "ef_search": None, "M": 2, "ef_construction": 4}
    index = LemurIndex(num_features=64, epochs=0, rank=15, **poor, **options)
    return index.fit(documents, queries=queries[50:], num_threads=1, progress=False), queries[:30]


@pytest.fixture(scope="module")
def walked():
    return walked_through(num_centroids=0)


@pytest.mark.parametrize("filtered", [False, True])
def test_lost_by_the_graph(walked, filtered):
    index, queries = walked
    how = {"filter": np.arange(6000) % 10 < 9} if filtered else {}
    stages = Counter()
    for query in queries:
        for doc_id in index.search(query, k=5, exact=True, **how).ids.tolist():
            miss = check(index, query, doc_id, k=5, **how)
            stages[miss.stage] += 1
            if miss.stage == "graph":
                assert miss.estimate_rank <= miss.num_reranked
                assert "the walk of the graph did not come to it. " in str(miss)
            if miss.stage == "graph" and not filtered:
                assert miss.changed.keys() == {"ef_search"}
                narrower = {**miss.settings, "ef_search": miss.settings["ef_search"] // 2}
                assert doc_id not in index.search(query, **narrower).ids, "half of that beam does not find it"
    assert stages["graph"] > 0
    assert stages["estimate"] > 0


@pytest.fixture
def coded(rng):
    """Codes of one document's token are all zero where the query looks: its one large component takes all of their range."""
    documents = [np.float32([[0, 3 - 0.01 * i, 0, 0]]) for i in range(60)]
    documents[41] = np.float32([[1000, 3.5, 0, 0]])
    queries = [rng.normal(size=(3, 4)).astype(np.float32) for _ in range(40)]
    index = LemurIndex(num_features=16, epochs=0, rank=3, num_candidates=40, ef_search=None)
    return index.fit(documents, queries=queries, progress=False), np.float32([[0, 1, 0, 0]])


def test_lost_by_codes(coded):
    index, query = coded
    miss = check(index, query, 41, k=5, filter=list(range(20, 60)))
    assert (miss.stage, miss.rank, miss.num_reranked, miss.changed) == ("codes", 1, 40, {"exact": True})
    assert "it was among the 40 candidates, and the first pass of the rerank, over int8 codes, lost it" in str(miss)
    without = LemurIndex(num_features=16, epochs=0, rank=3, num_candidates=40, ef_search=None, token_codes=None)
    without.add(index.get(list(range(60)))).fit(queries=[query] * 20, progress=False)
    assert check(without, query, 41, k=5, filter=list(range(20, 60))).stage == "found"


def test_every_document_of_a_real_sample(demo_index, demo_data):
    """Those that are among the exact best, at the demo's settings and at poor ones."""
    encoder = demo_encoder(demo_data)
    stages = Counter()
    for query in encoder.queries(demo_data.queries["text"].to_pylist()[:8]):
        for doc_id in demo_index.search(query, k=10, exact=True).ids:
            for how in ({}, {"num_candidates": 12, "ef_search": 12}):
                stages[check(demo_index, query, doc_id, **how).stage] += 1
            wide = {"num_candidates": 12, "ef_search": 12, "shortlist": 0}
            stages[check(demo_index, query, doc_id, **wide).stage] += 1
    assert stages.keys() == {"found", "look", "estimate"}
    assert stages["found"] > 100


def test_lost_by_the_second_look():
    """On the shortlist, and behind others that the second look chose."""
    index, queries = walked_through()
    stages = Counter()
    for query in queries:
        for doc_id in index.search(query, k=5, exact=True).ids.tolist():
            miss = check(index, query, doc_id, k=5, num_candidates=10, ef_search=100, shortlist=400)
            stages[miss.stage] += 1
            if miss.stage == "look":
                assert "the second look chose 10 candidates before it" in str(miss)
    assert stages["look"] > 0


def test_on_a_device(small_index):
    """A search on a device scans all vectors; here the device is the CPU."""
    index, _, queries = small_index()
    snapshot = index.snapshot
    device = DeviceSearch(
        snapshot.learned.encoder, snapshot.learned.candidates.take(snapshot.live), snapshot.store, snapshot.live, "cpu"
    )
    stages = Counter()
    for query in queries[:10]:
        for doc_id in index.search(query, k=5, exact=True).ids:
            case = replace(Case.of(snapshot, Searcher(), query, doc_id, Settings(5, 6, 6, 1)), device_search=device)
            miss = explain_miss(case, {})
            stages[miss.stage] += 1
            if miss.stage == "estimate":
                assert miss.num_reranked == 6 < miss.changed["num_candidates"] == miss.estimate_rank
                assert case.searched(Settings(5, miss.estimate_rank, miss.estimate_rank, 1))[0] is not None
                assert case.searched(Settings(5, miss.estimate_rank - 1, miss.estimate_rank, 1))[0] is None
    assert stages.keys() == {"found", "estimate"}


@pytest.mark.parametrize("candidates", LIBRARIES)
def test_indexes_of_other_libraries(candidates, make_matrices):
    pytest.importorskip(LIBRARIES[candidates][0], reason=f"pip install {LIBRARIES[candidates][1]}")
    documents, queries = make_matrices(1500), make_matrices(60)
    index = LemurIndex(
        num_features=64, epochs=0, rank=15, num_candidates=12, ef_search=None, shortlist=300, candidates=candidates
    )
    index.fit(documents, queries=queries[10:], progress=False)
    stages = Counter()
    for query in queries[:10]:
        for doc_id in index.search(query, k=5, exact=True).ids.tolist():
            stages[check(index, query, doc_id, k=5).stage] += 1
    assert stages["estimate"] > 0
