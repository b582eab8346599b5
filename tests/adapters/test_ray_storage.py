"""What a shard keeps under a URL: versions, one writer at a time, and nothing that no version needs."""

from __future__ import annotations

import json
import logging
import shutil
import threading

import numpy as np
import pytest

pytest.importorskip("ray", reason="pip install lemur_ann[ray]")

from lemur_ann.adapters.ray.building import Marks
from lemur_ann.adapters.ray.shard import Shard
from lemur_ann.adapters.ray.storage import Place, Published, described

from lemur_ann import CorruptIndex, IndexLocked, LemurIndex

pytestmark = pytest.mark.filterwarnings("ignore:.*:FutureWarning:ray", "ignore:.*:DeprecationWarning")


@pytest.fixture(params=["s3", "file"])
def place(request, tmp_path) -> Place:
    if request.param == "file":
        return Place((tmp_path / "store").as_uri())
    return Place(*request.getfixturevalue("object_store"))


class Writer:
    """A shard's writer, without its actor."""

    def __init__(self, place, folder):
        self.published = Published(place, folder)
        self.published.claim()
        self.index = LemurIndex.open(folder)
        self.published.publish()

    def add(self, documents, ids):
        self.index.add(documents, ids=ids)
        self.published.publish()


def ids_there(place, folder) -> list:
    Published(place, folder).fetch()
    return LemurIndex.load(folder).ids().to_pylist()


def nodes(folder) -> dict[str, int]:
    return {file.name: file.stat().st_ino for file in folder.iterdir()}


def test_small_files(place):
    assert place.read("one") is None
    assert place.names() == []
    place.write("one", b"1")
    place.write("one", b"2")
    assert place.read("one") == b"2"
    with pytest.raises(FileExistsError):
        place.write("one", b"3", create=True)
    place.write("two", b"3", create=True)
    assert sorted(place.names()) == ["one", "two"]
    (place / "sub").write("three", b"")
    assert (place / "sub").names() == ["three"]
    place.remove(["one", "none"])
    assert "one" not in place.names()


def test_of_many_who_create_a_file_one_does(place):
    place.write("before", b"")
    barrier, won = threading.Barrier(8), []

    def create(number):
        barrier.wait()
        try:
            place.write("lock", str(number).encode() * 1000, create=True)
            won.append(number)
        except FileExistsError:
            pass

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert place.read("lock") == str(won[0]).encode() * 1000


def test_versions(place, tmp_path, make_matrices):
    documents = make_matrices(60)
    writer = Writer(place, tmp_path / "a")
    for i in range(0, 50, 10):
        writer.add(documents[i : i + 10], range(i, i + 10))
    writer.index.delete([3, 4])
    writer.published.publish()
    writer.published.publish()  # nothing is new
    assert ids_there(place, tmp_path / "b") == [i for i in range(50) if i not in (3, 4)]
    # the files of two versions and no others
    names = place.names()
    assert sum(name.startswith("manifest-") for name in names) == 2
    assert len(names) < 12
    # a reader follows, and fetches what is new
    reader = Published(place, tmp_path / "b")
    reader.fetch()
    index = LemurIndex.open(tmp_path / "b", read_only=True)
    before = nodes(tmp_path / "b")
    writer.add(documents[50:51], [50])
    reader.fetch()
    assert index.refresh()
    assert index.ids().to_pylist()[-1] == 50
    assert index.search(documents[50], k=1).ids.tolist() == [50]
    assert any(before.get(name) == node for name, node in nodes(tmp_path / "b").items() if name.startswith("tokens"))
    assert nodes(tmp_path / "b").keys() == nodes(tmp_path / "a").keys() - {"writer.lock"}


def test_who_claims_a_shard_has_it(place, tmp_path, make_matrices):
    documents = make_matrices(6)
    first = Writer(place, tmp_path / "a")
    first.add(documents[:2], [0, 1])
    second = Writer(place, tmp_path / "b")
    first.index.add(documents[2:3], ids=[2])
    with pytest.raises(IndexLocked, match="another writer"):
        first.published.publish()
    second.add(documents[3:4], [3])
    assert ids_there(place, tmp_path / "c") == [0, 1, 3]
    # the first comes back: what was not published is not there
    first.index.close()
    again = Writer(place, tmp_path / "a")
    assert again.index.ids().to_pylist() == [0, 1, 3]
    with pytest.raises(IndexLocked):
        second.add(documents[4:5], [4])
    assert ids_there(place, tmp_path / "c") == [0, 1, 3]


def test_two_who_make_a_shard(place, tmp_path):
    first = Published(place, tmp_path / "a")
    first.claim()
    Writer(place, tmp_path / "b")
    LemurIndex.open(tmp_path / "a").close()
    with pytest.raises(IndexLocked):
        first.publish()


def test_damage_is_told(place, tmp_path, make_matrices):
    writer = Writer(place, tmp_path / "a")
    writer.add(make_matrices(5), range(5))
    shutil.rmtree(tmp_path / "a")
    name = next(name for name in place.names() if "tokens" in name)
    data = place.read(name)
    place.write(name, data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CorruptIndex, match="its checksum does not match"):
        Published(place, tmp_path / "b").fetch()
    place.remove([name])
    with pytest.raises(CorruptIndex, match="lacks a file"):
        Published(place, tmp_path / "b").fetch()
    manifest = sorted(name for name in place.names() if name.startswith("manifest-"))[-1]
    place.write(manifest, b"{}")
    with pytest.raises(CorruptIndex, match="manifest"):
        Published(place, tmp_path / "b").fetch()


def test_a_reader_beside_a_busy_writer(place, tmp_path, make_matrices):
    """Versions come and go while it fetches; what it sees is one of them."""
    documents = make_matrices(40)
    writer, stop, failures = Writer(place, tmp_path / "a"), threading.Event(), []
    writer.add(documents[:1], [0])

    def write():
        try:
            for i in range(1, 40):
                writer.add(documents[i : i + 1], [i])
        except BaseException as error:
            failures.append(error)
        stop.set()

    thread = threading.Thread(target=write)
    thread.start()
    reader = Published(place, tmp_path / "b")
    reader.fetch()
    index = LemurIndex.open(tmp_path / "b", read_only=True)
    seen = [len(index)]
    while not stop.is_set():
        reader.fetch()
        index.refresh()
        assert index.ids().to_pylist() == list(range(len(index)))
        seen.append(len(index))
    thread.join()
    assert not failures
    assert seen == sorted(seen)
    assert len(set(seen)) > 2
    found = index.search(documents[: len(index)], k=1)
    assert np.array_equal([hits.ids[0] for hits in found], np.arange(len(found)))


def test_what_is_not_ours_stays(place, tmp_path, make_matrices):
    """Whoever keeps something of their own under a shard's URL finds it there after every change."""
    foreign = ["notes.txt", "report-000001.arrow", "manifest.json", "tokens-000001.arrow", ".hidden", "manifest-1.json"]
    foreign += ["0123456789abcdef-thesis.pdf", "0123456789abcdef-manifest.json", ".0123456789abcdef-mine.0123456789ab"]
    for name in foreign:
        place.write(name, name.encode())
    documents = make_matrices(8)
    writer = Writer(place, tmp_path / "a")
    place.write("0123456789abcdef-tokens-000001.arrow", b"of a writer that was killed")
    for i in range(8):
        writer.add(documents[i : i + 1], [i])
    assert {name: place.read(name) for name in foreign} == {name: name.encode() for name in foreign}
    names = set(place.names()) - set(foreign)
    assert "0123456789abcdef-tokens-000001.arrow" not in names
    assert sum(name.startswith("manifest-") for name in names) == 2
    assert len(names) < 12


def test_a_cache_keeps_what_is_not_ours(place, tmp_path, make_matrices):
    Writer(place, tmp_path / "a").add(make_matrices(2), [0, 1])
    (tmp_path / "b").mkdir()
    for name in ("notes.txt", "tokens-000099.arrow"):
        (tmp_path / "b" / name).write_text(name)
    assert ids_there(place, tmp_path / "b") == [0, 1]
    assert (tmp_path / "b" / "notes.txt").read_text() == "notes.txt"
    assert not (tmp_path / "b" / "tokens-000099.arrow").exists()


@pytest.mark.parametrize(
    "name", ["..", "", ".", "../outside", "/etc/outside", "writer.lock", "manifest.json", "a\0b", "x" * 2000]
)
@pytest.mark.parametrize("where", ["name", "key"])
def test_names_that_lead_elsewhere_are_refused(tmp_path, make_matrices, name, where):
    place = Place((tmp_path / "store").as_uri())
    Writer(place, tmp_path / "a").add(make_matrices(2), [0, 1])
    last = sorted(found for found in place.names() if found.startswith("manifest-"))[-1]
    body = json.loads(place.read(last))
    manifest = json.loads(body["manifest"])
    tokens = next(found for found in manifest["files"] if found.startswith("tokens"))
    if where == "key":
        body["keys"][tokens] = name
    else:
        manifest["files"][name], body["keys"][name] = manifest["files"].pop(tokens), body["keys"].pop(tokens)
    body["manifest"] = json.dumps(manifest)
    place.write(last, json.dumps(body).encode())
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CorruptIndex, match="manifest that cannot be read"):
        Published(place, tmp_path / "b").fetch()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "shards",
    [
        "abc",
        [],
        ["../outside"],
        ["shard-000", "shard-000"],
        ["shard-000", ".."],
        [0],
        ["/etc"],
        {"shard-000": 1},
        [["shard-000"]],
    ],
)
def test_shards_that_lead_elsewhere_are_refused(tmp_path, shards):
    place = Place(tmp_path / "index")
    described(place, 2, {})
    known = json.loads(place.read("shards.json"))
    assert described(place, None, {}) == known
    place.write("shards.json", json.dumps({**known, "shards": shards}).encode())
    with pytest.raises(CorruptIndex, match=r"shards.json cannot be read"):
        described(place, None, {})


@pytest.mark.parametrize(
    "data",
    [
        b"{",
        b"[]",
        b'{"partitions": [1]}',
        b'{"partitions": {"a": {}}}',
        b'{"partitions": {"a": 5}}',
        b'{"partitions": {"a": {"num_rows": "9", "first_id": 0, "state": "done"}}}',
    ],
)
def test_marks_that_were_altered_are_told(tmp_path, data):
    place = Place(tmp_path)
    place.write("build.json", data)
    with pytest.raises(CorruptIndex, match=r"build.json cannot be read"):
        Marks(place, resume=True)
    Marks(place, resume=False).write()
    Marks(place, resume=True)


def test_only_what_was_staged_is_forgotten(tmp_path):
    shard = Shard(Place(tmp_path), "shard-000", 0, {}, None, 1, 1.0)
    staging, change = tmp_path / "shard-000.staging", "0" * 32
    for folder in (change, "1" * 32, "photos"):
        (staging / folder).mkdir(parents=True)
        (staging / folder / "0.arrow").write_bytes(b"")
    (staging / change / "mine.txt").write_text("mine")
    shard.discard("../photos")
    shard.discard(None)
    assert sorted(str(path.relative_to(staging)) for path in staging.rglob("*")) == [
        change,
        f"{change}/mine.txt",
        "photos",
        "photos/0.arrow",
    ]
    (staging / change / "mine.txt").unlink()
    (staging / "photos" / "0.arrow").unlink()
    (staging / "photos").rmdir()
    shard.discard(change)
    assert not staging.exists()


def test_graphs_of_other_libraries_on_other_machines(tmp_path, monkeypatch, caplog):
    """A machine has a key of its own: what its seal does not fit is read as it is from object storage alone, or where asked."""
    pytest.importorskip("faiss")
    random = np.random.default_rng(0)
    options = {"candidates": "faiss", "num_features": 32, "rank": 15, "epochs": 0, "num_sample_tokens": 100, "M": 6}
    documents = [random.normal(size=(3, 16)).astype(np.float32) for _ in range(1200)]
    path, stored = tmp_path / "index", Place(f"memory://{tmp_path.name}")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "home"))
    LemurIndex(**options).fit(documents, documents[:30], num_threads=1).save(path / "shard-000")
    shutil.copytree(path / "shard-000", tmp_path / "cache")
    Published(stored / "shard-000", tmp_path / "cache").publish()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another"))
    for place, trusted, is_read in [
        (Place(path), None, False),
        (Place(path), True, True),
        (Place(path.as_uri()), None, None),
        (stored, None, True),
        (stored, False, False),
    ]:
        for replica in (0, 1):
            shard = Shard(place, "shard-000", replica, {}, str(tmp_path / "nodes"), 1, 1.0, trusted)
            if is_read is None:
                assert not shard._trusted
                continue
            caplog.clear()
            with caplog.at_level(logging.WARNING, "lemur_ann"):
                assert shard.size() == 1200
            assert ("made anew" in caplog.text) is not is_read
            shard.close()
