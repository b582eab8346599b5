"""Sentences of the corpus's documents through its query encoder: what fit(encode_query=...) learns from, kept as a file.

    python benchmarks/encode_sentences.py CORPUS --tool make_corpus.py --out sentences.parquet

The tool is the script that made the corpus; its Encoder encodes the sentences as it did the queries.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import known_answers
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lemur_ann.learning.pseudo_queries import from_sentences
from lemur_ann.progress import progress_lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--tool", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    texts = pq.read_table(args.corpus / "docs.parquet", columns=["text"]).column("text").to_pylist()
    with progress_lines() as lines:
        queries = from_sentences(texts, known_answers.encoder_of(args.tool), np.random.default_rng(0), lines, dim=128)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(queries.tokens.reshape(-1)), queries.tokens.shape[1])
    pq.write_table(pa.table({"tokens": pa.LargeListArray.from_arrays(pa.array(queries.offsets), vectors)}), args.out)


if __name__ == "__main__":
    main()
