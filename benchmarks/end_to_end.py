"""Fit, candidate recall, recall and latency on a corpus of benchmarks' usual form, beside stock hnswlib on the raw weights.

    python benchmarks/end_to_end.py CORPUS --work DIR [--num-queries 400] [--json results.json]

CORPUS holds docs.parquet, queries_train.parquet (learned from) and queries_dev.parquet (measured with), each with a column
``tokens``. DIR keeps the fitted index, the full weights and the stock graph; a second run reuses them and measures again.
Every latency is of single queries, one thread for everything (BLAS pools too), features included, after a warm-up.
"""

from __future__ import annotations

import os

for pool in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(pool, "1")  # of the measurement; the fit sets torch's own number

import argparse
import json
import platform
import time
from pathlib import Path

import hnswlib
import numpy as np
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.table import Table

import lemur_ann
from lemur_ann import _core
from lemur_ann.documents.inputs import read_queries
from lemur_ann.insight.metrics import recall
from lemur_ann.learning.weights import WeightSolver

# (ef, candidates reranked): the graph's beam may be wider than what the rerank reads
SETTINGS = (
    *((100, 50), (200, 100), (300, 100), (400, 100), (400, 150), (600, 100), (600, 150), (600, 250)),
    *((800, 150), (800, 250), (1200, 250), (1200, 400), (1600, 400), (2400, 600)),
)
STAGE_ONE_EF = (50, 100, 200, 400, 800, 1600)
STOCK_SETTINGS = (
    *((100, 100), (200, 100), (200, 200), (400, 100), (400, 200), (400, 400), (600, 100), (600, 200), (800, 100)),
    *((800, 200), (800, 400), (800, 800), (1200, 200), (1600, 200), (1600, 400)),
)


def cpu_name() -> str:
    try:
        return next(line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def fit(corpus: Path, work: Path, epochs: int) -> tuple[lemur_ann.LemurIndex, float]:
    folder, timing = work / f"index-{epochs}", work / f"index-{epochs}.json"
    if not timing.exists():
        torch.set_num_threads(os.cpu_count() or 1)
        documents = pq.read_table(corpus / "docs.parquet", columns=["tokens"])
        queries = pq.read_table(corpus / "queries_train.parquet", columns=["tokens"])
        start = time.perf_counter()
        index = lemur_ann.LemurIndex(epochs=epochs).fit(documents, queries)
        seconds = time.perf_counter() - start
        index.save(folder)
        timing.write_text(json.dumps({"fit_s": seconds}))
        torch.set_num_threads(1)
    return lemur_ann.LemurIndex.load(folder), json.loads(timing.read_text())["fit_s"]


def full_weights(index: lemur_ann.LemurIndex, path: Path) -> np.ndarray:
    if not path.exists():
        torch.set_num_threads(os.cpu_count() or 1)
        encoder = index.encoder
        # in units of one inner product: the deviation of the targets scales all scores alike
        solver = WeightSolver(encoder.feature_map, encoder.targets, 1.0, token_weights=encoder.token_weights)
        solved = solver.solve(index.snapshot.store, np.arange(len(index)), os.cpu_count() or 1)
        np.save(path, np.concatenate([weights for _, weights in solved]))
        torch.set_num_threads(1)
    return np.load(path, mmap_mode="r")


def stock_graph(weights: np.ndarray, path: Path, M: int, ef_construction: int) -> tuple[hnswlib.Index, float]:
    graph = hnswlib.Index("ip", weights.shape[1])
    timing = path.with_suffix(".json")
    if not timing.exists():
        start = time.perf_counter()
        graph.init_index(len(weights), M=M, ef_construction=ef_construction)
        graph.add_items(weights, num_threads=os.cpu_count() or 1)
        timing.write_text(json.dumps({"build_s": time.perf_counter() - start}))
        graph.save_index(str(path))
    else:
        graph.load_index(str(path))
    return graph, json.loads(timing.read_text())["build_s"]


def scan_recall(queries: np.ndarray, vectors: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    """Share of the exact top 10 and top 100 among the first c by inner product."""
    order = np.argsort(-(queries @ vectors.T), axis=1)[:, :800]
    out = {}
    for top in (10, 100):
        for c in (100, 200, 400, 800):
            out[f"top {top} in {c}"] = recall(order[:, :c].tolist(), exact[:, :top].tolist())
    return out


def timed(search, matrices: list[np.ndarray], exact: np.ndarray) -> dict[str, float]:
    search(matrices[0])
    found, ms = [], []
    for matrix in matrices:
        start = time.perf_counter()
        found.append(search(matrix))
        ms.append((time.perf_counter() - start) * 1e3)
    return {
        "recall@10": recall([f[:10].tolist() for f in found], exact[:, :10].tolist()),
        "recall@100": recall([f[:100].tolist() for f in found], exact[:, :100].tolist()),
        "mean_ms": float(np.mean(ms)),
        "p95_ms": float(np.percentile(ms, 95)),
    }


def stage_one(walk, queries: np.ndarray, ef: int, exact: np.ndarray) -> dict[str, float]:
    """The graph search alone: the share of the exact top 10 among its ef candidates, and its time."""
    walk(queries[:1], ef)
    found, ms = [], []
    for i in range(len(queries)):
        start = time.perf_counter()
        found.append(walk(queries[i : i + 1], ef))
        ms.append((time.perf_counter() - start) * 1e3)
    reached = recall([f.tolist() for f in found], exact[:, :10].tolist())
    return {"ef": ef, "recall@10": reached, "mean_ms": float(np.mean(ms))}


def at_recall(curve: list[dict[str, float]], target: float) -> float | None:
    """Mean ms at a recall@10: on the line between the best measured settings below and above it."""
    frontier: list[tuple[float, float]] = []
    for point in sorted(curve, key=lambda p: p["mean_ms"]):
        if not frontier or point["recall@10"] > frontier[-1][0]:
            frontier.append((point["recall@10"], point["mean_ms"]))
    if not frontier[0][0] <= target <= frontier[-1][0]:
        return None
    return float(np.interp(target, *zip(*frontier, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--num-queries", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=lemur_ann.LemurIndex().options.epochs)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    console = Console(width=120)

    index, fit_s = fit(args.corpus, args.work, args.epochs)
    batch = read_queries(pq.read_table(args.corpus / "queries_dev.parquet", columns=["tokens"])[: args.num_queries])
    matrices = [batch.tokens[batch.offsets[i] : batch.offsets[i + 1]] for i in range(len(batch))]
    start = time.perf_counter()
    exact = np.stack([hits.ids for hits in index.search(matrices, k=100, exact=True)])
    exact_s = time.perf_counter() - start
    weights = full_weights(index, args.work / f"weights-{args.epochs}.npy")
    options = index.options
    graph, stock_build_s = stock_graph(weights, args.work / f"stock-{args.epochs}.hnsw", options.M, options.ef_construction)

    psi = index.encoder.feature_map
    features = psi.query_features(batch.tokens, batch.offsets).numpy()
    encoded = index.encoder.encode_batch(batch.tokens, batch.offsets)
    reduced = index.snapshot.learned.candidates.take(np.arange(len(index)))
    scans = {
        "full weights, float32": scan_recall(features, weights, exact),
        f"reduced to rank {options.rank}": scan_recall(encoded, reduced, exact),
    }

    torch.set_num_threads(1)
    documents = index.snapshot.store.documents

    def ours(ef: int, count: int):
        return lambda q: index.search(q, k=min(count, 100), num_candidates=count, ef_search=ef, shortlist=0, num_threads=1).ids

    def stock(ef: int, count: int):
        graph.set_ef(ef)

        def search(q: np.ndarray) -> np.ndarray:
            offsets = np.array([0, len(q)])
            labels, _ = graph.knn_query(psi.query_features(q, offsets).numpy(), k=count, num_threads=1)
            candidates = np.sort(labels[0].astype(np.int64))
            x = np.ascontiguousarray(q, dtype=np.float32)
            scores = _core.candidate_scores(x, offsets, documents, candidates, np.array([0, count]), 1)
            return candidates[_core.top_k(scores, 100)]

        return search

    def measure(search, settings) -> list[dict[str, float]]:
        return [{"ef": ef, "candidates": c, **timed(search(ef, c), matrices, exact)} for ef, c in settings]

    curves = {"lemur_ann": measure(ours, SETTINGS), "stock hnswlib ip": measure(stock, STOCK_SETTINGS)}
    plain = [point for point in curves["stock hnswlib ip"] if point["ef"] == point["candidates"]]
    candidates = index.snapshot.learned.candidates
    walks = {
        "lemur_ann": (lambda x, ef: candidates.search(x, ef, ef, num_threads=1)[0], encoded),
        "stock hnswlib ip": (lambda x, ef: graph.knn_query(x, k=ef, num_threads=1)[0][0], features),
    }
    stage1 = {name: [stage_one(walk, x, ef, exact) for ef in STAGE_ONE_EF] for name, (walk, x) in walks.items()}
    files = {f.name: f.stat().st_size for f in sorted((args.work / f"index-{args.epochs}").iterdir())}
    stock_bytes = (args.work / f"stock-{args.epochs}.hnsw").stat().st_size
    speedups = {}
    comparisons = {
        "graph search alone": (stage1["lemur_ann"], stage1["stock hnswlib ip"]),
        "whole query, stock reranks all its ef candidates": (curves["lemur_ann"], plain),
        "whole query, stock too at its best ef and candidates": (curves["lemur_ann"], curves["stock hnswlib ip"]),
    }
    for name, (ours_curve, stock_curve) in comparisons.items():
        for target in (0.8, 0.85, 0.9, 0.95):
            a, b = at_recall(ours_curve, target), at_recall(stock_curve, target)
            if a and b:
                speedups[f"{name}, recall@10 {target}"] = {"lemur_ann_ms": a, "stock_ms": b, "ratio": b / a}
    result = {
        "lemur_ann": lemur_ann.__version__,
        "cpu": cpu_name(),
        "isa": lemur_ann.maxsim.active_isa(),
        "torch": torch.__version__,
        "fit_threads": os.cpu_count(),
        "search_threads": 1,
        "num_documents": len(index),
        "num_tokens": index.num_tokens,
        "dim": index.dim,
        "token_dtype": str(index.snapshot.store.dtype),
        "num_queries": len(matrices),
        "options": vars(options),
        "fit_s": fit_s,
        "validation_loss": index.encoder.training["validation_loss"],
        "exact_batch_s": exact_s,
        "stock_build_s": stock_build_s,
        "bytes": files,
        "stock_graph_bytes": stock_bytes,
        "exact_scans": scans,
        "curves": curves,
        "graph_search_alone": stage1,
        "equal_recall": speedups,
    }
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")

    console.print(
        f"{len(index):,} documents, {index.num_tokens:,} tokens of {index.dim}-d {index.snapshot.store.dtype}; ", end=""
    )
    console.print(f"{len(matrices)} queries; {result['cpu']}, {result['isa']}")
    console.print(f"fit {fit_s:.0f} s on {result['fit_threads']} threads, {args.epochs} epochs", end="")
    console.print(f", validation loss {result['validation_loss'][-1]:.4f}" if args.epochs else ", random features", end="")
    console.print(f"; the stock graph alone {stock_build_s:.0f} s, its weights not counted")
    table = Table(title="candidate recall by exact scan")
    for name in ("", *next(iter(scans.values()))):
        table.add_column(name)
    for name, values in scans.items():
        table.add_row(name, *(f"{v:.3f}" for v in values.values()))
    console.print(table)
    table = Table(title="search, one thread, one query at a time, features and float32 MaxSim rerank included")
    for name in ("", "ef", "candidates", "recall@10", "recall@100", "mean ms", "p95 ms"):
        table.add_column(name)
    for name, curve in curves.items():
        for p in curve:
            table.add_row(
                name,
                str(p["ef"]),
                str(p["candidates"]),
                f"{p['recall@10']:.3f}",
                f"{p['recall@100']:.3f}",
                f"{p['mean_ms']:.2f}",
                f"{p['p95_ms']:.2f}",
            )
    console.print(table)
    for target, s in speedups.items():
        console.print(f"{target}: {s['lemur_ann_ms']:.2f} ms, stock {s['stock_ms']:.2f} ms: {s['ratio']:.1f} times faster")
    console.print(
        "bytes: "
        + ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in files.items())
        + f"; stock graph {stock_bytes / 1e6:.1f} MB"
    )


if __name__ == "__main__":
    main()
