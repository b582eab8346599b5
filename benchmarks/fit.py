"""What fit costs, and what it finds: time by stage, peak memory, candidate recall, for the defaults and around them.

    python benchmarks/fit.py CORPUS --work DIR [--only defaults,table,queries,memory] [--json results.json]

CORPUS holds docs.parquet, queries_train.parquet (learned from) and queries_dev.parquet (measured with). Every fit runs in a
process of its own and is measured there: seconds by stage, and the peak of memory that is not a mapped file (RssAnon, Linux).
Documents are a table in memory, read before the clock starts; for memory they come in a stream. Candidate recall is by exact
scan of the vectors of all documents.

defaults   the default fit and epochs=0, with recall through the graph, and for the query's own document
table      one option changed at a time, on every sixth document, 300 steps of distillation
queries    what to learn from: queries, documents' own sentences (--sentences FILE), document tokens
memory     the documents, and ten times as many: each cut into ten
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

TABLE = [
    {},
    {"num_features": 1024},
    {"epochs": 1},
    {"epochs": 0, "num_sample_tokens": 24_576, "distillation_steps": 300},
    *({"num_sample_tokens": n} for n in (8192, 16_384, 49_152)),
    *({"rank": n} for n in (127, 511)),
    {"distillation_steps": 0},
    {"target_precision": "float32"},
    {"ridge": 1e-4},
    {"num_training_documents": 8192},
    {"num_training_tokens": 100_000},
    {"epochs": 6},
    {"num_features": 4096},
]
DEFAULTS = [{}, {"epochs": 0}]
BEAMS = ((150, 120), (300, 250), (600, 400))


def documents(corpus: Path, share: int, pieces: int) -> pa.RecordBatchReader:
    """The corpus as a stream: every share-th document, each cut into so many pieces."""
    file = pq.ParquetFile(corpus / "docs.parquet")
    kind = pa.large_list(pa.list_(pa.float16(), 128))
    schema = pa.schema([pa.field("tokens", kind)])

    def batches():
        row = 0
        for batch in file.iter_batches(batch_size=1024, columns=["tokens"]):
            column = batch.column(0)
            kept = np.arange(-row % share, len(column), share)
            row += len(column)
            column = column.take(pa.array(kept)).cast(kind) if share > 1 else column.cast(kind)
            if pieces > 1:
                ends = column.offsets.to_numpy()
                cuts = np.linspace(ends[:-1], ends[1:], pieces, endpoint=False).astype(np.int64).T.reshape(-1)
                column = pa.LargeListArray.from_arrays(pa.array(np.unique(np.append(cuts, ends[-1]))), column.values)
            yield pa.record_batch([column], schema=schema)

    return pa.RecordBatchReader.from_batches(schema, batches())


def watch_memory(peak: list[int]) -> None:
    def sample() -> None:
        while True:
            found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
            peak[0] = max(peak[0], int(found[1]) * 1024) if found else 0
            time.sleep(0.05)

    threading.Thread(target=sample, daemon=True).start()


def run(corpus: Path, work: Path, options: dict, share: int, pieces: int, learn_from: str, beams: bool, stream: bool) -> dict:
    """In a process of its own: fit, then measure."""
    import lemur_ann
    from lemur_ann.candidates.exact import ExactCandidates
    from lemur_ann.documents.inputs import read_queries
    from lemur_ann.insight.metrics import recall

    peak = [0]
    watch_memory(peak)
    training = None
    if learn_from != "document tokens":
        name = "queries_train.parquet" if learn_from == "queries" else learn_from
        training = corpus / name if learn_from == "queries" else Path(name)
        if not stream:
            training = pq.read_table(training, columns=["tokens"])
    source = documents(corpus, share, pieces)
    if not stream:
        source = source.read_all()
    start = time.perf_counter()
    index = lemur_ann.LemurIndex(**options)
    index.fit(source, training, directory=work)
    seconds = time.perf_counter() - start
    result = {
        "options": options,
        "num_documents": len(index),
        "num_tokens": index.num_tokens,
        "learned_from": learn_from,
        "fit_s": seconds,
        "stages_s": index.encoder.training["seconds"],
        "peak_bytes": peak[0],
        "expected_peak_bytes": index.encoder.training["expected_peak_bytes"],
        "validation_loss": index.encoder.training["validation_loss"],
    }
    if stream:
        return result
    queries = read_queries(pq.read_table(corpus / "queries_dev.parquet", columns=["tokens"])[:400])
    matrices = [queries.tokens[queries.offsets[i] : queries.offsets[i + 1]] for i in range(len(queries))]
    truth = work / f"exact-{share}.npy"
    if not truth.exists():
        np.save(truth, np.stack([hits.ids for hits in index.search(matrices, k=100, exact=True)]))
    exact = np.load(truth)
    encoded = index.encoder.encode_batch(queries.tokens, queries.offsets)
    scan = ExactCandidates(index.encoder.dim, [index.snapshot.learned.candidates.take(np.arange(len(index)))])
    found = scan.search(encoded, 400, 400, num_threads=os.cpu_count() or 1)
    for top, count in ((10, 100), (10, 200), (100, 200), (100, 400)):
        result[f"top {top} in {count}"] = recall([f[:count].tolist() for f in found], exact[:, :top].tolist())
    own = (np.arange(len(queries)) + 400) // share  # query i was written for document 400 + i
    wanted = [i for i in range(len(queries)) if (i + 400) % share == 0 and own[i] in exact[i, :10]]
    result["own document in 100"] = float(np.mean([own[i] in found[i][:100] for i in wanted]))
    if beams:
        result["graph"] = []
        for ef, count in BEAMS:
            hits, ms = [], []
            index.search(matrices[0], num_threads=1)
            for matrix in matrices:
                begin = time.perf_counter()
                hits.append(index.search(matrix, k=10, num_candidates=count, ef_search=ef, shortlist=0, num_threads=1).ids)
                ms.append((time.perf_counter() - begin) * 1e3)
            result["graph"].append(
                {
                    "ef": ef,
                    "candidates": count,
                    "recall@10": recall([h.tolist() for h in hits], exact[:, :10].tolist()),
                    "own document": float(np.mean([own[i] in hits[i] for i in wanted])),
                    "mean_ms": float(np.mean(ms)),
                }
            )
    return result


def in_process(args: argparse.Namespace, **call) -> dict:
    call = {"share": 1, "pieces": 1, "learn_from": "queries", "beams": False, "stream": False, **call}
    command = [sys.executable, __file__, str(args.corpus), "--work", str(args.work), "--run", json.dumps(call)]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(result.stdout)


def describe(options: dict) -> str:
    return ", ".join(f"{name}={value}" for name, value in options.items()) or "defaults"


def show(console: Console, title: str, results: list[dict], names: list[str]) -> None:
    table = Table(title=title)
    columns = [key for key in results[0] if key.startswith(("top", "own"))]
    for name in ("", "fit s", "peak MB", *columns):
        table.add_column(name)
    for name, result in zip(names, results, strict=True):
        values = (f"{result[c]:.3f}" for c in columns)
        table.add_row(name, f"{result['fit_s']:.0f}", f"{result['peak_bytes'] / 1e6:,.0f}", *values)
    console.print(table)
    for result in results:
        for point in result.get("graph", []):
            console.print(f"  {describe(result['options'])}: " + ", ".join(f"{k} {v:.4g}" for k, v in point.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", default="defaults,table,queries,memory")
    parser.add_argument("--sentences", type=Path, help="what encode_sentences.py wrote")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--run", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.run is not None:
        print(json.dumps(run(args.corpus, args.work, **args.run)))
        return
    console = Console(width=140)
    chosen = args.only.split(",")
    out: dict[str, list[dict]] = {}

    def section(title: str, name: str, runs: list[tuple[str, dict]]) -> None:
        results = out[name] = []
        for label, call in runs:
            results.append(in_process(args, **call))
            shares = {key: round(value, 3) for key, value in results[-1].items() if key.startswith(("top", "own"))}
            console.print(f"{label}: {results[-1]['fit_s']:.0f} s, {results[-1]['peak_bytes'] / 1e6:,.0f} MB", shares or "")
            if args.json:
                args.json.write_text(json.dumps(out, indent=2) + "\n")
        show(console, title, results, [label for label, _ in runs])

    if "defaults" in chosen:
        section("fit to searchable", "defaults", [(describe(o), {"options": o, "beams": True}) for o in DEFAULTS])
    if "table" in chosen:
        steps = {"distillation_steps": 300}
        runs = [(describe(o), {"options": {**steps, **o}, "share": 6}) for o in TABLE]
        section("one option at a time, every sixth document", "table", runs)
    if "queries" in chosen:
        runs = [("queries", {"options": {}, "share": 6})]
        if args.sentences:
            runs.append(("documents' own sentences", {"options": {}, "share": 6, "learn_from": str(args.sentences)}))
        runs.append(("document tokens", {"options": {}, "share": 6, "learn_from": "document tokens"}))
        section("what to learn from, every sixth document", "queries", runs)
    if "memory" in chosen:
        quick = {"epochs": 1, "distillation_steps": 50, "ef_construction": 32}  # which change the time and not the memory
        runs = [(f"{n} times the documents", {"options": quick, "pieces": n, "stream": True}) for n in (1, 10)]
        section("memory, documents streamed", "memory", runs)


if __name__ == "__main__":
    main()
