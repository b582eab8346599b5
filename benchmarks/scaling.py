"""Sizing from one machine's figures: memory, build time and latency carried to many shards, and the tail of a scattered search.

    python benchmarks/scaling.py INDEX QUERIES [--documents-per-shard 5000000] [--plot FILE] [--json FILE]

INDEX is a saved index, QUERIES a Parquet file with a column ``tokens``. Measured here: bytes and build seconds a document, by
part, and the latency of single searches on one thread. Everything after that is arithmetic and simulation, with the
assumptions that ``Assumptions`` names: each is an argument, so try your own.

The simulation draws the latency of every shard from the measured ones, queues searches at the replicas of a shard (first come,
first served, each to the replica with least to do), adds stragglers, and takes the slowest of all shards.
"""

from __future__ import annotations

import os

for pool in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(pool, "1")

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from lemur_ann import LemurIndex

SHARDS = (1, 10, 100, 1000)
SETUPS = ((1, False), (2, False), (2, True), (3, True))  # replicas, hedged
QUANTILES = (0.5, 0.99, 0.999)
SEARCHES = 400_000  # simulated, of a shard
DRAWS = 20_000  # simulated, of all shards


@dataclass(frozen=True)
class Assumptions:
    """What is not measured here.

    Attributes:
        utilisation: share of the time that a replica is busy, at one replica a shard.
        straggler_share: of a replica's answers that come late, whatever the reason (paging, a neighbour, a network retry).
        straggler_ms: mean of what they are late by, exponentially distributed.
        hop_ms: from the caller to a shard and back, serialisation included.
        merge_us: to merge the hits of one shard.
        graph_growth: the walk of a graph of ten times the documents takes so many times as long.
        cores: that a build has on each machine.
    """

    utilisation: float = 0.3
    straggler_share: float = 0.005
    straggler_ms: float = 50.0
    hop_ms: float = 1.0
    merge_us: float = 5.0
    graph_growth: float = 1.35
    cores: int = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", type=Path)
    parser.add_argument("queries", type=Path)
    parser.add_argument("--documents-per-shard", type=int, default=5_000_000)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", type=Path)
    for field in fields(Assumptions):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    args = parser.parse_args()
    assumed = Assumptions(**{field.name: getattr(args, field.name) for field in fields(Assumptions)})
    measured = measure(args.index, args.queries)
    sizes = sizing(measured, assumed, args.documents_per_shard)
    print_sizing(measured, sizes)
    latencies = measured["latencies_ms"] * slower_walk(measured, assumed, args.documents_per_shard)
    tails = simulated(latencies, assumed)
    print_tails(tails)
    if args.plot:
        plot(tails, args.plot)
    if args.json:
        measured["latencies_ms"] = np.percentile(measured["latencies_ms"], [1, 10, 50, 90, 99]).tolist()
        body = {"measured": measured, "assumptions": asdict(assumed), "sizing": sizes, "tails": tails}
        args.json.write_text(json.dumps(body, indent=2) + "\n")


def measure(folder: Path, path: Path) -> dict:
    """Figures of this machine, by document where that makes sense."""
    index = LemurIndex.load(folder)
    column = pq.read_table(path, columns=["tokens"])["tokens"]
    queries = [np.array(query.values.to_pylist(), np.float32) for query in column]
    latencies = np.empty((3, len(queries)))
    for round_ in range(len(latencies)):
        for i, query in enumerate(queries):
            start = time.perf_counter()
            index.search(query, 10, num_threads=1)
            latencies[round_, i] = (time.perf_counter() - start) * 1e3
    stats, seconds = index.stats(), index.encoder.training["seconds"]
    per_document = {name: part.size / stats.num_documents for name, part in stats.parts.items() if name != "learned map"}
    return {
        "num_documents": stats.num_documents,
        "tokens_per_document": stats.num_tokens / stats.num_documents,
        "bytes_per_document": per_document,
        "disk_bytes_per_document": sum(file.stat().st_size for file in folder.iterdir()) / stats.num_documents,
        "map_bytes": stats.parts["learned map"].size,
        "learn_s": sum(s for name, s in seconds.items() if name not in ("document weights", "candidates")),
        "weights_core_s": seconds["document weights"] * cores() / stats.num_documents,
        "graph_core_s": seconds["candidates"] * cores() / stats.num_documents,
        "latencies_ms": latencies[1:].reshape(-1),  # the first round warms up
        "processor": processor(),
    }


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def slower_walk(measured: dict, assumed: Assumptions, num_documents: int) -> float:
    """Times as long as measured; the whole search is taken to grow as the walk does, which is too much."""
    return max(assumed.graph_growth ** math.log10(num_documents / measured["num_documents"]), 1.0)


def sizing(measured: dict, assumed: Assumptions, per_shard: int) -> list[dict]:
    """For some numbers of documents: shards, memory, disk and hours of building."""
    sizes = []
    bytes_of = measured["bytes_per_document"]
    in_use = bytes_of.get("candidates", 0) + bytes_of.get("token codes", 0)  # what every search reads
    everything = measured["disk_bytes_per_document"]
    for num_documents in (1_000_000, 100_000_000, 1_000_000_000):
        shards = max(math.ceil(num_documents / per_shard), 1)
        own = num_documents / shards
        growth = max(math.log(own) / math.log(measured["num_documents"]), 1.0)  # a graph's insertions slow down with its depth
        core_s = own * (measured["weights_core_s"] + measured["graph_core_s"] * growth)
        sizes.append(
            {
                "documents": num_documents,
                "shards": shards,
                "memory_gb_per_shard": (own * in_use + measured["map_bytes"]) / 1e9,
                "disk_gb_per_shard": own * everything / 1e9,
                "memory_gb": (num_documents * in_use + shards * measured["map_bytes"]) / 1e9,
                "disk_gb": num_documents * everything / 1e9,
                "build_hours": (measured["learn_s"] + core_s / assumed.cores) / 3600,  # shards are built side by side
                "search_ms": float(np.median(measured["latencies_ms"])) * slower_walk(measured, assumed, round(own)),
            }
        )
    return sizes


def sojourns(latencies: np.ndarray, replicas: int, assumed: Assumptions, random: np.random.Generator) -> np.ndarray:
    """Milliseconds from when a search comes to a shard to when it is answered, (SEARCHES,)."""
    service = random.choice(latencies, SEARCHES)
    arrivals = np.cumsum(random.exponential(latencies.mean() / assumed.utilisation, SEARCHES))
    late = random.random(SEARCHES) < assumed.straggler_share
    service = service + np.where(late, random.exponential(assumed.straggler_ms, SEARCHES), 0)
    free = np.zeros(replicas)
    out = np.empty(SEARCHES)
    for i, (now, takes) in enumerate(zip(arrivals, service, strict=True)):
        replica = int(free.argmin())
        free[replica] = max(free[replica], now) + takes
        out[i] = free[replica] - now
    return out + assumed.hop_ms


def simulated(latencies: np.ndarray, assumed: Assumptions) -> list[dict]:
    """Quantiles of a scattered search, for numbers of shards and set-ups."""
    random = np.random.default_rng(0)
    tails = []
    for replicas, hedged in SETUPS:
        shard = np.sort(sojourns(latencies, replicas, assumed, random))
        second_at = float(np.quantile(shard, 0.95))  # a hedged search asks another replica then

        def answers(count: int, shard: np.ndarray = shard, hedged: bool = hedged, second_at: float = second_at) -> np.ndarray:
            first = random.choice(shard, count)
            return np.minimum(first, second_at + random.choice(shard, count)) if hedged else first

        for num_shards in SHARDS:
            slowest = np.zeros(DRAWS)
            for _ in range(num_shards):
                np.maximum(slowest, answers(DRAWS), out=slowest)
            slowest += num_shards * assumed.merge_us / 1e3
            quantiles = dict(zip(("p50", "p99", "p999"), np.quantile(slowest, QUANTILES).tolist(), strict=True))
            tails.append({"shards": num_shards, "replicas": replicas, "hedged": hedged, **quantiles})
    return tails


def print_sizing(measured: dict, sizes: list[dict]) -> None:
    count, tokens = measured["num_documents"], measured["tokens_per_document"]
    print(f"{count:,} documents of {tokens:.0f} tokens on {measured['processor']}")
    for name, size in measured["bytes_per_document"].items():
        print(f"  {name}: {size:,.0f} bytes a document")
    print(f"  files: {measured['disk_bytes_per_document']:,.0f} bytes a document")
    weights, graph = (measured[key] * 1e3 for key in ("weights_core_s", "graph_core_s"))
    print(f"  core milliseconds a document: weights {weights:.2f}, graph {graph:.2f}")
    search_ms = np.median(measured["latencies_ms"])
    print(f"  learning the map: {measured['learn_s']:.0f} s, once; a search: {search_ms:.2f} ms")
    head = ("documents", "shards", "memory a shard GB", "disk a shard GB", "memory GB", "disk GB", "build h", "search ms")
    print("| " + " | ".join(head) + " |\n" + "| --- " * len(head) + "|")
    for size in sizes:
        cells = [f"{size['documents']:,}", f"{size['shards']:,}"]
        cells += [f"{size[key]:,.1f}" for key in ("memory_gb_per_shard", "disk_gb_per_shard")]
        cells += [f"{size[key]:,.0f}" for key in ("memory_gb", "disk_gb")]
        cells += [f"{size['build_hours']:.2f}", f"{size['search_ms']:.1f}"]
        print("| " + " | ".join(cells) + " |")


def print_tails(tails: list[dict]) -> None:
    print("| replicas | hedged | shards | p50 ms | p99 ms | p99.9 ms |\n" + "| --- " * 6 + "|")
    for tail in tails:
        cells = [str(tail["replicas"]), "yes" if tail["hedged"] else "no", f"{tail['shards']:,}"]
        print("| " + " | ".join([*cells, *(f"{tail[key]:.1f}" for key in ("p50", "p99", "p999"))]) + " |")


def plot(tails: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for axis, key, title in zip(axes, ("p50", "p99"), ("median", "99th percentile"), strict=True):
        for replicas, hedged in SETUPS:
            own = [tail for tail in tails if (tail["replicas"], tail["hedged"]) == (replicas, hedged)]
            label = f"{replicas} replica{'s' * (replicas > 1)}{', hedged' * hedged}"
            axis.plot([t["shards"] for t in own], [t[key] for t in own], marker="o", label=label)
        axis.set(xscale="log", yscale="log", xlabel="shards", title=f"{title} of a search, simulated")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("ms")
    axes[0].legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
