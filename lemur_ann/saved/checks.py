"""What a manifest says, held against what an index can be, before any of its files is opened.

A folder may come from anyone, and its checksums are made by whoever made the folder. So every name is a plain one of ours that
``files`` has, every number fits, and nothing is deeper or longer than ours are. docs/format.md says what each key is.
"""

from __future__ import annotations

import re
from typing import Any

from lemur_ann.documents.tokens import MAX_DIM

# Files of formats 1 to 3 have no number, and stay where they are as long as they are in use.
FILE = re.compile(
    r"(tokens|documents|deleted|learned|vectors|centroids|graph|links)(-[0-9]{6,})?\.(arrow|safetensors|hnsw|bin)", re.ASCII
)
MAX_DEPTH = 32
MAX_COUNT = 2**48


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; ValueError where a key stands twice, of which another reader might take the other one."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice")
    return found


def check_depth(value: Any) -> None:
    """ValueError where JSON is nested deeper than ours, so that whatever walks it later needs no such check."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for node in level
            if isinstance(node, (dict, list))
            for child in (node.values() if isinstance(node, dict) else node)
        ]
        if not level:
            return
    raise ValueError(f"it is nested deeper than {MAX_DEPTH}")


def check_manifest(manifest: dict[str, Any]) -> None:
    """ValueError, TypeError or KeyError unless a manifest of the newest format (see formats.py) is one of an index.

    What the files hold is compared with it when they are read.
    """
    _is(manifest, ("options",), dict)
    _is(manifest, ("files",), dict)
    for name, entry in manifest["files"].items():
        if not FILE.fullmatch(name):
            raise ValueError(f"it names a file outside the index: {name!r}")
        if not isinstance(entry["sha256"], str):
            raise TypeError(f"the checksum of {name} is no string")
        _count(entry["size_bytes"], f"the size of {name}")
    for key in ("version", "num_rows", "num_documents", "num_tokens"):
        _count(manifest[key], key)
    if manifest["num_documents"] > manifest["num_rows"]:
        raise ValueError("it has more documents than rows")
    _is(manifest | {"note": manifest.get("note") or ""}, ("note",), str)
    dim = manifest["dim"]
    if dim is not None and not 1 <= _count(dim, "dim") <= MAX_DIM:
        raise ValueError(f"dim is {dim}, expected 1 to {MAX_DIM}")
    _check_learned(manifest)
    _check_names(manifest)


def _check_learned(manifest: dict[str, Any]) -> None:
    training, structure = manifest["training"], manifest["structure"]
    if manifest["feature_map"] is not None:
        _is(manifest, ("feature_map", "training"), dict)
        _count(training.get("num_unfamiliar", 0), "num_unfamiliar of training")
        if _count(training["num_rows"], "num_rows of training") > manifest["num_rows"]:
            raise ValueError("its map was learned from more rows than there are")
    _is(manifest, ("vectors", "centroids", "tuned", "segments"), list)
    if structure is not None:
        _is(structure, ("files",), dict)
        _count(structure["num_rows"], "num_rows of structure")
    for entry in (*manifest["segments"], *manifest["vectors"], *manifest["centroids"]):
        _count(entry["num_rows"], "num_rows of a file")


def _check_names(manifest: dict[str, Any]) -> None:
    """Every name is one of ``files``, and none is two files of one kind."""
    segments, structure = manifest["segments"], manifest["structure"]
    keeps_codes_alone = manifest["options"].get("keep_tokens") == "none"
    lists = [
        [entry["tokens"] for entry in segments if entry["tokens"] is not None or not keeps_codes_alone],
        [entry["documents"] for entry in segments],
        [entry["file"] for entry in manifest["vectors"]],
        [] if structure is None else list(structure["files"].values()),
        [name for name in (manifest["deleted"], manifest["learned"]) if name is not None],
        [entry["file"] for entry in manifest["centroids"]],
    ]
    for names in lists:
        for name in names:
            if not isinstance(name, str) or name not in manifest["files"]:
                raise ValueError(f"it uses a file that is not among its files: {name!r}")
        if len(set(names)) < len(names):
            raise ValueError("it uses a file twice")
    # the graph of a library and its vectors have one number, and that of the other rows' vectors is another
    if len({*lists[2], *lists[3]}) < len(lists[2]) + len(lists[3]):
        raise ValueError("it uses a file twice")


def _is(node: dict[str, Any], keys: tuple[str, ...], kind: type) -> None:
    for key in keys:
        if not isinstance(node[key], kind):
            raise TypeError(f"{key} is no {kind.__name__}")


def _count(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < MAX_COUNT:
        raise ValueError(f"{name} is {str(value)[:40]}, expected an integer from 0 on")
    return value
