"""Who may: keys that name a client, the indexes it may use, and whether it may change them."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from lemur_ann.arrays import in_place_of

log = logging.getLogger("lemur_ann.service")

Access = Literal["read", "write"]
PREFIX = "lemur_"


@dataclass(frozen=True)
class Key:
    """A client's key, of which only the SHA-256 is kept: it has 256 random bits, so that no slower hash is wanted.

    Attributes:
        name: of the client, in logs.
        sha256: of the key, as hexadecimal digits.
        indexes: names of those it may use; ``["*"]`` for all.
        access: "read", or "write", which may do both.
    """

    name: str
    sha256: str
    indexes: tuple[str, ...]
    access: Access

    def allows(self, index: str, access: Access) -> bool:
        """Whether it opens an index."""
        return (index in self.indexes or "*" in self.indexes) and (access == "read" or self.access == "write")


class Denied(PermissionError):
    """No key, an unknown one, or one that is for something else."""

    def __init__(self, message: str, *, is_known: bool) -> None:
        super().__init__(message)
        self.is_known = is_known


class NoKeys(Exception):
    """The file of keys cannot be read: nobody is let in until it can."""


class Keys:
    """The keys in a file, which is read again when it changes; without a file everybody may do everything."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._seen: Any = None
        self._keys: dict[str, Key] = {}
        self._failure: str | None = None  # told in the log, once
        if path is not None:
            self._read()

    def check(self, authorization: str | None, index: str | None, access: Access) -> str | None:
        """The name of the client that a header ``Authorization: Bearer KEY`` is of; ``index`` None asks for none of them.

        Raises:
            Denied: it may not.
        """
        key = self._key(authorization)
        if key is None:
            return None
        if index is not None and not key.allows(index, access):
            raise Denied(f"key {key.name!r} does not allow to {access} index {index!r}", is_known=True)
        return key.name

    def allowed(self, authorization: str | None, indexes: Iterable[str]) -> list[str]:
        """Those of some indexes that a client may read."""
        key = self._key(authorization)
        return [name for name in indexes if key is None or key.allows(name, "read")]

    def _key(self, authorization: str | None) -> Key | None:
        if self._path is None:
            return None
        try:
            self._read()
        except (OSError, ValueError) as error:  # which clients learn nothing of
            if str(error) != self._failure:
                log.error("nobody is let in: %s", error)
            self._failure, self._seen = str(error), None
            raise NoKeys("the service cannot read its keys; its log says why") from None
        self._failure = None
        kind, _, secret = (authorization or "").partition(" ")
        key = self._keys.get(digest(secret.strip())) if kind.lower() == "bearer" else None
        if key is None:
            raise Denied("a valid key is needed: send the header 'Authorization: Bearer KEY'", is_known=False)
        return key

    def _read(self) -> None:
        assert self._path is not None
        status = os.stat(self._path)
        now = (status.st_ino, status.st_mtime_ns, status.st_size)
        if now == self._seen:
            return
        with self._lock:
            self._keys = {key.sha256: key for key in read_keys(self._path)}
            self._seen = now


def digest(secret: str) -> str:
    """The SHA-256 of a key."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def read_keys(path: Path) -> list[Key]:
    """The keys of a file.

    Raises:
        ValueError: it is no file of keys.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        keys = [Key(row["name"], row["sha256"], tuple(row["indexes"]), row["access"]) for row in rows]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is no file of keys, as 'lemur-ann key' writes it: {error!r}") from error
    for row, key in zip(rows, keys, strict=True):
        texts = [key.name, key.sha256, *key.indexes]
        good = isinstance(row["indexes"], list) and all(isinstance(text, str) for text in texts)  # "a*" would be "*" as well
        if not good or key.access not in ("read", "write") or len(key.sha256) != 64 or not key.name:
            raise ValueError(
                f"{path} has a key {key.name!r} that is none: indexes are a list of names, access is read or write, sha256 "
                "has 64 digits"
            )
    return keys


def new_key(path: Path, name: str, indexes: Iterable[str], access: Access = "read") -> str:
    """Make a key and put its digest into a file, which is made where there is none; gives the key, which nothing keeps.

    Raises:
        ValueError: there is a key of that name.
    """
    keys = read_keys(path) if path.exists() else []
    if any(key.name == name for key in keys):
        raise ValueError(f"{path} has a key {name!r} already; delete its entry to take it back")
    secret = PREFIX + secrets.token_urlsafe(32)
    keys.append(Key(name, digest(secret), tuple(indexes), access))
    with in_place_of(path) as file:
        os.chmod(file.name, 0o600)
        file.write((json.dumps([asdict(key) for key in keys], indent=2) + "\n").encode())
    return secret
