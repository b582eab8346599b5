"""Where the time of one query goes, beside the floor that bytes over measured bandwidth set.

    python benchmarks/query_budget.py INDEX QUERIES [--num-candidates 120] [--ef-search 350] [--copies 10] [--json FILE]

INDEX is a saved index, QUERIES a Parquet file with a column ``tokens``. One thread, one query at a time, after a warm-up.
--copies also builds a graph over so many noisy copies of every document's vector, and times the walk there.
"""

from __future__ import annotations

import os

for pool in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(pool, "1")

import argparse
import heapq
import itertools
import json
import subprocess
import sys
import time
from pathlib import Path

import hnswlib
import numpy as np
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

import lemur_ann
from lemur_ann import _core
from lemur_ann.candidates.hnsw import HnswCandidates
from lemur_ann.candidates.kinds import kind_of
from lemur_ann.documents.inputs import read_queries

NUM_WALKED = 20  # queries whose walk is done again in Python, to count what it reads
SEARCH_ONLY = """
import resource, sys, time
start = time.perf_counter()
import lemur_ann
imported = time.perf_counter()
index = lemur_ann.LemurIndex.load(sys.argv[1], verify=False)
loaded = time.perf_counter()
anonymous = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))
print(imported - start, loaded - imported, anonymous * 1024, "torch" in sys.modules)
"""


def bandwidth() -> float:
    """Bytes a second that one thread reads in order."""
    array = np.ones(2**27, np.int64)
    best = 0.0
    for _ in range(5):
        start = time.perf_counter()
        array.max()
        best = max(best, array.nbytes / (time.perf_counter() - start))
    return best


def mean_seconds(call, count: int) -> float:
    """Of call(i) for each i, the quicker of two rounds."""
    rounds = []
    for _ in range(2):
        start = time.perf_counter()
        for i in range(count):
            call(i)
        rounds.append((time.perf_counter() - start) / count)
    return min(rounds)


def walked_bytes(candidates: HnswCandidates, encoded: np.ndarray, beam: int) -> tuple[float, float]:
    """Vectors that a walk looks at, and bytes it reads: codes, scales and the links of what it expands. In float32."""
    graph = candidates.structure
    links, entries = graph.links, graph.entries
    vectors = graph.codes[:, : encoded.shape[1]] * graph.scales[:, None]
    looked, bytes_read = [], []
    for query in encoded[:NUM_WALKED]:
        scores = vectors @ query
        seen, best, expanded = set(entries.tolist()), [], 0
        frontier = [(-scores[i], i) for i in entries.tolist()]
        heapq.heapify(frontier)
        best = heapq.nlargest(beam, ((scores[i], i) for i in entries.tolist()))[::-1]
        heapq.heapify(best)
        while frontier:
            score, node = heapq.heappop(frontier)
            if len(best) == beam and -score < best[0][0]:
                break
            expanded += 1
            for i in links[node].tolist():
                if i < 0 or i in seen:
                    continue
                seen.add(i)
                if len(best) < beam:
                    heapq.heappush(best, (scores[i], i))
                elif scores[i] > best[0][0]:
                    heapq.heapreplace(best, (scores[i], i))
                else:
                    continue
                heapq.heappush(frontier, (-scores[i], i))
        looked.append(len(seen))
        bytes_read.append(len(seen) * (graph.codes.shape[1] + 4) + expanded * links.shape[1] * 4)
    return float(np.mean(looked)), float(np.mean(bytes_read))


def graph_of_hnswlib(candidates: HnswCandidates, options) -> hnswlib.Index:
    vectors = candidates.take(np.arange(candidates.num_rows))
    graph = hnswlib.Index("l2", vectors.shape[1])
    graph.init_index(len(vectors), M=options.M, ef_construction=options.ef_construction, random_seed=options.seed)
    graph.add_items(vectors)
    return graph


def copies_of(candidates: HnswCandidates, options: dict, copies: int) -> HnswCandidates:
    """A graph over every vector and noisy copies of it, 0.3 of the typical distance of near neighbours away."""
    random = np.random.default_rng(0)
    vectors = candidates.take(np.arange(candidates.num_rows))
    near = np.linalg.norm(vectors[:1000] - vectors[candidates.structure.links[:1000, 0]], axis=1)
    radius = np.linalg.norm(vectors[0])
    sigma = 0.3 * np.median(near) / np.sqrt(vectors.shape[1] - 1)
    large = kind_of("hnsw").builder(vectors.shape[1], options, copies * len(vectors))
    for copy in range(copies):
        noisy = vectors[:, :-1] + (sigma * random.normal(size=(len(vectors), vectors.shape[1] - 1)) if copy else 0)
        last = np.sqrt(np.maximum(radius**2 - np.einsum("ij,ij->i", noisy, noisy), 1e-6))
        block = np.concatenate([noisy, last[:, None]], axis=1).astype(np.float32)
        large.add(block, num_threads=os.cpu_count() or 1)
    return large.finish()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", type=Path)
    parser.add_argument("queries", type=Path)
    parser.add_argument("--num-queries", type=int, default=400)
    parser.add_argument("--num-candidates", type=int, default=120)
    parser.add_argument("--ef-search", type=int, default=350)
    parser.add_argument("--copies", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    alone = subprocess.run([sys.executable, "-c", SEARCH_ONLY, str(args.index)], check=True, capture_output=True, text=True)
    import_s, load_s, anonymous, torch_there = alone.stdout.split()
    index = lemur_ann.LemurIndex.load(args.index, verify=False)
    batch = read_queries(pq.read_table(args.queries, columns=["tokens"])[: args.num_queries])
    tokens = np.ascontiguousarray(batch.tokens, dtype=np.float32)
    count, beam = args.num_candidates, args.ef_search
    queries = [tokens[batch.offsets[i] : batch.offsets[i + 1]] for i in range(len(batch))]
    bounds = [np.array([0, len(query)]) for query in queries]
    encoder, candidates, documents = index.encoder, index.snapshot.learned.candidates, index.snapshot.store.documents
    encoded = encoder.encode_batch(tokens, batch.offsets)
    found = [np.sort(f) for f in candidates.search(encoded, count, beam, num_threads=os.cpu_count() or 1)]
    ends = np.array([0, count])

    def search(i: int) -> None:
        index.search(queries[i], num_candidates=count, ef_search=beam, shortlist=0, num_threads=1)

    for i in range(len(queries)):  # every page in memory
        search(i)
    whole = mean_seconds(search, len(queries))
    stages = {
        "features": mean_seconds(lambda i: encoder.encode_batch(queries[i], bounds[i]), len(queries)),
        "graph": mean_seconds(lambda i: candidates.search(encoded[i : i + 1], count, beam, num_threads=1), len(queries)),
        "rerank": mean_seconds(lambda i: _core.rerank(queries[i], bounds[i], documents, found[i], ends, 10, 1), len(queries)),
    }
    hnswlib_graph = graph_of_hnswlib(candidates, index.options)
    plain = _core.Documents([(chunk.tokens, chunk.offsets) for chunk in index.snapshot.store.chunks])
    others = {
        "graph, by hnswlib": mean_seconds(
            lambda i: hnswlib_graph.knn_query(encoded[i : i + 1], k=beam, num_threads=1), len(queries)
        ),
        "rerank, without codes": mean_seconds(
            lambda i: _core.rerank(queries[i], bounds[i], plain, found[i], ends, 10, 1), len(queries)
        ),
    }
    lengths = np.concatenate([np.diff(chunk.offsets) for chunk in index.snapshot.store.chunks])
    token_bytes = np.mean([lengths[f].sum() for f in found]) * (_core.int8_stride(index.dim) + 8)
    exact_bytes = 12 * np.mean(lengths[np.concatenate(found)]) * index.dim * index.snapshot.store.dtype.itemsize
    config = encoder.feature_weights.config
    looked, graph_bytes = walked_bytes(candidates, encoded, beam)
    widths = [config["dim"], *config["hidden_dims"], config["num_features"]]
    weights = sum(a * b for a, b in itertools.pairwise(widths)) + widths[-1] * encoder.dim
    size_bytes = {"features": 4 * weights, "graph": graph_bytes, "rerank": token_bytes + exact_bytes}
    speed = bandwidth()
    result = {
        "num_documents": len(index),
        "num_candidates": count,
        "ef_search": beam,
        "isa": lemur_ann.maxsim.active_isa(),
        "bandwidth_gb_s": speed / 1e9,
        "whole_us": whole * 1e6,
        "stages_us": {name: seconds * 1e6 for name, seconds in stages.items()},
        "others_us": {name: seconds * 1e6 for name, seconds in others.items()},
        "bytes": size_bytes,
        "floor_us": {name: size / speed * 1e6 for name, size in size_bytes.items()},
        "vectors_looked_at": looked,
        "search_only": {
            "import_s": float(import_s),
            "load_s": float(load_s),
            "anonymous_bytes": int(anonymous),
            "torch": torch_there == "True",
        },
    }
    console = Console(width=120)
    table = Table(title=f"{len(index):,} documents, {count} candidates, beam {beam}, {speed / 1e9:.1f} GB/s, one thread")
    for name in ("stage", "us", "bytes", "floor us"):
        table.add_column(name)
    for name, seconds in stages.items():
        table.add_row(name, f"{seconds * 1e6:.0f}", f"{size_bytes[name]:,.0f}", f"{size_bytes[name] / speed * 1e6:.0f}")
    table.add_row("the rest", f"{(whole - sum(stages.values())) * 1e6:.0f}", "", "")
    table.add_row("whole", f"{whole * 1e6:.0f}", "", f"{sum(size_bytes.values()) / speed * 1e6:.0f}")
    console.print(table)
    console.print({name: f"{seconds * 1e6:.0f} us" for name, seconds in others.items()})
    console.print(f"vectors looked at: {looked:,.0f}; search only: {result['search_only']}")
    if args.copies:
        large = copies_of(candidates, vars(index.options), args.copies)
        exact = large.search(encoded, 10, large.num_rows, num_threads=os.cpu_count() or 1)
        result["copies"] = []
        for wide in (beam, 2 * beam, 4 * beam):
            ms = mean_seconds(lambda i, w=wide: large.search(encoded[i : i + 1], w, w, num_threads=1), len(queries))
            lists = large.search(encoded, wide, wide, num_threads=os.cpu_count() or 1)
            share = np.mean([np.isin(e, f).mean() for e, f in zip(exact, lists, strict=True)])
            result["copies"].append(
                {"num_vectors": large.num_rows, "ef_search": wide, "us": ms * 1e6, "of the scan's top 10": share}
            )
            console.print(result["copies"][-1])
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
