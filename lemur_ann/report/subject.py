"""What a report measures: a snapshot, some of the given queries, and their exact answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lemur_ann import _core, validate
from lemur_ann.documents.inputs import QueryBatch, is_single_query, read_queries, sampled, to_offsets
from lemur_ann.documents.rows import Rows
from lemur_ann.insight.relevance import Grades, grades_of, with_columns
from lemur_ann.options import Options
from lemur_ann.progress import Task
from lemur_ann.searching.search import exact_scores
from lemur_ann.searching.settings import Settings, Tuned
from lemur_ann.searching.snapshot import Snapshot

MAX_SAMPLED = 100  # random documents of each query whose estimates are compared
MAX_CHARACTERS = 240  # of a text


@dataclass(frozen=True)
class Queries:
    """Queries in float32, and what is known of them: ``rows`` are their places in the batch that was given."""

    batch: QueryBatch
    rows: Rows
    num_given: int
    texts: list[Any] | None
    ids: list[Any] | None

    def __len__(self) -> int:
        return len(self.batch)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each."""
        return np.diff(self.batch.offsets)

    def named(self, i: int) -> dict[str, Any]:
        """What to call one of them by."""
        text = None if self.texts is None or self.texts[i] is None else shortened(str(self.texts[i]))
        name = None if self.ids is None or self.ids[i] is None else str(self.ids[i])
        return {"row": int(self.rows[i]), "id": name, "text": text}


@dataclass(frozen=True, eq=False)
class Subject:
    """What is measured, of one moment: whatever changes meanwhile, no figure shows it.

    Attributes:
        snapshot, options: an index, with at least one document.
        queries: at least one.
        in_use: how the index searches by itself, with as many threads as are to be timed; no wider than there are documents.
        k: recall is of the exact top k, of all documents where there are fewer.
        grades: of each query the relevant documents; None where they are not known.
    """

    snapshot: Snapshot
    options: Options
    queries: Queries
    in_use: Settings
    k: int
    grades: list[Grades] | None = None

    @property
    def size(self) -> int:
        """Documents, without deleted ones."""
        return self.snapshot.num_documents

    @property
    def tuned(self) -> tuple[Tuned, ...]:
        """What the index was tuned for."""
        return () if self.snapshot.learned is None else self.snapshot.learned.tuned

    @property
    def on_device(self) -> bool:
        """Whether searches work on a device, by a scan of all vectors."""
        return self.options.device != "cpu"

    @property
    def has_beam(self) -> bool:
        """Whether searches walk a graph."""
        return self.options.candidates != "exact" and not self.on_device


@dataclass(frozen=True)
class Truth:
    """Exact scores of one query: of its top k, best first, and of some random documents."""

    top: Rows
    top_scores: npt.NDArray[np.float32]
    sample: Rows
    sample_scores: npt.NDArray[np.float32]


def shortened(text: str) -> str:
    """A text on one line, of at most MAX_CHARACTERS."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_CHARACTERS else line[: MAX_CHARACTERS - 1].rstrip() + "…"


def read(
    queries: Any, snapshot: Snapshot, count: int, relevant: Any, random: np.random.Generator
) -> tuple[Queries, list[Grades] | None]:
    """At most ``count`` of the queries, in their order, with their texts and ids where they are Arrow data that has any; and
    the relevant documents of each, where they are given."""
    queries = [queries] if is_single_query(queries) else with_columns(queries)
    columns: dict[str, list[Any]] = {}
    if isinstance(queries, pa.Table):
        columns = {name: queries.column(name).to_pylist() for name in ("text", "id") if name in queries.column_names}
    batch = read_queries(queries, dim=snapshot.dim)
    if len(batch) == 0:
        raise ValueError("report needs at least one query, got none")
    grades = None if relevant is None else grades_of(relevant, queries, len(batch), snapshot.ids)
    rows = sampled(len(batch), count, random)
    matrices = [batch.matrix(i) for i in rows.tolist()]
    tokens = np.ascontiguousarray(np.concatenate(matrices), dtype=np.float32)
    chosen = {name: [values[i] for i in rows.tolist()] for name, values in columns.items()}
    sample = QueryBatch(tokens, to_offsets([len(matrix) for matrix in matrices]))
    found = Queries(sample, rows, len(batch), chosen.get("text"), chosen.get("id"))
    return found, None if grades is None else [grades[i] for i in rows.tolist()]


def truths(subject: Subject, random: np.random.Generator, task: Task) -> list[Truth]:
    """Of each query, with all cores."""
    snapshot = subject.snapshot
    live, found = snapshot.live, []
    count = min(MAX_SAMPLED, len(live))
    for scores in exact_scores(snapshot, subject.queries.batch, validate.num_threads(None), snapshot.deleted):
        top = _core.top_k(scores, subject.k)
        sample = random.choice(live, count, replace=False, shuffle=False)
        found.append(Truth(top, scores[top], sample, scores[sample]))
        task.advance()
    return found
