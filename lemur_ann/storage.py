"""The directory an index is saved in. docs/format.md says what each file holds.

A save writes a new directory beside the old one, whole, and then renames: the old one away, the new one into place. A crash
between the two renames leaves both beside the path, hidden: ``.NAME.old-*`` and ``.NAME.new-*``.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from lemur_ann._core import version as __version__
from lemur_ann.errors import CorruptIndex

FORMAT = "lemur_ann"
FORMAT_VERSION = 3

MANIFEST = "manifest.json"
DOCUMENTS = "documents.arrow"
TOKENS = "tokens.arrow"
LEARNED = "learned.safetensors"


def write_directory(path: Path, manifest: dict[str, Any], write_files: Callable[[Path], None]) -> None:
    """Make ``path`` a directory with the files that ``write_files(folder)`` writes, and their manifest.

    Raises:
        FileExistsError: ``path`` exists and is not an index.
    """
    check_replaceable(path)
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    name = f"{path.name}.{{}}-{uuid.uuid4().hex[:12]}"
    new, old = (path.with_name("." + name.format(state)) for state in ("new", "old"))
    try:
        new.mkdir()
        write_files(new)
        files = {file.name: _describe(file) for file in sorted(new.iterdir())}
        head = {"format": FORMAT, "format_version": FORMAT_VERSION, "lemur_ann_version": __version__}
        body = {**head, **manifest, "files": files}
        (new / MANIFEST).write_text(json.dumps({**body, "manifest_sha256": _digest(body)}, indent=2) + "\n")
        for file in new.iterdir():
            _sync(file)
        _sync(new)
        replaced = path.exists()
        if replaced:
            path.rename(old)
        try:
            new.rename(path)
        except BaseException:
            if replaced:
                old.rename(path)
            raise
        _sync(path.parent)
        if replaced:
            shutil.rmtree(old)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def update_manifest(path: Path, changes: dict[str, Any]) -> None:
    """Change some entries of a saved index's manifest, in one step."""
    body = {**read_manifest(path), **changes}
    new = path / f".{MANIFEST}.{uuid.uuid4().hex[:12]}"
    try:
        new.write_text(json.dumps({**body, "manifest_sha256": _digest(body)}, indent=2) + "\n")
        _sync(new)
        new.replace(path / MANIFEST)
    finally:
        new.unlink(missing_ok=True)
    _sync(path)


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a saved index, checked against its own checksum.

    Raises:
        FileNotFoundError: there is no such directory.
        CorruptIndex: it is not an index, its manifest was altered, or a newer version wrote it.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"no index at {path}: there is no such directory")
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except FileNotFoundError:
        raise CorruptIndex(f"{path} has no {MANIFEST}, expected a saved lemur_ann index") from None
    except (ValueError, OSError) as error:
        raise CorruptIndex(f"{path / MANIFEST} cannot be read: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CorruptIndex(f"{path / MANIFEST} does not describe a lemur_ann index")
    version = manifest.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise CorruptIndex(
            f"{path} has index format {version}, this lemur_ann {__version__} reads up to {FORMAT_VERSION}; "
            f"it was written by lemur_ann {manifest.get('lemur_ann_version')}"
        )
    if manifest.pop("manifest_sha256", None) != _digest(manifest):
        raise CorruptIndex(f"{path / MANIFEST} was altered: its checksum does not match")
    return manifest


def check_files(path: Path, manifest: dict[str, Any], *, verify: bool) -> None:
    """Compare every file with the manifest: its size always, its checksum too unless it is the tokens and not ``verify``."""
    for name, expected in manifest["files"].items():
        if Path(name).name != name:
            raise CorruptIndex(f"{path / MANIFEST} names a file outside the index: {name!r}")
        file = path / name
        if not file.is_file():
            raise CorruptIndex(f"{file} is missing")
        size = file.stat().st_size
        if size != expected["size_bytes"]:
            raise CorruptIndex(f"{file} has {size} bytes, expected {expected['size_bytes']}")
        if (verify or name != TOKENS) and _file_digest(file) != expected["sha256"]:
            raise CorruptIndex(f"{file} was altered: its checksum does not match")


def write_documents(path: Path, ids: pa.Array, deleted: npt.NDArray[np.int64], metadata: pa.Table | None) -> None:
    """Ids, tombstones and metadata by document index, as Arrow IPC."""
    is_deleted = np.zeros(len(ids), dtype=bool)
    is_deleted[deleted] = True
    columns = {"id": ids, "deleted": pa.array(is_deleted)}
    if metadata is not None:
        columns["metadata"] = pa.chunked_array(metadata.to_struct_array(), pa.struct(list(metadata.schema)))
    table = pa.table(columns)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=65_536)


def read_documents(path: Path) -> tuple[pa.Array, npt.NDArray[np.int64], pa.Table | None]:
    """What :func:`write_documents` wrote."""
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        ids = table.column("id").combine_chunks()
        deleted = np.flatnonzero(table.column("deleted").to_numpy())
        metadata = None
        if "metadata" in table.column_names:
            metadata = pa.Table.from_struct_array(table.column("metadata"))
    except (pa.ArrowException, KeyError) as error:
        raise CorruptIndex(f"{path} cannot be read: {error}") from error
    return ids, deleted, metadata


def write_arrays(path: Path, arrays: dict[str, npt.NDArray[Any]]) -> None:
    """Named arrays as safetensors."""
    # save_file would make a file that only its owner may read
    path.write_bytes(save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))


def read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """What :func:`write_arrays` wrote."""
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CorruptIndex(f"{path} cannot be read: {error}") from error


def check_replaceable(path: Path) -> None:
    """FileExistsError unless ``path`` is free, an empty folder, or an index with nothing else in its folder."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        own = {MANIFEST, *manifest["files"]} if manifest["format"] == FORMAT else set()
    except (OSError, ValueError, KeyError, TypeError):
        own = set()
    if not own:
        raise FileExistsError(f"{path} exists and is not a lemur_ann index; choose another path or remove it")
    foreign = sorted({file.name for file in path.iterdir()} - own)
    if foreign:
        raise FileExistsError(f"{path} holds {foreign[0]!r} beside its index; choose another path or move that away")


def _describe(file: Path) -> dict[str, Any]:
    return {"size_bytes": file.stat().st_size, "sha256": _file_digest(file)}


def _file_digest(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as source:
        while block := source.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # Windows cannot open a directory, and keeps renames in order itself
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
