"""The figures of a report, as plain values that JSON can hold."""

from __future__ import annotations

import datetime
import importlib.metadata
import itertools
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lemur_ann import _core
from lemur_ann import _validate as validate
from lemur_ann.documents.inputs import QueryBatch, is_single_query, read_queries, to_offsets
from lemur_ann.documents.rows import Rows
from lemur_ann.documents.sources import opened, record_batches
from lemur_ann.index import LemurIndex
from lemur_ann.insight import metrics
from lemur_ann.progress import Progress, Show, Task
from lemur_ann.progress import progress as progress_lines
from lemur_ann.searching.search import exact_scores
from lemur_ann.searching.settings import Settings
from lemur_ann.searching.snapshot import Learned, Snapshot

ROUNDS = 2  # of all timings, some time apart; of each query the quicker counts, since what else the machine does only adds
SHARES = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)  # of the candidates in use: the settings of the curve
BEAMS = (1, 2, 4)  # times the candidates
MAX_EXACT = 10  # queries to time exact searches with
MAX_SAMPLED = 100  # random documents of each query whose estimates are compared
MAX_POINTS = 200  # of the plot of estimates, of a kind
MAX_BINS, QUERIES_PER_BIN = 6, 10
MAX_WORST, MAX_MISSED = 10, 5  # queries shown, and documents of each
MAX_CHARACTERS = 240  # of a text
FEW_QUERIES = 30  # whose intervals say little
VALUES_PER_STEP = 2**22  # of estimates looked at together: 16 MiB
PACKAGES = ("numpy", "pyarrow", "torch", "hnswlib")

Setting = tuple[int, int]  # num_candidates, ef_search; never more than the documents there are


@dataclass(frozen=True)
class Queries:
    """Queries in float32, and what is known of them: ``rows`` are their places in the batch that was given."""

    batch: QueryBatch
    rows: Rows
    num_given: int
    texts: list[Any] | None
    ids: list[Any] | None

    def __len__(self) -> int:
        return len(self.batch)

    def __getitem__(self, i: int) -> npt.NDArray[np.float32]:
        tokens: npt.NDArray[np.float32] = self.batch.tokens[self.batch.offsets[i] : self.batch.offsets[i + 1]]
        return tokens

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each."""
        return np.diff(self.batch.offsets)

    def named(self, i: int) -> dict[str, Any]:
        """What to call one of them by."""
        text = None if self.texts is None or self.texts[i] is None else shortened(str(self.texts[i]))
        name = None if self.ids is None or self.ids[i] is None else str(self.ids[i])
        return {"row": int(self.rows[i]), "id": name, "text": text}


@dataclass(frozen=True)
class Truth:
    """Exact scores of one query: of its top k, best first, and of some random documents."""

    top: Rows
    top_scores: npt.NDArray[np.float32]
    sample: Rows
    sample_scores: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Timed:
    """What searches of one setting found and took.

    Attributes:
        found: for each query bool (num_wanted,): which of the exact top k, best first, are among its hits.
        milliseconds: of each query, the quicker of ROUNDS.
    """

    found: list[npt.NDArray[np.bool_]]
    milliseconds: list[float]


def measure(
    index: LemurIndex,
    queries: Any,
    *,
    k: int,
    num_queries: int,
    title: str | None,
    text_column: str,
    num_threads: int,
    seed: int,
    progress: Show,
) -> dict[str, Any]:
    """All figures; see :func:`lemur_ann.report.report` for the arguments."""
    version, snapshot = index.version, index._snapshot
    k = validate.positive_int(k, "k")
    threads = validate.num_threads(validate.positive_int(num_threads, "num_threads"))
    num_queries = validate.positive_int(num_queries, "num_queries")
    random = np.random.default_rng(validate.integer(seed, "seed", least=0))
    if snapshot.num_documents == 0:
        raise ValueError("report needs at least one document, and the index holds none")
    asked = _read(queries, index.dim, num_queries, random)
    size = snapshot.num_documents
    own = Settings.of(index.options, index.tuned, k)
    in_use = _clamped(own.num_candidates, own.ef_search, size)
    with progress_lines(progress) as lines:
        truths = _truths(snapshot, asked, k, random, lines.task("exact answers", len(asked)))
        settings = _settings(index, in_use, k, size)
        timed, exact_ms = _timed(index, asked, truths, settings, k, size, threads, lines)
        time_of_a_query = _time_of_a_query(index, snapshot, asked, in_use, k, threads, lines)
    curve = _curve(index, settings, timed, in_use, size)
    used = timed[settings.index(in_use)]
    ranks = _estimated_ranks(snapshot, asked, truths, used)
    result = {
        "title": title or f"An index of {size:,} documents",
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "index": _index(index, snapshot),
        "queries": {
            "num_queries": len(asked),
            "num_given": asked.num_given,
            "num_tokens": int(asked.lengths.sum()),
        },
        "k": k,
        "in_use": next(point for point in curve if point["in_use"]),
        "exact_p50_ms": float(np.median(exact_ms)),
        "curve": curve,
        "time_of_a_query": time_of_a_query,
        "estimates": _estimates(snapshot, asked, truths, random),
        "training": _training(snapshot),
        "recall_by_query_length": _by_query_length(asked, used),
        "recall_by_document_length": _by_document_length(snapshot, truths, used),
        "sizes": [{"part": name, **asdict(part)} for name, part in index.stats().parts.items()],
        "misses": _misses(used, ranks, in_use[0]),
        "worst_queries": _worst(snapshot, asked, truths, used, ranks, text_column),
        "environment": {**_environment(), "threads": threads},
        "options": asdict(index.options),
    }
    if index.version != version:
        raise RuntimeError("the index changed while it was measured: make the report again")
    return {**result, "notes": _notes(result)}


def shortened(text: str) -> str:
    """A text on one line, of at most MAX_CHARACTERS."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_CHARACTERS else line[: MAX_CHARACTERS - 1].rstrip() + "…"


def _read(queries: Any, dim: int | None, count: int, random: np.random.Generator) -> Queries:
    """At most ``count`` of the queries, in their order, with their texts and ids where they are Arrow data that has any."""
    queries = [queries] if is_single_query(queries) else opened(queries)
    columns: dict[str, list[Any]] = {}
    batches = record_batches(queries)
    if batches is not None:
        parts = list(batches)
        queries = pa.Table.from_batches(parts) if parts else []
        columns = {name: queries.column(name).to_pylist() for name in ("text", "id") if parts and name in parts[0].schema.names}
    batch = read_queries(queries, dim=dim)
    if len(batch) == 0:
        raise ValueError("report needs at least one query, got none")
    rows = np.arange(len(batch))
    if count < len(batch):
        rows = np.sort(random.choice(len(batch), count, replace=False))
    matrices = [batch.tokens[batch.offsets[i] : batch.offsets[i + 1]] for i in rows]
    tokens = np.ascontiguousarray(np.concatenate(matrices), dtype=np.float32)
    chosen = {name: [values[i] for i in rows.tolist()] for name, values in columns.items()}
    sample = QueryBatch(tokens, to_offsets([len(matrix) for matrix in matrices]))
    return Queries(sample, rows, len(batch), chosen.get("text"), chosen.get("id"))


def _truths(snapshot: Snapshot, queries: Queries, k: int, random: np.random.Generator, task: Task) -> list[Truth]:
    live, threads = snapshot.live, validate.num_threads(None)
    count = min(MAX_SAMPLED, len(live))
    truths = []
    for scores in exact_scores(snapshot, queries.batch, threads, snapshot.deleted):
        top = _core.top_k(scores, k)
        sample = random.choice(live, count, replace=False, shuffle=False)
        truths.append(Truth(top, scores[top], sample, scores[sample]))
        task.advance()
    return truths


# Settings, what they find and what they take


def _clamped(num_candidates: int, ef_search: int, size: int) -> Setting:
    count = min(num_candidates, size)
    return count, min(max(ef_search, count), size)


def _settings(index: LemurIndex, in_use: Setting, k: int, size: int) -> list[Setting]:
    """What to measure: fewer and more candidates than the index uses, each with beams of its own, and what it is tuned for."""
    if not index.is_fitted:
        return [(size, size)]
    settings = {in_use, *(_clamped(t.num_candidates, t.ef_search, size) for t in index.tuned)}
    beams = BEAMS if _has_beam(index) else BEAMS[:1]
    for share in SHARES:
        count = max(round(in_use[0] * share), k)
        settings |= {_clamped(count, count * beam, size) for beam in beams}
    # A rerank of all documents is an exact search, whatever the beam
    kept = {setting for setting in settings if setting[0] < size or setting == in_use}
    return sorted(kept | ({(size, size)} if in_use[0] < size and any(s[0] == size for s in settings) else set()))


def _has_beam(index: LemurIndex) -> bool:
    return index.options.candidates != "exact" and index.options.device == "cpu"


def _timed(
    index: LemurIndex,
    queries: Queries,
    truths: list[Truth],
    settings: list[Setting],
    k: int,
    size: int,
    num_threads: int,
    lines: Progress,
) -> tuple[list[Timed], list[float]]:
    """The searches of each setting, one query at a time; and the milliseconds of exact ones."""
    snapshot = index._snapshot
    wanted = [snapshot.ids.column.take(truth.top).tolist() for truth in truths]
    approximate = [i for i, setting in enumerate(settings) if index.is_fitted and setting[0] < size]
    num_exact = min(MAX_EXACT, len(queries))
    task = lines.task("searches", ROUNDS * (len(queries) * len(approximate) + num_exact))
    found: list[list[npt.NDArray[np.bool_]]] = [[] for _ in settings]
    took = np.full((len(settings), len(queries)), np.inf)
    exact_ms = np.full(num_exact, np.inf)

    def search(i: int, **how: Any) -> tuple[set[Any], float]:
        start = time.perf_counter()
        hits = index.search(queries[i], k, num_threads=num_threads, **how)
        milliseconds = (time.perf_counter() - start) * 1e3
        task.advance()
        return set(hits.ids.tolist()), milliseconds

    index.search(queries[0], k, num_threads=num_threads)  # warm up
    for lap in range(ROUNDS):
        for place in approximate:
            count, beam = settings[place]
            for i, ids in enumerate(wanted):
                hits, milliseconds = search(i, num_candidates=count, ef_search=beam)
                took[place, i] = min(took[place, i], milliseconds)
                if lap == 0:
                    found[place].append(np.array([doc_id in hits for doc_id in ids], np.bool_))
        for i in range(num_exact):
            exact_ms[i] = min(exact_ms[i], search(i, exact=True)[1])
    timed = []
    for place in range(len(settings)):
        if place in approximate:
            timed.append(Timed(found[place], took[place].tolist()))
        else:
            timed.append(Timed([np.ones(len(ids), np.bool_) for ids in wanted], exact_ms.tolist()))
    return timed, exact_ms.tolist()


def _curve(index: LemurIndex, settings: list[Setting], timed: list[Timed], in_use: Setting, size: int) -> list[dict[str, Any]]:
    """A point for each setting, quickest first."""
    points: list[dict[str, Any]] = []
    for setting, own in zip(settings, timed, strict=True):
        recall, low, high = _share(own.found)
        tuned = [t for t in index.tuned if _clamped(t.num_candidates, t.ef_search, size) == setting]
        points.append(
            {
                "num_candidates": setting[0],
                "ef_search": setting[1],
                "recall": recall,
                "recall_interval": [low, high],
                "p50_ms": float(np.percentile(own.milliseconds, 50)),
                "p95_ms": float(np.percentile(own.milliseconds, 95)),
                "exact": setting[0] == size,
                "in_use": setting == in_use,
                "tuned_for": [{"target_recall": t.target_recall, "k": t.k} for t in tuned],
            }
        )
    points.sort(key=lambda point: (point["p50_ms"], -point["recall"]))
    best = -1.0
    for point in points:
        point["quickest"] = point["recall"] > best  # no other finds as much in less time
        best = max(best, point["recall"])
    return points


def _share(found: Sequence[npt.NDArray[np.bool_]]) -> tuple[float, float, float]:
    """Of the exact top k found, and its 95% interval."""
    return metrics.share_found([int(own.sum()) for own in found], [len(own) for own in found]) or (1.0, 0.0, 1.0)


def _time_of_a_query(
    index: LemurIndex, snapshot: Snapshot, queries: Queries, in_use: Setting, k: int, num_threads: int, lines: Progress
) -> dict[str, Any] | None:
    """Median milliseconds of a whole search with the setting in use, and of its stages, made one after the other as it does.

    None where a search has no such stages: it scores every document, or works on a device.
    """
    learned = snapshot.learned
    count, beam = in_use
    if learned is None or count >= snapshot.num_documents or index.options.device != "cpu":
        return None
    encoder, candidates, documents = learned.encoder, learned.candidates, snapshot.store.documents
    names = ("features", "graph" if _has_beam(index) else "scan", "rerank")
    whole, parts = np.full(len(queries), np.inf), np.full((len(queries), len(names)), np.inf)
    task = lines.task("stages", 2 * ROUNDS * len(queries))
    for _ in range(ROUNDS):
        for i in range(len(queries)):
            start = time.perf_counter()
            index.search(queries[i], k, num_candidates=count, ef_search=beam, num_threads=num_threads)
            whole[i] = min(whole[i], time.perf_counter() - start)
            task.advance()
        for i in range(len(queries)):
            query, bounds = queries[i], to_offsets([len(queries[i])])
            marks = [time.perf_counter()]
            encoded = encoder.encode_batch(query, bounds, num_threads=num_threads)
            marks.append(time.perf_counter())
            found = candidates.search(encoded, count, beam, num_threads=num_threads, excluded=snapshot.deleted)[0]
            marks.append(time.perf_counter())
            _core.rerank(query, bounds, documents, np.sort(found), to_offsets([len(found)]), k, num_threads)
            marks.append(time.perf_counter())
            parts[i] = np.minimum(parts[i], np.diff(marks))
            task.advance()
    p50 = float(np.median(whole)) * 1e3
    medians = dict(zip(names, (np.median(parts, axis=0) * 1e3).tolist(), strict=True))
    medians["the rest"] = max(p50 - sum(medians.values()), 0.0)
    return {"p50_ms": p50, "parts": [{"part": name, "p50_ms": ms} for name, ms in medians.items()]}


# The map


def _estimates(snapshot: Snapshot, queries: Queries, truths: list[Truth], random: np.random.Generator) -> dict[str, Any] | None:
    """Estimated beside exact scores, per query token, so that queries of all lengths may stand in one plot.

    An estimate is of a score up to an affine map, which is the same for all documents of a query: the one of least squares on
    this query's documents.
    """
    learned = snapshot.learned
    if learned is None:
        return None
    encoded = learned.encoder.encode_batch(queries.batch.tokens, queries.batch.offsets, num_threads=1)
    correlations: list[float] = []
    kinds: dict[str, list[tuple[int, int, float, float]]] = {"random": [], "top": []}
    for i, (truth, query, length) in enumerate(zip(truths, encoded, queries.lengths.tolist(), strict=True)):
        rows = np.concatenate([truth.sample, truth.top])
        raw = (learned.candidates.take(rows) @ query).astype(np.float64)
        exact = np.concatenate([truth.sample_scores, truth.top_scores]).astype(np.float64) / length
        correlation = metrics.rank_correlation(raw[: len(truth.sample)], exact[: len(truth.sample)])
        if correlation is not None:
            correlations.append(correlation)
        estimates = _fitted(raw, exact).tolist()
        places = list(zip([i] * len(rows), rows.tolist(), exact.tolist(), estimates, strict=True))
        kinds["random"] += places[: len(truth.sample)]
        kinds["top"] += places[len(truth.sample) :]
    points = []
    for kind, places in kinds.items():
        chosen = np.sort(random.choice(len(places), min(MAX_POINTS, len(places)), replace=False)).tolist()
        ids = snapshot.ids.column.take(np.array([places[c][1] for c in chosen], np.int64)).tolist()
        for c, doc_id in zip(chosen, ids, strict=True):
            i, _, score, estimate = places[c]
            points.append({"kind": kind, "query": int(queries.rows[i]), "id": doc_id, "exact": score, "estimate": estimate})
    errors = {kind: np.array([estimate - exact for _, _, exact, estimate in places]) for kind, places in kinds.items()}
    return {
        "rank_correlation": float(np.mean(correlations)) if correlations else None,
        "error": {kind: float(np.sqrt(np.mean(own**2))) for kind, own in errors.items()},  # root mean square
        "bias": {kind: float(np.mean(own)) for kind, own in errors.items()},
        "num_documents": {kind: len(own) for kind, own in errors.items()},
        "points": points,
    }


def _fitted(raw: npt.NDArray[np.float64], exact: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """``raw`` through the affine map to ``exact`` of least squares."""
    centred = raw - raw.mean()
    variance = float(centred @ centred)
    slope = float(centred @ exact) / variance if variance > 0 else 0.0
    fitted: npt.NDArray[np.float64] = exact.mean() + slope * centred
    return fitted


def _estimated_ranks(
    snapshot: Snapshot, queries: Queries, truths: list[Truth], used: Timed
) -> list[npt.NDArray[np.int64]] | None:
    """For each query the places, from 1, that its missed documents have among all documents by estimate, best exact first."""
    learned = snapshot.learned
    if learned is None:
        return None
    missed = [truth.top[~found] for truth, found in zip(truths, used.found, strict=True)]
    of_query = np.repeat(np.arange(len(missed)), [len(own) for own in missed])
    better = np.zeros(len(of_query), np.int64)
    if len(of_query):
        better = _num_better(learned, snapshot.live, queries, np.concatenate(missed), of_query)
    return np.split(better + 1, to_offsets([len(own) for own in missed])[1:-1])


def _num_better(
    learned: Learned, live: Rows, queries: Queries, rows: Rows, of_query: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """How many documents have a higher estimate than ``rows[i]``, for query ``of_query[i]``."""
    encoded = learned.encoder.encode_batch(queries.batch.tokens, queries.batch.offsets, num_threads=1)
    used, place = np.unique(of_query, return_inverse=True)
    better = np.zeros(len(rows), np.int64)
    step = max(VALUES_PER_STEP // max(len(rows), learned.encoder.dim), 1)
    # the same product for a document's own estimate as for those it is compared with
    own = np.empty(len(rows), np.float32)
    for begin in range(0, len(rows), step):
        part = slice(begin, begin + step)
        own[part] = np.einsum("ij,ij->i", learned.candidates.take(rows[part]), encoded[of_query[part]])
    for begin in range(0, len(live), step):
        block = live[begin : begin + step]
        estimates = (learned.candidates.take(block) @ encoded[used].T)[:, place]
        better += np.count_nonzero((estimates > own) & (block[:, None] != rows), axis=0)
    return better


def _misses(used: Timed, ranks: list[npt.NDArray[np.int64]] | None, num_candidates: int) -> dict[str, Any] | None:
    """Why documents of the exact top k were missed: the map puts them behind the candidates, or the graph did not find them."""
    if ranks is None:
        return None
    places = np.concatenate([np.empty(0, np.int64), *ranks])
    behind = int(np.count_nonzero(places > num_candidates))
    wanted = sum(len(own) for own in used.found)
    return {"num_wanted": wanted, "num_missed": len(places), "by_map": behind, "by_graph": len(places) - behind}


def _training(snapshot: Snapshot) -> dict[str, Any] | None:
    """What is known of how the map was learned."""
    if snapshot.learned is None:
        return None
    known = snapshot.learned.encoder.training
    seconds = known.get("seconds") or {}
    return {
        "learned_from": known.get("learned_from"),
        "distilled": known.get("distilled"),
        "training_loss": [float(loss) for loss in known.get("training_loss") or []],
        "validation_loss": [float(loss) for loss in known.get("validation_loss") or []],
        "seconds": {name: float(value) for name, value in seconds.items()},
    }


# Who is missed


def _bins(lengths: npt.NDArray[np.int64], count: int) -> list[tuple[int, int]]:
    """At most ``count`` ranges, ends included, of about as many lengths each."""
    ends = np.unique(np.quantile(lengths, np.linspace(0, 1, count + 1), method="lower")).tolist()
    if len(ends) == 1:
        return [(ends[0], ends[0])]
    return [(low if i == 0 else low + 1, high) for i, (low, high) in enumerate(itertools.pairwise(ends))]


def _by_query_length(queries: Queries, used: Timed) -> list[dict[str, Any]]:
    lengths = queries.lengths
    bins = []
    for low, high in _bins(lengths, min(MAX_BINS, max(len(queries) // QUERIES_PER_BIN, 1))):
        inside = np.flatnonzero((lengths >= low) & (lengths <= high)).tolist()
        recall, least, most = _share([used.found[i] for i in inside])
        bins.append({"tokens": [low, high], "num_queries": len(inside), "recall": recall, "recall_interval": [least, most]})
    return bins


def _by_document_length(snapshot: Snapshot, truths: list[Truth], used: Timed) -> list[dict[str, Any]]:
    """Recall of the documents that queries want, the same document counted for each of these queries."""
    lengths = np.concatenate([np.diff(chunk.offsets) for chunk in snapshot.store.chunks])
    wanted = [lengths[truth.top] for truth in truths]
    together = np.concatenate(wanted)
    bins = []
    for low, high in _bins(together, min(MAX_BINS, max(len(truths) // QUERIES_PER_BIN, 1))):
        inside = [(own >= low) & (own <= high) for own in wanted]
        share = _share([found[here] for found, here in zip(used.found, inside, strict=True)])
        bins.append(
            {
                "tokens": [low, high],
                "num_wanted": sum(int(here.sum()) for here in inside),
                "recall": share[0],
                "recall_interval": list(share[1:]),
            }
        )
    return bins


def _worst(
    snapshot: Snapshot,
    queries: Queries,
    truths: list[Truth],
    used: Timed,
    ranks: list[npt.NDArray[np.int64]] | None,
    text_column: str,
) -> list[dict[str, Any]]:
    """The queries that miss most of their exact top k, and the best of what they miss."""
    shares = [float(found.mean()) if len(found) else 1.0 for found in used.found]
    order = [i for i in np.argsort(shares, kind="stable").tolist() if shares[i] < 1]
    worst = []
    for i in order[:MAX_WORST]:
        truth, found = truths[i], used.found[i]
        places = np.flatnonzero(~found)[:MAX_MISSED]
        rows = truth.top[places]
        texts = _texts(snapshot, rows, text_column)
        ids = snapshot.ids.column.take(rows).tolist()
        missed = [
            {
                "id": doc_id,
                "text": text,
                "rank": int(place) + 1,
                "score": float(truth.top_scores[place]),
                "estimated_rank": None if ranks is None else int(ranks[i][at]),
            }
            for at, (place, doc_id, text) in enumerate(zip(places, ids, texts, strict=True))
        ]
        worst.append(
            {
                **queries.named(i),
                "num_tokens": int(queries.lengths[i]),
                "num_found": int(found.sum()),
                "num_wanted": len(found),
                "missed": missed,
            }
        )
    return worst


def _texts(snapshot: Snapshot, rows: Rows, column: str) -> list[str | None]:
    if snapshot.metadata is None or column not in snapshot.metadata.column_names:
        return [None] * len(rows)
    values = snapshot.metadata.column(column).take(pa.array(rows)).to_pylist()
    return [None if value is None else shortened(str(value)) for value in values]


# What it is and where it ran


def _index(index: LemurIndex, snapshot: Snapshot) -> dict[str, Any]:
    return {
        "num_documents": snapshot.num_documents,
        "num_deleted": snapshot.deleted.count,
        "num_tokens": snapshot.store.num_tokens,
        "dim": index.dim,
        "token_dtype": str(snapshot.store.dtype),
        "is_fitted": index.is_fitted,
    }


def _environment() -> dict[str, Any]:
    return {
        "cpu": _cpu(),
        "cores": validate.num_threads(None),
        "instruction_set": _core.active_isa(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("lemur_ann", *PACKAGES)},
    }


def _version(package: str) -> str | None:
    """None where it is not installed: an index that only searches needs no torch."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    """The processor's name, where the system tells it, else its architecture."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        if named:
            return named[0]
    return platform.processor() or os.environ.get("PROCESSOR_IDENTIFIER") or platform.machine()


def _notes(data: dict[str, Any]) -> list[str]:
    """What a reader should know before the figures."""
    notes = []
    size, count = data["index"]["num_documents"], data["queries"]["num_queries"]
    if not data["index"]["is_fitted"]:
        notes.append("The index has no learned map yet: every search scores all documents, so recall is 1 by definition.")
    elif data["in_use"]["exact"]:
        notes.append(
            f"With the setting in use a search scores all {size:,} documents, so recall is 1 by definition; "
            "the map is of use where there are more."
        )
    if data["k"] > size:
        notes.append(f"k is {data['k']:,}, and there are {size:,} documents: the exact top k is all of them.")
    if count < FEW_QUERIES:
        notes.append(f"Measured with {count} {'query' if count == 1 else 'queries'}: the intervals are wide.")
    if data["options"]["device"] != "cpu":
        notes.append(f"Searches ran on {data['options']['device']}, by a scan of all vectors.")
    return notes
