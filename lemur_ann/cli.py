"""The command line, `lemur-ann`."""

from __future__ import annotations

import inspect
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import typer
from rich.console import Console
from rich.table import Table

import lemur_ann
from lemur_ann import validate
from lemur_ann.arrays import in_place_of
from lemur_ann.candidates.kinds import KINDS
from lemur_ann.documents.inputs import read_queries
from lemur_ann.documents.sources import open_path, record_batches
from lemur_ann.errors import CorruptIndex
from lemur_ann.insight import run_files
from lemur_ann.insight.evaluation import Evaluation
from lemur_ann.insight.health import Health, MapFit
from lemur_ann.insight.tuning import MAX_LOSS
from lemur_ann.options import Options
from lemur_ann.progress import progress_lines
from lemur_ann.saved import storage

OLD_NAMES = {"threads": "num-threads", "id": "doc-id", "limit": "num-queries"}  # accepted still, and not shown

# Options are called as the argument of Python that they stand for: --num-threads is num_threads.
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="""A multi-vector index for late-interaction retrieval: learned single-vector candidates, exact MaxSim rerank.

    Input files are Parquet (or a folder of Parquet, or Arrow IPC) with a column [bold]tokens[/bold]: one
    list<fixed_size_list<float32 or float16>\\[dim]> a row, the token embeddings of one document or query. Documents may
    have a column [bold]id[/bold] (strings or integers) and any others, which are kept as metadata.

    [bold]A first index:[/bold]

      lemur-ann demo

      lemur-ann build docs.parquet --queries training_queries.parquet --out my_index

      lemur-ann search my_index queries.parquet -k 5

      lemur-ann evaluate my_index other_queries.parquet

      lemur-ann tune my_index other_queries.parquet --target-recall 0.95

      lemur-ann health my_index --queries recent_queries.parquet

      lemur-ann explain my_index --queries queries.parquet --row 0 --doc-id doc-17

      lemur-ann report my_index --queries other_queries.parquet --out report.html

    [bold]An index that lives:[/bold]

      lemur-ann add my_index more_docs.parquet

      lemur-ann delete my_index doc-17 doc-18

      lemur-ann verify my_index
    """,
)
console = Console(markup=False)  # texts and ids are shown as they are

Queries = Annotated[Path, typer.Argument(help="Queries, with a column 'tokens'.", exists=True)]
DEFAULTS = Options()

IndexDir = Annotated[Path, typer.Argument(metavar="DIR", help="A saved index.")]
NumCandidates = Annotated[
    int | None, typer.Option(help="Documents reranked per query; more finds more, slower. \\[default: the index's own]")
]
EfSearch = Annotated[int | None, typer.Option(help="Beam of the graph search. \\[default: the index's own]")]
Shortlist = Annotated[int | None, typer.Option(help="Documents that a second look chooses candidates from; 0 for none.")]
TargetRecall = Annotated[float | None, typer.Option(help="Search as 'lemur-ann tune' chose for this recall.")]
MaxLoss = Annotated[float | None, typer.Option(help="Search as 'lemur-ann tune --relevant' chose for this loss.")]
Relevant = Annotated[
    str | None,
    typer.Option(help="Also measure success, MRR and nDCG: a TREC qrels file, or a column of the queries with ids."),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or mps. \\[default: the one it was made with]")]
MemoryLimit = Annotated[str | None, typer.Option(help="What learning should stay below, such as 3GB.")]
NumQueries = Annotated[int | None, typer.Option(min=1, help="Use this many queries at most, the first of the file.")]
PoolFactor = Annotated[int, typer.Option(help="Merge like tokens of a document, to one of so many; 1 merges none.")]
Pooling = Annotated[str, typer.Option(help="ward: any tokens that are alike; sequential: within runs of 256.")]
ProtectedTokens = Annotated[int, typer.Option(help="First tokens of a document, which are never merged.")]
NumThreads = Annotated[int | None, typer.Option(help="Threads to use. \\[default: all cores]")]


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        console.print(lemur_ann.__version__)
        raise typer.Exit


@app.command()
def demo(
    epochs: Annotated[int, typer.Option(help="Passes of training; 0 uses random features.")] = 10,
    out: Annotated[Path | None, typer.Option(help="Keep the index in this folder.")] = None,
) -> None:
    """Fit an index on a small real sample, search it, and compare with exact MaxSim."""
    from lemur_ann.demo import fit_demo_index, load_demo_data

    data = load_demo_data()
    tokens = sum(len(row) for row in data.documents.column("tokens"))
    console.print(
        f"{len(data.documents)} documents ({tokens:,} token vectors of 128-d), {len(data.training_queries)} training queries, "
        f"{len(data.queries)} test queries. Texts: Debian package descriptions, queries: their one-line summaries."
    )
    start = time.perf_counter()
    index = fit_demo_index(data, epochs=epochs)
    console.print(f"Learned and indexed in {time.perf_counter() - start:.1f} s: {index!r}\n")
    shown = data.queries[:3]
    for hits, text in zip(index.search(shown, k=3), shown.column("text").to_pylist(), strict=True):
        _print_hits(index, hits, f"Query: {text}")
    _print_evaluation(index.evaluate(data.queries, k=10))
    console.print("At this size exact search is as fast; the index is for tens of thousands of documents and more.")
    if out is not None:
        index.save(out)
        console.print(f"Kept in {out}. Next: lemur-ann serve {out} --encoder demo")
    else:
        console.print("Next: lemur-ann build --help")


@app.command()
def build(
    documents: Annotated[Path, typer.Argument(metavar="DOCS", help="Documents, with a column 'tokens'.", exists=True)],
    out: Annotated[Path, typer.Option(help="Folder for the index.")],
    queries: Annotated[
        Path | None,
        typer.Option(help="Training queries, from the query encoder; without them recall is far lower.", exists=True),
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes of training; 0 uses random features, the quick way.")] = DEFAULTS.epochs,
    num_features: Annotated[int, typer.Option(help="Width of the learned features.")] = DEFAULTS.num_features,
    rank: Annotated[int | None, typer.Option(help="Dimension of the graph's vectors, less one.")] = DEFAULTS.rank,
    candidates: Annotated[
        str, typer.Option(help=f"What finds candidates, one of {', '.join(KINDS)}: graphs, and 'exact', a scan.")
    ] = DEFAULTS.candidates,
    m: Annotated[int, typer.Option("--M", help="Links per document in the graph.")] = DEFAULTS.M,
    ef_construction: Annotated[int, typer.Option(help="Beam with which the graph is built.")] = DEFAULTS.ef_construction,
    num_candidates: Annotated[int | None, typer.Option(help="Documents reranked per query.")] = DEFAULTS.num_candidates,
    ef_search: Annotated[int | None, typer.Option(help="Beam of the graph search.")] = DEFAULTS.ef_search,
    pool_factor: PoolFactor = DEFAULTS.pool_factor,
    pooling: Pooling = DEFAULTS.pooling,
    protected_tokens: ProtectedTokens = DEFAULTS.protected_tokens,
    device: Annotated[str, typer.Option(help="cpu, cuda or mps.")] = DEFAULTS.device,
    seed: Annotated[int, typer.Option(help="For everything random.")] = DEFAULTS.seed,
    number_ids: Annotated[
        bool, typer.Option("--number-ids", help="Number the documents from 0 and keep a column 'id' as 'source_id'.")
    ] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Put the index in the place of one that is there.")] = False,
    memory_limit: MemoryLimit = None,
    num_threads: NumThreads = None,
) -> None:
    """Learn from DOCS and training queries, index DOCS, and save the index."""
    dataset = open_path(documents)
    storage.check_replaceable(out)
    if (out / storage.MANIFEST).exists() and not replace:
        raise FileExistsError(f"{out} holds an index already; --replace puts the new one in its place")
    index = lemur_ann.LemurIndex(
        epochs=epochs,
        num_features=num_features,
        rank=rank,
        candidates=candidates,
        M=m,
        ef_construction=ef_construction,
        num_candidates=num_candidates,
        ef_search=ef_search,
        pool_factor=pool_factor,
        pooling=pooling,
        protected_tokens=protected_tokens,
        device=device,
        seed=seed,
    )
    start = time.perf_counter()
    try:
        index.fit(
            _numbered(dataset) if number_ids else dataset,
            queries=queries,
            directory=next(folder for folder in out.resolve().parents if folder.is_dir()),  # where there must be room anyway
            memory_limit=memory_limit,
            num_threads=num_threads,
        )
    except ValueError as error:
        hint = "; --number-ids numbers the documents instead" if "is repeated in row" in str(error) else ""
        raise ValueError(f"{error}{hint}") from None
    fitted = time.perf_counter()
    index.save(out)
    console.print(
        f"{len(index):,} documents, {index.num_tokens:,} tokens: fit {fitted - start:.1f} s, "
        f"saved to {out} in {time.perf_counter() - fitted:.1f} s"
    )


@app.command()
def search(
    path: IndexDir,
    queries: Queries,
    k: Annotated[int, typer.Option("-k", "--k", help="Documents per query.")] = 10,
    limit: Annotated[int, typer.Option(min=0, help="Print this many queries at most; --out gets all.")] = 10,
    num_candidates: NumCandidates = None,
    ef_search: EfSearch = None,
    shortlist: Shortlist = None,
    target_recall: TargetRecall = None,
    max_loss: MaxLoss = None,
    exact: Annotated[bool, typer.Option("--exact", help="Score every document instead.")] = False,
    out: Annotated[Path | None, typer.Option(help="Also write all hits to this Parquet file.")] = None,
    device: Device = None,
    num_threads: NumThreads = None,
) -> None:
    """Search a saved index with every query of a file."""
    _check_output(out, path, queries)
    index = lemur_ann.LemurIndex.load(path, device=device)
    table = _read(queries)
    wanted = table if out is not None else table[:limit]
    found = index.search(
        wanted,
        k=k,
        num_candidates=num_candidates,
        ef_search=ef_search,
        shortlist=shortlist,
        target_recall=target_recall,
        max_loss=max_loss,
        exact=exact,
        num_threads=num_threads,
    )
    names = _query_names(table)
    for hits, name in zip(found[:limit], names, strict=False):
        _print_hits(index, hits, name)
    if out is not None:
        import pyarrow.parquet as pq

        rows = [
            {"query": i, "rank": rank, "id": doc_id, "score": score}
            for i, hits in enumerate(found)
            for rank, (doc_id, score) in enumerate(hits, start=1)
        ]
        with in_place_of(out) as file:
            pq.write_table(pa.Table.from_pylist(rows), file)
        console.print(f"{len(rows):,} hits of {len(found):,} queries written to {out}")


@app.command()
def evaluate(
    path: IndexDir,
    queries: Queries,
    k: Annotated[int, typer.Option("-k", "--k", help="Recall of the exact top k.")] = 10,
    num_queries: NumQueries = None,
    num_candidates: NumCandidates = None,
    ef_search: EfSearch = None,
    shortlist: Shortlist = None,
    target_recall: TargetRecall = None,
    max_loss: MaxLoss = None,
    relevant: Relevant = None,
    run: Annotated[
        Path | None,
        typer.Option(help="Also write the k hits of each query to this TREC run file, for ir-measures, ranx or trec_eval."),
    ] = None,
    device: Device = None,
    num_threads: NumThreads = None,
) -> None:
    """Measure recall@k against exact MaxSim, and latency. Use queries the index did not learn from."""
    index = lemur_ann.LemurIndex.load(path, device=device)
    _check_output(run, path, queries)
    table = _read(queries)
    table = table if num_queries is None else table[:num_queries]
    names = [] if run is None else run_files.query_ids(table)  # bad ones are refused before the work
    how: dict[str, Any] = {
        "k": k,
        "num_candidates": num_candidates,
        "ef_search": ef_search,
        "shortlist": shortlist,
        "target_recall": target_recall,
        "max_loss": max_loss,
        "num_threads": num_threads,
    }
    _print_evaluation(index.evaluate(table, relevant=relevant, **how))
    if run is not None:
        count = run_files.write_run(run, names, index.search(table, **how))
        console.print(f"{count:,} hits of {len(names):,} queries written to {run}")


@app.command()
def tune(
    path: IndexDir,
    queries: Queries,
    target_recall: Annotated[float | None, typer.Option(help="Share of the exact top k to find. \\[default: 0.95]")] = None,
    k: Annotated[int, typer.Option("-k", "--k", help="Recall of the exact top k.")] = 10,
    relevant: Annotated[
        str | None,
        typer.Option(help="Tune for relevance instead: a TREC qrels file, or a column of the queries with ids."),
    ] = None,
    max_loss: Annotated[
        float | None, typer.Option(help="With --relevant: share of success and MRR to lose. \\[default: 0.01]")
    ] = None,
    codes: Annotated[bool, typer.Option("--codes", help="Measure instead what small codes of tokens lose.")] = False,
    num_queries: NumQueries = None,
    device: Device = None,
    num_threads: NumThreads = None,
) -> None:
    """Choose how to search for a wanted recall, or for a wanted share of the relevant answers of exact MaxSim, and keep the
    choice in the saved index: search --target-recall and --max-loss use it."""
    table = _read(queries)
    table = table if num_queries is None else table[:num_queries]
    if codes:
        if target_recall is not None:
            raise ValueError("--codes goes with --max-loss, and not with --target-recall")
        index = lemur_ann.LemurIndex.load(path, device=device, verify=False)
        loss = MAX_LOSS if max_loss is None else max_loss
        console.print(str(index.tune_codes(table, k, relevant=relevant, max_loss=loss, num_threads=num_threads)))
        return
    with _opened(path, device) as index:
        tuned = index.tune(table, target_recall, k=k, relevant=relevant, max_loss=max_loss, num_threads=num_threads)
    console.print(str(tuned))


@app.command()
def add(
    path: IndexDir,
    documents: Annotated[Path, typer.Argument(help="Documents, with a column 'tokens', and as the index has them 'id'.")],
    upsert: Annotated[bool, typer.Option("--upsert", help="Replace documents that have these ids already.")] = False,
    num_threads: NumThreads = None,
) -> None:
    """Add documents to a saved index, for good once the command ends; searches in other processes go on."""
    with _opened(path) as index:
        before, start = len(index), time.perf_counter()
        (index.upsert if upsert else index.add)(documents, num_threads=num_threads)
        console.print(f"{before:,} documents before, {len(index):,} now, in {time.perf_counter() - start:.1f} s")


@app.command()
def delete(
    path: IndexDir,
    ids: Annotated[list[str] | None, typer.Argument(help="Ids of documents.")] = None,
    ids_from: Annotated[Path | None, typer.Option(help="A file with a column 'id', instead.", exists=True)] = None,
) -> None:
    """Delete documents from a saved index, for good once the command ends."""
    if bool(ids) == (ids_from is not None):
        raise ValueError("delete takes ids or --ids-from, one of the two")
    with _opened(path) as index:
        named: Any = [_id(doc_id, index) for doc_id in ids or ()]
        if ids_from is not None:
            named = open_path(ids_from).to_table(columns=["id"]).column("id")
        console.print(f"{index.delete(named):,} documents deleted, {len(index):,} left")


@app.command()
def plan(
    num_documents: Annotated[int, typer.Argument(help="How many documents.")],
    tokens_per_document: Annotated[float, typer.Argument(help="Their tokens, in mean.")],
    dim: Annotated[int, typer.Argument(help="Components of a token.")],
    token_codes: Annotated[str, typer.Option(help="int8, int4, int3, int2, int1, or none.")] = "int8",
    keep_tokens: Annotated[str, typer.Option(help="exact, or none: codes alone are kept.")] = "exact",
    token_dtype: Annotated[str, typer.Option(help="float16 or float32.")] = "float16",
    pool_factor: PoolFactor = DEFAULTS.pool_factor,
    protected_tokens: ProtectedTokens = DEFAULTS.protected_tokens,
) -> None:
    """What an index will take: bytes by part, and the memory of learning."""
    codes = None if token_codes == "none" else token_codes
    options: dict[str, Any] = {"token_codes": codes, "keep_tokens": keep_tokens}
    options |= {"pool_factor": pool_factor, "protected_tokens": protected_tokens}
    console.print(str(lemur_ann.plan(num_documents, tokens_per_document, dim, token_dtype=token_dtype, **options)))


@app.command()
def recode(
    path: IndexDir,
    token_codes: Annotated[str, typer.Argument(help="int8, int4, int3, int2, int1, or none.")],
    keep_tokens: Annotated[
        str | None, typer.Option(help="exact, or none: codes alone are kept, for ever. \\[default: as it is]")
    ] = None,
    num_threads: NumThreads = None,
) -> None:
    """Keep other codes of the tokens, or codes alone; tune --codes says what they lose."""
    with _opened(path) as index:
        codes = None if token_codes == "none" else token_codes
        index.recode(codes, keep_tokens=keep_tokens, num_threads=num_threads)
    console.print(str(lemur_ann.LemurIndex.load(path, verify=False).stats()))


@app.command()
def compact(path: IndexDir, num_threads: NumThreads = None) -> None:
    """Take back the space of deleted documents."""
    with _opened(path) as index:
        index.compact(num_threads=num_threads)
        console.print(f"{len(index):,} documents, and none deleted")


@app.command()
def verify(path: IndexDir) -> None:
    """Read every file of a saved index and compare it with its checksum; then what the files say with each other."""
    manifest = storage.read_manifest(path)
    damaged = sum(not _is_whole(path, name, entry) for name, entry in manifest["files"].items())
    if damaged:
        raise CorruptIndex(f"{damaged} of {len(manifest['files'])} files of {path} are damaged")
    index = lemur_ann.LemurIndex.load(path, verify=False, device="cpu")
    index.check()
    console.print(f"{len(index):,} documents, {index.num_tokens:,} tokens: all well")


@app.command()
def health(
    path: IndexDir,
    queries: Annotated[
        Path | None,
        typer.Option(
            help="Queries like those of today, with a column 'tokens'; without them, tokens that the map was learned from.",
            exists=True,
        ),
    ] = None,
    k: Annotated[int, typer.Option("-k", "--k", help="Recall of the exact top k.")] = 10,
    num_queries: Annotated[int, typer.Option(help="Use this many queries at most, drawn at random.")] = 200,
    num_candidates: NumCandidates = None,
    ef_search: EfSearch = None,
    shortlist: Shortlist = None,
    target_recall: TargetRecall = None,
    max_loss: MaxLoss = None,
    relevant: Relevant = None,
    device: Device = None,
    num_threads: NumThreads = None,
) -> None:
    """Measure how well the learned map still fits, for documents added since it was learned apart."""
    index = lemur_ann.LemurIndex.load(path, device=device)
    table = None if queries is None else _read(queries)
    how: dict[str, Any] = {"num_candidates": num_candidates, "ef_search": ef_search, "shortlist": shortlist}
    how |= {"target_recall": target_recall, "max_loss": max_loss}
    result = index.health(table, k=k, num_queries=num_queries, relevant=relevant, num_threads=num_threads, **how)
    _print_health(result)


@app.command()
def explain(
    path: IndexDir,
    queries: Annotated[Path, typer.Option(help="Queries, with a column 'tokens'.", exists=True)],
    doc_id: Annotated[str, typer.Option(help="Id of the document.")],
    row: Annotated[int, typer.Option(help="Which query of the file, from 0.")] = 0,
    miss: Annotated[
        bool, typer.Option("--miss", help="Say which stage of a search loses it, and which settings do not.")
    ] = False,
    k: Annotated[int, typer.Option("-k", "--k", help="Hits to look for it in.")] = 10,
    num_candidates: Annotated[int | None, typer.Option(help="Of that search, with --miss.")] = None,
    ef_search: Annotated[int | None, typer.Option(help="Of that search, with --miss.")] = None,
    shortlist: Annotated[int | None, typer.Option(help="Of that search, with --miss.")] = None,
    target_recall: Annotated[float | None, typer.Option(help="Of that search, with --miss.")] = None,
    max_loss: Annotated[float | None, typer.Option(help="Of that search, with --miss.")] = None,
    words: Annotated[
        str | None,
        typer.Option(help="Column, of the queries and of the documents, with the strings of their tokens: list<string>."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Also draw the similarities: a file such as picture.png.")] = None,
    device: Device = None,
    num_threads: NumThreads = None,
) -> None:
    """Say why a document has its score for a query, token by token, and where it stands; or why a search does not find it."""
    how: dict[str, Any] = {"num_candidates": num_candidates, "ef_search": ef_search, "shortlist": shortlist}
    how |= {"target_recall": target_recall, "max_loss": max_loss}
    if not miss and any(value is not None for value in how.values()):
        raise ValueError("--num-candidates, --ef-search, --shortlist, --target-recall and --max-loss go with --miss")
    if miss and (out is not None or words is not None):
        raise ValueError("--out and --words go without --miss")
    _check_output(out, path, queries)
    table = _read(queries)
    if not 0 <= row < len(table):
        raise ValueError(f"--row must be from 0 to {len(table) - 1}, the queries of {queries}, got {row}")
    index = lemur_ann.LemurIndex.load(path, device=device)
    named = _id(doc_id, index)
    query = read_queries(table[row : row + 1]).tokens
    console.print(_query_names(table)[row])
    if miss:
        found = index.explain_miss(query, named, k, **how, num_threads=num_threads)
        console.print(str(found), soft_wrap=True)
        return
    document = index.metadata([named])
    explanation = index.explain(
        query,
        named,
        k=k,
        query_words=_words(table, row, words),
        document_words=_words(document, 0, words),
        num_threads=num_threads,
    )
    if "text" in document.column_names:
        console.print(f"Document: {document.column('text')[0].as_py()}")
    console.print()
    console.print(explanation)
    if out is not None:
        explanation.picture(out)
        console.print(f"Similarities drawn to {out}")


@app.command()
def refit(
    path: IndexDir,
    queries: Annotated[
        Path | None,
        typer.Option(help="Training queries of today; without them, tokens that the old map was learned from.", exists=True),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes of training. \\[default: as before]")] = None,
    num_features: Annotated[int | None, typer.Option(help="Width of the learned features. \\[default: as before]")] = None,
    rank: Annotated[int | None, typer.Option(help="Dimension of the graph's vectors, less one. \\[default: as before]")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Train on from the features there are.")] = False,
    memory_limit: MemoryLimit = None,
    device: Device = None,
    num_threads: NumThreads = None,
) -> None:
    """Learn the map anew from the documents of a saved index, in place; searches in other processes go on."""
    changes: dict[str, Any] = {"epochs": epochs, "num_features": num_features, "rank": rank}
    with _opened(path, device) as index:
        start = time.perf_counter()
        index.refit(
            None if queries is None else _read(queries),
            resume=resume,
            memory_limit=memory_limit,
            num_threads=num_threads,
            **{name: value for name, value in changes.items() if value is not None},
        )
        console.print(f"{len(index):,} documents: refit in {time.perf_counter() - start:.1f} s")


@app.command()
def export(
    path: IndexDir,
    out: Annotated[Path, typer.Option(help="Parquet file to write, in place of what is there.")],
    tokens: Annotated[bool, typer.Option(help="With the documents' token embeddings.")] = True,
    vectors: Annotated[bool, typer.Option(help="With the learned vectors, where there are any.")] = True,
    encoder: Annotated[Path | None, typer.Option(help="Also write the learned map to this safetensors file.")] = None,
) -> None:
    """Write ids, learned vectors, tokens and metadata of a saved index to Parquet, for other engines."""
    import pyarrow.parquet as pq

    for written in (out, encoder):
        _check_output(written, path)
    index = lemur_ann.LemurIndex.load(path)
    reader = index.to_arrow(tokens=tokens, vectors=vectors)
    with progress_lines(None) as lines, in_place_of(out) as new, pq.ParquetWriter(new, reader.schema) as file:
        task = lines.task("documents", len(index))
        for batch in reader:
            file.write_batch(batch)
            task.advance(len(batch))
    console.print(f"{len(index):,} documents written to {out}: {', '.join(reader.schema.names)}")
    if encoder is not None:
        index.encoder.save(encoder)
        console.print(f"The learned map, for queries of dim {index.dim}, written to {encoder}")


@app.command()
def report(
    path: IndexDir,
    queries: Annotated[Path, typer.Option(help="Queries the index did not learn from, with a column 'tokens'.", exists=True)],
    out: Annotated[Path, typer.Option(help="HTML file to write, in place of what is there.", dir_okay=False)],
    json: Annotated[Path | None, typer.Option(help="Also write the figures to this JSON file.", dir_okay=False)] = None,
    k: Annotated[int, typer.Option("-k", "--k", help="Recall of the exact top k.")] = 10,
    num_queries: Annotated[int, typer.Option(help="Use this many queries at most, drawn at random.")] = 200,
    relevant: Relevant = None,
    title: Annotated[str | None, typer.Option(help="Of the page. \\[default: the folder's name]")] = None,
    device: Device = None,
    num_threads: Annotated[int, typer.Option(help="Threads of the searches that are timed.")] = 1,
) -> None:
    """Write one page on how an index does: recall and latency, where time goes, what is missed and why, sizes, options."""
    from lemur_ann.report import report as make_report

    for file in (out, json):
        validate.directory(None if file is None else file.parent)  # before the work
        _check_output(file, path, queries)
    index = lemur_ann.LemurIndex.load(path, device=device)
    name = path.resolve().name if title is None else title
    how: dict[str, Any] = {"relevant": relevant, "num_threads": num_threads}
    made = make_report(index, queries, k=k, num_queries=num_queries, title=name, **how)
    made.write(out)
    if json is not None:
        json.write_text(made.json, encoding="utf-8")
    written = " and ".join(str(file) for file in (out, json) if file is not None)
    console.print(f"{made.data['queries']['num_queries']:,} queries over {len(index):,} documents: {written} written")


@app.command()
def warm(
    path: IndexDir,
    parts: Annotated[
        list[str] | None,
        typer.Option(help="A part, as Python's index.stats() names it; may be repeated. \\[default: all but tokens]"),
    ] = None,
) -> None:
    """Read parts of a saved index into the system's memory, so that the next searches need not wait for the disk."""
    start = time.perf_counter()
    num_bytes = lemur_ann.LemurIndex.load(path, verify=False, device="cpu").warm(parts)
    console.print(f"read {_size(num_bytes)} in {time.perf_counter() - start:.1f} s")


@app.command()
def info(path: IndexDir) -> None:
    """What a saved index holds."""
    manifest = storage.read_manifest(path)
    storage.check_files(path, manifest["files"], verify=False)
    table = Table(title=str(path), show_header=False)
    table.add_row("documents", f"{manifest['num_documents']:,}")
    table.add_row("deleted, not yet compacted", f"{manifest['num_rows'] - manifest['num_documents']:,}")
    table.add_row("tokens", f"{manifest['num_tokens']:,} of {manifest['dim']}-d {manifest['token_dtype']}")
    table.add_row("format", f"{manifest['format_version']}, written by lemur_ann {manifest['lemur_ann_version']}")
    training = manifest["training"]
    if training is None:
        table.add_row("learned map", "none: exact search")
    else:
        losses = training["validation_loss"] or training["training_loss"]
        table.add_row("learned map", f"final loss {losses[-1]:.4f}" if losses else "random features")
    for name, value in manifest["options"].items():
        table.add_row(name, str(value))
    for name, file in manifest["files"].items():
        table.add_row(name, _size(file["size_bytes"]))
    console.print(table)
    console.print(f"This machine's instruction sets: {', '.join(lemur_ann.maxsim.supported_isas())}")


@app.command()
def serve(
    indexes: Annotated[list[str], typer.Argument(metavar="DIR...", help="Directories of indexes; NAME=DIR names one.")],
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at.")] = 8080,
    workers: Annotated[int, typer.Option(min=1, help="Processes that read, beside one that writes; 1 does both.")] = 1,
    read_only: Annotated[bool, typer.Option(help="Write nothing, and take no lock.")] = False,
    encoder: Annotated[str | None, typer.Option(help="Of texts: pylate:NAME, onnx:FOLDER, module:function, ...")] = None,
    keys: Annotated[Path | None, typer.Option(help="Who may: a file that 'lemur-ann key' writes.", exists=True)] = None,
    certificate: Annotated[Path | None, typer.Option(help="A PEM file, for TLS.", exists=True)] = None,
    private_key: Annotated[Path | None, typer.Option(help="Its key.", exists=True)] = None,
    insecure: Annotated[bool, typer.Option(help="Listen elsewhere than on loopback without keys or TLS.")] = False,
    num_threads: Annotated[int | None, typer.Option(help="Threads that search. \\[default: all cores]")] = None,
    max_batch: Annotated[int, typer.Option(min=1, help="Searches that a thread answers together.")] = 16,
    max_waiting: Annotated[int, typer.Option(min=1, help="Searches that may wait; others are told to come again.")] = 256,
    timeout_s: Annotated[float, typer.Option(min=0.01, help="Seconds for a search, with its time in the queue.")] = 10.0,
    flight_port: Annotated[
        int | None,
        typer.Option(help="Also listen at this port for Arrow Flight; of several workers one does. \\[default: off]"),
    ] = None,
) -> None:
    """Serve indexes over HTTP, until SIGTERM: http://127.0.0.1:8080/docs has all requests.

    A directory that is not there is made, with an empty index.
    """
    try:
        from lemur_ann.service import hosted, processes
    except ImportError as error:
        raise ImportError(f"{error}; 'serve' needs more packages: pip install 'lemur_ann[serve]'") from error
    limits = hosted.Limits(num_threads=num_threads, max_batch=max_batch, max_waiting=max_waiting, timeout_s=timeout_s)
    settings = processes.Settings(
        processes.named(indexes),
        host=host,
        port=port,
        workers=workers,
        read_only=read_only,
        encoder=encoder,
        keys=keys,
        certificate=certificate,
        private_key=private_key,
        insecure=insecure,
        limits=limits,
        flight_port=flight_port,
    )
    processes.serve(settings)


@app.command()
def mcp(
    indexes: Annotated[list[str], typer.Argument(metavar="DIR...", help="Directories of indexes; NAME=DIR names one.")],
    encoder: Annotated[str, typer.Option(help="Of texts: sentence-transformers:NAME, pylate:NAME, onnx:FOLDER, ...")],
    num_threads: NumThreads = None,
) -> None:
    """Let a language model search indexes: a server of the Model Context Protocol on stdin and stdout.

    It reads, and sees what others change. 'lemur-ann serve' with --encoder has the same at /mcp.
    """
    try:
        from lemur_ann.service import agents, hosted, processes
    except ImportError as error:
        raise ImportError(f"{error}; 'mcp' needs more packages: pip install 'lemur_ann[mcp]'") from error
    agents.run_stdio(processes.named(indexes), encoder, hosted.Limits(num_threads=validate.num_threads(num_threads)))


@app.command()
def key(
    keys: Annotated[Path, typer.Argument(metavar="FILE", help="The file of keys; made where there is none.")],
    name: Annotated[str, typer.Option(help="Of the client, in the log.")],
    index: Annotated[list[str], typer.Option(help="An index that it opens, several times for several; * for all.")],
    access: Annotated[str, typer.Option(help="read, or write, which may do both.")] = "read",
) -> None:
    """Make a key for a client of 'lemur-ann serve', and print it: only its digest is kept."""
    from lemur_ann.service.access import new_key

    if access not in ("read", "write"):
        raise ValueError(f"access is {access!r}, expected 'read' or 'write'")
    print(new_key(keys, name, index, access))  # type: ignore[arg-type]


def _check_output(file: Path | None, *read: Path) -> None:
    """ValueError where a file that is to be written is one that is read, or in a folder that is."""
    for source in read:
        if file is None or not source.exists():
            continue
        if source.resolve() in file.resolve().parents or (file.exists() and file.samefile(source)):
            raise ValueError(f"{file} is read by this command, or in a folder that is; choose another file to write")


def _opened(path: Path, device: str | None = None) -> lemur_ann.LemurIndex:
    """The index that is there, for changes."""
    storage.read_manifest(path)  # or there would be a new one
    return lemur_ann.LemurIndex.open(path, device=device)


def _id(doc_id: str, index: lemur_ann.LemurIndex) -> str | int:
    """An id as the index has ids, strings or integers."""
    if not pa.types.is_integer(index.ids().type):
        return doc_id
    if not doc_id.removeprefix("-").isdecimal():
        raise ValueError(f"the index has ids that are integers, got {doc_id!r}")
    return int(doc_id)


def _is_whole(path: Path, name: str, entry: dict[str, Any]) -> bool:
    """Whether a file has its checksum; prints a line that says so."""
    try:
        storage.check_files(path, {name: entry}, verify=True)
    except CorruptIndex as error:
        console.print(str(error))
        return False
    console.print(f"{name}: {_size(entry['size_bytes'])}, whole")
    return True


def _read(path: Path) -> pa.Table:
    """A Parquet or Arrow IPC file, or a folder of Parquet files."""
    return open_path(path).to_table()


def _numbered(dataset: Any) -> pa.RecordBatchReader:
    """The dataset with its column ``id`` called ``source_id``."""

    def renamed(names: list[str]) -> list[str]:
        return ["source_id" if name == "id" else name for name in names]

    fields = zip(renamed(dataset.schema.names), dataset.schema.types, strict=True)
    batches = record_batches(dataset) or iter(())
    tables = (pa.record_batch(batch.columns, names=renamed(batch.schema.names)) for batch in batches)
    return pa.RecordBatchReader.from_batches(pa.schema(list(fields)), tables)


def _query_names(table: pa.Table) -> list[str]:
    for column in ("text", "id"):
        if column in table.column_names:
            return [f"Query: {value}" for value in table.column(column).to_pylist()]
    return [f"Query {i}" for i in range(len(table))]


def _words(table: pa.Table, row: int, column: str | None) -> Any:
    """The strings of the tokens of a row, from a column."""
    if column is None:
        return None
    if column not in table.column_names:
        raise ValueError(f"--words names no column {column!r}; there are {table.column_names}")
    return table.column(column)[row].as_py()


def _print_hits(index: lemur_ann.LemurIndex, hits: lemur_ann.Hits, title: str) -> None:
    metadata: dict[str, list[Any]] = index.metadata(hits.ids).to_pydict() if len(hits) else {}
    shown = "text" if "text" in metadata else next((name for name in metadata if name != "id"), None)
    table = Table(title=title, title_justify="left", title_style="bold", expand=shown is not None)
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("id", no_wrap=True)
    table.add_column("MaxSim", justify="right", no_wrap=True)
    if shown is not None:
        table.add_column(shown, no_wrap=True, overflow="ellipsis", ratio=1)
    for row, (doc_id, score) in enumerate(hits):
        extra = [] if shown is None else [" ".join(str(metadata[shown][row]).split())]
        table.add_row(str(row + 1), str(doc_id), f"{score:.3f}", *extra)
    console.print(table)


def _print_evaluation(result: Evaluation) -> None:
    values = asdict(result)
    table = Table(title=f"{values['num_queries']} queries over {values['num_documents']:,} documents", show_header=False)
    low, high = result.recall_interval
    table.add_row(f"recall@{result.k} against exact MaxSim", f"{result.recall:.3f} (95% interval {low:.3f} to {high:.3f})")
    widths = f"{result.num_candidates}, {result.ef_search}, {result.shortlist}"
    table.add_row("candidates reranked, ef_search, shortlist", widths)
    table.add_row("threads", str(result.num_threads))
    table.add_row(
        "latency, one query at a time",
        f"mean {result.latency_mean_ms:.2f} ms, p50 {result.latency_p50_ms:.2f} ms, p95 {result.latency_p95_ms:.2f} ms",
    )
    table.add_row("exact MaxSim over everything", f"{result.exact_latency_mean_ms:.2f} ms a query, in one batch")
    console.print(table)
    if result.relevance is not None:
        console.print(str(result.relevance), highlight=False, soft_wrap=True)


def _print_health(result: Health) -> None:
    def interval(fit: MapFit) -> str:
        return "-" if fit.recall_interval is None else "{:.3f} to {:.3f}".format(*fit.recall_interval)

    def decimal(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    parts = {"all": result.documents}
    if result.recent.num_documents:
        parts |= {"older": result.older, "recent": result.recent}
    table = Table("", *parts, title=f"{result.num_queries:,} queries, {result.queries}")
    table.add_row("documents", *(f"{fit.num_documents:,}" for fit in parts.values()))
    table.add_row("rank correlation", *(decimal(fit.correlation) for fit in parts.values()))
    table.add_row(f"in the exact top {result.k}", *(f"{fit.num_wanted:,}" for fit in parts.values()))
    table.add_row("of these found", *(decimal(fit.recall) for fit in parts.values()))
    table.add_row("95% interval", *(interval(fit) for fit in parts.values()))
    table.add_row("beyond the radius", *(f"{fit.num_beyond_radius:,}" for fit in parts.values()))
    console.print(table)
    widths = f"{result.num_candidates}, {result.ef_search}, {result.shortlist}"
    console.print(f"Candidates reranked, ef_search, shortlist: {widths}")
    if result.relevance is not None:
        console.print(str(result.relevance), highlight=False, soft_wrap=True)
    if result.queries == "own sample":
        console.print("The map was learned from these queries' tokens, so the figures are optimistic: give --queries.")
    console.print(f"Verdict: {result.verdict}")


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.1f} MB" if size_bytes >= 100_000 else f"{size_bytes:,} bytes"


def _accept_old_names() -> None:
    """Each command takes the old names of those options that it has."""
    for command in app.registered_commands:
        assert command.callback is not None
        own = {name.replace("_", "-") for name in inspect.signature(command.callback).parameters}
        names = {old: new for old, new in OLD_NAMES.items() if new in own and old not in own}
        command.context_settings = {"token_normalize_func": lambda name, names=names: names.get(name, name)}


_accept_old_names()


def main() -> None:
    """Run the command line; errors of input are one line, not a traceback."""
    try:
        app()
    except (ValueError, TypeError, OSError, KeyError, RuntimeError, ArithmeticError, ImportError) as error:
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        Console(stderr=True, markup=False, highlight=False).print(f"error: {message}", style="red")
        sys.exit(1)


if __name__ == "__main__":
    main()
