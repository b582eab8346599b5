"""Folders as a stranger might send them: one thing or three changed in what a saved index says of itself, and signed again.

Each change knows the structure that it is made in: a number of a manifest, a field of hnswlib's header, a label, a link, a
level, a word of Arrow's messages, an array of safetensors, which rows follow others as copies. So it passes the checksums, and
most of what only looks at the form. fuzz.py tries what loads such a folder; `change` returns what was done.

Names that are changed may lead anywhere: so whatever is written, made or deleted here has a path of `place`, which is within
the folder, and nothing that is written follows a link.
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import PurePath

import fuzz
import numpy as np
import pyarrow as pa
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from lemur_ann.candidates.hnswlib_file import HEADER
from lemur_ann.saved import storage
from lemur_ann.saved.checks import FILE

COUNTS = [
    -(2**63),
    -(2**31),
    -2,
    -1,
    0,
    1,
    2,
    3,
    255,
    2**15,
    2**16,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**60,
    2**63 - 1,
    2**64 - 1,
]
FLOATS = [float("nan"), float("inf"), float("-inf"), 0.0, -0.0, -1.0, 1e-300, 1e7, 1e30, 3e38]
NAMES = [
    "../private/tokens-000001.arrow",
    "/nowhere/tokens-000001.arrow",
    "/dev/zero",
    "..",
    ".",
    "",
    "manifest.json",
    "writer.lock",
    "pipe",
    "link",
]
NAMES += ["folder", "socket", "tokens-000001.arrow\0", "tokens-٣٣٣٣٣٣.arrow", "tokens-000001.arrow:x", "a" * 300, "\ud800"]
DEVICES = ["meta", "cuda:99", "cuda", "cpu:1", "mps", "xpu", "", "cpu\n", "cuda:" + "9" * 30]
NOT_SO = (ValueError, KeyError, IndexError, TypeError, OSError)
OPTIONS = {
    "M": [1, 2, 512, 513, 10_000, 2**60],
    "ef_construction": [0, 1, 10_000, 2**31, 2**60],
    "candidates": ["exact", "hnsw", "faiss", "usearch", "svs", "os", "../x", ["hnsw"]],
    "candidates_options": [
        {"factory": "HNSW2000000000"},
        {"factory": "IVF999999999,PQ64"},
        {"dtype": "x"},
        {"alpha": 1e308},
        {"": {}},
    ],
    "device": DEVICES,
    "compact_at": [*FLOATS, 1e-300, 1, None],
    "rank": [0, 1, 2**20, 2**60, None],
    "token_codes": [None, "int8", "int4"],
    "target_precision": ["int8", "float32", "float64"],
    "num_candidates": [0, 1, 2**31, 2**62],
    "ef_search": [0, 1, None, 2**31, 2**62],
    "shortlist": [0, 1, None, -1, 2**31, 2**62],
    "num_centroids": [0, 1, None, 255, 2**16, 2**31, 2**62],
    "seed": [0, 2**63 - 1, 2**64],
}
KEYS = {  # of what is learned, which older manifests lack
    ("feature_map", "homogeneous"): [True, False, None, 1, "true", []],
    ("training", "nearness"): [{}, None, [], 3, {"low": None}, {"low": "x"}, {"low": True}, *({"low": x} for x in FLOATS)],
    ("training", "num_unfamiliar"): [-1, 0, 1, 2**48, 2**63, 1.5, None, True, "1", []],
    ("training", "seconds"): [{}, None, [], 3],
    ("training", "num_rows"): [-1, 0, 1, 2**40, None, True],
    ("structure", "num_rows"): [-1, 0, 1, 2**40, None, True],
    ("structure", "seal"): [None, "", "0" * 64, 3, [], "é"],
}


def place(folder, name):
    """The path of a file that may be written, made or deleted: its name is a plain one, and so it is in the folder."""
    assert isinstance(name, str), name
    assert name not in ("", ".", ".."), name
    assert PurePath(name).name == name, name
    assert "\0" not in name, name
    path = folder / name
    assert path.parent == folder, path
    return path


def write(folder, name, data):
    """Write a file in the folder; a link in its place is an error."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK
    with os.fdopen(os.open(place(folder, name), flags, 0o644), "wb") as file:
        file.write(data)


def change(folder, random):
    """Change some things, sign the folder, and say what was changed."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest.pop("padding", None)  # of a change before, which takes long to write
    done = []
    for _ in range(int(fuzz.choice(random, [1, 1, 1, 2, 3]))):
        if not isinstance(manifest.get("files"), dict) or not isinstance(manifest.get("options"), dict):
            break  # changed into something else before
        # a name that was changed before may lead elsewhere, and what it leads to is not ours to write
        inside = [name for name in manifest["files"] if FILE.fullmatch(name)]
        path = place(folder, fuzz.choice(random, inside)) if inside else None
        kind = fuzz.choice(
            random, ["value", "option", "key", "name", "odd file", "file", "file", "file", "file", "file", "file"]
        )
        if kind == "file" and path is not None:
            if len(path.name) > 200 or path.is_symlink() or not path.is_file():
                continue
            done.append(f"{path.name}: {change_file(path, random)}")
            manifest["files"][path.name] = storage.describe(path)
        elif kind == "option":
            name = fuzz.choice(random, OPTIONS)
            of = "options_given" if random.random() < 0.1 else "options"
            options = manifest.setdefault(of, dict(manifest["options"]))
            if isinstance(options, dict):
                options[name] = fuzz.choice(random, OPTIONS[name])
                done.append(f"{of} {name}={str(options[name])[:40]}")
        elif kind == "key":
            (of, name), values = fuzz.choice(random, KEYS.items())
            if isinstance(manifest.get(of), dict):
                manifest[of][name] = fuzz.choice(random, values)
                done.append(f"{of} {name}={str(manifest[of][name])[:40]}")
        elif kind == "name":
            done.append(change_name(manifest, folder, random))
        elif kind == "odd file" and path is not None:
            done.append(f"{path.name}: {odd_file(path, random)}")
        else:
            done.append(fuzz.changed_json(manifest, random))
    text = sign(folder, manifest, random)
    return "; ".join([*done, *text])


def sign(folder, manifest, random):
    """Write the manifest with its checksum; now and then in a form that another reader would read in another way."""
    manifest.pop("manifest_sha256", None)
    odd = fuzz.choice(random, [None] * 12 + ["deep", "twice", "long"])
    if odd == "deep" and isinstance(manifest.get("options"), dict):
        node = manifest["options"]["candidates_options"] = {}
        for _ in range(int(fuzz.choice(random, [40, 300, 900]))):
            node["x"] = node = {}
    if odd == "long":
        manifest["padding"] = [[] for _ in range(2**19)]
    try:
        manifest["manifest_sha256"] = storage._digest(manifest)
        text = json.dumps(manifest)
    except (RecursionError, TypeError, ValueError):
        return ["not signed"]
    if odd == "twice":
        text = '{"version": 1, ' + text[1:]
    write(folder, "manifest.json", text.encode())
    return [odd] if odd else []


def change_name(manifest, folder, random):
    """Let a name of a role lead elsewhere, listed among the files or not."""
    places = [(entry, key) for entry in dicts(manifest, "segments") for key in ("tokens", "documents")]
    places += [(manifest, key) for key in ("deleted", "learned") if key in manifest]
    places += [(entry, "file") for key in ("vectors", "centroids") for entry in dicts(manifest, key)]
    structure = manifest.get("structure")
    if isinstance(structure, dict) and isinstance(structure.get("files"), dict):
        places += [(structure["files"], key) for key in structure["files"]]
    if not places:
        return "no names"
    for name, make in (("pipe", os.mkfifo), ("folder", os.mkdir), ("link", lambda path: os.symlink("/dev/zero", path))):
        if not os.path.lexists(place(folder, name)):
            make(place(folder, name))
    entry, key = fuzz.choice(random, places)
    old, new = entry.get(key), fuzz.choice(random, [*NAMES, *manifest["files"]])
    entry[key] = new
    if random.random() < 0.3 and isinstance(old, str) and old in manifest["files"]:
        manifest["files"][new] = manifest["files"][old]
    return f"{key} is {new!r}"


def dicts(manifest, key):
    """The objects in a list, which may have been changed into anything."""
    entries = manifest.get(key)
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def odd_file(path, random):
    """Something else in the place of a file."""
    folder, path = path.parent, place(path.parent, path.name)
    if len(path.name) > 200 or path.is_dir():
        return "as it is"
    data = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
    path.unlink(missing_ok=True)
    what = fuzz.choice(random, ["pipe", "link", "folder", "zero", "socket", "missing"])
    if what == "pipe":
        os.mkfifo(path)
    elif what == "link":
        write(folder, "elsewhere", data)
        path.symlink_to("elsewhere")
    elif what == "folder":
        path.mkdir()
    elif what == "zero":
        path.symlink_to("/dev/zero")
    elif what == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            before = os.open(".", os.O_RDONLY)
            try:
                os.chdir(folder)  # the name of a socket is a short one
                made.bind(path.name)
            finally:
                os.chdir(before)
                os.close(before)
    return what


def change_file(path, random):
    data = path.read_bytes()
    try:
        new, what = changed(path, data, random)
    except (*NOT_SO, SafetensorError, pa.ArrowException):  # a change before made something else of it
        new, what = fuzz.damaged(data, random)
    write(path.parent, path.name, new)
    return what


def changed(path, data, random):
    """The bytes of a file with something done to what they stand for, and what."""
    if random.random() < 0.1:
        return fuzz.damaged(data, random)
    if path.suffix == ".hnsw":
        return changed_graph(data, random)
    if path.suffix == ".safetensors":
        return changed_arrays(path, data, random)
    if path.suffix == ".arrow":
        return changed_arrow(path, data, random)
    return changed_words(data, random)


def put(data, begin, kind, value):
    """A number into the bytes, cut to its width."""
    kind = np.dtype(kind)
    if kind.kind == "f":
        raw = np.array(value, kind).tobytes()
    else:
        raw = (int(value) % 256**kind.itemsize).to_bytes(kind.itemsize, "little")
    data[begin : begin + kind.itemsize] = raw


def changed_graph(data, random):
    """hnswlib's file with a field, some nodes or some levels changed."""
    data = bytearray(data)
    if len(data) < HEADER.itemsize:
        return bytes(data), "too short"
    values = np.frombuffer(bytes(data[: HEADER.itemsize]), HEADER)[0]
    header = {name: values[name].item() for name in HEADER.names}
    count, size = header["count"], header["node_bytes"]
    what = fuzz.choice(random, ["header", "header", "label", "links", "number", "vector", "levels", "marks"])
    if what == "header" or not 0 < count * size < len(data):
        name = fuzz.choice(random, HEADER.names)
        kind, place = HEADER.fields[name][:2]
        near = [] if kind.kind == "f" else [header[name] + i for i in (-1, 1, 2)] + [count, size, count - 1, 2 * count]
        value = fuzz.choice(random, FLOATS if kind.kind == "f" else COUNTS + near)
        put(data, place, kind, value)
        return bytes(data), f"{name} = {value}"
    nodes = fuzz.choice(random, [[int(random.integers(count))], range(count), random.integers(count, size=5).tolist()])
    value = fuzz.choice(random, [*COUNTS, count, count - 1, count + 1])
    degree = header["degree"]
    for node in nodes:
        begin = HEADER.itemsize + node * size
        if what == "label":
            put(data, begin + size - 8, "<u8", value)
        elif what == "links":
            put(data, begin + 4 + 4 * int(random.integers(max(min(degree, 64), 1))), "<u4", value)
        elif what == "number":
            put(data, begin, "<u2", value)
        elif what == "marks":
            put(data, begin + 2, "<u2", fuzz.choice(random, [1, 1, 1, 2, 256]))
        elif what == "vector":
            put(data, begin + header["vector_offset"], "<f4", fuzz.choice(random, FLOATS))
    if what == "levels":
        begin = HEADER.itemsize + count * size
        places = range(begin, len(data) - 3, 4)
        full = [place for place in places if any(data[place : place + 4])]
        for place in random.choice(full or places, size=min(3, len(full or places)), replace=False).tolist():
            put(data, place, "<u4", value)
    return bytes(data), f"{what} of {len(nodes)} nodes: {value}"


def changed_arrays(path, data, random):
    """An array with odd numbers in it, or of another shape or dtype, or a header that lies."""
    what = fuzz.choice(random, ["values", "values", "values", "shape", "header", "offsets"])
    if path.name.startswith("links") and random.random() < 0.4:
        what = "copies"
    if what == "header":
        return fuzz.changed_header(data, random)
    if what == "offsets":
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        names = [name for name in header if name != "__metadata__"]
        a, b = fuzz.choice(random, names), fuzz.choice(random, names)
        header[a]["data_offsets"] = fuzz.choice(
            random, [header[b]["data_offsets"], [0, 2**62], [-8, 8], [2**63, 2**63], [8, 0]]
        )
        header[a]["shape"] = fuzz.choice(
            random, [header[a]["shape"], header[b]["shape"], [2**32, 2**32], [0, 2**40], [2**62, 4]]
        )
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + data[8 + size :], f"{a} where {b} is"
    arrays = {name: array.copy() for name, array in load_file(path).items()}
    if not arrays:
        return data, "no arrays"
    if what == "copies":
        return changed_copies(arrays, random)
    name = fuzz.choice(random, arrays)
    array = arrays[name]
    if what == "shape":
        others = [
            array[:-1],
            array[:0],
            np.concatenate([array, array]),
            array.reshape(-1),
            array[None],
            array.astype(np.float64),
        ]
        others += [array.astype(np.int32), array.T, np.empty((0, 2**20), array.dtype), np.empty((2**20, 0), array.dtype)]
        arrays[name] = np.ascontiguousarray(fuzz.choice(random, others))
        what = f"{name} as {arrays[name].dtype} {arrays[name].shape}"
    elif array.size:
        limits = [-2, -1, 0, 1, len(array), len(array) - 1, 2**31 - 1, -(2**31), 127, -128]
        value = fuzz.choice(random, FLOATS if array.dtype.kind == "f" else limits)
        flat = array.reshape(-1)
        places = fuzz.choice(random, [slice(None), slice(0, 1), slice(None, None, 7), random.integers(flat.size, size=3)])
        with np.errstate(all="ignore"):
            flat[places] = np.array(value).astype(array.dtype)
        what = f"{name} has {value}"
    return save(arrays), what


def changed_copies(arrays, random):
    """Which rows follow each other as copies."""
    rows = len(arrays["links"])
    following = arrays.setdefault("next_equal", np.full(rows, -1, np.int32))
    following = arrays["next_equal"] = following[:rows] if len(following) else np.full(rows, -1, np.int32)
    listed = np.flatnonzero(following >= 0)
    row, other = (int(n) for n in random.integers(rows, size=2))
    row = int(fuzz.choice(random, listed)) if len(listed) and random.random() < 0.7 else row
    what = fuzz.choice(random, ["value", "value", "circle", "shared", "all", "none", "swapped", "dropped"])
    if what == "value":
        following[row] = fuzz.choice(random, [-2, -1, 0, row, row + 1, row - 1, rows - 1, rows, 2**31 - 1, -(2**31)])
    elif what == "circle":
        following[[row, other]] = other, row
    elif what == "shared" and len(listed):
        following[other] = following[row]
    elif what == "all":
        following[:-1] = np.arange(1, rows)
    elif what == "none":
        following[:] = -1
    elif what == "swapped":
        following[:] = following[::-1].copy()
    elif what == "dropped":
        del arrays["next_equal"]
    return save({name: np.ascontiguousarray(array) for name, array in arrays.items()}), f"copies: {what}"


def changed_arrow(path, data, random):
    """A word of its messages, or another table, or one that unpacks to much more."""
    what = fuzz.choice(random, ["word", "word", "word", "table", "bomb", "nulls", "offsets"])
    if what == "table":
        return fuzz.rewritten(path, random)
    if what in ("word", "offsets"):
        return changed_words(data, random, near_the_ends=what == "word")
    table = pa.ipc.open_file(path).read_all()
    rows = len(table)
    sink = pa.BufferOutputStream()
    if what == "bomb":
        names = [name for name in table.column_names if name != "id"] or ["metadata"]
        most = 2**24 // max(rows, 1)
        if names[0] == "tokens":
            dim = table.column("tokens").type.value_type.list_size
            zeros = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(max(most // dim, 1) * dim * rows, np.float32)), dim)
        else:
            zeros = pa.array(np.zeros(most * rows, np.int8))
        offsets = np.arange(rows + 1) * (len(zeros) // max(rows, 1))
        column = pa.LargeListArray.from_arrays(pa.array(offsets), zeros)
        column = column if names[0] == "tokens" else pa.StructArray.from_arrays([column], ["x"])
        place = table.column_names.index(names[0]) if names[0] in table.column_names else len(table.column_names)
        others = [name for name in table.column_names if name != names[0]]
        table = table.select(others).add_column(min(place, len(others)), names[0], column)
        options = pa.ipc.IpcWriteOptions(compression=fuzz.choice(random, ["zstd", "lz4"]))
    else:
        length = fuzz.choice(random, [2**20, 2**26])
        column = pa.LargeListArray.from_arrays(pa.array(np.linspace(0, length, rows + 1).astype(np.int64)), pa.nulls(length))
        if "metadata" in table.column_names:
            table = table.drop_columns(["metadata"])
        table = table.append_column("metadata", pa.StructArray.from_arrays([column], ["x"]))
        options = pa.ipc.IpcWriteOptions()
    with pa.ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes(), what


def changed_words(data, random, *, near_the_ends=False):
    """Aligned words set to a limit: a few, a run of them, or all that are small."""
    data = bytearray(data)
    width = fuzz.choice(random, [2, 4, 4, 8])
    if len(data) < 16:
        return bytes(data), "short"
    low, high = fuzz.choice(random, [(0, min(len(data), 3000)), (max(len(data) - 3000, 0), len(data))])
    if not near_the_ends and random.random() < 0.7:
        low, high = 0, len(data)
    value = fuzz.choice(random, [*COUNTS, len(data), len(data) // 8])
    places = random.integers(
        low // width, max(high // width, low // width + 1), size=int(fuzz.choice(random, [1, 1, 2, 5, 50]))
    )
    if random.random() < 0.15:
        places = range(int(places[0]), min(int(places[0]) + 200, len(data) // width))
    for place in places:
        if (place + 1) * width <= len(data):
            put(data, int(place) * width, f"<u{width}", value)
    return bytes(data), f"{len(places)} words of {width} are {value}"
