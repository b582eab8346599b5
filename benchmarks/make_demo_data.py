"""Make the sample that `lemur-ann demo` uses: a few hundred short documents, training queries and test queries.

    python benchmarks/make_demo_data.py CORPUS --tokenizer tokenizer.json

CORPUS holds docs.parquet, queries_train.parquet and queries_dev.parquet (id, text, tokens), where dev query i has the id of the
document it was written for. Token values are rounded to multiples of 1/128, which moves no inner product of unit vectors by
more than a few hundredths and lets Parquet store them in under a byte each. The tokenizer is the model's: demo_words.parquet
has the strings of each text's tokens, first of documents, then of training and of test queries. Writes
lemur_ann/data/demo_*.parquet.
"""

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tokenizers import Tokenizer

OUT = Path(__file__).parent.parent / "lemur_ann" / "data"
MAX_TOKENS = 64
NUM_DOCUMENTS, NUM_TRAINING_QUERIES, NUM_TEST_QUERIES = 600, 400, 50


def rounded(table: pa.Table) -> pa.Table:
    column = table.column("tokens").combine_chunks()
    values = column.flatten().flatten().to_numpy()
    coarse = (np.round(values.astype(np.float32) * 128) / 128).astype(np.float16)
    dim = column.type.value_type.list_size
    offsets = column.offsets.to_numpy() - column.offsets[0].as_py()
    tokens = pa.ListArray.from_arrays(pa.array(offsets), pa.FixedSizeListArray.from_arrays(pa.array(coarse), dim))
    return table.set_column(table.column_names.index("tokens"), "tokens", tokens)


def write(table: pa.Table, name: str) -> None:
    path = OUT / name
    pq.write_table(rounded(table), path, compression="zstd", compression_level=22, use_dictionary=True)
    print(f"{path.name}: {len(table)} rows, {path.stat().st_size / 1e6:.2f} MB")


def write_words(documents: pa.Table, queries: list[pa.Table], tokenizer: Path) -> None:
    """The model's tokens are ``[CLS] marker text [SEP]``, and [MASK] up to 32 for queries."""
    model = Tokenizer.from_file(str(tokenizer))
    model.no_padding()
    model.no_truncation()
    rows = []
    for table, marker in ((documents, "[D]"), *((table, "[Q]") for table in queries)):
        for text, tokens in zip(table.column("text").to_pylist(), table.column("tokens"), strict=True):
            pieces = model.encode(text, add_special_tokens=False).tokens
            row = ["[CLS]", marker, *pieces[: len(tokens) - 3], "[SEP]"]
            rows.append(row + ["[MASK]"] * (len(tokens) - len(row)))
    path = OUT / "demo_words.parquet"
    pq.write_table(pa.table({"words": rows}), path, compression="zstd", compression_level=22)
    print(f"{path.name}: {len(rows)} rows, {path.stat().st_size / 1e6:.2f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    args = parser.parse_args()
    corpus = args.corpus
    documents = pq.read_table(corpus / "docs.parquet")
    test = pq.read_table(corpus / "queries_dev.parquet")
    once = pc.value_counts(documents.column("id"))
    unique = once.field("values").filter(pc.equal(once.field("counts"), 1))
    short = pc.less_equal(pc.list_value_length(documents.column("tokens")), MAX_TOKENS)
    with_query = pc.is_in(documents.column("id"), value_set=pc.unique(test.column("id")))
    wanted = pc.and_(pc.and_(short, with_query), pc.is_in(documents.column("id"), value_set=unique))
    documents = documents.filter(wanted)[:NUM_DOCUMENTS]
    test = test.filter(pc.is_in(test.column("id"), value_set=documents.column("id").combine_chunks()))[:NUM_TEST_QUERIES]
    write(documents, "demo_documents.parquet")
    training = pq.read_table(corpus / "queries_train.parquet")[:NUM_TRAINING_QUERIES]
    write(training, "demo_training_queries.parquet")
    write(test, "demo_queries.parquet")
    write_words(documents, [training, test], args.tokenizer)


if __name__ == "__main__":
    main()
