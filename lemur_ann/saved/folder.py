"""The folder of an index, held by itself: its name may lead elsewhere by the time that something is written.

A process changes its working directory, a folder is renamed, a link is pointed at another. So a name becomes absolute once. On
systems that open folders, a folder is held by a descriptor, and on Linux its files are reached through that. Elsewhere whoever
writes compares what the name leads to with what was opened.
"""

from __future__ import annotations

import errno
import os
import platform
import re
import stat
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock

from lemur_ann.errors import CorruptIndex, IndexLocked
from lemur_ann.saved import storage

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows, which renames and deletes no folder with an open file in it
    fcntl = None

CANNOT_WRITE = (errno.EACCES, errno.EPERM, errno.EROFS)
NO_FILES = ((stat.S_ISLNK, "a link"), (stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))
NOTE_SIZE = 200
REFUSED = "nothing was written; close() this index, and open the one that is meant"

_opened: weakref.WeakSet[Folder] = weakref.WeakSet()


class Folder:
    """A folder that is open.

    Attributes:
        path: its name, absolute; links in it are followed anew each time.
        files: the folder itself, to reach its files by while it is open.
    """

    def __init__(self, path: Path, *, only_to_read: bool = False) -> None:
        self.path = path.absolute()
        self._descriptor = -1
        self._was = os.stat(self.path)
        if hasattr(os, "O_DIRECTORY"):
            to_read = getattr(os, "O_PATH", os.O_RDONLY)  # which needs no right to list it
            self._descriptor = os.open(self.path, os.O_DIRECTORY | (to_read if only_to_read else os.O_RDONLY))
        self.files = Path(f"/proc/self/fd/{self._descriptor}")
        if not self.files.is_dir():
            self.files = self.path.resolve()
        _opened.add(self)

    def __del__(self) -> None:
        self._let_go()

    def _let_go(self) -> None:
        descriptor, self._descriptor = getattr(self, "_descriptor", -1), -1
        if descriptor >= 0:
            os.close(descriptor)

    def close(self) -> None:
        """Let go of it."""
        self._let_go()

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def identity(self) -> tuple[int, int]:
        """Which folder it is, of all there are; asked anew each time, since a write changes it on some file systems."""
        found = self._was if self._descriptor < 0 else os.fstat(self._descriptor)
        return found.st_dev, found.st_ino

    def sync(self) -> None:
        """Which files are in it is on the disk. It takes no descriptor, of which there may be none left."""
        storage.sync(self.files, None if self._descriptor < 0 else self._descriptor)

    def check(self) -> None:
        """That the name still leads to this folder.

        Raises:
            FileNotFoundError: the folder was moved away or deleted.
            IndexLocked: there is another by now.
        """
        try:
            there = os.stat(self.path)
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(f"{self.path} was moved away or deleted while it was open for writing: {REFUSED}") from None
        if (there.st_dev, there.st_ino) != self.identity:
            raise IndexLocked(f"{self.path} leads to another folder than the one that was opened for writing: {REFUSED}")

    def lock(self) -> bool | None:
        """Lock the folder itself: False where another has it, None where the file system cannot."""
        if fcntl is None or self._descriptor < 0:
            return None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return None
        return True

    def _unlock(self) -> None:
        """At once, whatever other process has the descriptor for the moment between fork and exec."""
        if fcntl is not None and self._descriptor >= 0:
            with suppress(OSError):
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    @contextmanager
    def named(self) -> Iterator[None]:
        """What fails in the block names the folder as its user does."""
        try:
            yield
        except Exception as error:
            if self.files != self.path:
                _replace(error, re.compile(re.escape(str(self.files)) + r"(?!\d)"), str(self.path))
            raise


class HeldFolder(Folder):
    """A folder that one index may write to, until it lets go of it or its process dies.

    ``writer.lock`` is locked, and so is the folder itself where the system can, so that nobody gets in by removing that file.

    Raises:
        IndexLocked: another holds it.
        CorruptIndex: its lock is no file.
        PermissionError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._lock: filelock.BaseFileLock | None = None
        self._lock_file: tuple[int, int] | None = None
        try:
            super().__init__(path)
            self._take()
        except BaseException as error:
            self.close()
            if isinstance(error, OSError) and error.errno in CANNOT_WRITE and (path / storage.MANIFEST).exists():
                what = f"{path} cannot be written ({error.strerror}); read_only=True opens the index there for searches"
                raise PermissionError(what) from error
            raise

    def _take(self) -> None:
        effective = os.access in os.supports_effective_ids
        if not os.access(self.files, os.W_OK, effective_ids=effective):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self.path))
        is_locked = self.lock()
        if is_locked is False:
            raise IndexLocked(self._who_has_it())
        self._check_lock_file()
        self._lock = filelock.FileLock(self.path / storage.LOCK, timeout=0, thread_local=False)
        try:
            self._lock.acquire()
        except filelock.Timeout:
            raise IndexLocked(self._who_has_it()) from None
        there = self._check_lock_file()
        if there is None:
            raise IndexLocked(f"{self.path / storage.LOCK} was removed while the index was opened: open it again")
        self._lock_file = there.st_dev, there.st_ino
        self.check()
        # filelock keeps notes of its own in that file where there is no flock
        if (is_locked or fcntl is None) and there.st_nlink == 1:
            self._leave_note()

    def _check_lock_file(self) -> os.stat_result | None:
        """What is there, None where nothing is; CorruptIndex unless it is a file: through another thing nothing is written."""
        try:
            there = os.stat(self.files / storage.LOCK, follow_symlinks=False)
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(there.st_mode):
            what = next((name for is_such, name in NO_FILES if is_such(there.st_mode)), "a device")
            raise CorruptIndex(
                f"{self.path / storage.LOCK} is {what}, expected a file of this index alone: remove it, and the next writer "
                "makes a new one; read_only=True needs none"
            )
        return there

    @property
    def is_held(self) -> bool:
        """Whether this process has it: a forked child has not."""
        return self._lock is not None and self._lock.is_locked

    def check(self) -> None:
        """The same, and that the lock in it is the one that is held; IndexLocked where it is not."""
        super().check()
        try:
            lock = os.stat(self.files / storage.LOCK, follow_symlinks=False)
        except FileNotFoundError:
            lock = None
        if lock is None or (lock.st_dev, lock.st_ino) != self._lock_file:
            what = "removed" if lock is None else "replaced"
            raise IndexLocked(f"{self.path / storage.LOCK} was {what} while the index was open for writing: {REFUSED}")

    def close(self) -> None:
        """Let another have it."""
        lock, self._lock = self._lock, None
        try:
            if lock is not None:
                lock.release()
        finally:
            self._unlock()
            super().close()

    # Who it is. The first byte of the file is locked on Windows, where nobody else can read it then.

    def _leave_note(self) -> None:
        with suppress(OSError), _lock_file(self.files, os.O_WRONLY) as descriptor:
            note = f"{os.getpid()} {platform.node()}".encode()
            os.lseek(descriptor, 1, os.SEEK_SET)
            os.write(descriptor, note[: NOTE_SIZE - 1].ljust(NOTE_SIZE - 1) + b"\n")

    def _who_has_it(self) -> str:
        beside = "read_only=True opens it beside that"
        with suppress(OSError, ValueError), _lock_file(self.files, os.O_RDONLY) as descriptor:
            os.lseek(descriptor, 1, os.SEEK_SET)
            process, _, host = os.read(descriptor, NOTE_SIZE).decode().strip().partition(" ")
            if (int(process), host) == (os.getpid(), platform.node()):
                return (
                    f"{self.path} is open for writing in this process already (process {int(process)}), as where a notebook's "
                    f"cell runs twice: call close() on that index first; {beside}"
                )
            where = "" if host == platform.node() else f" on {host!r}"
            return f"{self.path} is open for writing in process {int(process)}{where}: close() it there first; {beside}"
        return f"{self.path} is open for writing in this process or another: close() it there first; {beside}"


@contextmanager
def _lock_file(folder: Path, flags: int) -> Iterator[int]:
    """Open, unless it is a link, and without waiting for it."""
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(folder / storage.LOCK, flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _replace(error: Exception, pattern: re.Pattern[str], name: str) -> None:
    def named(value: Any) -> Any:
        return pattern.sub(lambda _: name, value) if isinstance(value, str) else value

    error.args = tuple(map(named, error.args))
    for attribute in ("filename", "filename2", "strerror"):
        value = getattr(error, attribute, None)
        if isinstance(value, str):
            setattr(error, attribute, named(value))


def _let_go_in_child() -> None:
    for folder in list(_opened):
        folder._let_go()  # what it locks is locked for as long as any process has the descriptor


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_child)
