"""Two installed versions of lemur_ann beside each other, in turns, on one corpus: nothing may have become slower or worse.

    python benchmarks/versions.py CORPUS --work DIR --before FOLDER [--rounds 5] [--limit N] [--json FILE]

FOLDER holds the other version, as ``pip install --target FOLDER`` leaves it. Each learns an index of its own and keeps it in
DIR, so that a second run only measures again. Searches are single, on one thread, of the same queries; the versions take turns,
and of a time the best round counts, of each version. Figures of single rounds differ by some percent on a shared machine.
"""

from __future__ import annotations

import os

for pool in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(pool, "1")  # of the measurement; the fit sets torch's own number

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SETTINGS = {"recall .95": (120, 150), "default": (250, 300), "wide": (800, 1200)}  # num_candidates, ef_search


def tables(corpus: Path, limit: int | None) -> tuple[pa.Table, pa.Table]:
    """Documents with their row as id, since names may be repeated, and queries, with the names of the documents they want."""
    documents = pq.read_table(corpus / "docs.parquet").select(["id", "tokens"]).rename_columns(["name", "tokens"])
    documents = documents.append_column("id", pa.array(range(len(documents))))
    return documents[:limit], pq.read_table(corpus / "queries_dev.parquet")


def learn(corpus: Path, folder: Path, limit: int | None) -> dict[str, float]:
    import lemur_ann

    documents, _ = tables(corpus, limit)
    begin = time.perf_counter()
    index = lemur_ann.LemurIndex().fit(documents, corpus / "queries_train.parquet", num_threads=2, progress=False)
    seconds = time.perf_counter() - begin
    index.save(folder)
    stages = index.encoder.training["seconds"]
    return {"fit, s": seconds, **{f"fit: {name}, s": value for name, value in stages.items()}}


def measure(corpus: Path, folder: Path, limit: int | None, num_queries: int) -> dict[str, float]:
    import lemur_ann
    from lemur_ann.documents import read_queries

    documents, asked = tables(corpus, limit)
    begin = time.perf_counter()
    index = lemur_ann.LemurIndex.load(folder, verify=False)
    found = {"load, ms": 1e3 * (time.perf_counter() - begin)}
    names = documents.column("name").to_pylist()
    known = set(names)
    rows = [i for i, own in enumerate(asked.column("id").to_pylist()) if own in known][:num_queries]
    asked = asked.take(rows)
    batch = read_queries(asked.select(["tokens"]))
    queries, own = [batch.matrix(i) for i in range(len(batch))], asked.column("id").to_pylist()
    exact = [hits.ids for hits in index.search(queries, k=10, exact=True)]
    for name, (num_candidates, ef_search) in SETTINGS.items():
        settings = {"k": 10, "num_candidates": num_candidates, "ef_search": ef_search, "num_threads": 1}
        for query in queries[:50]:
            index.search(query, **settings)
        times, hits = [], []
        for query in queries:
            begin = time.perf_counter()
            hits.append(index.search(query, **settings))
            times.append(time.perf_counter() - begin)
        found[f"{name}: ms"] = 1e3 * float(np.mean(times))
        found[f"{name}: p99, ms"] = 1e3 * float(np.quantile(times, 0.99))
        found[f"{name}: recall@10"] = float(np.mean([np.isin(a, h.ids).mean() for a, h in zip(exact, hits, strict=True)]))
        found[f"{name}: success@10"] = float(
            np.mean([answer in {names[i] for i in h.ids} for answer, h in zip(own, hits, strict=True)])
        )
    begin = time.perf_counter()
    index.search(queries, k=10, num_threads=2)
    found["batch on two threads: ms a query"] = 1e3 * (time.perf_counter() - begin) / len(queries)
    new = documents[:100].drop_columns(["id"]).append_column("id", pa.array(range(10**9, 10**9 + 100)))
    begin = time.perf_counter()
    index.add(new, num_threads=2)
    found["add 100 to it, ms"] = 1e3 * (time.perf_counter() - begin)
    return found | changes(documents)


def changes(documents: pa.Table) -> dict[str, float]:
    """Of an index on disk: what it takes until a change is there for good."""
    import lemur_ann

    folder = Path(tempfile.mkdtemp(dir=os.environ["LEMUR_ANN_WORK"]))
    try:
        with lemur_ann.LemurIndex.open(folder / "index") as index:
            index.add(documents[:2000])
            one, ids = [], documents.column("id").to_pylist()
            for i in range(2000, 2030):
                begin = time.perf_counter()
                index.add(documents[i : i + 1])
                one.append(time.perf_counter() - begin)
            gone = []
            for i in range(30):
                begin = time.perf_counter()
                index.delete([ids[i]])
                gone.append(time.perf_counter() - begin)
    finally:
        shutil.rmtree(folder)
    return {"add one, on disk, ms": 1e3 * float(np.median(one)), "delete one, on disk, ms": 1e3 * float(np.median(gone))}


def child(job: str, arguments: argparse.Namespace, before: bool) -> dict[str, float]:
    """A job in a process of its own, with one of the versions."""
    path = {"PYTHONPATH": str(arguments.before.resolve())} if before else {}
    command = [
        sys.executable,
        str(Path(__file__).resolve()),
        str(arguments.corpus.resolve()),
        "--work",
        str(arguments.work.resolve()),
    ]
    command += ["--child", job, "--label", "before" if before else "after", "--num-queries", str(arguments.num_queries)]
    command += [] if arguments.limit is None else ["--limit", str(arguments.limit)]
    environment = {**{k: v for k, v in os.environ.items() if k != "PYTHONPATH"}, **path}
    environment |= {"PYTHONSAFEPATH": "1", "LEMUR_ANN_WORK": str(arguments.work.resolve())}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True, cwd=arguments.work)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--num-queries", type=int, default=400)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child")
    parser.add_argument("--label")
    arguments = parser.parse_args()
    folder = arguments.work / f"index-{arguments.label}"
    if arguments.child == "learn":
        print(json.dumps(learn(arguments.corpus, folder, arguments.limit)))
        return
    if arguments.child:
        print(json.dumps(measure(arguments.corpus, folder, arguments.limit, arguments.num_queries)))
        return
    arguments.work.mkdir(parents=True, exist_ok=True)
    rounds: dict[str, list[dict[str, float]]] = {"before": [], "after": []}
    for label in rounds:
        if not (arguments.work / f"index-{label}").exists():
            rounds[label].append(child("learn", arguments, label == "before"))
    for number in range(arguments.rounds):
        for label in ("before", "after") if number % 2 else ("after", "before"):
            rounds[label].append(child("measure", arguments, label == "before"))
    names = dict.fromkeys(name for own in rounds["after"] for name in own)
    best = {
        label: {
            name: min(own[name] for own in all_rounds if name in own) for name in names if any(name in o for o in all_rounds)
        }
        for label, all_rounds in rounds.items()
    }
    for name in names:
        if name in best["before"]:
            before, after = best["before"][name], best["after"][name]
            print(f"{name:40} {before:10.4g} {after:10.4g}  {after / before:.3f}" if before else f"{name:40} {before} {after}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"rounds": rounds, "best": best}, indent=2))


if __name__ == "__main__":
    main()
