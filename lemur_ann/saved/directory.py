"""An index on disk: versions of it, each a manifest over files that never change.

A commit writes what is new, syncs it, and swaps the manifest; then it deletes the files that no longer belong to the index. A
process that has them open goes on reading them, and whoever was about to open them reads the new manifest instead. So one
writer, kept alone by a lock, and any number of readers need to know nothing of each other.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from lemur_ann.errors import CorruptIndex, IndexLocked
from lemur_ann.options import Options
from lemur_ann.saved import storage
from lemur_ann.saved.folder import Folder, HeldFolder
from lemur_ann.saved.versions import Version, Writing, assembled, read_version, write_version
from lemur_ann.searching.snapshot import Snapshot

ABANDONED_S = 60  # a folder that a save began is no longer young then


def read(
    path: Path,
    *,
    verify: bool,
    device: str | None,
    trusted: bool = False,
    before: Version | None = None,
    known: tuple[int, int] | None = None,
) -> tuple[Version, tuple[int, int]]:
    """The current version of the folder that a name leads to now, and which folder that is.

    ``before``: a version that was read from the folder ``known``, which is given back where there is no newer one.
    """
    storage.check_there(path)
    with Folder(path, only_to_read=True) as folder, folder.named():
        settings: dict[str, Any] = {"verify": verify, "device": device, "trusted": trusted}
        return _read(folder, before=before, known=known, **settings), folder.identity


def _read(folder: Folder, *, before: Version | None, known: tuple[int, int] | None, **settings: Any) -> Version:
    if before is not None:
        manifest = storage.read_manifest(folder.files, trusted=settings["trusted"])
        if all(manifest[key] == before.manifest[key] for key in ("version", "files")):
            return before
    return read_version(folder.files, before=before if folder.identity == known else None, **settings)


class Directory:
    """A directory that an index is open on."""

    def __init__(
        self,
        path: Path,
        version: Version,
        folder: HeldFolder | tuple[int, int],
        *,
        verify: bool,
        device: str | None,
        trusted: bool,
    ) -> None:
        """``folder``: the one that is held for writing, or which one was read."""
        self.path = path
        self.trusted = trusted
        self._version = version
        self._verify = verify
        self._device = device
        self._held: HeldFolder | None = None
        if isinstance(folder, HeldFolder):
            self._held, folder = folder, folder.identity
        self._identity = folder
        self._own: set[bytes] = set()  # manifests that this writer read or wrote, any of which may be the one in the folder
        self._left: set[str] = set()  # files that are no longer needed once the next change is on the disk

    @classmethod
    def open(
        cls,
        path: Path,
        options: Options,
        *,
        read_only: bool,
        verify: bool,
        device: str | None,
        named: list[str],
        trusted: bool = False,
    ) -> Directory:
        """Open what is there; for writing, an empty index with ``options`` is made where nothing is.

        ``named``: the options that the caller named, which an index that is there must have.
        """
        path = path.absolute()
        if read_only:
            version, identity = read(path, verify=verify, device=device, trusted=trusted)
            _check_options(path, version, options, named)
            return cls(path, version, identity, verify=verify, device=device, trusted=trusted)
        if not (path / storage.MANIFEST).exists():
            there = [file.name for file in path.iterdir()] if path.exists() else []
            foreign = [name for name in there if not storage.may_be_begun(name)]
            if foreign and all(name == storage.LOCK or storage.is_own(name) for name in there):
                raise CorruptIndex(
                    f"{path} holds {foreign[0]!r} of an index, and no {storage.MANIFEST}, as where a copy is not complete; "
                    "nothing was changed: bring that file, or empty the folder"
                )
            if foreign:
                raise FileExistsError(f"{path} holds {foreign[0]!r} and no index; choose another path or move that away")
            path.mkdir(parents=True, exist_ok=True)
        held = HeldFolder(path)
        try:
            with held.named():
                if not (held.files / storage.MANIFEST).exists():
                    storage.sync_parents(path)
                    write_version(held, Snapshot.empty(coded=options.keeps_int8), options)
                own = storage.manifest_bytes(held.files, trusted=trusted)
                version = read_version(held.files, verify=verify, device=device, scratch=str(path), trusted=trusted)
                _check_options(path, version, options, named)
                held.sync()  # a writer that was killed may not have come to it
                storage.remove_strays(held.files, version.manifest["files"])
                opened = cls(path, version, held, verify=verify, device=device, trusted=trusted)
                opened._own = {own}
                return opened
        except BaseException:
            held.close()
            raise

    @property
    def snapshot(self) -> Snapshot:
        """The version that was read or committed last."""
        return self._version.snapshot

    @property
    def options(self) -> Options:
        """Those that the index was made with."""
        return self._version.given

    def is_at(self, path: Path) -> bool:
        """Whether a name leads to the folder that was opened."""
        with suppress(OSError):
            there = os.stat(path)
            return (there.st_dev, there.st_ino) == (self._identity if self._held is None else self._held.identity)
        return False

    def check_current(self) -> None:
        """FileExistsError where the folder has another version by now than this index, as where another process wrote one."""
        own, files = self._own, self._version.manifest["files"]
        content = storage.manifest_bytes(self.path, trusted=self.trusted)
        if content in own or content in self._own:
            return
        if storage.read_manifest(self.path, trusted=self.trusted)["files"] != files:
            raise FileExistsError(
                f"{self.path} has another version of the index by now than the one that is open here: nothing was saved; "
                "refresh() reads it, and another path keeps what this index has"
            )

    def check_writable(self) -> None:
        """Raises where changes cannot be committed.

        Raises:
            PermissionError: it is not open for writing.
            FileNotFoundError: the folder was moved away or deleted.
            IndexLocked: this writer has lost it: there is another folder, lock or manifest than those it knows.
        """
        self._writable()

    def _writable(self) -> HeldFolder:
        if self._held is None or not self._held.is_held:
            raise PermissionError(
                f"{self.path} is open read-only, or closed, or open in the process that forked this one: "
                "changes need LemurIndex.open(path)"
            )
        self._held.check()
        manifest = None
        with suppress(FileNotFoundError, CorruptIndex), self._held.named():
            manifest = storage.manifest_bytes(self._held.files, trusted=self.trusted)
        if manifest not in self._own:
            raise IndexLocked(
                f"{self.path / storage.MANIFEST} was changed by something else than this index, which is open for writing, as "
                "by a backup that was restored: nothing was written; refresh() reads what is there now, and save() keeps what "
                "this index has elsewhere"
            )
        return self._held

    def commit(self, snapshot: Snapshot, options: Options) -> Snapshot:
        """Make a snapshot the current version, for good; gives the same, mapped from its files.

        Where it fails the index is what it was, on disk too. Should the way back fail as well, then :attr:`snapshot` is what is
        on disk all the same.
        """
        held = self._writable()
        with held.named():
            before = self._version
            device = None if self._device is None else before.manifest["options"]["device"]  # that of this process is not kept
            writing = Writing(held, before, before.manifest["version"] + 1)
            own = set(self._own)
            try:
                manifest = writing.version(snapshot, options, device)
                # mapped before it is the current one, after which nothing takes memory or descriptors any more
                known = {**before.objects, **writing.objects}
                version = assembled(held.files, manifest, self._device, known, snapshot.ids, str(self.path))
                writing.swap(manifest, self.check_writable, self._own.add)
                self._version = version
            except BaseException:
                self._version = before
                is_back, is_sure = writing.undo()
                if not is_back:
                    self._version = version
                    self._left |= before.manifest["files"].keys()
                elif is_sure:
                    self._own = own
                self._left |= writing.left
                raise
            self._own = {writing.content}
            writing.tidy()
            unneeded = {*before.manifest["files"], *self._left, *writing.hidden} - manifest["files"].keys()
            self._left = {name for name in unneeded if not storage.remove(held.files / name)}
        return self._version.snapshot

    def refresh(self) -> bool:
        """Read the current version, where another process made one; whether it did.

        A reader reads what its name leads to now; a writer reads the folder that it holds, and raises what
        :meth:`check_writable` does where the name leads elsewhere.
        """
        before = self._version
        settings: dict[str, Any] = {"verify": self._verify, "device": self._device, "trusted": self.trusted, "before": before}
        if self._held is None or not self._held.is_held:
            self._version, self._identity = read(self.path, **settings, known=self._identity)
        else:
            self._held.check()
            with self._held.named():
                own = storage.manifest_bytes(self._held.files, trusted=self.trusted)
                self._version = _read(self._held, **settings, known=self._held.identity)
                self._own = {own}
        return self._version is not before

    def close(self) -> None:
        """Let go of the folder; nothing can be committed any more."""
        if self._held is not None:
            self._held.close()


def _check_options(path: Path, there: Version, asked: Options, named: list[str]) -> None:
    """TypeError unless those that the caller named are what the index was made with, or has now.

    A given map, and refit, bring others: a program that names the same each time may go on doing so.
    """

    def is_there(name: str) -> bool:
        return any(_are_same(getattr(asked, name), getattr(options, name)) for options in (there.given, there.options))

    others = [name for name in named if not is_there(name)]
    if others:
        told = ", ".join(f"{name} is {getattr(there.options, name)!r}, not {getattr(asked, name)!r}" for name in others)
        raise TypeError(f"options ({', '.join(others)}) are for a new index, and the one in {path} has others: {told}")


def _are_same(one: Any, other: Any) -> bool:
    """Whether two values of an option are; numbers may have been float32."""
    numbers = isinstance(one, float) and isinstance(other, float)
    return math.isclose(one, other, rel_tol=float(np.finfo(np.float32).eps)) if numbers else bool(one == other)


def save(path: Path, snapshot: Snapshot, options: Options) -> None:
    """Write a snapshot as a directory of its own, or in place of the index that is there.

    Raises:
        FileExistsError: something other than an index is there.
        IndexLocked: that index is open for writing.
    """
    storage.check_replaceable(path)
    path = path.resolve()
    if path.exists():
        _save_into(path, snapshot, options)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path)
    new = path.with_name(f".{path.name}.new-{uuid.uuid4().hex[:12]}")
    try:
        new.mkdir()
        with Folder(new) as folder, folder.named():
            folder.lock()  # for _remove_abandoned
            write_version(folder, snapshot, options)
        storage.move(new, path)
        storage.sync_parents(path)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _save_into(path: Path, snapshot: Snapshot, options: Options) -> None:
    """Into a folder that is there already: it may be a process's working directory, or a mount, or have rights of its own."""
    held = HeldFolder(path)
    try:
        with held.named():
            is_new = not (held.files / storage.MANIFEST).exists()
            if is_new:  # so that a save that is killed leaves an index, without documents
                storage.sync_parents(path)
                write_version(held, Snapshot.empty(coded=options.keeps_int8), options)
            old = storage.written_manifest(held.files)  # of any format: those before 4 count no versions
            try:
                manifest = write_version(held, snapshot, options, number=old.get("version", 0) + 1)
            except BaseException:
                if is_new:
                    storage.remove(held.files / storage.MANIFEST)
                raise
            storage.remove_strays(held.files, manifest["files"], old["files"])
    finally:
        held.close()


def _remove_abandoned(path: Path) -> None:
    """Delete what was begun in the place of ``path`` by processes that were killed: none of them locks it any more."""
    begun = re.compile(re.escape(f".{path.name}.new-") + "[0-9a-f]{12}")
    with suppress(OSError):
        for other in path.parent.iterdir():
            if begun.fullmatch(other.name) and time.time() - other.stat().st_mtime > ABANDONED_S:
                with suppress(OSError), Folder(other) as folder:
                    if folder.lock():
                        shutil.rmtree(other, ignore_errors=True)
