"""All that a search reads, at one moment. Nothing in it changes: a change makes another, which shares what stays."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from lemur_ann._core import Documents, token_codes
from lemur_ann.candidates import CandidateIndex
from lemur_ann.candidates.kinds import kind_of
from lemur_ann.candidates.look import SecondLook
from lemur_ann.documents.coded_store import CodedStore
from lemur_ann.documents.ids import IdColumn, IdMap
from lemur_ann.documents.inputs import DocumentBatch
from lemur_ann.documents.intake import joined_metadata, rows_of
from lemur_ann.documents.rows import Rows, RowSet
from lemur_ann.documents.tokens import TokenStore
from lemur_ann.errors import CorruptIndex, NotFitted
from lemur_ann.events import cached_property
from lemur_ann.searching.settings import Tuned
from lemur_ann.validate import BAD_VALUE, first_bad_row

if TYPE_CHECKING:
    from lemur_ann.encoder import LemurEncoder
    from lemur_ann.options import Options
    from lemur_ann.progress import Progress, Task

ROWS_PER_BLOCK = 16_384  # of vectors, when a candidate index is made of another's
FEW_DOCUMENTS = 8192  # of these a search can afford twice as many candidates, and their queries often ask for others


@dataclass(frozen=True, eq=False)
class Learned:
    """A learned map and the candidates it made."""

    options: Options
    encoder: LemurEncoder
    candidates: CandidateIndex
    num_rows: int  # that there were when it learned, deleted ones included; documents after them are recent
    tuned: tuple[Tuned, ...] = ()
    num_unfamiliar: int = 0  # of the recent ones, deleted ones included: unlike those it learned from
    look: SecondLook | None = None  # of all rows; None where the map has learned none

    @property
    def looks(self) -> bool:
        """Whether searches take a second look: on a CPU they do."""
        return self.look is not None and self.options.device == "cpu"

    @property
    def breadth(self) -> int:
        """How many times as many candidates a search wants as where queries of the kind taught the map; docs/learning.md."""
        return {"document tokens": 5, "plain queries": 2}.get(self.encoder.training.get("learned_from", ""), 1)

    @property
    def keeps_codes_alone(self) -> bool:
        """Whether small codes stand for the tokens, which are not kept."""
        return self.options.keep_tokens == "none" and self.look is not None

    def recoded(self, store: TokenStore, options: Options, encoder: LemurEncoder, num_threads: int) -> Learned:
        """With the codes that options say, of the documents of a store; the encoder is the same map, and can make them."""
        look = self.look
        if look is not None and encoder.look is not None:
            look = look.recoded(store, encoder.look, options.small_bits, num_threads=num_threads)
        tuned = self.tuned if options.keep_tokens == self.options.keep_tokens else ()  # of searches that found other hits
        return replace(self, options=options, encoder=encoder, look=look, tuned=tuned)

    def kept(self, store: TokenStore) -> TokenStore:
        """What is kept of the documents of a store, which are all that it knows."""
        if not self.keeps_codes_alone:
            return store
        assert self.look is not None
        return CodedStore(self.look.book, self.look.parts, store.dtype)

    def extended(self, new: TokenStore, num_threads: int, task: Task | None = None) -> Learned:
        """With documents at the end."""
        vectors = self.encoder.encode_store(new, num_threads=num_threads, task=task)
        return replace(
            self,
            candidates=self.candidates.extended(vectors, num_threads=num_threads),
            look=None if self.look is None else self.look.extended(new, num_threads=num_threads),
            num_unfamiliar=self.num_unfamiliar + self.encoder.num_unfamiliar(new, num_threads=num_threads),
        )

    def begun_anew(self, directory: str | None) -> Learned:
        """The same map for other documents; ``directory`` is for temporary files."""
        candidates = kind_of(self.options.candidates).assemble(self.encoder.dim, None, [], asdict(self.options), directory)
        look = None if self.look is None else SecondLook(self.look.weights, [], self.look.bits)
        return replace(self, candidates=candidates, look=look, num_rows=0, num_unfamiliar=0)


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Documents by row: tokens, ids, metadata, which are deleted; and what was learned of them."""

    store: TokenStore
    ids: IdMap
    metadata: pa.Table | None
    deleted: RowSet
    learned: Learned | None = None
    note: str | None = None  # the caller's, kept with the change that it came with
    number: int = 0  # of this version on disk; 0 in memory

    @classmethod
    def empty(cls, *, coded: bool) -> Snapshot:
        """No documents."""
        return cls(TokenStore(coded=coded), IdMap(), None, RowSet.none(0))

    @property
    def dim(self) -> int | None:
        """Of tokens; None where there are no documents and no map."""
        return self.store.dim if self.store.dim or self.learned is None else self.learned.encoder.token_dim

    def begun_anew(self, directory: str | None) -> Snapshot:
        """An index without rows for one whose documents are all deleted: it takes documents of any dim, ids and metadata.

        A learned map stays, and with it the dim of tokens.
        """
        learned = None if self.learned is None else self.learned.begun_anew(directory)
        empty = replace(Snapshot.empty(coded=self.store.coded), note=self.note)
        return empty if learned is None else replace(empty, store=learned.kept(empty.store), learned=learned)

    def fitted(self) -> Learned:
        """What was learned.

        Raises:
            NotFitted: before fit.
        """
        if self.learned is None:
            raise NotFitted("the index has no learned map yet: call fit(documents, queries=...) first")
        return self.learned

    @property
    def searched(self) -> dict[str, Any]:
        """What its usual widths depend on, by the names of :meth:`lemur_ann.searching.settings.Settings.of`."""
        learned = self.learned
        return {
            "looks": learned is not None and learned.looks,
            "breadth": max(1 if learned is None else learned.breadth, 2 if self.num_documents < FEW_DOCUMENTS else 1),
            "num_documents": self.num_documents,
        }

    @cached_property
    def documents(self) -> Documents:
        """All documents, for the kernels: with their small codes, where such are kept."""
        look = None if self.learned is None else self.learned.look
        small = None if look is None or isinstance(self.store, CodedStore) else look.small
        return self.store.documents if small is None else self.store.with_small(small)

    @property
    def num_rows(self) -> int:
        """Documents, deleted ones included."""
        return len(self.deleted)

    @property
    def num_documents(self) -> int:
        """Documents that are not deleted."""
        return len(self.deleted) - self.deleted.count

    @cached_property
    def live(self) -> Rows:
        """The rows that are not deleted, ascending."""
        return self.deleted.others

    def with_documents(
        self,
        batches: list[DocumentBatch],
        metadata: pa.Table | None,
        replaced: Rows,
        num_threads: int,
        progress: Progress,
    ) -> Snapshot:
        """With checked documents (see intake.py) at the end, and the metadata of all; ``replaced`` rows are deleted."""
        if not batches:
            return replace(self, metadata=metadata)
        new = TokenStore(coded=self.store.coded)
        for batch in batches:
            new = new.extended(batch.tokens, batch.offsets, batch.codes, num_threads=num_threads)
        learned = self.learned
        if learned is not None:
            learned = learned.extended(new, num_threads, progress.task("document weights", len(new)))
        if learned is None or not learned.keeps_codes_alone:
            store = self.store.joined(new)
        else:
            store = learned.kept(new)
        deleted = self.deleted.with_rows(replaced).extended(len(store))
        ids = self.ids.changed(replaced, pa.concat_arrays([batch.ids for batch in batches]), deleted)
        return Snapshot(store, ids, metadata, deleted, learned, self.note)

    def without(self, rows: Rows, directory: str | None = None) -> Snapshot:
        """With these rows deleted too, and begun anew where none is left; ``directory`` is for temporary files."""
        deleted = self.deleted.with_rows(rows)
        if deleted.count == len(deleted):
            return self.begun_anew(directory)
        return replace(self, ids=self.ids.changed(rows, None, deleted), deleted=deleted)

    def compacted(self, num_threads: int, task: Task, directory: str | None = None) -> Snapshot:
        """The documents that are not deleted, with the same vectors in a candidate index made anew."""
        kept, learned = self.live, self.learned
        if len(kept) == 0:
            return self.begun_anew(directory)
        if learned is not None:
            candidates, options = learned.candidates, learned.options
            builder = kind_of(options.candidates).builder(learned.encoder.dim, asdict(options), len(kept), directory)
            for begin in range(0, len(kept), ROWS_PER_BLOCK):
                block = kept[begin : begin + ROWS_PER_BLOCK]
                builder.add(candidates.take(block), num_threads=num_threads)
                task.advance(len(block))
            num_rows = int(np.searchsorted(kept, learned.num_rows))
            look = learned.look
            if look is not None:
                look = SecondLook(look.weights, [look.take(kept)], look.bits)
            learned = replace(learned, candidates=builder.finish(), look=look, num_rows=num_rows)
        is_coded_alone = learned is not None and learned.keeps_codes_alone
        return Snapshot(
            learned.kept(self.store) if learned and is_coded_alone else self.store.without(self.deleted.mask, directory),
            IdMap(IdColumn([self.ids.column.take_array(kept)])),
            None if self.metadata is None else self.metadata.take(pa.array(kept)),
            RowSet.none(len(kept)),
            learned,
            self.note,
        )

    def with_changes(self, before: Snapshot, after: Snapshot, num_threads: int) -> Snapshot:
        """This one, made of what was not deleted in ``before``, with what was added and deleted from then on to ``after``."""
        later = np.arange(before.num_rows, after.num_rows)
        deleted = RowSet.of(after.deleted.mask[np.concatenate([before.live, later])])
        column, metadata, store, learned = self.ids.column, self.metadata, self.store, self.learned
        if len(later):
            column = column.extended(after.ids.column.take_array(later))
            new = None if after.metadata is None else after.metadata.take(pa.array(later))
            metadata = joined_metadata(metadata, self.num_rows, [rows_of(new, len(later))])
            if learned is None or not learned.keeps_codes_alone:  # these come with the second look, below
                store = store.joined(after.store.slice(before.num_rows, after.num_rows))
        if learned is not None and after.learned is not None:
            now = after.learned
            candidates = learned.candidates.extended(now.candidates.take(later), num_threads=num_threads)
            look = learned.look
            if look is not None and now.look is not None:
                look = look.with_part(now.look.take(later))
            learned = replace(learned, candidates=candidates, look=look, tuned=now.tuned, num_unfamiliar=now.num_unfamiliar)
        store = store if learned is None else learned.kept(store)
        return Snapshot(store, IdMap(column, deleted), metadata, deleted, learned, after.note)


def check(snapshot: Snapshot) -> None:
    """CorruptIndex where the parts of a snapshot do not fit each other, or tokens are not finite."""
    first = 0
    for chunk in snapshot.store.chunks:
        bad = first_bad_row(chunk.tokens)
        if bad is not None:
            row = first + int(np.searchsorted(chunk.offsets, bad, side="right")) - 1
            raise CorruptIndex(f"document {snapshot.ids.column.take(np.array([row]))[0]!r} has {BAD_VALUE}")
        if chunk.codes is not None:
            expected = token_codes(np.ascontiguousarray(chunk.tokens), 1)
            for i, array in enumerate(chunk.codes):
                if not np.array_equal(np.asarray(array), np.asarray(expected[i])):
                    raise CorruptIndex(f"codes of the documents from row {first} on are not those of their tokens")
        first += len(chunk.offsets) - 1
    if isinstance(snapshot.store, CodedStore):
        first = len(snapshot.store)
    live = snapshot.ids.column.take_array(snapshot.live)
    counts = {"rows": first, "ids": len(snapshot.ids.column), "deleted": len(snapshot.deleted)}
    if len(set(counts.values())) > 1 or (snapshot.metadata is not None and len(snapshot.metadata) != first):
        raise CorruptIndex(f"numbers of documents differ: {counts}")
    if len(live.unique()) != len(live):
        raise CorruptIndex("two documents have the same id")
    if snapshot.learned is not None:
        candidates, num_rows = snapshot.learned.candidates, snapshot.num_rows
        for begin in range(0, num_rows, ROWS_PER_BLOCK):
            vectors = candidates.take(np.arange(begin, min(begin + ROWS_PER_BLOCK, num_rows)))
            if not np.isfinite(vectors).all():
                raise CorruptIndex("a vector of the candidate index is not finite")
        candidates.check()
        if snapshot.learned.look is not None:
            snapshot.learned.look.check(snapshot.store)
