"""Formats of files: their numbers, and all that reads what older versions wrote. docs/format.md has the newest.

Two kinds of files carry a number: the manifest of an index (INDEX_VERSION), and a learned map in a file of its own
(MAP_VERSION). A reader refuses a newer number. What an index was, format by format:

1. One ``tokens.arrow``; one ``documents.arrow``, whose column ``deleted`` says which rows are; ``graph.hnsw``, hnswlib's file
   alone, or ``vectors.safetensors``; and ``learned.safetensors``, with the factor of the solve (``cholesky``, ``target_std``)
   and the reduction (``reduction_mean``, ``document_map``) apart. Targets were float32, and no option said so.
2. ``projection`` and ``offset`` took the place of solve and reduction. ``document_map``, where there is one, is a further step.
3. Codes beside the tokens; links that searches read, in ``graph.safetensors``, not always of the last rows; ``tuned``.
4. Numbered files that never change, in segments; deleted rows as bits. Its first maps may have ``document_map``, and its first
   manifests lack ``num_rows`` in ``training``. Each copy of a document had links of its own.
5. Maps are homogeneous, and say so in ``feature_map``. Copies of documents are listed beside the links: ``next_equal``,
   ``copies``.
6. Maps may have ``centroids`` and the weights of a second look, and an index then has those of its documents' tokens,
   ``centroids`` in the manifest. Its options may leave numbers open.
7. Maps have what small codes are made with, ``codes.*``, files of centroids may have such codes, and segments may then be
   without ``tokens``. Beside the links there was hnswlib's file still, which documents were added to.
8. The newest: links alone.

A map in a file of its own was "lemur_ann encoder 1" in one string, then format 1; its arrays were always those of format 4.

The arrays in a file tell what they are, not the number in the manifest: the first change of an index open on an old one leaves
a manifest of the newest format over old files. So every function here but :func:`manifest` goes by what it finds.

To add an array to the map: encoder.py writes and reads it; :func:`learned_map`, at its end, gives it to files that lack it; and
learning hands it over in ``MapParts`` (learning/projection.py). Older readers take arrays by name and pass over others. So
raise the numbers only if they would encode wrongly without the new one, and then put an index in tests/formats, made with the
version before by make_index.py. Describe the array in docs/format.md. ``NAMED_BY`` in encoder.py stays as it is, for ever.

This stands in one file below the encoder, since a map is read from indexes and from files of its own, and above the candidates
and learning, whose functions make what old files lack.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lemur_ann import _core
from lemur_ann.arrays import are_finite, map_arrays
from lemur_ann.candidates import Kind, Structure
from lemur_ann.candidates.look import MAX_CENTROIDS, NUM_KNOWN
from lemur_ann.errors import CorruptIndex
from lemur_ann.learning.projection import composed
from lemur_ann.learning.query_features import FeatureWeights

Arrays = dict[str, npt.NDArray[Any]]

INDEX_VERSION = 8
MAP_FORMAT, MAP_VERSION = "lemur_ann encoder", 2
UNIT_TOLERANCE = 0.01  # of squared lengths: float16 tokens are within a tenth of that
OLD_LINKS = "graph.safetensors"  # of formats 1 to 3, which may have links of some rows alone
FIRST_MAP = "lemur_ann encoder 1"  # format and number in one, which was compared for equality


def manifest(old: dict[str, Any]) -> dict[str, Any]:
    """A manifest of any format as one of the newest; KeyError, TypeError or ValueError where it is none."""
    version = old["format_version"]
    new = old if version >= 4 else _with_segments(old, version)
    if new["training"] is not None:
        check_training(new["training"])
    if "centroids" not in new:
        new = {**new, "centroids": []}
    training = new["training"]
    if training is not None and "num_rows" not in training:  # then all rows there are count as those it was learned from
        new = {**new, "training": {**training, "num_rows": new["num_rows"]}}
    return new if version >= 8 else _without_hnswlib(new)


def _without_hnswlib(old: dict[str, Any]) -> dict[str, Any]:
    """The manifest without hnswlib's file in the structure, where there are links of all rows; the next change deletes it."""
    structure = old["structure"]
    links = None if structure is None else structure["files"].get("links")
    if links in (None, OLD_LINKS):
        return old
    return {**old, "structure": {**structure, "files": {"links": links}}}


def _with_segments(old: dict[str, Any], version: int) -> dict[str, Any]:
    """The manifest of formats 1 to 3, whose files have fixed names."""
    files, num_rows = old["files"], old["num_rows"]
    options = dict(old["options"])  # those that it does not name have their defaults, but for these
    if version == 1:
        options["target_precision"] = "float32"
    if version <= 2:
        options["token_codes"] = None
    names = {"graph": "graph.hnsw", "links": OLD_LINKS}
    structure = {role: file for role, file in names.items() if file in files}
    return {
        **old,
        "options": options,
        "tuned": old.get("tuned", []),
        "version": 0,
        "segments": [{"tokens": "tokens.arrow", "documents": "documents.arrow", "num_rows": num_rows}],
        "deleted": "documents.arrow",
        "learned": "learned.safetensors" if "learned.safetensors" in files else None,
        "structure": {"files": structure, "num_rows": num_rows} if structure else None,
        "vectors": [{"file": "vectors.safetensors", "num_rows": num_rows}] if "vectors.safetensors" in files else [],
    }


def deleted_rows(documents: pa.Table) -> npt.NDArray[Any]:
    """Which rows are deleted, of formats 1 to 3: a column beside the ids. Empty where there is none."""
    if "deleted" not in documents.column_names:
        return np.empty(0, np.bool_)
    return np.array(documents.column("deleted").to_numpy())


def map_header() -> dict[str, str]:
    """What the header of a map in a file of its own says of its format."""
    return {"format": MAP_FORMAT, "format_version": str(MAP_VERSION)}


def check_map_header(header: dict[str, str], name: object) -> None:
    """CorruptIndex unless the header is that of a map, of a format that this version reads; ``name`` is the file's."""
    found = header.get("format")
    if found == FIRST_MAP:
        return
    try:
        number = int(header["format_version"]) if found == MAP_FORMAT else 0
    except (KeyError, TypeError, ValueError):
        number = 0
    if number < 1:
        raise CorruptIndex(f"{name} is not an encoder of this format: expected {MAP_FORMAT!r}, got {found!r}")
    if number > MAP_VERSION:
        raise CorruptIndex(
            f"{name} has encoder format {number}, this lemur_ann {_core.version} reads up to {MAP_VERSION}; "
            f"it was written by lemur_ann {header.get('lemur_ann_version')}"
        )


def learned_map(arrays: Arrays, config: dict[str, Any]) -> Arrays:
    """The arrays of a map of any format as those that an encoder takes; ``config`` is that of its feature map.

    Raises:
        CorruptIndex: they do not fit each other, or are not all finite.
    """
    _check_config(config)
    sizes = {"num_features": config["num_features"], "dim": config["dim"]}
    _check_arrays(arrays, _shapes_of_features(config), sizes)
    if "cholesky" in arrays:
        _check_arrays(arrays, SOLVED, dict(sizes))
        arrays = _solved(arrays, config)
    elif "document_map" in arrays:
        _check_arrays(arrays, {**MAP, **STEPS}, dict(sizes))
        projection, offset = composed(arrays["projection"], arrays["offset"], arrays["document_map"])
        arrays = {**arrays, "projection": projection, "offset": offset}
    _check_arrays(arrays, MAP, sizes)
    if "centroids" in arrays:
        _check_arrays(arrays, LOOK, {"dim": sizes["dim"], "known": NUM_KNOWN})
        if CODES.keys() & arrays.keys():
            _check_arrays(arrays, CODES, {"dim": sizes["dim"]})
            if not arrays["codes.unit"][0] > 0:
                raise CorruptIndex("the learned map has a unit of codes that is not above 0")
        if len(arrays["centroids"]) > MAX_CENTROIDS:
            raise CorruptIndex(f"the learned map has {len(arrays['centroids'])} centroids, expected {MAX_CENTROIDS} at most")
    if not float(arrays["radius"][0]) > 0:
        raise CorruptIndex("the learned map has a radius that is not above 0")
    return arrays  # with what stands for an array that came later, where there is none


def check_training(training: Any) -> None:
    """TypeError unless it is what training showed: whatever learns on adds to its ``seconds``."""
    if not isinstance(training, dict) or not isinstance(training.get("seconds", {}), dict):
        raise TypeError("training is no object")
    low = training.get("nearness", {}).get("low", 0.0)  # AttributeError where it is no object
    if isinstance(low, bool) or not isinstance(low, (int, float)):
        raise TypeError("the nearness of training is no number")


# The shapes of arrays, by names that stand for one size wherever they are; each is at least 1.
MAP = {
    "sample_tokens": ("<f4", "num_sample_tokens", "dim"),
    "token_weights": ("<f4", "num_sample_tokens"),
    "target_mean": ("<f8", 1),
    "projection": ("<f4", "num_sample_tokens", "rank"),
    "offset": ("<f4", "rank"),
    "query_map": ("<f4", "num_features", "rank"),
    "radius": ("<f8", 1),
}
LOOK = {
    "centroids": ("<f4", "num_centroids", "dim"),
    "look.hidden": ("<f4", "num_hidden", "known"),
    "look.bias": ("<f4", "num_hidden"),
    "look.output": ("<f4", "num_hidden"),
}
CODES = {
    "codes.token_map": ("<f4", "dim", "dim"),
    "codes.query_map": ("<f4", "dim", "dim"),
    "codes.unit": ("<f4", 1),
}
STEPS = {  # whose projection does not lead to the rank yet
    "projection": ("<f4", "num_sample_tokens", "width"),
    "offset": ("<f4", "width"),
    "document_map": ("<f4", "width", "rank"),
}
SOLVED = {
    "sample_tokens": MAP["sample_tokens"],
    "document_map": ("<f4", "num_features", "rank"),
    "reduction_mean": ("<f4", "num_features"),
    "cholesky": ("<f8", "num_features", "num_features"),
    "target_std": ("<f8", 1),
    **{name: MAP[name] for name in ("target_mean", "query_map", "radius")},
}


def _check_config(config: dict[str, Any]) -> None:
    """CorruptIndex unless it describes a feature map; its sizes are compared with the arrays, before any of them is used."""
    is_known = config["kind"] in ("trained", "random") and config["activation"] in ("gelu", "relu", "silu", "mish")
    if not is_known or not isinstance(config.get("homogeneous", True), bool):
        raise CorruptIndex(f"the feature map is of no known kind: {str(config)[:200]}")
    hidden = config["hidden_dims"]
    sizes = [config["dim"], config["num_features"], *hidden]
    if not isinstance(hidden, list) or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in sizes):
        raise CorruptIndex(f"the feature map has sizes that are none: {str(sizes)[:200]}")


def _shapes_of_features(config: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
    """Of the parameters of psi, as :class:`lemur_ann.learning.features.FeatureMap` has them."""
    dim, num_features = config["dim"], config["num_features"]
    if config["kind"] == "random":
        return {"feature_map.layers.0.weight": ("<f4", dim, num_features)}
    shapes: dict[str, tuple[Any, ...]] = {}
    widths = [dim, *config["hidden_dims"], num_features]
    for i, (narrow, wide) in enumerate(pairwise(widths)):
        linear, norm = f"feature_map.layers.{3 * i}", f"feature_map.layers.{3 * i + 1}"
        shapes |= {f"{linear}.weight": ("<f4", wide, narrow), f"{linear}.bias": ("<f4", wide)}
        shapes |= {f"{norm}.weight": ("<f4", wide), f"{norm}.bias": ("<f4", wide)}
    return shapes


def _check_arrays(arrays: Arrays, shapes: dict[str, tuple[Any, ...]], sizes: dict[str, int]) -> None:
    """CorruptIndex unless the arrays are there in these shapes, and finite; sizes that are not known yet are noted."""
    for name, (dtype, *shape) in shapes.items():
        array = arrays[name]
        if array.dtype != dtype or array.ndim != len(shape) or 0 in array.shape:
            raise CorruptIndex(f"the learned map has {name} as {array.dtype} of shape {array.shape}")
        expected = tuple(
            n if isinstance(n, int) else sizes.setdefault(n, found) for n, found in zip(shape, array.shape, strict=True)
        )
        if array.shape != expected:
            raise CorruptIndex(f"the learned map has {name} of shape {array.shape}, expected {expected}")
        if not are_finite(array):
            raise CorruptIndex(f"the learned map has {name} that is not finite")


def feature_map(config: dict[str, Any], arrays: Arrays) -> dict[str, Any]:
    """What an encoder takes as the config of the feature map of any format; ``arrays`` are those of the map.

    One that was learned from tokens of length 1 knows nothing of other lengths, and is homogeneous from now on.
    """
    if "homogeneous" in config:
        return config
    squares = np.einsum("ij,ij->i", arrays["sample_tokens"], arrays["sample_tokens"])
    return {**config, "homogeneous": True} if np.abs(squares - 1).max(initial=0) < UNIT_TOLERANCE else config


def _solved(arrays: Arrays, config: dict[str, Any]) -> Arrays:
    """Of format 1: the solve and the reduction multiplied out, where every sample token counted the same."""
    import torch

    prefix = "feature_map."
    psi = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    features = FeatureWeights(config, psi).module("cpu").token_features(np.array(arrays["sample_tokens"])).cpu()
    # copies, since torch wants arrays that could be written
    document_map, cholesky = torch.from_numpy(np.array(arrays["document_map"])), torch.from_numpy(np.array(arrays["cholesky"]))
    solved = torch.cholesky_solve(document_map.double(), cholesky)
    projection = (features.double() @ solved / float(arrays["target_std"][0])).float().numpy()
    return {
        **arrays,
        "token_weights": np.ones(len(projection), np.float32),
        "projection": projection,
        "offset": np.array(arrays["reduction_mean"]) @ np.array(arrays["document_map"]),
    }


def load_structure(kind: Kind, paths: dict[str, Path], dim: int, num_rows: int) -> Structure:
    """What candidates of a kind saved, in any format: hnswlib's file may be alone, or beside links of fewer rows."""
    of_hnswlib = paths.get("graph") if "links" in kind.files else None
    if of_hnswlib and ("links" not in paths or len(map_arrays(paths["links"])["links"]) != num_rows):
        return _graph_of_hnswlib(of_hnswlib, dim, num_rows)
    return kind.load_structure(paths, dim, num_rows)


def _graph_of_hnswlib(path: Path, dim: int, num_rows: int) -> Structure:
    """hnswlib's own links, of its file. Rows beyond ``num_rows`` are of a change that was broken off."""
    from lemur_ann.candidates.hnsw import HnswGraph
    from lemur_ann.candidates.hnswlib_file import check, read_links, read_vectors

    check(path, dim)
    codes, scales = _core.int8_codes(read_vectors(path, dim, num_rows), 1)
    return HnswGraph(codes, scales, *read_links(path, dim, num_rows))
