"""The files of a saved index: its manifest, and what the others hold. docs/format.md says more.

Every file is written once, under a name of its own, and never changed. The manifest names those that belong to the current
version, and a new manifest takes the place of the old one by a rename: the one step by which a change happens.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lemur_ann import arrays, formats
from lemur_ann._core import version as __version__
from lemur_ann.documents.arrow_files import open_arrow
from lemur_ann.errors import CorruptIndex
from lemur_ann.saved.checks import FILE, check_depth, check_manifest, unique_keys

FORMAT = "lemur_ann"

MANIFEST = "manifest.json"
LOCK = "writer.lock"
MANIFEST_BYTES = 2**22  # that are read at most: ours have a few hundred for each file
ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)  # of a stat: there is no such file
TOKENS = "tokens"  # what the names of token files begin with
# what files of ours are called, those left by a crash included: whatever has such a name may be deleted
NAMES = re.compile(
    r"(tokens|documents|deleted|learned|vectors|centroids|graph|links)-(?P<number>\d{6,})\.(arrow|safetensors|hnsw|bin)"
    r"|\.manifest\.json\..*|\.building-.*"
)
# what an index of formats 1 to 3 may name in its manifest
OLD_NAMES = frozenset(f"{name}.arrow" for name in ("tokens", "documents")) | frozenset(
    ("learned.safetensors", "vectors.safetensors", "graph.hnsw", "graph.safetensors")
)


class Swap:
    """One manifest in the place of another, or of none: the step by which a change happens, and the way back from it.

    Whatever may run out, descriptors and room, is taken before that step: it and the way back are renames. The files that the
    manifest names must be written and synced, and so must be the folder.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        head = {"format": FORMAT, "format_version": formats.INDEX_VERSION, "lemur_ann_version": __version__}
        body = {**manifest, **head}
        self.content = (json.dumps({**body, "manifest_sha256": _digest(body)}, indent=2) + "\n").encode()
        self._folder = folder
        self._current = folder / MANIFEST
        self.files = [folder / f".{MANIFEST}.{uuid.uuid4().hex[:12]}" for _ in range(2)]
        self._new, self._old = self.files
        self._is_first = False  # there was no manifest
        self._is_done = False
        self.was_tried = False
        self.is_sure = True  # which manifest the folder has

    def prepare(self) -> None:
        """All that can be done beforehand."""
        self._new.write_bytes(self.content)
        sync(self._new)
        try:
            os.link(self._current, self._old)
        except FileNotFoundError:
            self._is_first = True
        except OSError:  # a file system without links
            self._old.write_bytes(manifest_bytes(self._folder))
            sync(self._old)

    def do(self) -> None:
        """It happens now; for good once the folder is synced."""
        self.was_tried = True
        move(self._new, self._current)
        self._is_done = True

    def undo(self) -> bool:
        """Put the manifest from before back where it was replaced; whether it is the one in the folder."""
        is_back = not self.was_tried
        try:
            if self.was_tried and self._is_first:
                self._current.unlink(missing_ok=True)
            elif self.was_tried:
                move(self._old, self._current)
            is_back = True
        except OSError:
            try:
                self._new.lstat()
                is_back = True  # it was never moved
            except FileNotFoundError:
                pass
            except OSError:
                is_back, self.is_sure = not self._is_done, False
        if is_back:
            self.tidy()
        return is_back

    def tidy(self) -> None:
        """Nothing but the manifest is left."""
        for file in self.files:
            remove(file)


def check_there(path: Path) -> None:
    """FileNotFoundError unless there is a folder."""
    if not path.is_dir():
        raise FileNotFoundError(f"no index at {path}: there is no such directory")


def read_manifest(path: Path, *, trusted: bool = False) -> dict[str, Any]:
    """The manifest of a saved index, checked against its own checksum; ``trusted``: it may be a link.

    Raises:
        FileNotFoundError: there is no such directory.
        CorruptIndex: it is not an index, its manifest was altered, or a newer version wrote it.
    """
    check_there(path)
    try:
        manifest = _parsed(path, trusted=trusted)
    except FileNotFoundError:
        raise CorruptIndex(f"{path} has no {MANIFEST}, expected a saved lemur_ann index") from None
    except (ValueError, OSError, RecursionError) as error:
        raise CorruptIndex(f"{path / MANIFEST} cannot be read: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CorruptIndex(f"{path / MANIFEST} does not describe a lemur_ann index")
    version = manifest.get("format_version")
    if isinstance(version, bool) or not isinstance(version, int) or not 1 <= version <= formats.INDEX_VERSION:
        raise CorruptIndex(
            f"{path} has index format {version}, this lemur_ann {__version__} reads up to {formats.INDEX_VERSION}; "
            f"it was written by lemur_ann {manifest.get('lemur_ann_version')}"
        )
    if manifest.pop("manifest_sha256", None) != _digest(manifest):
        raise CorruptIndex(f"{path / MANIFEST} was altered: its checksum does not match")
    try:
        manifest = formats.manifest(manifest)
        check_manifest(manifest)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptIndex(f"{path / MANIFEST} cannot be read: {error!r}") from error
    return manifest


def check_files(path: Path, files: dict[str, Any], *, verify: bool, trusted: bool = False) -> None:
    """Compare files with the manifest: their sizes always, their checksums too unless they are tokens and not ``verify``.

    ``trusted``: they may be links to files elsewhere, as in the cache of a hub.
    """
    for name, expected in files.items():
        if not FILE.fullmatch(name):
            raise CorruptIndex(f"{path / MANIFEST} names a file outside the index: {name!r}")
        file = path / name
        size = _size(file, links=trusted)
        if size != expected["size_bytes"]:
            raise CorruptIndex(f"{file} has {size} bytes, expected {expected['size_bytes']}")
        if (verify or not name.startswith(TOKENS)) and _file_digest(file, links=trusted) != expected["sha256"]:
            raise CorruptIndex(f"{file} was altered: its checksum does not match")


def _size(file: Path, *, links: bool = False) -> int:
    """Of a file in the folder itself, unless ``links`` may lead elsewhere: what is opened may never wait, as a pipe does."""
    try:
        found = file.stat() if links else file.lstat()
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        if isinstance(error, OSError) and error.errno not in ABSENT:
            raise
        raise CorruptIndex(f"{file} is missing") from None
    if stat.S_ISLNK(found.st_mode):
        raise CorruptIndex(
            f"{file} is a link, and files of an index lie in its folder: copy the folder with `cp -rL`, "
            "or pass trusted=True where you trust whoever made it"
        )
    if not stat.S_ISREG(found.st_mode):
        raise CorruptIndex(f"{file} is no file")
    return found.st_size


def manifest_bytes(path: Path, *, trusted: bool = False) -> bytes:
    """A manifest as it stands there, which may be anything.

    Raises:
        FileNotFoundError: there is none.
        CorruptIndex: it is no file, or a link and not ``trusted``, or longer than any of ours.
    """
    file = path / MANIFEST
    file.lstat()
    if _size(file, links=trusted) > MANIFEST_BYTES:
        raise CorruptIndex(f"{file} cannot be read: it has more than {MANIFEST_BYTES} bytes")
    with arrays.opened_file(file, links=trusted) as source:
        return source.read(MANIFEST_BYTES)


def _parsed(path: Path, *, trusted: bool = False) -> Any:
    """The JSON of a manifest. FileNotFoundError where there is none; CorruptIndex, OSError or ValueError where it is none."""
    parsed = json.loads(manifest_bytes(path, trusted=trusted), object_pairs_hook=unique_keys)
    check_depth(parsed)
    return parsed


def write_documents(path: Path, ids: pa.ChunkedArray, metadata: pa.Table | None) -> None:
    """Ids and metadata, as Arrow IPC."""
    columns = {"id": ids}
    if metadata is not None:
        columns["metadata"] = pa.chunked_array(metadata.to_struct_array(), pa.struct(list(metadata.schema)))
    table = pa.table(columns)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=65_536)


def read_documents(path: Path) -> tuple[pa.ChunkedArray, pa.Table | None]:
    """What :func:`write_documents` wrote, mapped."""
    table = _read_table(path)
    try:
        names = table.column_names
        fields = [
            column.type.field(i).name
            for column in table.columns
            if pa.types.is_struct(column.type)
            for i in range(column.type.num_fields)
        ]
    except UnicodeDecodeError as error:
        raise CorruptIndex(f"{path} cannot be read: {error}") from error
    ids = table.column("id") if names.count("id") == 1 else pa.chunked_array([], pa.null())
    if ids.type not in (pa.int64(), pa.large_string()) or ids.null_count:
        raise CorruptIndex(f"{path} cannot be read: it has no ids")
    if "metadata" not in names:
        return ids, None
    if names.count("metadata") != 1 or not pa.types.is_struct(table.column("metadata").type):
        raise CorruptIndex(f"{path} cannot be read: its metadata is no struct")
    if len(set(fields)) < len(fields):
        raise CorruptIndex(f"{path} cannot be read: two columns of metadata have one name")
    return ids, pa.Table.from_struct_array(table.column("metadata"))


def read_deleted(path: Path, num_rows: int) -> npt.NDArray[np.bool_]:
    """Which rows are deleted, bool (num_rows,)."""
    if path.suffix == ".arrow":
        mask = formats.deleted_rows(_read_table(path))
    else:
        bits = arrays.map_arrays(path).get("bits", np.empty(0, np.uint8))
        mask = np.unpackbits(bits, count=min(num_rows, 8 * len(bits))).astype(np.bool_)
    if mask.dtype != np.bool_ or mask.shape != (num_rows,):
        raise CorruptIndex(f"{path} says of {len(mask)} rows whether they are deleted, expected {num_rows}")
    return mask


def write_deleted(path: Path, mask: npt.NDArray[np.bool_]) -> None:
    """Which rows are deleted, a bit for each."""
    arrays.write_arrays(path, {"bits": np.packbits(mask)})


def _read_table(path: Path) -> pa.Table:
    try:
        table = open_arrow(path).read_all()
        table.validate(full=True)  # offsets and UTF-8, which reading does not check
    except (pa.ArrowException, ValueError, OSError) as error:
        raise CorruptIndex(f"{path} cannot be read: {error}") from error
    return table


def check_replaceable(path: Path) -> None:
    """FileExistsError unless ``path`` is free, an empty folder, or an index with nothing else in its folder."""
    if not path.exists() or (path.is_dir() and all(may_be_begun(file.name) for file in path.iterdir())):
        return
    try:
        own = {MANIFEST, LOCK, *(name for name in written_manifest(path)["files"] if FILE.fullmatch(name))}
    except (OSError, ValueError, KeyError, TypeError):
        raise FileExistsError(f"{path} exists and is not a lemur_ann index; choose another path or remove it") from None
    foreign = sorted(file.name for file in path.iterdir() if file.name not in own and not NAMES.fullmatch(file.name))
    if foreign:
        raise FileExistsError(f"{path} holds {foreign[0]!r} beside its index; choose another path or move that away")


def written_manifest(path: Path) -> dict[str, Any]:
    """The manifest as it stands there, of any format, damaged or not: ValueError where it is no manifest of an index."""
    manifest = _parsed(path)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or not isinstance(manifest.get("files"), dict):
        raise ValueError("not the manifest of an index")
    return manifest


def is_file_name(name: str) -> bool:
    """Whether a manifest may name such a file, of any format."""
    return number_of(name) > 0 or name in OLD_NAMES


def may_be_begun(name: str) -> bool:
    """Whether a folder with nothing but such names may be one that a writer began, and was killed before the first manifest."""
    return name == LOCK or (NAMES.fullmatch(name) is not None and number_of(name) == 0)


def is_own(name: str) -> bool:
    """Whether it is the name of a file of ours, which may be deleted where no manifest names it."""
    return NAMES.fullmatch(name) is not None or name in OLD_NAMES


def number_of(name: str) -> int:
    """The number in the name of one of our files, 0 where it is none."""
    found = NAMES.fullmatch(name)
    return int(found["number"] or 0) if found else 0


def describe(file: Path) -> dict[str, Any]:
    """What a manifest says of a file."""
    return {"size_bytes": file.stat().st_size, "sha256": _file_digest(file)}


def _file_digest(file: Path, *, links: bool = False) -> str:
    digest = hashlib.sha256()
    with arrays.opened_file(file, links=links) as source:
        while block := source.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


# The three steps that decide what a crash leaves behind, in one place.


def sync(path: Path, descriptor: int | None = None) -> None:
    """What is in a file, or which files are in a folder, is on the disk; ``descriptor``: where it is open already."""
    if descriptor is not None:
        os.fsync(descriptor)
        return
    if path.is_dir() and os.name == "nt":  # Windows cannot open a directory, and keeps renames in order itself
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_parents(path: Path) -> None:
    """A folder that may be new is where it is for good: it, and all above it."""
    for folder in (path, *path.resolve().parents):
        with suppress(PermissionError):
            sync(folder)


def move(path: Path, target: Path) -> None:
    """Rename, over what is there."""
    path.replace(target)


def remove(path: Path) -> bool:
    """Delete what no version names any more; whether it is gone. Windows refuses while it is mapped."""
    try:
        if path.name.startswith(".building-") and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)  # the folder in which a library was writing its graph
        else:
            path.unlink(missing_ok=True)
    except OSError:
        return False
    return True


def remove_strays(folder: Path, files: dict[str, Any], others: dict[str, Any] | None = None) -> None:
    """Delete our files that no version names, and those of ``others`` too; what cannot be deleted now, the next writer can."""
    with suppress(OSError):
        for path in folder.iterdir():
            if path.name not in files and (NAMES.fullmatch(path.name) or path.name in (others or {})):
                remove(path)
