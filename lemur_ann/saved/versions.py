"""A version of an index on disk: a manifest, and what its files hold; how one is read, and how one is written."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa

from lemur_ann import arrays, formats
from lemur_ann.candidates import CandidateIndex, Structure, Vectors
from lemur_ann.candidates.kinds import LIBRARIES, kind_of
from lemur_ann.candidates.library import check_own
from lemur_ann.candidates.look import SecondLook
from lemur_ann.documents.coded import Part, checked_part
from lemur_ann.documents.coded_store import CodedStore
from lemur_ann.documents.ids import IdColumn, IdMap
from lemur_ann.documents.intake import joined_metadata, rows_of
from lemur_ann.documents.rows import RowSet
from lemur_ann.documents.tokens import Chunk, Piece, TokenStore
from lemur_ann.encoder import LemurEncoder, check_device
from lemur_ann.errors import CorruptIndex
from lemur_ann.options import Options
from lemur_ann.saved import seal, storage
from lemur_ann.saved.folder import Folder
from lemur_ann.searching.settings import Tuned
from lemur_ann.searching.snapshot import Learned, Snapshot

TRIES = 20  # to open a version while a writer makes one after the other


@dataclass(frozen=True, eq=False)
class Segment:
    """Documents whose tokens are in one file, and whose ids and metadata are in another.

    Where codes alone are kept there is no file of tokens, and the pieces are those parts of the codes.
    """

    tokens: str | None
    documents: str
    num_rows: int
    pieces: Sequence[Piece]
    ids: list[pa.Array]
    metadata: pa.Table | None

    @property
    def entry(self) -> dict[str, Any]:
        """What a manifest says of it."""
        return {"tokens": self.tokens, "documents": self.documents, "num_rows": self.num_rows}


@dataclass(frozen=True, eq=False)
class Version:
    """A manifest, and what its files hold: ``objects`` by the name of the file, the first where there are more of them.

    ``given``: the options that the index was made with, of which its map may have others by now.
    """

    manifest: dict[str, Any]
    options: Options
    given: Options
    snapshot: Snapshot
    segments: list[Segment]
    objects: dict[Any, Any]

    def name_of(self, item: object) -> Any:
        """The file that an object is in; None where it is in none."""
        return next((name for name, known in self.objects.items() if known is item), None)


def read_version(
    folder: Path,
    *,
    verify: bool,
    device: str | None = None,
    before: Version | None = None,
    scratch: str | None = None,
    trusted: bool = False,
) -> Version:
    """The current version; what the version ``before`` has of it already is taken from there.

    ``scratch``: the folder for temporary files of a candidate index that grows; ``trusted``: read what cannot be checked, and
    follow links to files.

    Raises:
        FileNotFoundError: there is no such directory.
        CorruptIndex: a file is missing, truncated, altered or of a newer format.
        ValueError: the device is not here.
    """
    manifest = storage.read_manifest(folder, trusted=trusted)
    for _ in range(TRIES):
        known = {} if before is None else before.manifest["files"]
        try:
            unknown = {name: entry for name, entry in manifest["files"].items() if known.get(name) != entry}
            storage.check_files(folder, unknown, verify=verify, trusted=trusted)
            # an index that was emptied begins anew with the names of its files
            is_anew = any(entry != manifest["files"].get(name, entry) for name, entry in known.items())
            objects = {} if before is None or is_anew else before.objects
            return assembled(folder, manifest, device, objects, scratch=scratch, trusted=trusted)
        except (CorruptIndex, FileNotFoundError):
            now = storage.read_manifest(folder, trusted=trusted)
            if now == manifest:
                raise
            manifest = now  # a writer was quicker
    raise TimeoutError(f"{folder} changed {TRIES} times while it was read")


def assembled(
    folder: Path,
    manifest: dict[str, Any],
    device: str | None,
    known: dict[Any, Any],
    ids: IdMap | None = None,
    scratch: str | None = None,
    trusted: bool = True,
) -> Version:
    """A version of its manifest, with what is ``known`` of its files, and read from them else."""
    try:
        options = given = Options(**manifest["options"])
        if manifest["feature_map"] is not None:  # without a map they are those that it learns with
            given = Options(**manifest.get("options_given", manifest["options"]))
    except (TypeError, ValueError, ArithmeticError) as error:
        raise CorruptIndex(f"{folder} has options this version cannot read: {error}") from error
    if options.candidates in LIBRARIES and not trusted and not _is_ours(manifest):
        check_own(asdict(options))
    if device is not None:
        options, given = replace(options, device=device), replace(given, device=device)
    if manifest["feature_map"] is not None:
        check_device(options.device)
    objects: dict[Any, Any] = {}

    # What did not change stays the same object from version to version: nothing is read twice, and a search that goes on in
    # the version before shares its memory with this one.
    def known_or(name: Any, read: Callable[[], Any]) -> Any:
        objects[name] = known[name] if name in known else read()
        return objects[name]

    try:
        read_segment = functools.partial(_read_segment, folder, coded=options.keeps_int8)
        segments = [known_or(entry["documents"], functools.partial(read_segment, entry)) for entry in manifest["segments"]]
        num_rows = sum(segment.num_rows for segment in segments)
        is_coded_alone = options.keep_tokens == "none" and manifest["feature_map"] is not None
        if any((segment.tokens is None) != is_coded_alone for segment in segments):
            raise CorruptIndex(f"{folder} has segments with tokens, or without, against its option keep_tokens")
        chunks = [cast(Chunk, piece) for segment in segments for piece in segment.pieces if not is_coded_alone]
        store = TokenStore(chunks, coded=options.keeps_int8)
        _ = store.documents
        column = IdColumn([chunk for segment in segments for chunk in segment.ids])
        if any(chunk.type != column.type for chunk in column.chunks):
            raise CorruptIndex(f"{folder} has ids of more than one type")
        metadata = _joined(segments)
        deleted = RowSet.none(num_rows)
        if (name := manifest["deleted"]) is not None:
            key = ("deleted", name) if name in objects else name  # formats 1 to 3 have it in the file of the ids
            deleted = known_or(key, lambda: RowSet.of(storage.read_deleted(folder / name, num_rows)))
        if (num_rows, num_rows - deleted.count) != (manifest["num_rows"], manifest["num_documents"]):
            raise CorruptIndex(
                f"{folder} has {num_rows} rows, of which {deleted.count} are deleted, and its manifest says otherwise"
            )
        if len({chunk.tokens.dtype for chunk in store.chunks}) > 1:
            raise CorruptIndex(f"{folder} has tokens of more than one dtype")
        learned = None
        if manifest["feature_map"] is not None:
            learned = _learned(folder, manifest, options, num_rows, known_or, scratch, trusted)
            if is_coded_alone:
                store, segments = _of_codes(folder, segments, learned, manifest["token_dtype"])
            if store.dim not in (None, learned.encoder.token_dim):
                raise CorruptIndex(f"{folder} has tokens of dim {store.dim}, and a map of dim {learned.encoder.token_dim}")
    except CorruptIndex:
        raise
    except ValueError as error:
        raise CorruptIndex(f"{folder} cannot be read: {error}") from error
    except (KeyError, IndexError, AttributeError, TypeError, ArithmeticError, RuntimeError, pa.ArrowException) as error:
        raise CorruptIndex(f"{folder} cannot be read: {error!r}") from error
    ids = IdMap(column, deleted) if ids is None else ids.moved_to(column)
    snapshot = Snapshot(store, ids, metadata, deleted, learned, manifest.get("note"), manifest["version"])
    return Version(manifest, options, given, snapshot, segments, objects)


def _is_ours(manifest: dict[str, Any]) -> bool:
    """Whether this user wrote the structure, on this machine."""
    entry = manifest["structure"]
    if entry is None:
        return False
    described = {role: manifest["files"][name] for role, name in entry["files"].items()}
    return seal.fits(entry.get("seal"), manifest["options"], described)


def _read_segment(folder: Path, entry: dict[str, Any], *, coded: bool) -> Segment:
    ids, metadata = storage.read_documents(folder / entry["documents"])
    counts, pieces = [("ids for", len(ids))], []
    if entry["tokens"] is not None:
        store = TokenStore.open(folder / entry["tokens"], coded=coded)
        counts, pieces = [*counts, ("tokens of", len(store))], store.chunks
    for what, count in counts:
        if count != entry["num_rows"]:
            raise CorruptIndex(f"{folder} has {what} {count} documents in {entry}, expected {entry['num_rows']}")
    return Segment(entry["tokens"], entry["documents"], entry["num_rows"], pieces, ids.chunks, metadata)


def _of_codes(folder: Path, segments: list[Segment], learned: Learned, dtype: Any) -> tuple[TokenStore, list[Segment]]:
    """A store of codes alone, and segments without tokens, with their parts of the codes."""
    assert learned.look is not None
    if dtype not in (None, "float16", "float32"):
        raise CorruptIndex(f"{folder} has tokens of dtype {str(dtype)[:40]}")
    store = CodedStore(learned.look.book, learned.look.parts, None if dtype is None else np.dtype(dtype))
    found, left = [], list(learned.look.parts)
    for segment in segments:
        own: list[Part] = []
        while left and sum(map(len, own)) < segment.num_rows:
            own.append(left.pop(0))
        if sum(map(len, own)) != segment.num_rows:
            raise CorruptIndex(f"{folder} has codes that do not begin where the documents of a file do")
        found.append(replace(segment, pieces=own))
    return store, found


def _joined(segments: list[Segment]) -> pa.Table | None:
    """The metadata of all segments, null in columns that a segment lacks; None where none has any."""
    if all(segment.metadata is None for segment in segments):
        return None
    metadata, rows = None, 0
    for segment in segments:
        metadata = joined_metadata(metadata, rows, [rows_of(segment.metadata, segment.num_rows)])
        rows += segment.num_rows
    return metadata


def _learned(
    folder: Path,
    manifest: dict[str, Any],
    options: Options,
    num_rows: int,
    known_or: Callable[[Any, Callable[[], Any]], Any],
    scratch: str | None,
    trusted: bool,
) -> Learned:
    training, kind = manifest["training"], kind_of(options.candidates)

    def read_encoder() -> LemurEncoder:
        learned = formats.learned_map(arrays.map_arrays(folder / manifest["learned"]), manifest["feature_map"])
        return LemurEncoder.from_arrays(learned, formats.feature_map(manifest["feature_map"], learned), training, options)

    encoder: LemurEncoder = known_or(manifest["learned"], read_encoder)

    def read_structure() -> Structure:
        paths = {role: folder / name for role, name in entry["files"].items()}
        if not (kind.is_checked or trusted or _is_ours(manifest)):
            return kind.rebuild(paths, encoder.dim, entry["num_rows"], asdict(options))
        return formats.load_structure(kind, paths, encoder.dim, entry["num_rows"])

    def read_part(part: dict[str, Any]) -> Vectors:
        vectors = arrays.map_arrays(folder / part["file"])["vectors"][: part["num_rows"]]
        if vectors.shape != (part["num_rows"], encoder.dim) or vectors.dtype != np.float32:
            raise CorruptIndex(f"{folder / part['file']} has vectors of shape {vectors.shape}")
        if not arrays.are_finite(vectors):
            raise CorruptIndex(f"{folder / part['file']} has a vector that is not finite")
        return vectors

    book = None if encoder.look is None else encoder.look.codebook(options.small_bits)
    if options.small_bits and (book is None or not book.bits):
        raise CorruptIndex(f"{folder} has token_codes={options.token_codes!r}, and a map that lacks what these are made with")

    def read_ids(part: dict[str, Any]) -> Part:
        assert book is not None
        return checked_part(arrays.map_arrays(folder / part["file"]), part["num_rows"], book, folder / part["file"])

    entry = manifest["structure"]
    structure = None if entry is None else known_or(_structure_file(entry), read_structure)
    parts = [known_or(part["file"], functools.partial(read_part, part)) for part in manifest["vectors"]]
    if sum(map(len, parts)) + (0 if structure is None else structure.num_rows) != num_rows:
        raise CorruptIndex(f"{folder} does not have candidates for all of {num_rows} documents")
    candidates: CandidateIndex = known_or(
        _candidates_key(manifest), lambda: kind.assemble(encoder.dim, structure, parts, asdict(options), scratch)
    )
    look = None
    if encoder.look is not None:
        ids = [known_or(part["file"], functools.partial(read_ids, part)) for part in manifest["centroids"]]
        look = SecondLook(encoder.look, ids, options.small_bits)
        if look.num_rows != num_rows:
            raise CorruptIndex(f"{folder} does not have centroids of all of {num_rows} documents")
    tuned = map(_as_tuned, manifest["tuned"])
    unfamiliar = training.get("num_unfamiliar", 0)
    return Learned(options, encoder, candidates, training["num_rows"], tuple(tuned), unfamiliar, look)


def _as_tuned(told: dict[str, Any]) -> Tuned:
    intervals: dict[str, Any] = {name: tuple(told[name]) for name in ("recall_interval", "loss_interval") if name in told}
    return Tuned(**{**told, **intervals})


def _told(tuned: Tuned) -> dict[str, Any]:
    """Without what older versions have no name for, where it says nothing; target_recall they ask for."""
    return {name: value for name, value in asdict(tuned).items() if value is not None or name == "target_recall"}


def _structure_file(entry: dict[str, Any]) -> str:
    """The file that a structure goes by."""
    files: dict[str, str] = entry["files"]
    return files["links"] if "links" in files else files["graph"]


def _candidates_key(manifest: dict[str, Any]) -> Any:
    structure = manifest["structure"]
    file = None if structure is None else _structure_file(structure)
    return ("candidates", manifest["learned"], file, *(part["file"] for part in manifest["vectors"]))


class Writing:
    """The files of a version that is being written, and the step that makes it the current one.

    Attributes:
        left: names of files that could not be deleted when it was undone, or that must not be yet.
    """

    def __init__(self, folder: Folder, before: Version | None = None, number: int = 1) -> None:
        self.folder = folder.files
        self.before = before
        self.number = number
        self.files: dict[str, Any] = {}
        self.created: list[Path] = []
        self.objects: dict[Any, Any] = {}
        self.left: set[str] = set()
        self._held = folder
        self._swap: storage.Swap | None = None
        self._number = 1 + max((storage.number_of(path.name) for path in self.folder.iterdir()), default=0)

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
        """Write the files of a structure; gives their names."""
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
        """The file of the version before that has this, which stays then; None where none has."""
        name = None if self.before is None else self.before.name_of(item)
        if isinstance(name, str):
            self.keep(name)
        return name

    def segments(self, snapshot: Snapshot) -> list[dict[str, Any]]:
        """The segments of a snapshot: those of the version before whose pieces it has, and new ones of the others."""
        pieces, is_coded_alone = snapshot.store.pieces, isinstance(snapshot.store, CodedStore)
        known = {} if self.before is None else {id(s.pieces[0]): s for s in self.before.segments if s.pieces}
        entries: list[dict[str, Any]] = []
        run: list[Piece] = []
        first = i = 0

        def flush() -> int:
            if not run:
                return first
            num_rows, tokens = sum(len(piece.offsets) - 1 for piece in run), None
            if not is_coded_alone:
                store = TokenStore([cast(Chunk, piece) for piece in run], coded=snapshot.store.coded)
                tokens = self.new("tokens", ".arrow", store.write)
            metadata = None if snapshot.metadata is None else snapshot.metadata[first : first + num_rows]
            ids = snapshot.ids.column.array[first : first + num_rows]
            documents = self.new("documents", ".arrow", lambda path: storage.write_documents(path, ids, metadata))
            entries.append({"tokens": tokens, "documents": documents, "num_rows": num_rows})
            run.clear()
            return first + num_rows

        while i < len(pieces):
            segment = known.get(id(pieces[i]))
            same = zip(pieces[i:], segment.pieces, strict=False) if segment else ()
            if segment and len(pieces) - i >= len(segment.pieces) and all(a is b for a, b in same):
                first = flush() + segment.num_rows
                entries.append(segment.entry)
                self.keep(*(name for name in (segment.tokens, segment.documents) if name is not None))
                i += len(segment.pieces)
            else:
                run.append(pieces[i])
                i += 1
        flush()
        return entries

    def swap(self, manifest: dict[str, Any], check: Callable[[], None], note: Callable[[bytes], None]) -> None:
        """Make it the current version, for good once this returns.

        Args:
            manifest: what :meth:`version` gave.
            check: raises where that must not be; called just before.
            note: is told what will be in the manifest's file.
        """
        self._held.sync()  # the new files are in it before the manifest names them
        self._swap = storage.Swap(self.folder, manifest)
        self._swap.prepare()
        check()
        note(self._swap.content)
        self._swap.do()
        self._held.sync()

    @property
    def hidden(self) -> set[str]:
        """Names of files that are there only until it is the current version."""
        return set() if self._swap is None else {file.name for file in self._swap.files}

    @property
    def content(self) -> bytes:
        """What is in the file of the manifest."""
        return b"" if self._swap is None else self._swap.content

    def tidy(self) -> None:
        """Delete what is needed only until it is the current version."""
        if self._swap is not None:
            self._swap.tidy()

    def undo(self) -> tuple[bool, bool]:
        """Leave the version before, also where it is the current one no more; whether it is that now, and if that is sure.

        What a manifest names that is in the folder, or may be after a power cut, is not deleted.
        """
        swap = self._swap
        is_back = swap is None or swap.undo()
        is_sure = swap is None or swap.is_sure
        can_delete = is_back and is_sure
        if can_delete and swap is not None and swap.was_tried:
            try:
                self._held.sync()
            except OSError:
                can_delete = False
        if can_delete:
            for path in self.created:
                storage.remove(path)
        self.left = {path.name for path in self.created} | self.hidden
        return is_back, is_sure

    def version(self, snapshot: Snapshot, options_of_index: Options, device: str | None) -> dict[str, Any]:
        """Write what is new of a snapshot, and give the manifest of it all; ``device`` stays what it was before."""
        learned = snapshot.learned
        options, given = asdict(options_of_index if learned is None else learned.options), asdict(options_of_index)
        if device is not None:
            options["device"] = given["device"] = device
        manifest: dict[str, Any] = {
            "version": self.number,
            "num_documents": snapshot.num_documents,
            "num_rows": snapshot.num_rows,
            "num_tokens": snapshot.store.num_tokens,
            "dim": snapshot.store.dim,
            "token_dtype": None if snapshot.store.dtype is None else str(snapshot.store.dtype),
            "options": options,
            **({} if given == options else {"options_given": given}),
            **({} if snapshot.note is None else {"note": snapshot.note}),
            "segments": self.segments(snapshot),
            **dict.fromkeys(("deleted", "feature_map", "training", "learned", "structure")),
            "vectors": [],
            "centroids": [],
            "tuned": [],
        }
        deleted = snapshot.deleted
        if deleted.count:
            manifest["deleted"] = self.known(deleted) or self.new(
                "deleted", ".safetensors", lambda path: storage.write_deleted(path, deleted.mask), deleted
            )
        if learned is not None:
            manifest |= self.map_of(learned)
            is_new, manifest["structure"] = self.structure_of(learned)
            manifest["vectors"] = [self.part(part) for part in learned.candidates.parts]
            manifest["centroids"] = [] if learned.look is None else [self.ids(part) for part in learned.look.parts]
            if not is_new:  # else what is mapped from its files takes its place, as with a new map
                self.objects[_candidates_key(manifest)] = learned.candidates
        return {**manifest, "files": self.files}

    def map_of(self, learned: Learned) -> dict[str, Any]:
        """Write the map if it is new, and give what the manifest says of it."""
        encoder = learned.encoder
        return {
            "feature_map": encoder.feature_weights.config,
            "training": {**encoder.training, "num_rows": learned.num_rows, "num_unfamiliar": learned.num_unfamiliar},
            "tuned": [_told(tuned) for tuned in learned.tuned],
            "learned": self.known(encoder)
            or self.new("learned", ".safetensors", lambda path: arrays.write_arrays(path, encoder.arrays())),
        }

    def structure_of(self, learned: Learned) -> tuple[bool, dict[str, Any] | None]:
        """Whether the structure of the candidates is new, then written; and what the manifest says of it, None of none."""
        structure = learned.candidates.structure
        if structure is None:
            return False, None
        is_new = self.known(structure) is None
        if is_new:
            kind = kind_of(learned.options.candidates)
            files = self.new_structure(structure, kind.files)
            entry = {"files": files, "num_rows": structure.num_rows}
            if not kind.is_checked:
                described = {role: self.files[name] for role, name in files.items()}
                entry["seal"] = seal.sealed(asdict(learned.options), described)
            return True, entry
        assert self.before is not None
        entry = self.before.manifest["structure"]
        self.keep(*entry["files"].values())
        return False, entry

    def part(self, vectors: Vectors) -> dict[str, Any]:
        """Write a part of the vectors if it is new, and give what the manifest says of it."""
        write = functools.partial(arrays.write_arrays, arrays={"vectors": vectors})
        return {"file": self.known(vectors) or self.new("vectors", ".safetensors", write, vectors), "num_rows": len(vectors)}

    def ids(self, part: Part) -> dict[str, Any]:
        """Write the centroids of some documents if they are new, and give what the manifest says of them."""
        write = functools.partial(arrays.write_arrays, arrays=part.arrays)
        name = self.known(part) or self.new("centroids", ".safetensors", write)
        return {"file": name, "num_rows": len(part)}


def write_version(folder: Folder, snapshot: Snapshot, options: Options, *, number: int = 1) -> dict[str, Any]:
    """Write a version of new files alone, and make it the current one; gives its manifest."""
    writing = Writing(folder, number=number)
    try:
        manifest = writing.version(snapshot, options, None)
        writing.swap(manifest, folder.check, lambda _: None)
    except BaseException:
        writing.undo()
        raise
    writing.tidy()
    return manifest
