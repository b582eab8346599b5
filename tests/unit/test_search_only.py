"""A process that only searches needs neither torch nor hnswlib."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
import numpy as np
import lemur_ann

index = lemur_ann.LemurIndex.load(sys.argv[1])
hits = index.search(np.load(sys.argv[2]), k=3)
many = index.search([np.load(sys.argv[2])] * 3, k=3)
index.add([np.load(sys.argv[2])], ids=["late"])
assert index.search(np.load(sys.argv[2]), k=1).ids[0] in ("late", hits.ids[0])
print(*hits.ids, "torch" in sys.modules, "torch.nn" in sys.modules, "hnswlib" in sys.modules)
"""


def test_search_and_add_without_torch(small_index, tmp_path, monkeypatch):
    import numpy as np

    monkeypatch.setattr("lemur_ann.candidates.MIN_SCANNED", 50)  # so that there is a graph
    index, documents, _ = small_index()
    index.save(tmp_path / "index")
    np.save(tmp_path / "query.npy", documents[5])
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "index"), str(tmp_path / "query.npy")]
    out = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path).stdout.split()
    assert out == [*index.search(documents[5], k=3).ids.tolist(), "False", "False", "False"]
