"""LEMUR inside databases: recall and time of the two-stage search, beside each engine's own multi-vector search.

    python benchmarks/databases/run.py CORPUS --work DIR [--only lancedb,qdrant] [--num-documents 20000] [--num-queries 100]

CORPUS is a folder with docs.parquet, queries_train.parquet (to learn from) and queries_dev.parquet (to measure with). Each
engine has a module here: what it stores, its settings, and how it searches without LEMUR. One query at a time; engines use the
threads they use. An engine whose packages are not installed is left out. A build is kept in DIR; the results are results.json
there, and a table on standard output.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import lemur_ann
from lemur_ann import LemurEncoder, LemurIndex

sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).parent.resolve()]
ENGINES = tuple(sorted(file.stem for file in Path(__file__).parent.glob("*.py") if file.stem != "run"))
K = 10
WARM_UP = 5
OWN = 20  # queries of an engine's own search, which compares all tokens


def shares(found: list[list], exact: list[list]) -> float:
    return float(np.mean([len(set(a[:K]) & set(b)) / len(b) for a, b in zip(found, exact, strict=True)]))


def timed(search, queries: list) -> tuple[list, float]:
    """What it found, and milliseconds a query."""
    for query in queries[:WARM_UP]:
        search(query)
    start = time.perf_counter()
    found = [search(query) for query in queries]
    return found, (time.perf_counter() - start) / len(queries) * 1e3


def size_of(folder: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())


def measure(name: str, work: Path, encoder: LemurEncoder, documents, queries: list, exact: list[list]) -> dict:
    engine = module_of(name)
    folder = work / name
    timing = work / f"{name}.json"
    if not timing.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        start = time.perf_counter()
        engine.build(str(folder), encoder, documents)
        timing.write_text(json.dumps({"seconds": time.perf_counter() - start}))
    result = {
        "engine": engine.NAME,
        "versions": {package: version(package) for package in engine.PACKAGES},
        "build_s": json.loads(timing.read_text())["seconds"],
        "bytes": size_of(folder),
        "settings": [],
    }
    collection = engine.open(str(folder), encoder)
    try:
        before = None
        for setting, how in engine.SETTINGS.items():
            hits, ms = timed(lambda query, how=how: collection.search(query, k=K, **how), queries)
            found = [one.ids.tolist() for one in hits]
            before = before or (how, found)
            result["settings"].append({"setting": setting, "recall": shares(found, exact), "ms": ms})
            print(f"  {engine.NAME}, {setting}: recall@{K} {shares(found, exact):.3f}, {ms:.1f} ms", flush=True)
        if engine.WITHOUT is None:
            result["without"] = {"reason": engine.WITHOUT_REASON}
        else:
            found, ms = timed(lambda query: engine.WITHOUT(collection, query, K), queries[:OWN])
            result["without"] = {"recall": shares(found, exact[:OWN]), "ms": ms}
            print(f"  {engine.NAME} without LEMUR: recall@{K} {shares(found, exact[:OWN]):.3f}, {ms:.1f} ms", flush=True)
    finally:
        collection.close()
    collection = engine.open(str(folder), encoder)
    try:
        how, found = before
        again = [collection.search(query, k=K, **how).ids.tolist() for query in queries]
        result["same_after_restart"] = shares(again, found)
    finally:
        collection.close()
    return result


def module_of(name: str):
    """The module beside this one, which may have the name of the engine's own package."""
    spec = importlib.util.spec_from_file_location(f"engine_{name}", Path(__file__).parent / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measured_or_none(name: str, *given) -> dict | None:
    try:
        return measure(name, *given)
    except (ImportError, PackageNotFoundError) as error:
        print(f"  {name} is left out: {error}")
        return None


def table(results: list[dict]) -> str:
    lines = ["| engine | setting | recall@10 | ms | without LEMUR: recall@10 | ms | build s | MB |", "| --- " * 8 + "|"]
    for result in results:
        without = result["without"]
        own = ["-", without["reason"]] if "reason" in without else [f"{without['recall']:.3f}", f"{without['ms']:.1f}"]
        for row, setting in enumerate(result["settings"]):
            first = row == 0
            cells = [result["engine"] if first else "", setting["setting"], f"{setting['recall']:.3f}", f"{setting['ms']:.1f}"]
            cells += own if first else ["", ""]
            cells += [f"{result['build_s']:.0f}", f"{result['bytes'] / 1e6:.0f}"] if first else ["", ""]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", default=",".join(ENGINES))
    parser.add_argument("--num-documents", type=int, default=20_000)
    parser.add_argument("--num-queries", type=int, default=100)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    documents = pq.read_table(args.corpus / "docs.parquet")[: args.num_documents]
    rows = pa.array([str(row) for row in range(len(documents))])  # names are repeated in some corpora
    documents = documents.set_column(documents.schema.get_field_index("id"), "id", rows)
    batch = pq.read_table(args.corpus / "queries_dev.parquet", columns=["tokens"])[: args.num_queries]
    queries = [np.array(query.values.to_pylist(), np.float32) for query in batch.column("tokens")]
    path = args.work / "map.safetensors"
    if not path.exists():
        LemurEncoder.fit(documents, args.corpus / "queries_train.parquet").save(path)
    encoder = LemurEncoder.load(path)
    index = LemurIndex().add(documents)
    exact = [hits.ids.tolist() for hits in index.search(queries, k=K)]
    measured = [measured_or_none(name, args.work, encoder, documents, queries, exact) for name in args.only.split(",")]
    results = [result for result in measured if result is not None]
    body = {"lemur_ann": lemur_ann.__version__, "num_documents": len(documents), "num_queries": len(queries)}
    body["engines"] = results
    (args.work / "results.json").write_text(json.dumps(body, indent=2) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
