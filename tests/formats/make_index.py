"""Make the tiny index that stands for a storage format, with the library version that wrote it:

python tests/formats/make_index.py tests/formats/format_1
"""

import sys
from pathlib import Path

import numpy as np

import lemur_ann

folder = Path(sys.argv[1])
rng = np.random.default_rng(1)
# more than are scanned, so that the graph's links are there
documents = [rng.normal(size=(rng.integers(1, 3), 4)).astype(np.float16) for _ in range(1100)]
queries = [rng.normal(size=(4, 4)).astype(np.float32) for _ in range(30)]
sizes = {"num_features": 16, "epochs": 1, "num_sample_tokens": 60, "rank": 7, "M": 4, "num_candidates": 8, "ef_search": 16}
codes = {"token_codes": "int4", "keep_tokens": "none"}  # since format 7
index = lemur_ann.LemurIndex(**sizes, **codes)
index.fit(documents, queries[:20], ids=[f"doc-{i}" for i in range(len(documents))], num_threads=1)
index.delete("doc-3")
index.save(folder / "index")
hits = [index.search(q, k=5) for q in queries[20:]]
np.savez(
    folder / "expected.npz",
    queries=np.stack(queries[20:]),
    ids=np.stack([h.ids for h in hits]).astype(str),
    scores=np.stack([h.scores for h in hits]),
    new_document=documents[3] * np.float16(0.5),
    new_vector=index.add([documents[3] * np.float16(0.5)], ids=["new"]).snapshot.learned.candidates.take([len(documents)])[0],
)
