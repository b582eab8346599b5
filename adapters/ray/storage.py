"""Where a sharded index is kept: small JSON files beside the shards, and the versions of a shard under a URL."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from lemur_ann import CorruptIndex, IndexLocked, LemurIndex, saved, validate
from lemur_ann.saved import in_place_of

SHARDS, FORMAT = "shards.json", "lemur_ann shards 1"
TRIES = 20  # to fetch a version while a writer publishes one after the other
KEPT = 2  # versions under a URL: the newest, and the one before, which a replica may be fetching

PUBLISHED = re.compile(r"manifest-(\d{12})\.json")
KEY = re.compile(r"[0-9a-f]{16}-(?P<name>.+)")  # of a file of an index under a URL
COPYING = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{12}")  # what it is called until all of it is there, on local file systems
SHARD = re.compile(r"shard-\d{3,}")


class Place:
    """A folder or a URL, known to fsspec.

    Args:
        path: a local path, or a URL such as ``s3://bucket/folder``.
        options: of fsspec's file system, such as credentials.
    """

    def __init__(self, path: str | os.PathLike[str], options: dict[str, Any] | None = None) -> None:
        self.is_url = "://" in os.fspath(path)
        self.url = os.fspath(path).rstrip("/") if self.is_url else str(Path(path).resolve())
        self.options = dict(options or {})
        self._system: tuple[Any, str] | None = None

    def __reduce__(self) -> Any:
        return Place, (self.url, self.options)

    def __truediv__(self, name: str) -> Place:
        return Place(f"{self.url}/{name}", self.options)

    @property
    def system(self) -> Any:
        """fsspec's file system."""
        return self._opened()[0]

    @property
    def path(self) -> str:
        """The path there."""
        return self._opened()[1]

    def _opened(self) -> tuple[Any, str]:
        if self._system is None:
            self._system = fsspec.core.url_to_fs(self.url, **self.options)
        return self._system

    @property
    def is_local(self) -> bool:
        """Whether it is on a file system of the machine, by path or as ``file://``."""
        return isinstance(self.system, LocalFileSystem)

    def names(self) -> list[str]:
        """What is there, as it is now."""
        self.system.invalidate_cache()
        try:
            return [entry.rstrip("/").rpartition("/")[2] for entry in self.system.ls(self.path, detail=False)]
        except FileNotFoundError:
            return []

    def read(self, name: str) -> bytes | None:
        """A small file; None where there is none."""
        try:
            data: bytes = self.system.cat_file(f"{self.path}/{name}")
        except FileNotFoundError:
            return None
        return data

    def write(self, name: str, data: bytes, *, create: bool = False) -> None:
        """Write a small file, as a whole or not at all.

        ``create``: FileExistsError where there is one. Of two who try at the same time one succeeds, on local file systems and
        on object stores with conditional writes (S3, Google Cloud Storage, Azure).
        """
        if not self.is_local:
            self.system.pipe_file(f"{self.path}/{name}", data, mode="create" if create else "overwrite")
            return
        folder = Path(self.path)
        folder.mkdir(parents=True, exist_ok=True)
        if create:
            new = folder / f".{name}.{uuid.uuid4().hex[:12]}"
            try:
                new.write_bytes(data)
                saved.sync(new)
                os.link(new, folder / name)
            finally:
                new.unlink(missing_ok=True)
        else:
            with in_place_of(folder / name) as file:
                file.write(data)
        saved.sync_parents(folder)

    def put(self, file: Path, name: str) -> None:
        """Copy a file there."""
        if self.is_local:
            Path(self.path).mkdir(parents=True, exist_ok=True)
            new = Path(self.path, f".{name}.{uuid.uuid4().hex[:12]}")
            try:
                shutil.copyfile(file, new)
                saved.sync(new)
                new.replace(Path(self.path, name))
            finally:
                new.unlink(missing_ok=True)
        else:
            self.system.put_file(str(file), f"{self.path}/{name}")

    def get(self, name: str, file: Path) -> None:
        """Copy a file from there."""
        self.system.get_file(f"{self.path}/{name}", str(file))

    def remove(self, names: list[str]) -> None:
        """Delete files; what cannot be deleted stays, for the next time."""
        for name in names:
            with suppress(OSError):
                self.system.rm_file(f"{self.path}/{name}")


def described(place: Place, num_shards: int | None, options: dict[str, Any]) -> dict[str, Any]:
    """What is to be known of an index before its shards are opened; of a new one it is written."""
    data = place.read(SHARDS)
    if data is None:
        foreign = [name for name in place.names() if name != "shard-000" and not name.startswith(".")]
        if foreign:
            raise FileExistsError(f"{place.url} holds {foreign[0]!r} and no {SHARDS}; choose another path or move that away")
        chosen = LemurIndex(**options).options
        options = {name: getattr(chosen, name) for name in options}  # checked, and plain values
        count = 2 if num_shards is None else validate.positive_int(num_shards, "num_shards")
        return describe(place, [f"shard-{shard:03}" for shard in range(count)], options)
    try:
        known: dict[str, Any] = json.loads(data)
        if known["format"] != FORMAT or not isinstance(known["options"], dict):
            raise ValueError(f"expected {FORMAT!r}")
        names = known["shards"]
        if not isinstance(names, list) or not names or len(set(names)) < len(names) or not all(map(SHARD.fullmatch, names)):
            raise ValueError(f"shards must be names such as 'shard-000', got {names!r}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptIndex(f"{place.url}/{SHARDS} cannot be read: {error!r}") from error
    if options:
        raise TypeError(f"options ({', '.join(sorted(options))}) are for a new index, and this opens the one in {place.url}")
    if num_shards not in (None, len(known["shards"])):
        raise ValueError(f"num_shards is {num_shards}, and the index in {place.url} has {len(known['shards'])} shards")
    return known


def describe(place: Place, names: list[str], options: dict[str, Any]) -> dict[str, Any]:
    """Write the names of the shards, and the options that they are made with."""
    known = {"format": FORMAT, "shards": names, "options": options}
    place.write(SHARDS, json.dumps(known, indent=2).encode())
    return known


class Published:
    """The versions of a shard under a URL, and the folder of this machine that an index is open on.

    A version is a manifest with a number that nobody has taken before, over files that never change. So two writers cannot
    publish the same version: the one that comes second has lost the shard to the other. A writer publishes a version of its own
    when it opens the shard, and from then on nobody who had it before can.
    """

    def __init__(self, place: Place, folder: Path) -> None:
        self._place = place
        self._folder = folder
        self._number = 0  # of the version that was fetched or published last,
        self._manifest: bytes | None = None  # its manifest,
        self._keys: dict[str, str] = {}  # and the names of its files under the URL, which no two writers use for different ones
        self._lock = threading.Lock()

    def fetch(self) -> None:
        """Make the newest version that of the folder; where there is none yet, leave the folder empty."""
        with self._lock:
            self._fetch()

    def claim(self) -> None:
        """The same, for the one who writes from now on."""
        with self._lock:
            while True:
                self._fetch()
                if self._manifest is None:
                    return
                with suppress(FileExistsError):
                    self._commit(self._manifest, self._keys)
                    break
            self._tidy()

    def publish(self) -> None:
        """Make the version in the folder the newest one; for good once this returns.

        Raises:
            IndexLocked: another writer has claimed the shard.
            OSError: what the file system says.
        """
        with self._lock:
            published = {} if self._manifest is None else json.loads(self._manifest)["files"]
            while True:
                manifest = (self._folder / saved.MANIFEST).read_bytes()
                if manifest == self._manifest:
                    return
                wanted = json.loads(manifest)["files"]
                keys = {name: self._keys[name] for name in wanted if published.get(name) == wanted[name]}
                try:
                    for name in wanted.keys() - keys.keys():
                        keys[name] = f"{uuid.uuid4().hex[:16]}-{name}"
                        self._place.put(self._folder / name, keys[name])
                    break
                except FileNotFoundError:
                    if (self._folder / saved.MANIFEST).read_bytes() == manifest:
                        raise
                    # else a compaction in the background was quicker
            try:
                self._commit(manifest, keys)
            except FileExistsError:
                raise IndexLocked(f"{self._place.url} has another writer by now, and this one has lost it") from None
            self._tidy()

    def _commit(self, manifest: bytes, keys: dict[str, str]) -> None:
        """FileExistsError where somebody else has taken the next number."""
        body = {"by": uuid.uuid4().hex, "manifest": manifest.decode(), "keys": keys}
        name = f"manifest-{self._number + 1:012}.json"
        try:
            self._place.write(name, json.dumps(body).encode(), create=True)
        except FileExistsError:
            there = self._place.read(name)  # a request that was sent twice finds what it wrote itself
            if there is None or json.loads(there)["by"] != body["by"]:
                raise
        self._number, self._manifest, self._keys = self._number + 1, manifest, keys

    def _fetch(self) -> None:
        for _ in range(TRIES):
            numbers = self._numbers(self._place.names())
            if not numbers:
                self._clear(set())
                return
            body = self._place.read(f"manifest-{numbers[-1]:012}.json")
            if body is None:
                continue
            manifest, wanted, keys = _parsed(body, self._place.url)
            try:
                self._download({name: (keys[name], described) for name, described in wanted.items()})
            except FileNotFoundError as error:
                if self._numbers(self._place.names())[-1:] == numbers[-1:]:
                    raise CorruptIndex(f"{self._place.url} lacks a file of its newest version: {error}") from None
                continue  # a writer was quicker
            with in_place_of(self._folder / saved.MANIFEST) as new:
                new.write(manifest)
            self._clear({saved.MANIFEST, *wanted})
            self._number, self._manifest, self._keys = numbers[-1], manifest, keys
            return
        raise TimeoutError(f"{self._place.url} changed {TRIES} times while it was read")

    @staticmethod
    def _numbers(names: list[str]) -> list[int]:
        return sorted(int(found[1]) for name in names if (found := PUBLISHED.fullmatch(name)))

    def _download(self, wanted: dict[str, tuple[str, Any]]) -> None:
        """The files of a version that are not in the folder yet."""
        self._folder.mkdir(parents=True, exist_ok=True)
        known: dict[str, Any] = {}
        with suppress(OSError, ValueError):
            known = saved.written_manifest(self._folder)["files"]
        for name, (key, described) in wanted.items():
            file = self._folder / name
            if known.get(name) == described and file.exists() and file.stat().st_size == described["size_bytes"]:
                continue
            new = self._folder / f".building-{uuid.uuid4().hex[:12]}"
            try:
                self._place.get(key, new)
                if saved.describe(new) != described:
                    raise CorruptIndex(f"{self._place.url}/{key} was altered: its checksum does not match")
                new.replace(file)
            finally:
                new.unlink(missing_ok=True)

    def _clear(self, kept: set[str]) -> None:
        """Remove all else; who has it open goes on reading it."""
        if self._folder.exists():
            for file in self._folder.iterdir():
                if file.name not in kept and (file.name == saved.MANIFEST or saved.is_own(file.name)):
                    saved.remove(file)

    def _tidy(self) -> None:
        """Delete what no version needs any more, unless another writer has come meanwhile, whose new files these may be.

        Only what has a name that this class gives: whatever else is there is somebody else's.
        """
        with suppress(OSError, ValueError):
            names = self._place.names()
            kept = self._numbers(names)[-KEPT:]
            if kept[-1] != self._number:
                return
            needed = {f"manifest-{number:012}.json" for number in kept}
            for name in sorted(needed):
                needed |= set(_parsed(self._place.read(name) or b"", self._place.url)[2].values())
            self._place.remove([name for name in names if name not in needed and _is_ours(name)])


def _is_ours(name: str) -> bool:
    """Whether it is the name of a version, or of a file of one, which may not all be there yet."""
    if PUBLISHED.fullmatch(name):
        return True
    copying = COPYING.fullmatch(name)
    key = KEY.fullmatch(copying["name"] if copying else name)
    return key is not None and saved.is_file_name(key["name"])


def _parsed(body: bytes, url: str) -> tuple[bytes, dict[str, Any], dict[str, str]]:
    """The manifest of a version, what it says of its files, and the names that they have under the URL."""
    try:
        parsed = json.loads(body)
        manifest, keys = parsed["manifest"].encode(), dict(parsed["keys"])
        files = json.loads(manifest)["files"]
        for name, described in files.items():
            key = KEY.fullmatch(keys[name])
            if key is None or key["name"] != name or not saved.is_file_name(name):
                raise ValueError(f"it names a file {name!r}, which is {keys[name]!r} there")
            if not isinstance(described["size_bytes"], int):
                raise TypeError("size_bytes")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptIndex(f"{url} has a manifest that cannot be read: {error!r}") from error
    return manifest, files, {name: keys[name] for name in files}
