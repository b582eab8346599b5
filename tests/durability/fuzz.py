"""Tries damaged index files, odd Arrow data and random filters, one after the other; test_fuzz.py runs it as a process.

python tests/durability/fuzz.py make FOLDER                    makes the indexes that are damaged
python tests/durability/fuzz.py KIND FOLDER FIRST COUNT        tries so many, with the seeds from FIRST on

Each line that it prints is JSON: what is about to be tried, then what came of it. So whoever reads along knows what ended the
process where something does.
"""

from __future__ import annotations

import errno
import faulthandler
import importlib.util
import itertools
import json
import operator
import os
import resource
import shutil
import sys
import tempfile
import traceback
import zlib
from pathlib import Path

import hnswlib  # noqa: F401 (before memory is limited)
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from lemur_ann import CorruptIndex, LemurEncoder, LemurIndex, arrays, candidates
from lemur_ann.candidates.kinds import LIBRARIES
from lemur_ann.saved import storage

SECONDS = 20  # that one try may take, far more than it does
MEMORY = 6 * 2**30  # of addresses, beyond what the process has when it starts
MEMORY_OF_STRANGERS = 2**30  # and for folders that a stranger made, whose files have less than one MB
FORMATS = Path(__file__).parent.parent / "formats"
DIM = 16
INTEGERS = [0, -1, 1, 2, 255, 65_536, 2**31 - 1, 2**31, -(2**31), 2**32 - 1, 2**62, 2**63 - 1, -(2**63)]
VALUES = [None, True, -1, 0, 1, 7, 2**31, 2**63, 10**30, 10**400, 1.5, -0.5, float("nan"), float("inf"), "", "x", "cpu", "../x"]
VALUES += [[], {}, [[]], [1], {"x": 1}]


class Wrong(Exception):
    """Something that must not be."""


def choice(random, items):
    items = list(items)
    return items[int(random.integers(len(items)))]


def matrices(random, count, dim=DIM, dtype=np.float32, low=1, high=6):
    """Tokens that float16 holds exactly."""
    shapes = [(int(random.integers(low, high + 1)), dim) for _ in range(count)]
    return [(random.integers(-64, 65, shape) / 64).astype(dtype) for shape in shapes]


# The indexes


def make(folder):
    random = np.random.default_rng(1)
    candidates.MIN_SCANNED = 50  # so that there is a graph
    settings = {"num_features": 32, "rank": 15, "num_candidates": 20, "ef_search": 30, "M": 6, "num_sample_tokens": 100}
    queries = matrices(random, 40)

    def table(count, first=0, dtype=np.float32):
        documents = matrices(random, count, dtype=dtype)
        rows = range(first, first + count)
        metadata = {"year": [1990 + i % 40 for i in rows], "title": [None if i % 7 == 0 else f"title {i}" for i in rows]}
        metadata["tags"] = [["a", "b", "c"][: i % 4] for i in rows]
        return pa.table({"id": [f"doc-{i}" for i in rows], "tokens": token_array(documents), **metadata})

    index = LemurIndex(epochs=1, **settings).fit(table(300), queries, num_threads=1)
    index.tune(queries, 0.9, k=5, num_threads=1)
    index.delete([f"doc-{i}" for i in range(0, 60, 3)])
    index.save(folder / "graph")
    index = LemurIndex(epochs=0, candidates="exact", token_codes=None, **settings)
    index.fit(matrices(random, 60, dtype=np.float16), queries, num_threads=1).save(folder / "scan")
    index = LemurIndex.open(folder / "scan")  # several files of each kind
    for _ in range(3):
        index.add(matrices(random, 5))
    index.delete([3, 4, 62])
    index.close()
    with LemurIndex.open(folder / "grown", epochs=0, **settings) as index:
        index.fit(table(100), queries, num_threads=1)
        index.add(table(20, first=100))
    index = LemurIndex(epochs=0, **settings)  # of copies, which the graph lists beside its links
    documents = matrices(random, 70)
    index.fit([documents[i % 70] for i in range(200)], queries, num_threads=1).save(folder / "copies")
    links = next((folder / "copies").glob("links-*.safetensors"))
    if "next_equal" not in arrays.map_arrays(links):
        raise Wrong("an index of copies that lists none")
    with LemurIndex.open(folder / "looked", epochs=0, **settings | {"rank": 7}) as index:  # with a second look
        index.fit(table(520), queries, num_threads=1)
        index.refit(queries, rank=15, num_threads=1)
        index.add(table(20, first=520))
    manifest = json.loads((folder / "looked" / "manifest.json").read_text())
    if len(manifest["centroids"]) < 2 or "options_given" not in manifest:
        raise Wrong("an index with a second look that has no files of it, or options that nobody gave")
    LemurIndex().add(table(10)).save(folder / "unfitted")
    LemurIndex().save(folder / "empty")
    for name, (module, _) in LIBRARIES.items():
        if importlib.util.find_spec(module) is not None:
            index = LemurIndex(epochs=0, candidates=name, **settings)
            index.fit(table(120), queries, num_threads=1).save(folder / name)
    for path in FORMATS.glob("format_*"):
        shutil.copytree(path / "index", folder / path.name)


def token_array(documents, outer="list", inner="fixed", dtype=np.float32):
    """Documents as an Arrow array of lists, of a kind outside and of a kind inside."""
    dim = documents[0].shape[1] if documents else DIM
    flat = pa.array(np.concatenate([np.empty((0, dim)), *documents]).astype(dtype).reshape(-1))
    return lists(outer, lists(inner, flat, [dim] * sum(map(len, documents))), [len(matrix) for matrix in documents])


def lists(kind, values, lengths):
    offsets = np.cumsum([0, *lengths])
    if kind == "fixed":
        if len(set(lengths)) > 1 or 0 in lengths:
            return lists("list", values, lengths)
        size = lengths[0] if lengths else 1
        return pa.FixedSizeListArray.from_arrays(values, size)
    small, large = pa.array(offsets, pa.int32()), pa.array(offsets, pa.int64())
    if kind == "list":
        return pa.ListArray.from_arrays(small, values)
    if kind == "large_list":
        return pa.LargeListArray.from_arrays(large, values)
    if kind == "list_view":
        return pa.ListViewArray.from_arrays(small[:-1], pa.array(lengths, pa.int32()), values)
    return pa.LargeListViewArray.from_arrays(large[:-1], pa.array(lengths, pa.int64()), values)


# Damage


def damaged(data, random):
    """The bytes with something done to them, and what."""
    data = bytearray(data)
    size = len(data)

    def place(room=1):
        end = max(size - room, 0)
        low, high = choice(random, [(0, end), (0, end), (0, min(512, end)), (max(end - 1500, 0), end)])
        return int(random.integers(low, high + 1))

    what = choice(random, ["flip", "flip", "truncate", "extend", "zero", "swap", "integer", "integer", "integer", "float"])
    if size == 0:
        what = "extend"
    if what == "flip":
        for _ in range(int(random.integers(1, 9))):
            data[place()] ^= 1 << int(random.integers(8))
    elif what == "truncate":
        del data[place() :]
    elif what == "extend":
        data += random.bytes(int(random.integers(1, 200)))
    elif what == "zero":
        begin, count = place(), int(random.integers(1, 200))
        data[begin : begin + count] = bytes(len(data[begin : begin + count]))
    elif what == "swap":
        count = int(random.integers(1, 65))
        a, b = place(count), place(count)
        data[a : a + count], data[b : b + count] = data[b : b + count], data[a : a + count]
    else:
        for _ in range(int(random.integers(1, 4))):
            width = choice(random, [2, 4, 4, 8, 8])
            begin = place(width) // width * width
            value = choice(random, INTEGERS) % 256**width
            written = value.to_bytes(width, "little")
            if what == "float":
                written = np.array(choice(random, [np.nan, np.inf, -np.inf, 3e38, -1e30, 0.0]), np.float32).tobytes()
            data[begin : begin + len(written)] = written
            what += f" {value} at {begin}"
    return bytes(data), what


def paths_in(node, path=()):
    """Where everything in a JSON value is."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in items:
        yield (*path, key)
        yield from paths_in(child, (*path, key))


def changed_json(node, random, skipped=()):
    """A JSON value with one thing in it changed, and what."""
    paths = [path for path in paths_in(node) if path[0] not in skipped]
    if not paths:
        return "nothing is left to change"
    path = choice(random, paths)
    parent = node
    for key in path[:-1]:
        parent = parent[key]
    here = parent[path[-1]]
    others = list(parent.values() if isinstance(parent, dict) else parent)
    if random.random() < 0.15:
        del parent[path[-1]]
        return f"{path} removed"
    if isinstance(here, (int, float)) and random.random() < 0.5:
        plain = here if isinstance(here, float) or abs(here) < 2**1000 else 0  # which floats hold
        new = choice(random, [here + 1, here - 1, -here, 2 * here, here * 2**31, float(plain), str(here)])
    else:
        new = choice(random, VALUES + others)
    parent[path[-1]] = new
    return f"{path} = {str(new)[:60]}"


def changed_header(data, random):
    """A safetensors file with something in its header changed, and what."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    for name, entry in header.items():
        if random.random() < 0.3 and name != "__metadata__":
            shape = entry["shape"]
            entry["shape"] = choice(random, [shape[::-1], [*shape, 1], shape[1:], [0, *shape], shape])
    if random.random() < 0.2:
        name, entry = choice(random, header.items())
        kinds = ["I8", "U8", "I32", "F32", "F64", "I64", "BF16", "F16", "BOOL"]
        entry["dtype"] = choice(random, kinds)
        what = f"{name} as {entry['dtype']}"
    elif random.random() < 0.1:
        header = choice(random, [[], 1, None, "x", {}, [header]])
        what = f"header {str(header)[:20]}"
    else:
        what = "header " + changed_json(header, random)
    text = json.dumps(header).encode()
    if random.random() < 0.05:
        text, what = b"[" * 100_000, "header deep"
    return len(text).to_bytes(8, "little") + text + data[8 + size :], what


def rewritten(path, random):
    """An Arrow file with other columns, which Arrow itself finds nothing wrong with for the most part; and what."""
    table = pa.ipc.open_file(path).read_all()
    name = choice(random, table.column_names)
    column = table.column(name).combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    rows = len(table)

    if random.random() < 0.3:  # a buffer of a column, where it lies in the file
        data = bytearray(path.read_bytes())
        old = choice(random, [buffer for buffer in column.buffers() if buffer is not None and buffer.size]).to_pybytes()
        begin = data.find(old)
        new, what = damaged(old, random)
        if begin >= 0 and len(new) == len(old):
            data[begin : begin + len(old)] = new
            return bytes(data), f"buffer of {name}: {what}"
    others = {
        "nulls": lambda: pa.nulls(rows, column.type),
        "null": lambda: pa.nulls(rows),
        "integers": lambda: pa.array(np.arange(rows), choice(random, [pa.int8(), pa.int32(), pa.uint64(), pa.float64()])),
        "strings": lambda: pa.array([str(i % 50) for i in range(rows)], choice(random, [pa.string(), pa.large_string()])),
        "dictionary": lambda: column.dictionary_encode(),
        "one list more": lambda: pa.ListArray.from_arrays(pa.array(np.arange(rows + 1), pa.int32()), column),
        "a struct": lambda: pa.StructArray.from_arrays([column], names=["x"]),
        "an empty struct": lambda: pa.array([{}] * rows, pa.struct([])),
        "reversed": lambda: column.take(pa.array(np.arange(rows)[::-1])),
        "values": lambda: pa.concat_arrays([column.values] * 3)[:rows],
        "other dim": lambda: token_array(matrices(random, rows, dim=3), "large_list"),
        "float64": lambda: token_array(matrices(random, rows), "large_list", dtype=np.float64),
        "float16": lambda: token_array(matrices(random, rows), "large_list", dtype=np.float16),
        "repeated": lambda: column.take(pa.array(np.zeros(rows, np.int64))),
    }
    what = choice(random, [*others, "dropped", "twice", "sliced", "stream", "same"])
    try:
        if what in others:
            table = table.set_column(table.column_names.index(name), name, others[what]())
        elif what == "dropped":
            table = table.drop_columns([name])
        elif what == "twice":
            table = table.append_column(name, column)
        elif what == "sliced":
            table = table.slice(0, int(random.integers(rows + 1)))
        options = pa.ipc.IpcWriteOptions(compression=choice(random, [None, None, None, "zstd", "lz4"]))
        sink = pa.BufferOutputStream()
        new = pa.ipc.new_stream if what == "stream" else pa.ipc.new_file
        with new(sink, table.schema, options=options) as writer:
            writer.write_table(table, max_chunksize=choice(random, [None, 7]))
    except (pa.ArrowException, ValueError, TypeError, AttributeError, IndexError):  # does not suit this column
        return damaged(path.read_bytes(), random)
    return sink.getvalue().to_pybytes(), f"{name}: {what}"


def sign(folder, manifest):
    manifest.pop("manifest_sha256", None)
    manifest["manifest_sha256"] = storage._digest(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def damage(folder, random, *, signed):
    """Damage one file of an index; ``signed``: with checksums as if it were so."""
    manifest = json.loads((folder / "manifest.json").read_text())
    name = choice(random, ["manifest.json", "manifest.json", *manifest["files"], *manifest["files"]])
    path = folder / name
    data = path.read_bytes()
    if name == "manifest.json":
        if random.random() < 0.1 or not signed:
            new, what = damaged(data, random)
            if random.random() < 0.1:
                new, what = choice(random, [(b"[" * 100_000, "deep"), (b"\xff" + data, "not text"), (b"1" * 10_000, "digits")])
            path.write_bytes(new)
            return f"{name}: {what}"
        what = "; ".join(changed_json(manifest, random, ("files",)) for _ in range(int(random.integers(1, 3))))
        sign(folder, manifest)
        return f"{name}: {what}"
    if name.endswith(".safetensors") and random.random() < 0.5:
        new, what = changed_header(data, random)
    elif name.endswith(".arrow") and random.random() < 0.5:
        new, what = rewritten(path, random)
    else:
        new, what = damaged(data, random)
    path.write_bytes(new)
    if signed:
        manifest["files"][name] = storage.describe(path)
        sign(folder, manifest)
    return f"{name}: {what}"


# What is tried with an index of damaged files


def is_allowed(error):
    """A refusal in our own words, not what some library below says."""
    if isinstance(error, (CorruptIndex, FileNotFoundError)):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return True
    return isinstance(error, ValueError) and not isinstance(error, (pa.ArrowException, UnicodeError)) and is_ours(error)


def is_ours(error):
    """Raised by a line of lemur_ann, or by what is not Python below it."""
    return "lemur_ann" in Path(traceback.extract_tb(error.__traceback__)[-1].filename).parts


class Steps:
    """Calls one after the other, of which each may be refused; ``refusals`` counts those."""

    def __init__(self):
        self.refusals = 0

    def __call__(self, call):
        try:
            return call()
        except Exception as error:
            if not is_allowed(error):
                raise
            self.refusals += 1
            return None


def try_files(seed, random, folder, work, tell):
    base = choice(random, sorted(path for path in folder.iterdir() if path.is_dir()))
    path = work / "index"
    shutil.copytree(base, path)
    tell(f"{base.name}/{damage(path, random, signed=True)}")
    copy = work / "copy"
    shutil.copytree(path, copy)
    step = Steps()
    index = step(lambda: LemurIndex.load(path))
    if index is None:
        return "refused"
    use(index, random, step)
    step(lambda: index.save(work / "saved"))
    index = step(lambda: LemurIndex.open(copy))
    if index is not None:
        ids = step(lambda: index.ids()[:30])
        if ids is not None and len(ids):
            step(lambda: index.delete(ids))
        step(lambda: index.compact(num_threads=1))
        use(index, random, step)
        index.close()
    return "refused later" if step.refusals else "works"


def try_hostile(seed, random, folder, work, tell):
    """A folder as a stranger might send it: see hostile.py."""
    import hostile

    base = choice(random, sorted(path for path in folder.iterdir() if path.is_dir()))
    path = work / "index"
    shutil.copytree(base, path)
    if random.random() < 0.1 and (learned := sorted(path.glob("learned*.safetensors"))):
        return try_map(path, learned[0], random, work, tell, hostile)
    tell(f"{base.name}/{hostile.change(path, random)}")
    step = Steps()
    if random.random() < 0.5:
        index = step(lambda: LemurIndex.load(path, verify=random.random() < 0.5))
    else:
        index = step(lambda: LemurIndex.open(path))
    if index is None:
        return "refused"
    use(index, random, step)
    step(lambda: index.to_arrow().read_all())
    step(index.refresh)
    ids = step(lambda: index.ids()[:30])
    if ids is not None and len(ids):
        step(lambda: index.delete(ids))
    step(lambda: index.compact(num_threads=1))
    step(lambda: index.search(matrices(random, 1, index.dim or DIM)[0], k=3, num_threads=1))
    step(lambda: index.save(work / "saved"))
    index.close()
    return "refused later" if step.refusals else "works"


def try_changes(seed, random, folder, work, tell):
    """That changes of changes stay within their folder, wherever its names lead by then."""
    import hostile

    base = choice(random, sorted(path for path in folder.iterdir() if path.is_dir()))
    beside = {"private/tokens-000001.arrow": b"ours", "x": b"ours", "elsewhere": b"ours"}
    for name, data in beside.items():
        (work / name).parent.mkdir(exist_ok=True)
        (work / name).write_bytes(data)
    path = work / "index"
    shutil.copytree(base, path)
    for _ in range(5):
        tell(f"{base.name}/{hostile.change(path, random)}")
    found = {
        str(file.relative_to(work)): file.read_bytes()
        for file in work.rglob("*")
        if path not in file.parents and file.is_file()
    }
    if found != beside:
        raise Wrong(f"beside the folder there is {sorted(found)}")
    return "within"


def try_map(path, learned, random, work, tell, hostile):
    """A map in a file of its own."""
    try:
        encoder = LemurIndex.load(path).encoder
    except CorruptIndex:
        return "refused"
    file = work / "map.safetensors"
    encoder.save(file)
    tell(f"map: {hostile.change_file(file, random)}")
    for read in (lambda: LemurEncoder.load(file), lambda: LemurEncoder.from_bytes(file.read_bytes())):
        try:
            map = read()
        except CorruptIndex:
            continue
        if map.token_dim < 10_000:
            tokens = matrices(random, 3, map.token_dim)
            map.encode_queries(tokens, num_threads=1)
            map.encode_documents(tokens, num_threads=1)
        _ = map.fingerprint
    return "map"


def use(index, random, step):
    dim = index.dim or DIM
    if dim > 10_000:
        raise Wrong(f"dim {dim}")
    queries = [matrix / 4 for matrix in matrices(random, 3, dim)]
    step(lambda: (repr(index), len(index), index.options, index.num_tokens, index.tuned, index.stats()))
    if hasattr(index, "check"):
        step(index.check)
    for query, options in [(queries[0], {}), (queries, {"num_candidates": 5, "ef_search": 5}), (queries, {"exact": True})]:
        step(lambda query=query, options=options: index.search(query, k=3, num_threads=1, **options))
    ids = step(index.ids)
    if ids is not None:
        some = step(lambda: ids[: min(5, len(ids))])
        expression = pc.field("id").is_valid()
        for filter in (some, np.arange(len(index)) % 2 == 0, expression, pc.field("year") > 2000):
            step(lambda filter=filter: index.search(queries[0], k=3, num_threads=1, filter=filter))
        step(lambda: index.get(some))
        step(lambda: [doc_id in index for doc_id in some.to_pylist()])
        count = choice(random, [1, 80])  # many make a new graph
        names = [f"new-{i}" for i in range(count)] if pa.types.is_large_string(ids.type) else [10**9 + i for i in range(count)]
        added = step(lambda: index.add(matrices(random, count, dim), ids=names, num_threads=1))
        step(lambda: index.search(queries, k=3, num_threads=1))
        if added is not None:
            step(lambda: index.get(names[:1]))


def try_unsigned(seed, random, folder, work, tell):
    base = choice(random, sorted(path for path in folder.iterdir() if path.is_dir()))
    path = work / "index"
    shutil.copytree(base, path)
    what = damage(path, random, signed=False)
    tell(f"{base.name}/{what}")
    name = what.partition(":")[0]
    if same(base / name, path / name):
        return "the same"
    for load in (LemurIndex.load, lambda path: LemurIndex.open(path, verify=True)):
        try:
            load(path)
        except (CorruptIndex, FileNotFoundError):
            continue
        raise Wrong("damage that no checksum covers is not noticed")
    return "refused"


def same(a, b):
    if a.read_bytes() == b.read_bytes():
        return True
    try:
        return a.suffix == ".json" and json.loads(a.read_text()) == json.loads(b.read_text())
    except (ValueError, RecursionError):
        return False


# Arrow data


class Tokens(pa.ExtensionType):
    def __init__(self, storage):
        super().__init__(storage, "lemur_ann.fuzz")

    def __arrow_ext_serialize__(self):
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type, serialized):
        return cls(storage_type)


class Stream:
    """Anything with the Arrow PyCapsule interface."""

    def __init__(self, table):
        self._table = table

    def __arrow_c_stream__(self, requested_schema=None):
        return self._table.__arrow_c_stream__(requested_schema)


KINDS = ["list", "large_list", "fixed", "list_view", "large_list_view"]


def metadata_column(random, count):
    values = [int(i) for i in random.integers(0, 5, count)]
    strings = [None if value == 0 else "é" * value for value in values]
    numbers = [pa.int8(), pa.int64(), pa.float32(), pa.date32(), pa.duration("s"), pa.decimal128(5, 2), pa.float16()]
    texts = [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.binary_view()]
    nested = [pa.list_, pa.large_list, pa.list_view]
    structs = [{"x": value, "y": [text]} for value, text in zip(values, strings, strict=True)]
    makers = [
        lambda: pa.array([None if value == 3 else value for value in values], choice(random, numbers)),
        lambda: pa.array(strings, choice(random, texts)),
        lambda: pa.array(strings).dictionary_encode(),
        lambda: pa.nulls(count),
        lambda: pa.array([[value] * value for value in values], choice(random, nested)(pa.int16())),
        lambda: pa.array(structs),
        lambda: pa.array([[("k", value)] for value in values], pa.map_(pa.string(), pa.int32())),
        lambda: pc.run_end_encode(pa.array(values)),
        lambda: pa.array([str(value).encode() for value in values], pa.binary(1)),
        lambda: pa.array([value % 2 == 0 for value in values]),
        lambda: pa.ExtensionArray.from_storage(Tokens(pa.int64()), pa.array(values, pa.int64())),
        lambda: pa.array([{"x": text} for text in strings], pa.struct([("x", pa.dictionary(pa.int8(), pa.string()))])),
        lambda: pa.UnionArray.from_sparse(pa.array([0] * count, pa.int8()), [pa.array(values)]),
    ]
    return choice(random, makers)()


def id_column(random, count, kind, first):
    numbers = [first + i for i in range(count)]
    if kind == "integers":
        array = pa.array(numbers, choice(random, [pa.int64(), pa.int32(), pa.uint64()]))
    else:
        array = pa.array([f"n{i}" for i in numbers], choice(random, [pa.string(), pa.large_string(), pa.string_view()]))
    return array.dictionary_encode() if random.random() < 0.2 and not pa.types.is_string_view(array.type) else array


def odd_table(random, id_kind, dim):
    """(table, what is wrong with it or None)."""
    count = choice(random, [0, 1, 2, 5, 9])
    dtype = choice(random, [np.float32, np.float32, np.float16, np.float64])
    outer, inner = choice(random, KINDS), choice(random, KINDS)
    fixed = outer == "fixed"
    documents = matrices(random, count, dim, low=3 if fixed else 1, high=3 if fixed else 6)
    defects = ["null document", "null token", "null value", "not finite", "other dims", "no tokens", "other dim", "integers"]
    defects += ["no column", "two columns", "repeated id", "null id", "other ids", "float ids", "one level", "three levels"]
    defects += ["offsets", "other metadata", "bytes", "bytes", "bytes", "bytes", "mask"]
    defect = choice(random, defects) if random.random() < 0.6 and count else None
    if defect == "other dim":
        documents = matrices(random, count, dim + 1)
    if defect == "not finite":
        documents[-1][0, 0] = choice(random, [np.nan, np.inf, -np.inf, 1e30])
        dtype = np.float32
    if defect == "no tokens":
        documents[0] = documents[0][:0]
    tokens = token_array(documents, outer, inner, dtype)
    if defect in ("null document", "null token", "null value", "other dims"):
        nested = [matrix.tolist() for matrix in documents]
        if defect == "null document":
            nested[0] = None
        elif defect == "null token":
            nested[0][0] = None
        elif defect == "null value":
            nested[-1][-1][-1] = None
        else:
            nested[-1][0] = nested[-1][0][:-1]
        tokens = pa.array(nested, pa.list_(pa.list_(pa.float32())))
    elif defect == "integers":
        tokens = pa.array([matrix.astype(int).tolist() for matrix in documents], pa.list_(pa.list_(pa.int8())))
    elif defect == "one level":
        tokens = pa.array([matrix[0].tolist() for matrix in documents], pa.list_(pa.float32(), dim))
    elif defect == "three levels":
        tokens = pa.array([[matrix.tolist()] for matrix in documents], pa.list_(pa.list_(pa.list_(pa.float32()))))
    elif defect == "offsets":
        flat = pa.FixedSizeListArray.from_arrays(pa.array(np.concatenate(documents).reshape(-1)), dim)
        offsets = np.array([0, *(int(i) for i in random.integers(-3, 2 * len(flat) + 3, count - 1)), len(flat)], np.int64)
        offsets[-1] = choice(random, [len(flat), len(flat), len(flat) + 1, 2**62, -1])
        defect = None if np.all(np.diff(offsets) > 0) and offsets[0] >= 0 and offsets[-1] <= len(flat) else defect
        try:
            tokens = pa.Array.from_buffers(pa.large_list(flat.type), count, [None, pa.py_buffer(offsets)], children=[flat])
        except pa.ArrowInvalid:
            tokens = token_array(documents)
            defect = None
    elif random.random() < 0.15:
        tokens = pa.ExtensionArray.from_storage(Tokens(tokens.type), tokens)
    columns = {"tokens": tokens}
    if defect not in ("null document", "mask", "offsets") and len(tokens) and random.random() < 0.2:
        before = int(random.integers(0, 3))  # a slice of more
        more = pa.concat_arrays([tokens[:1]] * before + [tokens] + [tokens[:1]] * 2)
        columns["tokens"] = more.slice(before, len(tokens))
    if defect == "mask" and count:
        index = pa.array([None if i == 0 else i for i in range(count)])
        try:
            columns["tokens"] = tokens.take(index)
        except pa.ArrowNotImplementedError:
            columns["tokens"] = pa.nulls(count)
    if random.random() < 0.7 or id_kind == "strings" or defect in ("repeated id", "null id", "other ids", "float ids"):
        ids = id_column(random, count, id_kind, 10**6)
        if defect == "repeated id":
            defect = None if count < 2 else defect
            ids = pa.array(ids.to_pylist()[:1] * count, ids.type)
        elif defect == "null id":
            ids = pa.array([None, *ids.to_pylist()[1:]], ids.type)
        elif defect == "other ids":
            ids = id_column(random, count, "integers" if id_kind == "strings" else "strings", 0)
        elif defect == "float ids":
            ids = pa.array(np.arange(count) / 2)
        columns["id"] = ids
    for i in range(int(random.integers(0, 3))):
        columns[choice(random, [f"m{i}", f"m{i}", f"m{i}", "__row", ""])] = metadata_column(random, count)
    if defect == "other metadata":
        columns["year"] = pa.array(["x"] * count)
    if defect == "no column":
        del columns["tokens"]
        columns["other"] = pa.array(np.arange(count))
    table = pa.table(columns)
    if defect == "two columns":
        table = table.append_column(choice(random, table.column_names), table.column(0))
    if defect == "bytes":
        batch = pa.concat_tables([table]).to_batches()
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            for one in batch:
                writer.write_batch(one)
        data, what = damaged(sink.getvalue().to_pybytes(), random)
        return data, f"bytes: {what}"
    if random.random() < 0.3 and count:
        cut = int(random.integers(0, count + 1))
        table = pa.concat_tables([table[:cut], table[:0], table[cut:]])
    return table, defect


def container(table, random, work):
    """The table in one of the forms in which it may be passed."""
    makers = {
        "table": lambda: table,
        "batch": lambda: table.combine_chunks().to_batches()[0],
        "reader": table.to_reader,
        "capsule": lambda: Stream(table),
        "dataset": lambda: ds.dataset(table),
        "scanner": lambda: ds.dataset(table).scanner(),
        "path": lambda: write(work, table),
    }
    name = choice(random, makers)
    try:
        return name, makers[name]()
    except (pa.ArrowException, IndexError):
        return "table", table


def write(work, table):
    path = work / "data.arrow"
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)
    try:
        pq.write_table(table, work / "data.parquet")
    except pa.ArrowException:
        return path
    return work / "data.parquet"


def try_arrow(seed, random, folder, work, tell):
    name = choice(random, ["graph", "graph", "scan", "unfitted", "empty", "grown"])
    index = LemurIndex.load(folder / name, verify=False)
    id_kind = "integers" if name in ("scan", "empty") else "strings"
    table, defect = odd_table(random, id_kind, index.dim or DIM)
    is_valid = True
    if isinstance(table, bytes):
        how = choice(random, ["reader", "table", "path"])
        tell(f"{name}: {defect} as {how}")
        try:
            whole = pa.ipc.open_stream(table).read_all()
            whole.validate(full=True)
        except (pa.ArrowException, OSError, ValueError, UnicodeError, NotImplementedError, KeyError, IndexError):
            is_valid = False
        try:
            if how == "path":
                data = write(work, pa.ipc.open_stream(table).read_all()) if is_valid else None
            else:
                data = pa.ipc.open_stream(table)
                data = data.read_all() if how == "table" else data
        except (pa.ArrowException, OSError, ValueError, UnicodeError, NotImplementedError, KeyError, IndexError):
            data = None
        if data is None:
            return "refused by Arrow"
        table, defect = (whole if is_valid else None), None if is_valid else defect
        is_known = False  # whether it is good
    else:
        how, data = container(table, random, work)
        tell(f"{name}: {defect}, {table.schema.to_string()}, {len(table)} rows, as {how}")
        is_known = True
    verb = choice(random, ["add", "add", "upsert", "search", "fit"])
    if verb == "fit":
        index = LemurIndex(num_features=16, rank=7, epochs=0, num_sample_tokens=50, num_candidates=5)
    before = state(index)
    queries = [matrix / 4 for matrix in matrices(random, 2, index.dim or DIM)]
    try:
        if verb == "search":
            index.search(data, k=3, num_threads=1)
        elif verb == "fit":
            index.fit(data, queries, num_threads=1)
        else:
            getattr(index, verb)(data, num_threads=1)
    except Exception as error:
        refused = isinstance(error, (ValueError, TypeError)) or (isinstance(error, OSError) and not is_known)
        if not refused:
            raise
        if isinstance(error, UnicodeError):
            raise
        if state(index) != before:
            raise Wrong(f"{verb} changed the index, and failed: {error}") from error
        if is_known and defect is None and verb == "add" and not is_refusable(table, error):
            raise Wrong(f"{verb} refused good data: {error!r}") from error
        return "refused"
    if defect is not None and (not is_known or defect != "other dim" or name != "empty") and is_bad(defect, verb, name):
        raise Wrong(f"{verb} took {defect}")
    if verb == "search":
        return "searched"
    compare(index, table, before, random, work)
    return "taken"


def is_bad(defect, verb, name):
    """Whether a defect is one for this."""
    if verb == "search":
        return defect not in ("repeated id", "null id", "other ids", "float ids", "other metadata", "two columns") and not (
            defect == "other dim" and name == "empty"
        )
    fresh = name == "empty" or verb == "fit"
    if defect == "other metadata" and name == "scan":  # which has none
        return False
    return not (fresh and defect in ("other dim", "other metadata", "other ids"))


def is_refusable(table, error):
    """Good data that need not be taken: views within lists."""
    kind = table.column("tokens").type
    kind = kind.storage_type if isinstance(kind, pa.ExtensionType) else kind
    return "_view" in str(kind.value_type) and isinstance(error, TypeError)


def state(index):
    ids = index.ids()
    query = np.linspace(-1, 1, 2 * (index.dim or DIM), dtype=np.float32).reshape(2, -1)
    hits = index.search(query, k=5, num_threads=1)
    return len(index), ids.to_pylist(), hits.ids.tolist(), hits.scores.tolist()


def plain(column):
    return [str(value) for value in column.to_pylist()]


def compare(index, table, before, random, work):
    """Documents that were taken are there, and are again after they were saved."""
    index.save(work / "saved")
    for there in (index, LemurIndex.load(work / "saved")):
        ids = there.ids().to_pylist()
        new = ids[len(ids) - len(table) :]
        if "id" in table.column_names and [str(i) for i in new] != plain(table.column("id")):
            raise Wrong("other ids")
        got = there.get(pa.array(new, there.ids().type))
        for a, b in zip(table.column("tokens").to_pylist(), got.column("tokens").to_pylist(), strict=True):
            if not np.array_equal(np.array(a, np.float32), np.array(b, np.float32)):
                raise Wrong("other tokens")
        for name in table.column_names:
            if len(table) and name not in ("id", "tokens") and plain(table.column(name)) != plain(got.column(name)):
                raise Wrong(f"other metadata in {name}: {table.column(name).type} {plain(got.column(name))[:3]}")
        query = np.ones((2, there.dim), np.float32) if len(table) else None
        if query is not None and len(there.search(query, k=len(ids), filter=pc.field("id").is_valid()).ids) != len(ids):
            raise Wrong("a filter that all pass")


# Filters

OPERATORS = [operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne]


def expression(random, depth=3):
    if depth and random.random() < 0.5:
        left, right = expression(random, depth - 1), expression(random, depth - 1)
        return choice(random, [lambda: left & right, lambda: left | right, lambda: ~left, lambda: left == right])()
    field = pc.field(choice(random, ["id", "year", "year", "title", "tags", "nothing", "__row", "Year"]))
    literals = [0, 2000, 2010, 1999.5, "title 5", "doc-7", "", None, True, float("nan"), 2**63 - 1, b"x", np.int8(3), [1]]
    value = choice(random, literals)
    kinds = [pa.string(), pa.int8(), pa.float32(), pa.bool_()]
    makers = [
        lambda: choice(random, OPERATORS)(field, value),
        lambda: choice(random, OPERATORS)(field, pc.field(choice(random, ["id", "year", "title"]))),
        lambda: field.isin(choice(random, [[2000, 2001], ["title 5", "doc-7", None], [], [None], pa.array([1990], pa.int8())])),
        lambda: field.is_null(nan_is_null=bool(random.integers(2))),
        lambda: field.is_valid(),
        lambda: pc.starts_with(field, "t"),
        lambda: pc.match_substring_regex(field, choice(random, ["[0-5]$", "(", "^doc-1+$"])),
        lambda: pc.list_value_length(field) > 1,
        lambda: (field / choice(random, [0, 2, 0.0])) > 500,
        lambda: field.cast(choice(random, kinds)) == choice(random, ["1999", 5, True]),
        lambda: field,
        lambda: pc.scalar(choice(random, [True, False, None, 3])),
        lambda: pc.field("tags", "x") == 1,
        lambda: pc.if_else(field > 2000, field, None),
        lambda: pc.sum(field) > 1,
        lambda: (field % 2) == 0,
        lambda: (field * (2**62)) > 0,
    ]
    while True:
        try:
            return choice(random, makers)()
        except (pa.ArrowException, AttributeError, TypeError, OverflowError):  # noqa: PERF203
            continue


def try_filters(seed, random, folder, work, tell, known={}):  # noqa: B006 (kept from try to try)
    index = known.setdefault("index", LemurIndex.load(folder / "graph", verify=False))
    ids = index.ids()
    table = known.setdefault("table", index.metadata(ids))
    size = len(index)
    kind = choice(random, ["expression", "expression", "mask", "ids", "odd"])
    expected = None
    may_refuse = True
    if kind == "expression":
        filter = expression(random)
        tell(str(filter))
        try:
            expected = table.filter(filter).column("id").to_pylist()
        except Exception:  # which columns the filter does not fit
            expected = None
        may_refuse = expected is None
    elif kind == "mask":
        mask = random.random(size) < choice(random, [0.0, 0.02, 0.5, 1.0])
        nulls = random.random(size) < 0.1
        right = [
            lambda: mask,
            lambda: mask.tolist(),
            lambda: pa.array(mask),
            lambda: pa.chunked_array([mask[:9], mask[9:9], mask[9:]]),
            lambda: np.repeat(mask, 2)[::2],
        ]
        wrong = [
            lambda: mask[:-1],
            lambda: np.append(mask, True),
            lambda: mask[None],
            lambda: mask.astype(np.uint8) / 2,
            lambda: [*mask.tolist(), None],
            lambda: mask.astype(object),
            lambda: np.array(True),
        ]
        may_refuse = random.random() < 0.4
        if not may_refuse and random.random() < 0.2:
            filter = pa.array(mask, mask=nulls)
            mask = mask & ~nulls
        else:
            filter = choice(random, wrong if may_refuse else right)()
        tell(f"mask {type(filter).__name__}, {may_refuse}")
        expected = None if may_refuse else [doc_id for doc_id, is_in in zip(ids.to_pylist(), mask, strict=True) if is_in]
    elif kind == "ids":
        chosen = [f"doc-{i}" for i in random.integers(0, 330, int(random.integers(0, 40)))]
        forms = [list, tuple, set, iter, pa.array, lambda x: pa.chunked_array([x, []], pa.string())]
        forms += [np.array, lambda x: pa.array(x, pa.large_string()), lambda x: pa.array(x, pa.string()).dictionary_encode()]
        form = choice(random, forms)
        filter = form(chosen)
        expected = [doc_id for doc_id in ids.to_pylist() if doc_id in set(chosen)]
        may_refuse = False
        tell(f"{len(chosen)} ids, {type(filter).__name__}")
    else:
        odd = [3, 1.5, "doc-1", b"doc-1", object(), [1, 2], [1.5], [None], [["doc-1"]], {"doc-1": 1, 2: 3}, pa.scalar(True)]
        odd += [np.array([1.5]), np.zeros((2, 2)), pa.array([1.5]), pa.array([[True]]), table, ["doc-1", 3], [True, "doc-1"]]
        odd += [np.array(["doc-1"], object), np.array([np.nan]), pa.nulls(3), pa.nulls(size, pa.bool_()), [10**30], range(3)]
        filter = choice(random, odd)
        tell(f"odd {str(filter)[:50]}")
    queries = [matrix / 4 for matrix in matrices(random, choice(random, [1, 2, 4]))]
    where = {"k": choice(random, [*random.integers(1, 2 * size, 9).tolist(), 2**62]), "num_threads": 1}
    if kind != "ids":
        more = [{}, {"exact": True}, {"num_candidates": 2}, {"ef_search": 1}, {"ef_search": 2**62}, {"num_candidates": 2**62}]
        where |= choice(random, more)
    elif random.random() < 0.3:
        where["exact"] = True
    try:
        found = index.search(queries, filter=filter, **where)
    except (ValueError, TypeError) as error:
        if isinstance(error, pa.ArrowException) or not may_refuse:
            raise
        return "refused"
    if expected is None:
        if kind == "expression":
            raise Wrong("Arrow finds that this filter does not fit, and it was taken")
        return "taken"
    for hits in found:
        if not set(hits.ids.tolist()) <= set(expected) or len(hits.ids) != min(where["k"], len(expected)):
            others = sorted(set(hits.ids) - set(expected))[:3]
            raise Wrong(f"{len(hits.ids)} hits, where {len(expected)} pass the filter; {others} do not")
    return "right"


TRIES = {"hostile": try_hostile, "files": try_files, "unsigned": try_unsigned, "arrow": try_arrow, "filters": try_filters}
TRIES["changes"] = try_changes


def preload():
    """Libraries whose code is no memory of the index."""
    for module, _ in LIBRARIES.values():
        if importlib.util.find_spec(module) is not None:
            importlib.import_module(module)
    pa.array([1]).validate()
    ds.dataset(pa.table({"x": [1]})).to_table(filter=pc.field("x") > 0)


def main(kind, folder, first="0", count="1"):
    folder = Path(folder)
    if kind == "make":
        make(folder)
        return
    if kind in ("files", "arrow", "hostile"):
        import torch  # noqa: F401 (before memory is limited)

    faulthandler.enable()
    candidates.MIN_SCANNED = 50
    storage.sync = lambda *_: None  # a disk's time, for files that nobody will miss
    np.seterr(all="ignore")
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    if kind == "hostile":
        preload()
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    if "LEMUR_ANN_FUZZ_NO_LIMIT" not in os.environ:  # AddressSanitizer takes addresses by the terabyte
        resource.setrlimit(resource.RLIMIT_AS, (size + (MEMORY_OF_STRANGERS if kind == "hostile" else MEMORY),) * 2)

    def say(**what):
        print(json.dumps({"seed": seed, **what}), flush=True)

    for seed in itertools.islice(itertools.count(int(first)), int(count)):
        random = np.random.default_rng([seed, zlib.crc32(kind.encode())])
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        with tempfile.TemporaryDirectory() as work:
            say(trying="to make it")
            try:
                outcome = TRIES[kind](seed, random, folder, Path(work), lambda what: say(trying=what))
                say(outcome=outcome)
            except BaseException as error:
                frames = traceback.extract_tb(error.__traceback__)
                ours = [frame for frame in frames if "lemur_ann" in Path(frame.filename).parts]
                place = f" in {Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else ""
                message = f": {str(error)[:60]}" if isinstance(error, Wrong) else ""
                say(wrong=type(error).__name__ + place + message, details=traceback.format_exc())
                if isinstance(error, KeyboardInterrupt):
                    raise
        faulthandler.cancel_dump_traceback_later()
    print(json.dumps({"done": True}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
