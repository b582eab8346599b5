"""Who wrote the graph of another library: a seal that only programs of this user on this machine can make.

The files of FAISS, USearch and SVS are read by those libraries' own C++, which believes what is in them. Checksums tell
damage, not intent: whoever sends a folder makes them too. So beside such a graph stands a keyed hash of it, with a key that
never leaves this user's home. Where that fits, the graph is read as it is; where it does not, it is made anew (versions.py).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

KEY_BYTES = 32


def key_path() -> Path:
    """Where the key of this user is kept."""
    home = os.environ.get("LOCALAPPDATA") if os.name == "nt" else os.environ.get("XDG_STATE_HOME")
    return Path(home or Path.home() / ".local" / "state") / "lemur_ann" / "key"


def _key(*, make: bool) -> bytes | None:
    """The key; None where there is none and it cannot be made."""
    with suppress(OSError, RuntimeError):  # no home, a home that cannot be written
        path = key_path()
        if make and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            new = path.with_name(f".key.{secrets.token_hex(8)}")
            try:
                descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(descriptor, "wb") as file:
                    file.write(secrets.token_bytes(KEY_BYTES))
                with suppress(FileExistsError):  # another process was quicker
                    os.link(new, path)
            finally:
                new.unlink(missing_ok=True)
        key = path.read_bytes()
        if len(key) == KEY_BYTES:
            return key
    return None


def _hash(key: bytes, options: dict[str, Any], files: dict[str, Any]) -> str:
    named = [options.get("candidates"), options.get("candidates_options"), *(files[role]["sha256"] for role in sorted(files))]
    return hmac.new(key, json.dumps(named, sort_keys=True).encode(), hashlib.sha256).hexdigest()


def sealed(options: dict[str, Any], files: dict[str, Any]) -> str | None:
    """The seal of a structure that was just written, by what the manifest says of its files; None where there is no key."""
    key = _key(make=True)
    return None if key is None else _hash(key, options, files)


def fits(seal: Any, options: dict[str, Any], files: dict[str, Any]) -> bool:
    """Whether this user wrote these files, on this machine, as they are."""
    key = _key(make=False) if isinstance(seal, str) and seal.isascii() else None
    return key is not None and hmac.compare_digest(seal, _hash(key, options, files))
