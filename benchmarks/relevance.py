"""What users feel: how often the answer is among the hits, beside recall and time, against exact MaxSim.

    python benchmarks/relevance.py CORPUS --work DIR [--learn] [--limit N] [--num-queries N] [--deep] [--json FILE]
        [--learn-from tokens] [--learn-from sentences --tool make_corpus.py] [--learn-from plain --tool make_corpus.py]

Query i of the corpus was written for the document whose name it has. Of an index in DIR, which ``--learn`` makes (with the
default options, from queries_train), the queries of queries_dev are asked one at a time on one thread. success@k says how often
the document is among the first k, MRR@10 how early. Differences to exact MaxSim are paired: their 95% intervals are those of
:class:`lemur_ann.insight.relevance.Measure`. ``--deep`` measures recall@100 and recall@1000 as well.
"""

from __future__ import annotations

import os

for pool in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(pool, "1")  # of the measurement; the fit sets torch's own number

import argparse
import json
import time
from pathlib import Path

import known_answers
import numpy as np
import pyarrow.parquet as pq

SETTINGS = (  # num_candidates, ef_search, shortlist
    (40, 100, 400),
    (60, 150, 600),
    (60, 200, 800),
    (80, 200, 800),
    (120, 300, 1000),
    (150, 400, 1200),
    (250, 600, 2000),
    (600, 600, 2000),
    (120, 150, 0),
    (250, 300, 0),
    (800, 1200, 0),
)
DEEP = (
    (300, 400, 1500),
    (400, 600, 3000),
    (480, 800, 3000),
    (600, 800, 4000),
    (800, 1200, 0),
    (3000, 3000, 9000),
    (4000, 4000, 12000),
)
MEASURES = ("success@1", "success@10", "MRR@10")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--index", type=Path, help="another index of the same documents, by row")
    parser.add_argument("--learn", action="store_true")
    parser.add_argument("--learn-from", choices=("queries", "tokens", "sentences", "plain"), default="queries")
    parser.add_argument("--tool", type=Path, help="the script that made the corpus, whose encoder is that of queries")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--num-queries", type=int, default=1600)
    parser.add_argument("--deep", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    import lemur_ann
    from lemur_ann.insight.metrics import recall
    from lemur_ann.insight.relevance import relevance

    corpus = known_answers.read(arguments.corpus, arguments.limit, arguments.num_queries)
    count, queries, grades = len(corpus.documents), corpus.queries, corpus.grades
    folder = arguments.index or arguments.work / f"relevance-{arguments.learn_from}-{count}"
    if arguments.learn or not folder.exists():
        documents, taught_by = corpus.documents, {}
        if arguments.learn_from == "queries":
            taught_by = {"queries": arguments.corpus / "queries_train.parquet"}
        elif arguments.learn_from != "tokens":
            taught_by = {"encode_query": known_answers.encoder_of(arguments.tool), "text_column": None}
        if arguments.learn_from == "sentences":
            texts = pq.read_table(arguments.corpus / "docs.parquet", columns=["text"])[:count].column("text")
            documents, taught_by["text_column"] = documents.append_column("text", texts), "text"
        begin = time.perf_counter()
        learned = lemur_ann.LemurIndex().fit(documents, **taught_by, num_threads=2, progress=False)
        print(f"fit: {time.perf_counter() - begin:.0f} s, {learned.encoder.training['look_found']}")
        learned.save(folder)
        del learned
    del corpus
    index = lemur_ann.LemurIndex.load(folder, verify=False)
    most = 1000 if arguments.deep else 10
    exact = known_answers.exact_top(arguments.work, index, queries, most)
    top = exact[:, :10].tolist()
    base = relevance(top, top, grades, 10, index.snapshot.ids).measures
    report = [{"name": "exact MaxSim", "recall@10": 1.0, **{name: base[name].exact for name in MEASURES}}]
    figures = " ".join(f"{base[name].exact:.4f}" for name in MEASURES)
    print(f"{count} documents, {len(queries)} queries\n{'exact MaxSim':24} 1.0000 {figures}")
    looks = index.snapshot.learned.look is not None
    tried = [({"k": 10}, "default")]
    tried += [
        ({"k": 10, "num_candidates": c, "ef_search": e, "shortlist": s}, f"{c}, {e}, {s}")
        for c, e, s in SETTINGS
        if looks or not s
    ]
    for how, name in tried:
        for query in queries[:50]:
            index.search(query, num_threads=1, **how)
        found, times = [], []
        for query in queries:
            begin = time.perf_counter()
            hits = index.search(query, num_threads=1, **how)
            times.append(1e3 * (time.perf_counter() - begin))
            found.append(hits.ids.tolist())
        own = relevance(found, top, grades, 10, index.snapshot.ids).measures
        entry = {"name": name, "recall@10": recall(found, top), **{m: own[m].found for m in MEASURES}}
        entry["losses"] = {m: (own[m].loss, *own[m].loss_interval) for m in MEASURES[1:]}
        entry |= {"ms": float(np.mean(times)), "p50": float(np.median(times)), "p99": float(np.quantile(times, 0.99))}
        report.append(entry)
        lost = ", ".join(
            f"{m} {100 * a:+.1f}% ({100 * low:+.1f} to {100 * high:+.1f})" for m, (a, low, high) in entry["losses"].items()
        )
        print(
            f"{name:24}",
            *(f"{entry[m]:.4f}" for m in ("recall@10", *MEASURES)),
            f"{entry['ms']:.3f} ms, p99 {entry['p99']:.2f}; lost: {lost}",
            flush=True,
        )
    for k in (100, 1000) if arguments.deep else ():
        tried = [({}, "default")] + [
            ({"num_candidates": c, "ef_search": e, "shortlist": s}, f"{c}, {e}, {s}") for c, e, s in DEEP if c > k
        ]
        for how, name in tried:
            found, times = [], []
            for query in queries[:200]:
                begin = time.perf_counter()
                hits = index.search(query, k=k, num_threads=1, **how)
                times.append(1e3 * (time.perf_counter() - begin))
                found.append(np.asarray(hits.ids))
            recall = float(np.mean([np.isin(e[:k], f).mean() for e, f in zip(exact, found, strict=False)]))
            report.append({"name": f"k {k}, {name}", f"recall@{k}": recall, "ms": float(np.mean(times))})
            print(f"k {k}, {name:20} recall {recall:.4f} {np.mean(times):.2f} ms", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
