"""What a report is of: the index and its map, the machine and the versions, and what to know before the figures."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lemur_ann import _core, validate
from lemur_ann.insight.stats import stats_of
from lemur_ann.searching.snapshot import Snapshot

FEW_QUERIES = 30  # whose intervals say little
PACKAGES = ("numpy", "pyarrow", "torch", "hnswlib")


def index(snapshot: Snapshot) -> dict[str, Any]:
    """How much it holds, and of what."""
    return {
        "num_documents": snapshot.num_documents,
        "num_deleted": snapshot.deleted.count,
        "num_tokens": snapshot.store.num_tokens,
        "dim": snapshot.dim,
        "token_dtype": str(snapshot.store.dtype),
        "is_fitted": snapshot.learned is not None,
    }


def sizes(snapshot: Snapshot) -> list[dict[str, Any]]:
    """Bytes of each part."""
    return [{"part": name, **asdict(part)} for name, part in stats_of(snapshot).parts.items()]


def training(snapshot: Snapshot) -> dict[str, Any] | None:
    """What is known of how the map was learned."""
    if snapshot.learned is None:
        return None
    known = snapshot.learned.encoder.training
    seconds = known.get("seconds") or {}
    return {
        "learned_from": known.get("learned_from"),
        "distilled": known.get("distilled"),
        "training_loss": [float(loss) for loss in known.get("training_loss") or []],
        "validation_loss": [float(loss) for loss in known.get("validation_loss") or []],
        "seconds": {name: float(value) for name, value in seconds.items()},
    }


def environment(num_threads: int) -> dict[str, Any]:
    """The machine and the versions, and with how many threads searches were timed."""
    return {
        "cpu": _cpu(),
        "cores": validate.num_threads(None),
        "instruction_set": _core.active_isa(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("lemur_ann", *PACKAGES)},
        "threads": num_threads,
    }


def _version(package: str) -> str | None:
    """None where it is not installed: an index that only searches needs no torch."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    """The processor's name, where the system tells it, else its architecture."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        if named:
            return named[0]
    return platform.processor() or os.environ.get("PROCESSOR_IDENTIFIER") or platform.machine()


def notes(data: dict[str, Any]) -> list[str]:
    """What a reader should know before the figures."""
    found = []
    size, count = data["index"]["num_documents"], data["queries"]["num_queries"]
    if not data["index"]["is_fitted"]:
        found.append("The index has no learned map yet: every search scores all documents, so recall is 1 by definition.")
    elif data["in_use"]["exact"]:
        found.append(
            f"With the setting in use a search scores all {size:,} documents, so recall is 1 by definition; "
            "the map is of use where there are more."
        )
    if data["k"] > size:
        found.append(f"k is {data['k']:,}, and there are {size:,} documents: the exact top k is all of them.")
    if count < FEW_QUERIES:
        found.append(f"Measured with {count} {'query' if count == 1 else 'queries'}: the intervals are wide.")
    if data["options"]["device"] != "cpu":
        found.append(f"Searches ran on {data['options']['device']}, by a scan of all vectors.")
    return found
