"""Qdrant's engine in process: multivectors compared by MaxSim, all of them, which is exact. pip install qdrant-edge-py

Its documentation wants no HNSW graph over multivectors (m=0) but a scan. Tokens are stored as float16, as the corpus has them.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import common
import numpy as np

POINTS_AT_ONCE = 250


def run(corpus: common.Corpus, work: Path) -> dict:
    import qdrant_edge as qdrant

    stored = corpus.documents
    half = stored.tokens.dtype == np.float16
    datatype = qdrant.VectorStorageDatatype.Float16 if half else qdrant.VectorStorageDatatype.Float32

    def configuration(threads: int) -> qdrant.EdgeConfig:
        tokens = qdrant.EdgeVectorParams(
            size=stored.tokens.shape[1],
            distance=qdrant.Distance.Dot,
            multivector_config=qdrant.MultiVectorConfig(qdrant.MultiVectorComparator.MaxSim),
            datatype=datatype,
            hnsw_config=qdrant.HnswIndexConfig(m=0, ef_construct=100, full_scan_threshold=10**9),
        )
        return qdrant.EdgeConfig(vectors={"tokens": tokens}, max_search_threads=threads)

    def build(folder: Path) -> None:
        shard = qdrant.EdgeShard.create(str(folder), configuration(common.ALL_CORES))
        for begin in range(0, len(stored), POINTS_AT_ONCE):
            end = min(begin + POINTS_AT_ONCE, len(stored))
            points = [qdrant.Point(id=i, vector={"tokens": stored[i].tolist()}) for i in range(begin, end)]
            shard.update(qdrant.UpdateOperation.upsert_points(points))
        shard.optimize()
        shard.flush()
        shard.close()

    folder, seconds = common.built(work, "qdrant", build)
    shard = qdrant.EdgeShard.load(str(folder), configuration(1))

    def search(query: np.ndarray, k: int) -> list[int]:
        nearest = qdrant.Query.Nearest(query.tolist(), using="tokens")
        return [point.id for point in shard.query(qdrant.QueryRequest(limit=k, query=nearest))]

    return {
        "version": version("qdrant-edge-py"),
        "build_s": seconds,
        "build_threads": common.ALL_CORES,
        "bytes": {"segments": sum(file.stat().st_blocks * 512 for file in (folder / "segments").rglob("*"))},  # has holes
        "segments": shard.info().segments_count,
        "curve": common.curve(corpus, {"full scan": search}),
    }


if __name__ == "__main__":
    common.main("Qdrant, MaxSim scan", run, __doc__)
