"""Searches of an index, one after the other: what the next one is likely to need again is kept here."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from lemur_ann.documents.inputs import QueryBatch
from lemur_ann.documents.rows import RowSet
from lemur_ann.events import after_fork
from lemur_ann.hits import Hits
from lemur_ann.searching.filters import excluded_by
from lemur_ann.searching.search import search
from lemur_ann.searching.settings import Settings
from lemur_ann.searching.snapshot import Snapshot

if TYPE_CHECKING:
    from lemur_ann.searching.device import DeviceSearch


class Searcher:
    """Keeps the rows of the last filter, and the documents on the device, each for the snapshot that they are of."""

    def __init__(self) -> None:
        self._last_filter: tuple[Snapshot, pc.Expression, RowSet] | None = None
        self._on_device: tuple[Snapshot, DeviceSearch] | None = None
        self._make_lock()
        after_fork(self, Searcher._make_lock)

    def _make_lock(self) -> None:
        self._copying = threading.Lock()  # to the device, where the documents of two threads at once may not have room

    def search(
        self, snapshot: Snapshot, queries: QueryBatch, settings: Settings, *, filter: Any = None, exact: bool = False
    ) -> list[Hits]:
        """The hits of each query, among the documents that a filter lets through."""
        excluded = self.excluded(snapshot, filter)
        device_search = None if exact else self.device_search(snapshot)
        return search(snapshot, queries, settings, excluded, exact=exact, device_search=device_search)

    def excluded(self, snapshot: Snapshot, filter: Any) -> RowSet:
        """What a filter keeps out; that of the last expression is kept, since queries come one by one with the same."""
        if filter is None:
            return snapshot.deleted
        if not isinstance(filter, pc.Expression):
            return excluded_by(filter, snapshot)
        last = self._last_filter
        if last is None or last[0] is not snapshot or not last[1].equals(filter):
            self._last_filter = last = (snapshot, filter, excluded_by(filter, snapshot))
        return last[2]

    def device_search(self, snapshot: Snapshot) -> DeviceSearch | None:
        """The documents on the device, copied there when a search first needs them and again after every change."""
        learned = snapshot.learned
        if learned is None or learned.options.device == "cpu":
            return None
        known = self._on_device
        if known is not None and known[0] is snapshot:
            return known[1]
        with self._copying:
            known = self._on_device
            if known is None or known[0] is not snapshot:
                from lemur_ann.searching.device import DeviceSearch

                vectors = learned.candidates.take(snapshot.live)
                search = DeviceSearch(learned.encoder, vectors, snapshot.store, snapshot.live, learned.options.device)
                self._on_device = known = (snapshot, search)
        return known[1]
