"""Digests of a learned map, of the vectors it makes and of what searches find: what a change of the code must leave as it was.

    python benchmarks/bits.py                     # prints one line a part
    python benchmarks/bits.py > before.txt        # with one installation, then with another, and compare the two
    PYTHONPATH=/folder/of/another/installation python benchmarks/bits.py

Everything is learned from the sample that the package ships, on one thread. The bits of learning depend on the processor and on
torch's version, so that only runs on one machine can be compared.
"""

from __future__ import annotations

import hashlib
import warnings

import numpy as np

import lemur_ann
from lemur_ann.demo import load_demo_data

SIZE = {"num_features": 256, "rank": 63, "seed": 3}
WAYS = {
    "trained": {"epochs": 2},
    "random features": {"epochs": 0},
    "float32 targets": {"epochs": 1, "target_precision": "float32"},
    "a scan": {"epochs": 1, "candidates": "exact", "token_codes": None},
}


def digest(*arrays):
    """The first 16 hexadecimal digits of a hash over arrays: their dtypes, shapes and bytes."""
    found = hashlib.sha256()
    for array in arrays:
        array = np.ascontiguousarray(array)
        found.update(
            f"{array.dtype} {array.shape}".encode()
            + (repr(array.tolist()).encode() if array.dtype == object else array.tobytes())
        )
    return found.hexdigest()[:16]


def matrices_of(table):
    return [row.values.flatten().to_numpy().reshape(len(row.values), -1) for row in table.column("tokens")]


def found_by(index, queries, **how):
    hits = [hit for query in queries for hit in [index.search(query, **how)]] + index.search(queries, num_threads=1, **how)
    return digest(*(part for hit in hits for part in (hit.ids, hit.scores)))


def main():
    data = load_demo_data()
    documents, queries = matrices_of(data.documents), matrices_of(data.queries)[:40]
    half = len(documents) // 2
    training = data.training_queries.select(["tokens"])

    for name, how in WAYS.items():
        index = lemur_ann.LemurIndex(**SIZE, **how).fit(documents[:half], training, num_threads=1)
        index.add(documents[half:], num_threads=1)
        index.delete(list(range(0, 60, 2)))
        arrays = index.encoder.arrays()
        print(f"{name}: map", digest(*(arrays[key] for key in sorted(arrays))))
        print(f"{name}: vectors", digest(index.encoder.encode_documents(documents, num_threads=1)))
        print(f"{name}: queries", digest(index.encoder.encode_queries(queries, num_threads=1)))
        print(f"{name}: hits", found_by(index, queries, k=10, num_candidates=100))
        print(f"{name}: exact hits", found_by(index, queries, k=10, exact=True))
        print(
            f"{name}: behind a filter",
            found_by(index, queries, k=10, num_candidates=40, filter=list(range(0, len(documents), 7))),
        )
        index.compact(num_threads=1)
        print(f"{name}: compacted", found_by(index, queries, k=10, num_candidates=100))
        index.refit(training, num_threads=1, epochs=how["epochs"])
        print(f"{name}: refitted", found_by(index, queries, k=10, num_candidates=100))
    random = np.random.default_rng(0)
    many = random.normal(size=(6000, 6, 16)).astype(np.float32)
    asked = many[:1200, :3] + random.normal(scale=0.3, size=(1200, 3, 16)).astype(np.float32)
    index = lemur_ann.LemurIndex(**SIZE, epochs=1, distillation_steps=40).fit(many, asked, num_threads=1)
    assert index.encoder.training["distilled"]
    print("distilled: vectors", digest(index.encoder.encode_documents(many, num_threads=1)))
    print("distilled: hits", found_by(index, list(asked[:50] * np.float32(1.01)), k=10, num_candidates=100))
    encoder = lemur_ann.LemurEncoder.fit(documents[:half], training, epochs=1, num_threads=1, **SIZE)
    print("LemurEncoder.fit", digest(encoder.encode_documents(documents, num_threads=1)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        index = lemur_ann.LemurIndex(**SIZE, epochs=1).fit(documents[:half], num_threads=1)
    print("no queries: hits", found_by(index, queries, k=10))


if __name__ == "__main__":
    main()
