"""An index on disk: versions of it, each a manifest over files that never change.

A commit writes what is new, syncs it, and swaps the manifest; then it deletes the files that no longer belong to the index. A
process that has them open goes on reading them, and whoever was about to open them reads the new manifest instead. So one
writer, kept alone by a lock, and any number of readers need to know nothing of each other.
"""

from __future__ import annotations

import functools
import shutil
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pyarrow as pa

from lemur_ann import storage
from lemur_ann.candidates import CandidateIndex, Structure, Vectors, kind_of
from lemur_ann.errors import CorruptIndex, IndexLocked
from lemur_ann.ids import IdColumn, IdMap
from lemur_ann.intake import joined_metadata, rows_of
from lemur_ann.options import Options
from lemur_ann.rows import RowSet
from lemur_ann.snapshot import Learned, Snapshot
from lemur_ann.tokens import Chunk, TokenStore
from lemur_ann.tuning import Tuned

TRIES = 20  # to open a version while a writer makes one after the other


@dataclass(frozen=True, eq=False)
class Segment:
    """Documents whose tokens are in one file, and whose ids and metadata are in another."""

    tokens: str
    documents: str
    num_rows: int
    chunks: list[Chunk]
    ids: list[pa.Array]
    metadata: pa.Table | None

    @property
    def entry(self) -> dict[str, Any]:
        """What a manifest says of it."""
        return {"tokens": self.tokens, "documents": self.documents, "num_rows": self.num_rows}


@dataclass(frozen=True, eq=False)
class Version:
    """A manifest, and what its files hold: ``objects`` by the name of the file, the first where there are more of them."""

    manifest: dict[str, Any]
    options: Options
    snapshot: Snapshot
    segments: list[Segment]
    objects: dict[Any, Any]

    def name_of(self, item: object) -> Any:
        """The file that an object is in; None where it is in none."""
        return next((name for name, known in self.objects.items() if known is item), None)


def read_version(folder: Path, *, verify: bool, device: str | None = None, before: Version | None = None) -> Version:
    """The current version; what the version ``before`` has of it already is taken from there.

    Raises:
        FileNotFoundError: there is no such directory.
        CorruptIndex: a file is missing, truncated, altered or of a newer format.
    """
    manifest = storage.read_manifest(folder)
    for _ in range(TRIES):
        known = {} if before is None else before.manifest["files"]
        try:
            storage.check_files(
                folder, {name: e for name, e in manifest["files"].items() if known.get(name) != e}, verify=verify
            )
            return _assembled(folder, manifest, device, {} if before is None else before.objects)
        except (CorruptIndex, FileNotFoundError):
            now = storage.read_manifest(folder)
            if now == manifest:
                raise
            manifest = now  # a writer was quicker
    raise TimeoutError(f"{folder} changed {TRIES} times while it was read")


def _assembled(
    folder: Path, manifest: dict[str, Any], device: str | None, known: dict[Any, Any], ids: IdMap | None = None
) -> Version:
    """A version of its manifest, with what is ``known`` of its files, and read from them else."""
    try:
        options = Options(**manifest["options"])
    except (TypeError, ValueError) as error:
        raise CorruptIndex(f"{folder} has options this version cannot read: {error}") from error
    if device is not None:
        options = replace(options, device=device)
    objects: dict[Any, Any] = {}

    def known_or(name: Any, read: Callable[[], Any]) -> Any:
        objects[name] = known[name] if name in known else read()
        return objects[name]

    try:
        coded = options.token_codes is not None
        read_segment = functools.partial(_read_segment, folder, coded=coded)
        segments = [known_or(entry["tokens"], functools.partial(read_segment, entry)) for entry in manifest["segments"]]
        num_rows = sum(segment.num_rows for segment in segments)
        store = TokenStore([chunk for segment in segments for chunk in segment.chunks], coded=coded)
        _ = store.documents
        column = IdColumn([chunk for segment in segments for chunk in segment.ids])
        if any(chunk.type != column.type for chunk in column.chunks):
            raise CorruptIndex(f"{folder} has ids of more than one type")
        metadata = None
        rows = 0
        if any(segment.metadata is not None for segment in segments):
            for segment in segments:
                metadata = joined_metadata(metadata, rows, [rows_of(segment.metadata, segment.num_rows)])
                rows += segment.num_rows
        deleted = RowSet.none(num_rows)
        if manifest["deleted"] is not None:
            name = manifest["deleted"]
            deleted = known_or(name, lambda: RowSet.of(storage.read_deleted(folder / name, num_rows)))
        learned = None if manifest["feature_map"] is None else _learned(folder, manifest, options, num_rows, known_or)
    except (KeyError, IndexError, AttributeError, TypeError, ArithmeticError, RuntimeError, pa.ArrowException) as error:
        raise CorruptIndex(f"{folder} cannot be read: {error!r}") from error
    ids = IdMap(column, deleted) if ids is None else ids.moved_to(column)
    return Version(manifest, options, Snapshot(store, ids, metadata, deleted, learned), segments, objects)


def _read_segment(folder: Path, entry: dict[str, Any], *, coded: bool) -> Segment:
    store = TokenStore.open(folder / entry["tokens"], coded=coded)
    ids, metadata = storage.read_documents(folder / entry["documents"])
    for what, count in (("tokens of", len(store)), ("ids for", len(ids))):
        if count != entry["num_rows"]:
            raise CorruptIndex(f"{folder} has {what} {count} documents in {entry}, expected {entry['num_rows']}")
    return Segment(entry["tokens"], entry["documents"], len(store), store.chunks, ids.chunks, metadata)


def _learned(
    folder: Path, manifest: dict[str, Any], options: Options, num_rows: int, known_or: Callable[[Any, Callable[[], Any]], Any]
) -> Learned:
    from lemur_ann.encoder import LemurEncoder

    training, kind = manifest["training"], kind_of(options.candidates)

    def read_encoder() -> LemurEncoder:
        arrays = storage.map_arrays(folder / manifest["learned"])
        return LemurEncoder.from_arrays(arrays, manifest["feature_map"], training, options)

    encoder: LemurEncoder = known_or(manifest["learned"], read_encoder)

    def read_structure() -> Structure:
        paths = {role: folder / name for role, name in entry["files"].items()}
        return kind.load_structure(paths, encoder.dim, entry["num_rows"])

    def read_part(part: dict[str, Any]) -> Vectors:
        vectors = storage.map_arrays(folder / part["file"])["vectors"][: part["num_rows"]]
        if vectors.shape != (part["num_rows"], encoder.dim) or vectors.dtype != np.float32:
            raise CorruptIndex(f"{folder / part['file']} has vectors of shape {vectors.shape}")
        return vectors

    entry = manifest["structure"]
    structure = None if entry is None else known_or(entry["files"]["graph"], read_structure)
    parts = [known_or(part["file"], functools.partial(read_part, part)) for part in manifest["vectors"]]
    if sum(map(len, parts)) + (0 if structure is None else structure.num_rows) != num_rows:
        raise CorruptIndex(f"{folder} does not have candidates for all of {num_rows} documents")
    candidates: CandidateIndex = known_or(
        _candidates_key(manifest), lambda: kind.assemble(encoder.dim, structure, parts, asdict(options))
    )
    tuned = (Tuned(**{**t, "recall_interval": tuple(t["recall_interval"])}) for t in manifest["tuned"])
    learned_rows = training.get("num_rows", num_rows)  # which indexes of old do not have
    return Learned(options, encoder, candidates, learned_rows, tuple(tuned))


def _candidates_key(manifest: dict[str, Any]) -> Any:
    structure = manifest["structure"]
    files = None if structure is None else structure["files"]["graph"]
    return ("candidates", manifest["learned"], files, *(part["file"] for part in manifest["vectors"]))


class _Writing:
    """The files of a version that is being written."""

    def __init__(self, folder: Path, before: Version | None, number: int) -> None:
        self.folder = folder
        self.before = before
        self.number = number
        self.files: dict[str, Any] = {}
        self.created: list[Path] = []
        self.objects: dict[Any, Any] = {}
        numbers = (name.name.partition("-")[2][:6] for name in folder.iterdir() if storage.NAMES.fullmatch(name.name))
        self._number = 1 + max((int(number) for number in numbers if number.isdigit()), default=0)

    def new(self, kind: str, suffix: str, write: Callable[[Path], None], item: object = None) -> str:
        """Write a file, and be sure that it is on the disk."""
        path = self.folder / f"{kind}-{self._number:06}{suffix}"
        self._number += 1
        self.created.append(path)
        write(path)
        self._finish(path)
        if item is not None:
            self.objects[path.name] = item
        return path.name

    def new_structure(self, structure: Structure, suffixes: dict[str, str]) -> dict[str, str]:
        paths = {role: self.folder / f"{role}-{self._number:06}{suffix}" for role, suffix in suffixes.items()}
        self._number += 1
        self.created += paths.values()
        structure.save(paths)
        for path in paths.values():
            self._finish(path)
        return {role: path.name for role, path in paths.items()}

    def _finish(self, path: Path) -> None:
        storage.sync(path)
        self.files[path.name] = storage.describe(path)

    def keep(self, *names: str) -> None:
        """Files of the version before that stay."""
        assert self.before is not None
        self.files |= {name: self.before.manifest["files"][name] for name in names}

    def known(self, item: object) -> Any:
        name = None if self.before is None else self.before.name_of(item)
        if isinstance(name, str):
            self.keep(name)
        return name

    def segments(self, snapshot: Snapshot) -> list[dict[str, Any]]:
        chunks = snapshot.store.chunks
        known = {} if self.before is None else {id(s.chunks[0]): s for s in self.before.segments if s.chunks}
        entries: list[dict[str, Any]] = []
        run: list[Chunk] = []
        first = i = 0

        def flush() -> int:
            if not run:
                return first
            store = TokenStore(run, coded=snapshot.store.coded)
            rows = np.arange(first, first + len(store))
            metadata = None if snapshot.metadata is None else snapshot.metadata[first : first + len(store)]
            ids = snapshot.ids.column.array[first : first + len(store)]
            entries.append(
                {
                    "tokens": self.new("tokens", ".arrow", store.write),
                    "documents": self.new("documents", ".arrow", lambda path: storage.write_documents(path, ids, metadata)),
                    "num_rows": len(rows),
                }
            )
            run.clear()
            return first + len(store)

        while i < len(chunks):
            segment = known.get(id(chunks[i]))
            same = zip(chunks[i:], segment.chunks, strict=False) if segment else ()
            if segment and len(chunks) - i >= len(segment.chunks) and all(a is b for a, b in same):
                first = flush() + segment.num_rows
                entries.append(segment.entry)
                self.keep(segment.tokens, segment.documents)
                i += len(segment.chunks)
            else:
                run.append(chunks[i])
                i += 1
        flush()
        return entries

    def undo(self) -> None:
        """Leave the version before, also where the manifest has been swapped already."""
        with suppress(Exception):
            if storage.written_manifest(self.folder)["version"] == self.number:
                if self.before is None:
                    return
                storage.write_manifest(self.folder, self.before.manifest)
        for path in self.created:
            storage.remove(path)

    def version(self, snapshot: Snapshot, options: Options) -> dict[str, Any]:
        """Write what is new of a snapshot, and give the manifest of it all."""
        learned = snapshot.learned
        manifest: dict[str, Any] = {
            "version": self.number,
            "num_documents": snapshot.num_documents,
            "num_rows": snapshot.num_rows,
            "num_tokens": snapshot.store.num_tokens,
            "dim": snapshot.store.dim,
            "token_dtype": None if snapshot.store.dtype is None else str(snapshot.store.dtype),
            "options": asdict(options if learned is None else learned.options),
            "segments": self.segments(snapshot),
            **dict.fromkeys(("deleted", "feature_map", "training", "learned", "structure")),
            "vectors": [],
            "tuned": [],
        }
        deleted = snapshot.deleted
        if deleted.count:
            manifest["deleted"] = self.known(deleted) or self.new(
                "deleted", ".safetensors", lambda path: storage.write_deleted(path, deleted.mask), deleted
            )
        if learned is not None:
            encoder, candidates = learned.encoder, learned.candidates
            manifest["feature_map"] = encoder.feature_weights.config
            manifest["training"] = {**encoder.training, "num_rows": learned.num_rows}
            manifest["tuned"] = [asdict(tuned) for tuned in learned.tuned]
            manifest["learned"] = self.known(encoder) or self.new(
                "learned", ".safetensors", lambda path: storage.write_arrays(path, encoder.arrays()), encoder
            )
            structure, is_new = candidates.structure, False
            if structure is not None:
                name = self.known(structure)
                if name is None:
                    is_new = True
                    files = self.new_structure(structure, kind_of(learned.options.candidates).FILES)
                else:
                    assert self.before is not None
                    files = self.before.manifest["structure"]["files"]
                    self.keep(*files.values())
                manifest["structure"] = {"files": files, "num_rows": structure.num_rows}
            for part in candidates.parts:
                name = self.known(part) or self.new(
                    "vectors", ".safetensors", functools.partial(storage.write_arrays, arrays={"vectors": part}), part
                )
                manifest["vectors"].append({"file": name, "num_rows": len(part)})
            if not is_new:  # else what is mapped from its files takes its place
                self.objects[_candidates_key(manifest)] = candidates
        return {**manifest, "files": self.files}


def _write(
    folder: Path, snapshot: Snapshot, options: Options, *, number: int = 1, before: Version | None = None
) -> tuple[dict[str, Any], _Writing]:
    """Write version ``number`` and make it the current one."""
    writing = _Writing(folder, before, number)
    try:
        manifest = writing.version(snapshot, options)
        storage.sync(folder)  # the new files are in it before the manifest names them
        storage.write_manifest(folder, manifest)
    except BaseException:
        writing.undo()
        raise
    return manifest, writing


def _remove_strays(folder: Path, files: dict[str, Any], others: dict[str, Any] | None = None) -> None:
    """Delete our files that no version names, and those of ``others`` too."""
    for path in folder.iterdir():
        if path.name not in files and (storage.NAMES.fullmatch(path.name) or path.name in (others or {})):
            storage.remove(path)


class WriterLock:
    """Held by the one index that may write to a directory; the operating system takes it from a process that dies."""

    def __init__(self, folder: Path) -> None:
        self._lock = filelock.FileLock(folder / storage.LOCK, timeout=0, thread_local=False)
        try:
            self._lock.acquire()
        except filelock.Timeout:
            raise IndexLocked(
                f"{folder} is open for writing in this process or another; read_only=True opens it beside that"
            ) from None

    @property
    def is_held(self) -> bool:
        """Whether this process has it: a forked child has not."""
        return self._lock.is_locked

    def release(self) -> None:
        """Let another have it."""
        self._lock.release()


class Directory:
    """A directory that an index is open on."""

    def __init__(self, path: Path, version: Version, lock: WriterLock | None, *, verify: bool, device: str | None) -> None:
        self.path = path
        self._version = version
        self._lock = lock
        self._verify = verify
        self._device = device

    @classmethod
    def open(
        cls,
        path: Path,
        options: Options,
        *,
        read_only: bool,
        verify: bool,
        device: str | None,
        is_new_with: list[str],
    ) -> Directory:
        """Open what is there; for writing, an empty index with ``options`` is made where nothing is.

        ``is_new_with``: the options that the caller named, which an index that is there has already.
        """
        exists = (path / storage.MANIFEST).exists()
        if is_new_with and (exists or read_only):
            raise TypeError(f"options ({', '.join(is_new_with)}) are for a new index, and this opens the one in {path}")
        if read_only:
            return cls(path, read_version(path, verify=verify, device=device), None, verify=verify, device=device)
        if not exists:
            there = [file.name for file in path.iterdir()] if path.exists() else []
            foreign = [name for name in there if name != storage.LOCK and not storage.NAMES.fullmatch(name)]
            if foreign:
                raise FileExistsError(f"{path} holds {foreign[0]!r} and no index; choose another path or move that away")
            path.mkdir(parents=True, exist_ok=True)
        lock = WriterLock(path)
        try:
            if not (path / storage.MANIFEST).exists():
                storage.sync_parents(path)
                _write(path, Snapshot.empty(coded=options.token_codes is not None), options)
            version = read_version(path, verify=verify, device=device)
            storage.sync(path)  # a writer that was killed may not have come to it
            _remove_strays(path, version.manifest["files"])
        except BaseException:
            lock.release()
            raise
        return cls(path, version, lock, verify=verify, device=device)

    @property
    def snapshot(self) -> Snapshot:
        """The version that was read or committed last."""
        return self._version.snapshot

    @property
    def options(self) -> Options:
        """Those of that version."""
        return self._version.options

    def check_writable(self) -> None:
        """PermissionError unless changes can be committed."""
        if self._lock is None or not self._lock.is_held:
            raise PermissionError(
                f"{self.path} is open read-only, or closed, or open in the process that forked this one: "
                "changes need LemurIndex.open(path)"
            )

    def commit(self, snapshot: Snapshot, options: Options) -> Snapshot:
        """Make a snapshot the current version, for good; gives the same, mapped from its files."""
        self.check_writable()
        before = self._version
        if self._device is not None:  # which is for this process, and not kept
            device = before.manifest["options"]["device"]
            options = replace(options, device=device)
        manifest, writing = _write(self.path, snapshot, options, number=before.manifest["version"] + 1, before=before)
        known = {**before.objects, **writing.objects}
        try:
            version = _assembled(self.path, manifest, self._device, known, snapshot.ids)
        except BaseException:
            writing.undo()
            raise
        self._version = version
        for name in before.manifest["files"]:
            if name not in manifest["files"]:
                storage.remove(self.path / name)
        return self._version.snapshot

    def refresh(self) -> bool:
        """Read the current version, where another process made one; whether it did."""
        manifest = storage.read_manifest(self.path)
        if manifest["version"] == self._version.manifest["version"] and manifest["files"] == self._version.manifest["files"]:
            return False
        self._version = read_version(self.path, verify=self._verify, device=self._device, before=self._version)
        return True

    def close(self) -> None:
        """Let go of the lock; nothing can be committed any more."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def save(path: Path, snapshot: Snapshot, options: Options) -> None:
    """Write a snapshot as a directory of its own, or in place of the index that is there.

    Raises:
        FileExistsError: something other than an index is there.
        IndexLocked: that index is open for writing.
    """
    storage.check_replaceable(path)
    path = path.resolve()
    if (path / storage.MANIFEST).exists():
        lock = WriterLock(path)
        try:
            old = storage.written_manifest(path)
            manifest, _ = _write(path, snapshot, options, number=old.get("version", 0) + 1)
            _remove_strays(path, manifest["files"], old["files"])
        finally:
            lock.release()
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new-{uuid.uuid4().hex[:12]}")
    try:
        new.mkdir()
        _write(new, snapshot, options)
        if path.exists():
            path.rmdir()  # it is empty
        storage.move(new, path)
        storage.sync_parents(path)
    finally:
        shutil.rmtree(new, ignore_errors=True)
