"""The command line as a user runs it, in processes of its own."""

from __future__ import annotations

import inspect
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import typer

from lemur_ann import LemurEncoder, LemurIndex, cli, plan
from lemur_ann.demo import demo_encoder, fit_demo_index
from lemur_ann.options import Options
from lemur_ann.report import report
from lemur_ann.service.access import new_key
from lemur_ann.service.hosted import Limits
from lemur_ann.service.processes import Settings

SMALL = ["--epochs", 0, "--num-features", 256, "--rank", 63, "--num-candidates", 200]


def lemur_ann(*arguments, cwd):
    script = Path(sys.executable).parent / "lemur-ann"
    return subprocess.run([str(script), *map(str, arguments)], capture_output=True, text=True, check=False, cwd=cwd)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, demo_data):
    folder = tmp_path_factory.mktemp("cli")
    pq.write_table(demo_data.documents, folder / "docs.parquet")
    pq.write_table(demo_data.training_queries, folder / "training.parquet")
    pq.write_table(demo_data.queries, folder / "queries.parquet")
    result = lemur_ann("build", "docs.parquet", "--queries", "training.parquet", "--out", "index", *SMALL, cwd=folder)
    assert result.returncode == 0, result.stderr
    assert "600 documents, 26,730 tokens" in result.stdout
    return folder


@pytest.mark.slow
def test_demo(tmp_path):
    result = lemur_ann("demo", "--epochs", 1, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "recall@10 against exact MaxSim" in result.stdout
    assert "Query: " in result.stdout
    assert not list(tmp_path.iterdir())


def test_search(workplace, demo_data):
    result = lemur_ann("search", "index", "queries.parquet", "-k", 3, "--limit", 2, cwd=workplace)
    assert result.returncode == 0, result.stderr
    for text in demo_data.queries.column("text").to_pylist()[:2]:
        assert f"Query: {text}"[:60] in result.stdout
    result = lemur_ann("search", "index", "queries.parquet", "-k", 3, "--out", "hits.parquet", cwd=workplace)
    hits = pq.read_table(workplace / "hits.parquet")
    assert len(hits) == 3 * len(demo_data.queries)
    assert hits.column_names == ["query", "rank", "id", "score"]
    # many summaries find first the description they summarise, of 600
    first = hits.to_pylist()[::3]
    wanted = demo_data.queries.column("id").to_pylist()
    assert sum(row["id"] == doc_id for row, doc_id in zip(first, wanted, strict=True)) > len(wanted) / 4


def test_evaluate_and_info(workplace):
    result = lemur_ann("evaluate", "index", "queries.parquet", "--limit", 10, cwd=workplace)
    assert result.returncode == 0, result.stderr
    assert "recall@10 against exact MaxSim" in result.stdout
    result = lemur_ann("info", "index", cwd=workplace)
    assert result.returncode == 0, result.stderr
    for expected in ("600", "26,730 of 128-d float16", "random features", "vectors-", "num_candidates"):
        assert expected in result.stdout


@pytest.mark.slow
def test_export(workplace):
    result = lemur_ann("export", "index", "--out", "out.parquet", "--encoder", "map.safetensors", cwd=workplace)
    assert result.returncode == 0, result.stderr
    assert "600 documents written to out.parquet: id, vector, tokens" in result.stdout
    table = pq.read_table(workplace / "out.parquet")
    index = LemurIndex.load(workplace / "index")
    assert table.column("id").to_pylist() == list(index)
    encoder = LemurEncoder.load(workplace / "map.safetensors")
    vectors = np.array(table.column("vector").to_pylist(), np.float32)
    np.testing.assert_allclose(encoder.encode_documents(table), vectors, atol=1e-4 * encoder.radius)
    lemur_ann("export", "index", "--out", "out.parquet", "--no-tokens", "--no-vectors", cwd=workplace)
    assert {"tokens", "vector"}.isdisjoint(pq.read_schema(workplace / "out.parquet").names)


@pytest.mark.slow
def test_tune(workplace):
    (tokens,) = (workplace / "index").glob("tokens-*")
    before = tokens.stat().st_mtime_ns
    result = lemur_ann("tune", "index", "queries.parquet", "--target-recall", 0.8, "-k", 5, cwd=workplace)
    assert result.returncode == 0, result.stderr
    assert "recall@5 " in result.stdout
    (tuned,) = LemurIndex.load(workplace / "index").tuned
    assert f"num_candidates {tuned.num_candidates}, ef_search {tuned.ef_search}, shortlist {tuned.shortlist}" in result.stdout
    assert tokens.stat().st_mtime_ns == before, "only the manifest changes"
    result = lemur_ann("evaluate", "index", "queries.parquet", "-k", 5, "--target-recall", 0.8, cwd=workplace)
    assert result.returncode == 0, result.stderr
    assert f"{max(tuned.num_candidates, 5)}, {max(tuned.ef_search, tuned.num_candidates)}" in result.stdout
    result = lemur_ann("search", "index", "queries.parquet", "--target-recall", 0.99, cwd=workplace)
    assert result.returncode == 1
    assert "not tuned for target_recall 0.99 at k 10, but for: 0.8 at k 5" in result.stderr.replace("\n", "")


@pytest.mark.slow
def test_health_and_refit(workplace):
    result = lemur_ann("health", "index", cwd=workplace)
    assert result.returncode == 0, result.stderr
    for expected in ("own sample", "figures are optimistic", "rank correlation", "95% interval", "Verdict: the map fits"):
        assert expected in result.stdout
    index = LemurIndex.load(workplace / "index")
    index.add(pq.read_table(workplace / "docs.parquet")[:30].drop_columns(["id"]).append_column("id", [[*map(str, range(30))]]))
    index.save(workplace / "grown")
    arguments = ["health", "grown", "--queries", "queries.parquet", "-k", 5, "--limit", 20, "--num-candidates", 100]
    result = lemur_ann(*arguments, cwd=workplace)
    assert result.returncode == 0, result.stderr
    widths = "ef_search, shortlist: 100, 600, 2000"
    for expected in ("20 queries, given", "older", "recent", "in the exact top 5", widths, "Verdict: "):
        assert expected in result.stdout
    result = lemur_ann("refit", "grown", "--queries", "training.parquet", "--rank", 31, cwd=workplace)
    assert result.returncode == 0, result.stderr
    assert "630 documents: refit" in result.stdout
    loaded = LemurIndex.load(workplace / "grown")
    assert (len(loaded), loaded.options.rank, loaded.options.epochs) == (630, 31, 0)
    result = lemur_ann(*arguments, cwd=workplace)
    assert result.returncode == 0, result.stderr
    assert "recent" not in result.stdout
    assert lemur_ann("refit", "grown", "--rank", 15, cwd=workplace).returncode == 0  # from the tokens it kept
    assert LemurIndex.load(workplace / "grown").encoder.dim == 16


@pytest.mark.slow
def test_explain(workplace, demo_data):
    pytest.importorskip("matplotlib", reason="pip install lemur_ann[plots]")
    query, doc_id = (demo_data.queries[name][3].as_py() for name in ("text", "id"))
    asked = ["explain", "index", "--queries", "queries.parquet", "--row", 3]
    result = lemur_ann(*asked, "--id", doc_id, "--out", "picture.png", cwd=workplace)
    assert result.returncode == 0, result.stderr
    shown = " ".join(result.stdout.split())
    for expected in (
        f"Query: {query}",
        "Document: The COLLADA",
        f"'{doc_id}': score 27.457",
        "learned estimate",
        "rank 1 of 600",
    ):
        assert expected in shown
    assert len(result.stdout[result.stdout.index("query token") :].splitlines()) == 1 + 32 + 1
    assert (workplace / "picture.png").read_bytes().startswith(b"\x89PNG")
    far = LemurIndex.load(workplace / "index").search(demo_data.queries[3:4], k=600)[0].ids[-1]
    result = lemur_ann(*asked, "--id", far, "--miss", "-k", 5, "--num-candidates", 7, cwd=workplace)
    assert result.returncode == 0, result.stderr
    assert f"'{far}' is not among the 5 best: its exact score" in result.stdout
    assert "has rank 600 of 600" in result.stdout
    assert "k=600 finds it." in result.stdout


@pytest.mark.slow
def test_explain_names_tokens_by_a_column(workplace, demo_data):
    encoder = demo_encoder(demo_data)
    for name, table, words in (
        ("docs", demo_data.documents[:50], encoder.document_words),
        ("queries", demo_data.queries, encoder.query_words),
    ):
        pq.write_table(table.append_column("words", [words(table["text"].to_pylist())]), workplace / f"named_{name}.parquet")
    build = ["build", "named_docs.parquet", "--queries", "training.parquet", "--out", "named", *SMALL]
    assert lemur_ann(*build, cwd=workplace).returncode == 0
    doc_id = demo_data.documents["id"][0].as_py()
    asked = ["explain", "named", "--queries", "named_queries.parquet", "--id", doc_id]
    result = lemur_ann(*asked, "--words", "words", cwd=workplace)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("[MASK]") > 1
    assert "«" in result.stdout
    assert "«" not in lemur_ann(*asked, cwd=workplace).stdout
    result = lemur_ann(*asked, "--words", "tokens_of_it", cwd=workplace)
    assert "--words names no column 'tokens_of_it'; there are" in " ".join(result.stderr.split())


@pytest.mark.slow
def test_number_ids(workplace, demo_data):
    table = demo_data.documents[:5]
    doubled = table.set_column(0, "id", [["same"] * 5])
    pq.write_table(doubled, workplace / "doubled.parquet")
    refused = lemur_ann("build", "doubled.parquet", "--out", "numbered", *SMALL, cwd=workplace)
    assert refused.returncode == 1
    assert "id 'same' is repeated in row 1" in refused.stderr
    assert "--number-ids" in refused.stderr
    build = ["build", "doubled.parquet", "--queries", "training.parquet", "--out", "numbered", *SMALL, "--number-ids"]
    assert lemur_ann(*build, cwd=workplace).returncode == 0
    assert json.loads((workplace / "numbered/manifest.json").read_text())["num_documents"] == 5


@pytest.mark.slow
def test_texts_are_shown_as_they_are(workplace, demo_data):
    """Square brackets are markup to the library that draws the tables."""
    table = demo_data.documents[:4]
    texts = ["see [/usr/bin] and array[i]"] * 4
    pq.write_table(table.set_column(1, "text", [texts]), workplace / "brackets.parquet")
    build = ["build", "brackets.parquet", "--queries", "training.parquet", "--out", "brackets", *SMALL]
    assert lemur_ann(*build, cwd=workplace).returncode == 0
    result = lemur_ann("search", "brackets", "queries.parquet", "--limit", 1, cwd=workplace)
    assert "see [/usr/bin] and array[i]" in result.stdout, result.stderr


@pytest.mark.slow
def test_warm(workplace):
    sizes = {name: part.mapped for name, part in LemurIndex.load(workplace / "index").stats().parts.items()}
    result = lemur_ann("warm", "index", "--parts", "tokens", "--parts", "token codes", cwd=workplace)
    if sys.platform == "linux":
        expected = f"read {(sizes['tokens'] + sizes['token codes']) / 1e6:,.1f} MB in "
        assert result.stdout.startswith(expected), result.stdout + result.stderr
    result = lemur_ann("warm", "index", "--parts", "graph", cwd=workplace)
    assert result.returncode == 1
    assert "parts are some of 'tokens', 'token codes', 'candidates'" in " ".join(result.stderr.split())


@pytest.mark.slow
def test_a_life(workplace):
    """Adding, replacing, deleting, compacting, verifying, each a command of its own."""
    shutil.copytree(workplace / "index", workplace / "living")
    docs = pq.read_table(workplace / "docs.parquet")
    names = docs.column("id").to_pylist()
    pq.write_table(docs[:3], workplace / "some.parquet")

    def run(*arguments):
        result = lemur_ann(*arguments, cwd=workplace)
        assert result.returncode == 0, result.stderr
        return result.stdout

    assert "2 documents deleted, 598 left" in run("delete", "living", names[0], names[5])
    error = lemur_ann("add", "living", "some.parquet", cwd=workplace).stderr
    assert "names a document of the index already" in " ".join(error.split())
    assert "598 documents before, 599 now" in run("add", "living", "some.parquet", "--upsert")
    assert "3 documents deleted, 596 left" in run("delete", "living", "--ids-from", "some.parquet")
    assert "deleted, not yet compacted" in run("info", "living")
    assert "596 documents, and none deleted" in run("compact", "living")
    output = run("verify", "living")
    assert "596 documents" in output
    assert output.count("whole") == len(list((workplace / "living").iterdir())) - 2  # but for the manifest and the lock
    (file,) = (workplace / "living").glob("tokens-*")
    body = bytearray(file.read_bytes())
    body[-200] ^= 1
    file.write_bytes(body)
    result = lemur_ann("verify", "living", cwd=workplace)
    assert result.returncode == 1
    assert f"{file.name} was altered" in result.stdout.replace("\n", " ")
    assert "files of living are damaged" in " ".join(result.stderr.split())


COMMANDS = typer.main.get_command(cli.app).commands
# What a command stands for, and the options that it alone has: files, and what is printed.
STANDS_FOR = {
    "add": ([LemurIndex.open, LemurIndex.add, LemurIndex.upsert], {"upsert"}),
    "build": ([LemurIndex, LemurIndex.fit, LemurIndex.save], {"out", "number_ids", "replace"}),
    "compact": ([LemurIndex.open, LemurIndex.compact], set()),
    "delete": ([LemurIndex.open, LemurIndex.delete], {"ids_from"}),
    "demo": ([fit_demo_index], {"out"}),
    "evaluate": ([LemurIndex.load, LemurIndex.evaluate], {"num_queries", "run"}),
    "explain": ([LemurIndex.load, LemurIndex.explain, LemurIndex.explain_miss], {"queries", "row", "miss", "words", "out"}),
    "export": ([LemurIndex.load, LemurIndex.to_arrow], {"out", "encoder"}),
    "health": ([LemurIndex.load, LemurIndex.health], set()),
    "info": ([], set()),
    "key": ([new_key], {"index"}),
    "mcp": ([], {"encoder", "num_threads"}),
    "plan": ([plan], set()),
    "recode": ([LemurIndex.open, LemurIndex.recode], set()),
    "refit": ([LemurIndex.open, LemurIndex.refit], set()),
    "report": ([LemurIndex.load, report], {"out", "json"}),
    "search": ([LemurIndex.load, LemurIndex.search], {"limit", "out"}),
    "serve": ([Settings, Limits], set()),
    "tune": ([LemurIndex.open, LemurIndex.tune], {"num_queries", "codes"}),
    "warm": ([LemurIndex.load, LemurIndex.warm], set()),
    "verify": ([LemurIndex.load, LemurIndex.check], set()),
}
# Wherever Python takes one of these, so does the command.
EVERYWHERE = {"k", "num_candidates", "ef_search", "target_recall", "exact", "num_queries", "num_threads", "memory_limit"}


def test_every_command_is_compared_with_python():
    assert STANDS_FOR.keys() == COMMANDS.keys()


@pytest.mark.parametrize("command", STANDS_FOR)
def test_options_are_called_as_in_python(command):
    functions, alone = STANDS_FOR[command]
    arguments = {name: value for function in functions for name, value in inspect.signature(function).parameters.items()}
    takes_options = any(value.kind is value.VAR_KEYWORD for value in arguments.values())
    of_options = inspect.signature(Options).parameters if takes_options else {}
    given = {"M" if param.name == "m" else param.name: param for param in COMMANDS[command].params}
    options = {name: param for name, param in given.items() if any(opt.startswith("-") for opt in param.opts)}
    assert options.keys() - arguments.keys() - of_options.keys() == alone
    assert arguments.keys() & EVERYWHERE <= options.keys()
    for name, param in options.items():
        assert "--" + name.replace("_", "-") in param.opts
        if name in arguments and param.default is not None and not param.required:
            assert param.default == arguments[name].default, name


def test_help_names_every_kind_of_candidates_and_defaults(tmp_path):
    shown = " ".join(lemur_ann("build", "--help", cwd=tmp_path).stdout.replace("│", " ").split())
    assert "hnsw, exact, faiss, usearch, svs" in shown
    assert "Threads to use. [default: all cores]" in shown


def test_old_names_of_options_are_taken_still(workplace, capsys):
    root = typer.main.get_command(cli.app)

    def parsed(command, *arguments):
        with root.make_context("lemur-ann", [command]) as parent:
            return COMMANDS[command].make_context(command, list(arguments), parent=parent).params

    index, queries = str(workplace / "index"), str(workplace / "queries.parquet")
    for command in ("evaluate", "tune"):
        assert parsed(command, index, queries, "--limit", "3", "--threads", "2")["num_queries"] == 3
    assert parsed("health", index, "--limit", "3")["num_queries"] == 3
    asked = parsed("search", index, queries, "--limit", "3", "--threads", "2", "--ef-search", "40")
    assert (asked["limit"], asked["num_threads"], asked["ef_search"]) == (3, 2, 40)
    assert parsed("explain", index, "--queries", queries, "--id", "x")["doc_id"] == "x"
    for command in ("search", "evaluate", "explain"):
        assert (
            "--threads" not in COMMANDS[command].get_help(root.make_context("lemur-ann", [command])) + capsys.readouterr().out
        )


@pytest.mark.slow
def test_search_takes_ef_search(workplace):
    found = {}
    for width in (12, 600):
        asked = ["search", "index", "queries.parquet", "-k", 10, "--num-candidates", 12, "--ef-search", width]
        result = lemur_ann(*asked, "--num-threads", 1, "--out", f"width{width}.parquet", cwd=workplace)
        assert result.returncode == 0, result.stderr
        hits = LemurIndex.load(workplace / "index").search(
            pq.read_table(workplace / "queries.parquet"), num_candidates=12, ef_search=width
        )
        found[width] = pq.read_table(workplace / f"width{width}.parquet")["id"].to_pylist()
        assert found[width] == [doc_id for one in hits for doc_id in one.ids]


def test_help_teaches(tmp_path):
    result = lemur_ann("--help", cwd=tmp_path)
    assert result.returncode == 0
    commands = (
        "demo",
        "build",
        "search",
        "evaluate",
        "tune",
        "health",
        "explain",
        "refit",
        "add",
        "delete",
        "compact",
        "verify",
        "warm",
        "info",
    )
    for command in (*commands, "list<fixed_size_list<float32 or float16>[dim]>"):
        assert command in " ".join(result.stdout.split())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "nowhere"], "no index at nowhere"),
        (["compact", "nowhere"], "no index at nowhere"),
        (["delete", "index"], "delete takes ids or --ids-from"),
        (["delete", "index", "nobody"], "no document has the id 'nobody'"),
        (["info", "."], "has no manifest.json"),
        (["search", "index", "queries.parquet", "-k", "0"], "k must be at least 1, got 0"),
        (["health", "index", "--queries", "queries.parquet", "-k", "0"], "k must be at least 1, got 0"),
        (["refit", "index", "--rank", "0"], "rank must be at least 1, got 0"),
        (["explain", "index", "--queries", "queries.parquet", "--id", "nobody"], "no document has the id 'nobody'"),
        (["explain", "index", "--queries", "queries.parquet", "--id", "7", "--miss"], "no document has the id '7'"),
        (["explain", "index", "--queries", "queries.parquet", "--id", "x", "--row", "50"], "--row must be from 0 to 49"),
        (["explain", "index", "--queries", "queries.parquet", "--id", "x", "--ef-search", "9"], "go with --miss"),
        (["explain", "index", "--queries", "queries.parquet", "--id", "x", "--miss", "--out", "x.png"], "without --miss"),
        (["build", "index/manifest.json", "--out", "x"], "cannot be read as parquet"),
        (["build", "docs.parquet", "--out", "index"], "index holds an index already; --replace puts the new one in its place"),
        (["build", "docs.parquet", "--out", "x", "--candidates", "magic"], "candidates must be one of hnsw, exact"),
        (["build", "docs.parquet", "--queries", "training.parquet", "--out", ".", "--epochs", "0"], "is not a lemur_ann index"),
    ],
)
def test_errors_are_one_line(workplace, arguments, message):
    result = lemur_ann(*arguments, cwd=workplace)
    assert result.returncode == 1
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


def test_version(tmp_path):
    import lemur_ann as package

    assert lemur_ann("--version", cwd=tmp_path).stdout.strip() == package.__version__


def contents(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_a_command_reads_it_does_not_write(workplace, tmp_path, monkeypatch):
    """Neither queries, nor a folder of them, nor the index: a name typed twice must not cost a file."""
    for name in ("index", "queries.parquet"):
        (shutil.copytree if name == "index" else shutil.copy)(workplace / name, tmp_path / name)
    (tmp_path / "folder").mkdir()
    shutil.copy(workplace / "queries.parquet", tmp_path / "folder" / "part.parquet")
    (tmp_path / "link.parquet").symlink_to("queries.parquet")
    before = contents(tmp_path)
    monkeypatch.chdir(tmp_path)
    index, queries = Path("index"), Path("queries.parquet")
    manifest, new = Path("index/manifest.json"), Path("index/new.parquet")
    for call in (
        *(lambda out=out: cli.search(index, queries, out=out) for out in (queries, Path("link.parquet"), manifest, new)),
        lambda: cli.search(index, Path("folder"), out=Path("folder/hits.parquet")),
        lambda: cli.evaluate(index, queries, run=queries),
        lambda: cli.explain(index, queries, "a", out=queries),
        lambda: cli.export(index, out=manifest),
        lambda: cli.export(index, out=tmp_path / "out.parquet", encoder=tmp_path / "index" / "map.safetensors"),
        lambda: cli.report(index, queries, out=queries),
        lambda: cli.report(index, queries, out=tmp_path / "page.html", json=tmp_path / "index" / "manifest.json"),
    ):
        with pytest.raises(ValueError, match="is read by this command, or in a folder that is; choose another file to write"):
            call()
    assert contents(tmp_path) == before


def test_a_file_that_fails_leaves_the_one_before(workplace, tmp_path, monkeypatch):
    (tmp_path / "out.parquet").write_bytes(b"the one before")
    (tmp_path / "link.parquet").symlink_to("out.parquet")

    def full(self, batch):
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(pq.ParquetWriter, "write_batch", full)
        with pytest.raises(OSError, match="no space left"):
            cli.export(workplace / "index", out=tmp_path / "out.parquet")
    assert contents(tmp_path) == dict.fromkeys(("out.parquet", "link.parquet"), b"the one before")
    cli.export(workplace / "index", out=tmp_path / "link.parquet")
    assert len(pq.read_table(tmp_path / "out.parquet")) == 600
    assert (tmp_path / "link.parquet").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.parquet", "out.parquet"]
    if sys.platform == "linux":
        cli.export(workplace / "index", out=Path("/dev/null"))
        assert Path("/dev/null").is_char_device()
