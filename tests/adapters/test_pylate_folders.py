"""What PyLate's adapter deletes, and what it leaves. PyLate need not be there: two of its names are stood in for."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import lemur_ann

FORMATS = Path(__file__).parents[1] / "formats"


@pytest.fixture
def adapter(monkeypatch):
    """The class, over stand-ins."""
    for name in ("pylate", "pylate.indexes", "pylate.indexes.base", "pylate.rank"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["pylate.indexes.base"].Base = object
    sys.modules["pylate.rank"].RerankResult = dict
    monkeypatch.delitem(sys.modules, "lemur_ann.adapters.pylate", raising=False)
    yield importlib.import_module("lemur_ann.adapters.pylate").LemurIndex
    sys.modules.pop("lemur_ann.adapters.pylate", None)


@pytest.fixture
def tokens() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(5, 4, 8)).astype(np.float32)


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


MANIFESTS = {
    "of a site": '{"name": "My site", "start_url": "/"}',
    "empty": "",
    "no JSON": "no JSON",
    "a list": "[]",
    "that names what is there": json.dumps({"format": "lemur_ann", "files": {"thesis.txt": {}, "chapters": {}}}),
}


@pytest.mark.parametrize("manifest", MANIFESTS)
@pytest.mark.parametrize("alone", [False, True])
def test_a_folder_of_somebody_else_stays(adapter, tmp_path, manifest, alone):
    folder = tmp_path / "site"
    (folder / "chapters").mkdir(parents=True)
    (folder / "manifest.json").write_text(MANIFESTS[manifest])
    if not alone:
        (folder / "thesis.txt").write_text("ten years of work")
        (folder / "chapters" / "one.txt").write_text("a year of it")
    (tmp_path / "link").symlink_to(folder)
    before = everything(tmp_path)
    for name in ("site", "link"):
        with pytest.raises(FileExistsError):
            adapter(tmp_path, name, override=True)
    assert everything(tmp_path) == before
    assert (folder / "chapters").is_dir()


@pytest.mark.parametrize("beside", ["thesis.txt", "chapters/one.txt", ".git/config", "tokens-1.arrow", "tokens.arrow"])
@pytest.mark.parametrize("broken", [False, True])
def test_an_index_with_something_beside_it_stays(adapter, tmp_path, tokens, beside, broken):
    adapter(tmp_path, "index").add_documents(list("abcde"), tokens).close()
    (tmp_path / "index" / beside).parent.mkdir(exist_ok=True)
    (tmp_path / "index" / beside).write_text("ten years of work")
    if broken:
        (tmp_path / "index" / "manifest.json").write_text("{")
    before = everything(tmp_path)
    with pytest.raises(FileExistsError):
        adapter(tmp_path, "index", override=True)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("name", ["", ".", "..", "../outside", "a/../../outside", "/tmp/outside", "nul\0"])
@pytest.mark.parametrize("override", [False, True])
def test_a_name_stays_within_its_folder(adapter, tmp_path, tokens, name, override):
    lemur_ann.LemurIndex().add(tokens).save(tmp_path / "outside")
    before = everything(tmp_path)
    with pytest.raises(ValueError, match="index_name must name a folder within index_folder"):
        adapter(tmp_path / "indexes", name, override=override)
    assert everything(tmp_path) == before
    assert not (tmp_path / "indexes").exists()


def test_names_with_folders_of_their_own(adapter, tmp_path, tokens):
    """Such as those of models."""
    adapter(tmp_path, "organization/model").add_documents(list("abcde"), tokens).close()
    assert len(adapter(str(tmp_path), "organization/model", override=False).index) == 5
    assert len(adapter(tmp_path, "organization/model", override=True).index) == 0


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_an_index_of_any_format_makes_way(adapter, tmp_path, number):
    shutil.copytree(FORMATS / f"format_{number}" / "index", tmp_path / "old")
    index = adapter(tmp_path, "old", override=True)
    assert len(index.index) == 0
    assert sorted(everything(tmp_path / "old")) == ["manifest.json", "writer.lock"]


def test_a_broken_index_makes_way(adapter, tmp_path, tokens):
    adapter(tmp_path, "index").add_documents(list("abcde"), tokens).close()
    (tmp_path / "index" / "manifest.json").write_text("{")
    index = adapter(tmp_path, "index", override=True).add_documents(["x"], tokens[:1])
    assert index.index.ids().to_pylist() == ["x"]


def test_an_index_that_is_open_elsewhere_stays(adapter, tmp_path, tokens):
    with lemur_ann.LemurIndex.open(tmp_path / "index") as index:
        index.add(tokens)
        with pytest.raises(lemur_ann.IndexLocked):
            adapter(tmp_path, "index", override=True)
        assert len(lemur_ann.LemurIndex.load(tmp_path / "index")) == 5


def test_ids_in_every_form(adapter, tmp_path, tokens):
    index = adapter(tmp_path, "index").add_documents(np.array(list("abcde")), tokens)

    def found(subset) -> list[list[str]]:
        return [sorted(hit["id"] for hit in hits) for hits in index(tokens[:2], k=5, subset=subset)]

    assert found("a") == found(["a"]) == found({"a"}) == found(np.array(["a"])) == found([["a"], {"a"}]) == [["a"], ["a"]]
    assert found([]) == [[], []]
    assert found([["a", "b"], "c"]) == [["a", "b"], ["c"]]
    for wrong in ({"a": 1}, b"a", [True], [[True], ["a"]], [1.5]):
        with pytest.raises((TypeError, ValueError)):
            found(wrong)
    for wrong in ([True] * 5, None, [1.5], b"a"):
        with pytest.raises(TypeError):
            index.remove_documents(wrong)
    for wrong in ("ab", ["a", "b"]):
        with pytest.raises(TypeError, match="documents_ids must be a list of lists of ids"):
            index.get_documents_embeddings(wrong)
    assert len(index.index) == 5
    for some in ("a", {"b"}, np.array(["c"]), iter("d"), ["nobody"], []):
        index.remove_documents(some)
    assert index.index.ids().to_pylist() == ["e"]
