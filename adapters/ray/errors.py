"""What can go wrong with shards, beside the errors of :class:`lemur_ann.LemurIndex`."""

from __future__ import annotations

from collections.abc import Iterable


class ShardUnavailable(RuntimeError):
    """Some shards did not answer in time.

    Attributes:
        shards: their numbers.
    """

    def __init__(self, message: str, shards: Iterable[int] = ()) -> None:
        self.shards = tuple(sorted(set(shards)))
        super().__init__(message)

    def __reduce__(self) -> tuple[type[ShardUnavailable], tuple[str, tuple[int, ...]]]:
        return type(self), (str(self), self.shards)


class Overloaded(RuntimeError):
    """As many searches as are allowed wait for a shard already; this one was not sent."""


class PartsLost(RuntimeError):
    """Documents that had been sent to a shard, and that it had not added yet, are gone."""
