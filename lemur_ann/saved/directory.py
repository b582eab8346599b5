"""An index on disk: versions of it, each a manifest over files that never change.

A commit writes what is new, syncs it, and swaps the manifest; then it deletes the files that no longer belong to the index. A
process that has them open goes on reading them, and whoever was about to open them reads the new manifest instead. So one
writer, kept alone by a lock, and any number of readers need to know nothing of each other.
"""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path
from typing import Any

import filelock

from lemur_ann.errors import IndexLocked
from lemur_ann.options import Options
from lemur_ann.saved import storage
from lemur_ann.saved.versions import Version, assembled, read_version, write_version
from lemur_ann.searching.snapshot import Snapshot


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

    def __init__(
        self, path: Path, version: Version, lock: WriterLock | None, *, verify: bool, device: str | None, trusted: bool
    ) -> None:
        self.path = path
        self.trusted = trusted
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
        trusted: bool = False,
    ) -> Directory:
        """Open what is there; for writing, an empty index with ``options`` is made where nothing is.

        ``is_new_with``: the options that the caller named, which an index that is there has already.
        """
        exists = (path / storage.MANIFEST).exists()
        if is_new_with and (exists or read_only):
            raise TypeError(f"options ({', '.join(is_new_with)}) are for a new index, and this opens the one in {path}")
        if read_only:
            version = read_version(path, verify=verify, device=device, trusted=trusted)
            return cls(path, version, None, verify=verify, device=device, trusted=trusted)
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
                write_version(path, Snapshot.empty(coded=options.token_codes is not None), options)
            version = read_version(path, verify=verify, device=device, scratch=str(path), trusted=trusted)
            storage.sync(path)  # a writer that was killed may not have come to it
            _remove_strays(path, version.manifest["files"])
        except BaseException:
            lock.release()
            raise
        return cls(path, version, lock, verify=verify, device=device, trusted=trusted)

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
        device = None if self._device is None else before.manifest["options"]["device"]  # that of this process is not kept
        number = before.manifest["version"] + 1
        manifest, writing = write_version(self.path, snapshot, options, number=number, before=before, device=device)
        known = {**before.objects, **writing.objects}
        try:
            version = assembled(self.path, manifest, self._device, known, snapshot.ids, str(self.path))
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
        self._version = read_version(
            self.path, verify=self._verify, device=self._device, before=self._version, trusted=self.trusted
        )
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
            old = storage.written_manifest(path)  # of any format: those before 4 count no versions
            manifest, _ = write_version(path, snapshot, options, number=old.get("version", 0) + 1)
            _remove_strays(path, manifest["files"], old["files"])
        finally:
            lock.release()
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new-{uuid.uuid4().hex[:12]}")
    try:
        new.mkdir()
        write_version(new, snapshot, options)
        if path.exists():
            path.rmdir()  # it is empty
        storage.move(new, path)
        storage.sync_parents(path)
    finally:
        shutil.rmtree(new, ignore_errors=True)
