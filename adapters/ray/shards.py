"""The shards of one index together: how they are asked, and what their documents have in common."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray

from lemur_ann.documents import check_known

from .calls import WRITER, Actors, Arguments, Calls, Target, gathered
from .documents import Columns, shards_of
from .shard import start
from .storage import Place

CLOSE_S = 10.0  # for actors to let go of their directories


class Shards:
    """The actors, and what is known of all of them. Pickled, it asks the same actors, and changes nothing.

    Args:
        names: of the shards.
        actors: theirs.
        place: where they are kept; None where another process changes them.
        timeout: seconds to wait for a shard that is away, unless a call says otherwise.

    Attributes:
        columns: what the documents have in common, after the last change made here.
        next_id: the integer after the largest id then.
    """

    def __init__(self, names: list[str], actors: Actors, place: Place | None, timeout: float) -> None:
        self.names, self.place, self.timeout = names, place, timeout
        self._actors: Actors | None = actors
        self.columns, self.next_id = Columns(), 0

    @classmethod
    def started(
        cls, names: list[str], place: Place, timeout: float, *, replicas: int, max_pending: int, **settings: Any
    ) -> Shards:
        """Start the actors: those that write, and when all have opened their shards, the readers of what is there then."""

        def actor(name: str, replica: int) -> Any:
            return start(place, name, replica, timeout=timeout, **settings)

        shards = cls(names, Actors([[actor(name, WRITER)] for name in names], max_pending), place, timeout)
        try:
            shards.look()
            shards.call("discard", dict.fromkeys(shards.actors.writers(), (None,)))
            if replicas > 1:
                every = [
                    [*own, *(actor(name, replica) for replica in range(1, replicas))]
                    for name, own in zip(names, shards.actors.shards, strict=True)
                ]
                shards._actors = Actors(every, max_pending)
                shards.call("ping", dict.fromkeys(shards.readers(), ()), patient=True)
        except BaseException:
            shards.close()
            raise
        return shards

    def __reduce__(self) -> Any:
        return Shards, (self.names, self.actors, None, self.timeout)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def is_closed(self) -> bool:
        """Whether the actors were stopped."""
        return self._actors is None

    @property
    def actors(self) -> Actors:
        """RuntimeError once they were stopped."""
        if self._actors is None:
            raise RuntimeError("the index is closed")
        return self._actors

    def writable(self) -> Place:
        """Where the shards are kept; PermissionError for who may not change them."""
        _ = self.actors
        if self.place is None:
            raise PermissionError("this index was pickled, and searches only: the one that opened the directory changes it")
        return self.place

    # Asking them

    def call(
        self, method: str, arguments: Arguments, *, patient: bool = False, timeout: float | None = None
    ) -> dict[Target, Any]:
        """Answers of some actors, in the order of the targets; see :class:`~lemur_ann.adapters.ray.calls.Calls`."""
        timeout = self.timeout if timeout is None else timeout
        answers = gathered(Calls(self.actors, method, arguments, timeout=timeout, patient=patient)).result()
        return {target: answers[target] for target in arguments}

    def each(self, method: str, *arguments: Any) -> list[Any]:
        """The answer of one replica of each shard."""
        return list(self.call(method, dict.fromkeys(self.any_replica, arguments)).values())

    @property
    def any_replica(self) -> list[Target]:
        """One replica of each shard, whichever has the least to do."""
        return [(shard, None) for shard in range(len(self))]

    def readers(self, shards: Sequence[int] | None = None) -> list[Target]:
        """The replicas that only search, of some shards or of all."""
        return [target for shard in (range(len(self)) if shards is None else shards) for target in self.actors.readers(shard)]

    def refresh(self, shards: Sequence[int]) -> None:
        """Readers show what was changed before the change returns; those that are gone for good show nothing."""
        calls = gathered(Calls(self.actors, "refresh", dict.fromkeys(self.readers(shards), ()), timeout=self.timeout))
        calls.missing = [target for target in calls.missing if not self.actors.are_gone(target)]
        calls.result()

    def close(self) -> None:
        """Stop the actors, unless another process started them."""
        actors, self._actors = self._actors, None
        if actors is None or self.place is None:
            return
        every: Arguments = {(s, r): () for s, own in enumerate(actors.shards) for r in range(len(own))}
        with suppress(Exception):
            gathered(Calls(actors, "close", every, timeout=CLOSE_S))
        for shard, replica in every:
            assert replica is not None
            ray.kill(actors.shards[shard][replica])

    # What their documents have in common

    def look(self) -> None:
        """Find out what the documents that are there have in common."""
        described = self.call("describe", dict.fromkeys(self.actors.writers(), ()), patient=True).values()
        self.columns = Columns.of_all(own["schema"] for own in described)
        self.next_id = max(own["largest"] for own in described) + 1

    @property
    def dim(self) -> int | None:
        """Of tokens, as far as it is known without asking: a pickled copy cannot know what has come since."""
        return None if self.place is None else self.columns.dim

    def by_shard(self, ids: pa.Array) -> dict[int, npt.NDArray[np.int64]]:
        """The positions of the ids of each shard that has some."""
        shards = shards_of(ids.to_pylist(), len(self))
        return {shard: np.flatnonzero(shards == shard) for shard in np.unique(shards).tolist()}

    def check_known(self, ids: pa.Array, by_shard: dict[int, npt.NDArray[np.int64]]) -> None:
        """KeyError where an id names no document."""
        found = self.call("known", {(shard, WRITER): (ids.take(pa.array(rows)),) for shard, rows in by_shard.items()})
        known = np.ones(len(ids), np.bool_)
        for (shard, _), own in found.items():
            known[by_shard[shard]] = own
        check_known(ids.to_pylist(), known.tolist())
