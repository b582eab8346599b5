"""What an index says that it takes, beside what the operating system says."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from lemur_ann import LemurIndex

PROGRAM = """
import json, re, sys
import numpy as np
import lemur_ann

def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024

rng = np.random.default_rng(0)
small = [rng.normal(size=(4, 64)).astype(np.float32) for _ in range(10)]
warm = lemur_ann.LemurIndex.load(sys.argv[2])
warm.search(small[0]), warm.search(small[0], exact=True), warm.stats(), warm.get(warm.ids())
before = resident()
index = lemur_ann.LemurIndex.open(sys.argv[1], read_only=True)
opened = resident() - before
index.search(small, exact=True, num_threads=1)
for query in small:
    index.search(query, num_threads=1)
if sys.argv[3] == "ids":
    assert "doc-77" in index
stats = index.stats()
print(json.dumps({"opened": opened, "used": resident() - before, "stats": stats.resident,
                  "parts": {name: [p.size, p.mapped, p.resident] for name, p in stats.parts.items()}}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is in memory")
def test_agrees_with_the_operating_system(rng, tmp_path):
    documents = [rng.normal(size=(30, 64)).astype(np.float16) for _ in range(15_000)]
    ids = [f"doc-{i}" for i in range(len(documents))]
    queries = [rng.normal(size=(4, 64)).astype(np.float32) for _ in range(50)]
    options = {"num_features": 512, "epochs": 0, "rank": 127, "num_sample_tokens": 100, "ef_construction": 20}
    LemurIndex(**options).fit(documents, queries=queries, ids=ids).save(tmp_path / "large")
    LemurIndex(**options).fit(documents[:2000], queries=queries, ids=ids[:2000]).save(tmp_path / "small")
    for what in ("searched", "ids"):
        command = [sys.executable, "-I", "-c", PROGRAM, str(tmp_path / "large"), str(tmp_path / "small"), what]
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        assert found["stats"] == pytest.approx(found["used"], rel=0.2), found
        assert found["opened"] < 0.2 * sum(size for size, _, _ in found["parts"].values()), "files are mapped, not read"
        for name in ("tokens", "token codes", "candidates"):
            size, mapped, _ = found["parts"][name]
            assert mapped > 0.9 * size, name


def test_parts(small_index, make_matrices):
    index, _, _ = small_index()
    index.add(LemurIndex().add(make_matrices(3), ids=list("abc")).get(["a", "b", "c"]).append_column("year", [[1, 2, 3]]))
    index.delete("doc-3")
    stats = index.stats()
    assert (stats.num_documents, stats.num_deleted, stats.num_tokens) == (202, 1, index.num_tokens)
    assert list(stats.parts) == ["tokens", "token codes", "candidates", "learned map", "ids", "metadata"]
    assert stats.parts["tokens"].size >= index.num_tokens * 16 * 4
    assert "202 documents, 1 deleted" in str(stats)
    assert list(LemurIndex(token_codes=None).stats().parts) == ["tokens", "ids"]
