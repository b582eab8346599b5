"""What small codes of tokens cost and lose: bytes, time and relevance of each width, with the tokens and in their place.

    python benchmarks/codes.py CORPUS --work DIR [--learn] [--limit N] [--num-queries N] [--json FILE]

Query i of the corpus was written for the document whose name it has. An index in DIR, which ``--learn`` makes (default options,
queries_train), is given the codes of each width in turn; the queries of queries_dev are asked one at a time on one thread.
Losses are against exact MaxSim, with paired 95% intervals of :class:`lemur_ann.insight.relevance.Measure`.
"""

from __future__ import annotations

import os

for pool in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(pool, "1")  # of the measurement; the fit sets torch's own number

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import known_answers
import numpy as np

KEPT = (("int8", "exact"), ("int4", "exact"), ("int3", "exact"), ("int2", "exact"), ("int1", "exact"))
ALONE = (("int4", "none"), ("int3", "none"), ("int2", "none"), ("int1", "none"))
WARM_UP = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--learn", action="store_true")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--num-queries", type=int, default=1600)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    import lemur_ann

    known = known_answers.read(arguments.corpus, arguments.limit, arguments.num_queries)
    count, queries, grades = len(known.documents), known.queries, known.grades
    folder = arguments.work / f"codes-{count}"
    if arguments.learn or not folder.exists():
        begin = time.perf_counter()
        learned = lemur_ann.LemurIndex().fit(known.documents, arguments.corpus / "queries_train.parquet", num_threads=2)
        print(f"fit: {time.perf_counter() - begin:.0f} s", flush=True)
        learned.save(folder)
        del learned
    del known
    original = lemur_ann.LemurIndex.load(folder, verify=False)
    exact = known_answers.exact_top(arguments.work, original, queries).tolist()
    print(f"{count} documents, {original.num_tokens / count:.0f} tokens each, {len(queries)} queries", flush=True)
    report = []
    for codes, keep in (*KEPT, *ALONE):
        entry = measured(original, folder, codes, keep, queries, exact, grades)
        report.append(entry)
        losses = ", ".join(
            f"{name} {100 * loss:+.1f}% ({100 * low:+.1f} to {100 * high:+.1f})"
            for name, (loss, low, high) in entry["losses"].items()
        )
        print(
            f"{codes} {keep:6} {entry['bytes']:6.1f} bytes a token, of it codes {entry['codes']:5.1f}; recall@10 "
            f"{entry['recall']:.4f}; {entry['ms']:.3f} ms, p99 {entry['p99']:.2f}; recoded in {entry['recode_s']:.0f} s; "
            f"lost: {losses}",
            flush=True,
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2))


def measured(
    original: Any, folder: Path, codes: str, keep: str, queries: list[Any], exact: list[list[int]], grades: list[Any]
) -> dict[str, Any]:
    import lemur_ann
    from lemur_ann.insight.metrics import recall
    from lemur_ann.insight.relevance import relevance

    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        shutil.copytree(folder, scratch, dirs_exist_ok=True)
        begin = time.perf_counter()
        with lemur_ann.LemurIndex.open(scratch) as index:
            index.recode(codes, keep_tokens=keep)
        seconds = time.perf_counter() - begin
        size = sum(file.stat().st_size for file in Path(scratch).iterdir())
        index = lemur_ann.LemurIndex.load(scratch, verify=False)
        found, times = [], []
        for query in queries[:WARM_UP]:
            index.search(query, num_threads=1)
        for query in queries:
            begin = time.perf_counter()
            hits = index.search(query, num_threads=1)
            times.append(1e3 * (time.perf_counter() - begin))
            found.append(hits.ids.tolist())
        parts = index.stats().parts
        measures = relevance(found, exact, grades, 10, index.snapshot.ids).measures
        return {
            "codes_of": codes,
            "keep": keep,
            "bytes": size / index.num_tokens,
            "codes": parts["token codes"].size / index.num_tokens,
            "recall": recall(found, exact),
            "found": {name: measures[name].found for name in ("success@10", "MRR@10")},
            "exact": {name: measures[name].exact for name in ("success@10", "MRR@10")},
            "losses": {name: (measures[name].loss, *measures[name].loss_interval) for name in ("success@10", "MRR@10")},
            "ms": float(np.mean(times)),
            "p50": float(np.median(times)),
            "p99": float(np.quantile(times, 0.99)),
            "recode_s": seconds,
        }


if __name__ == "__main__":
    main()
