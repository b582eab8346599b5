"""MTEB retrieval and reranking tasks, searched with a lemur_ann index. ``pip install lemur_ann[mteb]``.

Give :class:`LemurSearch` to ``mteb.evaluate`` in the place of the model::

    import mteb
    from lemur_ann.adapters.mteb import LemurSearch

    model = mteb.get_model("lightonai/GTE-ModernColBERT-v1")  # or a MultiVectorEncoder, a PyLate ColBERT, two functions, ...
    task = mteb.get_task("NanoSciFactRetrieval")
    exact = mteb.evaluate(LemurSearch(model), task)
    learned = mteb.evaluate(LemurSearch(model, fit=True, num_candidates=100), task)
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from lemur_ann import LemurIndex, TextIndex, validate
from lemur_ann.encoders import Encoder, as_encoder, encoded

try:
    from datasets import Dataset
    from mteb._create_dataloaders import create_dataloader  # titles, instructions, conversations: texts as all models get them
    from mteb.models import ModelMeta
    from mteb.models.model_meta import ScoringFunction
    from mteb.types import PromptType
    from torch.utils.data import DataLoader
except ImportError as error:
    raise ImportError(f"{error}; pip install lemur_ann[mteb]") from error

TEXTS_PER_CALL = 1024  # given to a model of mteb, which makes its own batches of them, of like lengths
DOCUMENTS = pa.schema([("id", pa.string()), ("text", pa.large_string())])


class LemurSearch:
    """A late-interaction model and a :class:`~lemur_ann.TextIndex`, as a ``SearchProtocol`` of mteb.

    Each call of :meth:`index` makes an index of that corpus, in memory, in the place of the one before. mteb puts the texts
    together: a document's title and text, a query and its instruction.

    Args:
        model: a model of mteb that gives token embeddings (``mteb.get_model``, ``MultiVectorWrapper``), which is told the task
            and the prompt type; or anything :func:`lemur_ann.encoders.as_encoder` takes, which is given the texts alone.
        name: "organization/model", under which mteb reports and caches results; needed unless the model has an mteb name.
        fit: learn the map of each corpus, except for reranking tasks; if False, every search is exact.
        training_queries: strings to learn from, like the queries to come, and not those themselves; None learns from
            sentences of the corpus, through the query encoder.
        num_threads: None means all cores.
        **options: as for :class:`~lemur_ann.LemurIndex`. With ``num_candidates`` a learned index returns no more documents for
            a query than that, also where the task asks for more (1,000, as a rule), so that the scores are that setting's.
            Without it, it reranks as many as the task asks for, and 250 at least.

    Attributes:
        texts: the :class:`~lemur_ann.TextIndex` of the last corpus, None before; it stays for you to look at.
        mteb_model_meta: the model's, with ``fit`` and ``options`` as experiment_kwargs, so that mteb's cache of results keeps
            differently searched runs apart.

    Raises:
        TypeError, ValueError: the model is none of the above or has no name; training queries without ``fit``; bad options.
    """

    mteb_model_meta: ModelMeta

    def __init__(
        self,
        model: Any,
        *,
        name: str | None = None,
        fit: bool = False,
        training_queries: Sequence[str] | None = None,
        num_threads: int | None = None,
        **options: Any,
    ) -> None:
        LemurIndex(**options)  # wrong ones are refused now and not after a corpus was encoded
        if not validate.boolean(fit, "fit") and training_queries is not None:
            raise ValueError("training_queries are for fit=True, which learns from them")
        self.texts: TextIndex | None = None
        self._model = model
        self._encoder = None if hasattr(model, "mteb_model_meta") else as_encoder(model)
        self._fit = fit
        self._training_queries = training_queries
        self._num_threads = num_threads
        self._options = options
        self.mteb_model_meta = self._meta(name)

    def index(
        self,
        corpus: Dataset,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        encode_kwargs: Any,
        num_proc: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Encode and index a corpus, and learn its map if asked to; see ``SearchProtocol.index``.

        Args:
            corpus: columns ``id``, ``text`` and perhaps ``title``.
            task_metadata, hf_split, hf_subset: what the model is told.
            encode_kwargs: ``batch_size`` and ``show_progress_bar``; a model of mteb gets all of them.
            num_proc: processes for loading data.
            **kwargs: not used.
        """
        self.texts = None  # the memory of the last corpus is free before this one is encoded
        progress = encode_kwargs.get("show_progress_bar")
        if self._encoder is None:
            where = {"task_metadata": task_metadata, "hf_split": hf_split, "hf_subset": hf_subset}
            encoder, batch_size = _of_mteb(self._model, where, encode_kwargs), TEXTS_PER_CALL
        else:
            encoder, batch_size = self._encoder, encode_kwargs.get("batch_size", 32)
        texts = TextIndex(encoder, LemurIndex(**self._options), batch_size=batch_size, fit_at=None)
        loader = create_dataloader(
            corpus, task_metadata=task_metadata, prompt_type=PromptType.document, batch_size=batch_size, num_proc=num_proc
        )
        batches = (pa.record_batch([batch["id"], batch["text"]], schema=DOCUMENTS) for batch in loader)
        texts.add(pa.RecordBatchReader.from_batches(DOCUMENTS, batches), progress=progress)
        if self._fit and "Reranking" not in task_metadata.type:
            texts.fit(queries=self._training_queries, num_threads=self._num_threads, progress=progress)
        self.texts = texts

    def search(
        self,
        queries: Dataset,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        top_k: int,
        encode_kwargs: Any,
        top_ranked: Any = None,
        num_proc: int | None = None,
        **kwargs: Any,
    ) -> dict[str, dict[str, float]]:
        """Search the corpus, or score the documents that are given for each query; see ``SearchProtocol.search``.

        Args:
            queries: columns ``id``, ``text`` and perhaps ``instruction``.
            top_k: documents for each query.
            top_ranked: of reranking tasks, the ids of documents for each query's id: their scores are exact. A query without
                any gets none.
            task_metadata, hf_split, hf_subset, encode_kwargs, num_proc: as for :meth:`index`.
            **kwargs: not used.

        Returns:
            for each query's id the MaxSim scores by the documents' ids, best first.

        Raises:
            ValueError: nothing was indexed.
        """
        if self.texts is None:
            raise ValueError("search needs a corpus: call index(corpus, ...) first")
        index, encoder, size = self.texts.index, self.texts.encoder, self.texts.batch_size
        k = min(top_k, self._options.get("num_candidates", top_k)) if index.is_fitted else top_k
        loader = create_dataloader(
            queries, task_metadata=task_metadata, prompt_type=PromptType.query, batch_size=size, num_proc=num_proc
        )
        found: dict[str, dict[str, float]] = {}
        for batch in loader:
            tokens = encoded(encoder.queries, batch["text"], "query", index.dim)
            matrices = np.split(tokens.tokens, tokens.offsets[1:-1])
            if top_ranked is None:
                hits = index.search(matrices, k, num_threads=self._num_threads)
            else:
                given = (top_ranked.get(query_id, []) for query_id in batch["id"])
                hits = [
                    index.search(matrix, top_k, filter=ids, exact=True, num_threads=self._num_threads)
                    for matrix, ids in zip(matrices, given, strict=True)
                ]
            found.update((query_id, dict(one)) for query_id, one in zip(batch["id"], hits, strict=True))
        return found

    def _meta(self, name: str | None) -> ModelMeta:
        if self._encoder is None:
            meta = self._model.mteb_model_meta
        else:
            if name is None or "/" not in name:
                raise ValueError(f"name must be 'organization/model' where the model is not one of mteb's, got {name!r}")
            meta = ModelMeta.create_empty({"model_type": ["late-interaction"], "similarity_fn_name": ScoringFunction.MAX_SIM})
        how: dict[str, Any] = {**(meta.experiment_kwargs or {}), "index": "lemur_ann", "fit": self._fit}
        if self._fit:
            how |= self._options
        if self._training_queries is not None:
            how["training_queries"] = f"{zlib.crc32(chr(0).join(self._training_queries).encode()):08x}"
        copied: ModelMeta = meta.model_copy(
            update={"name": name or meta.name, "modalities": ["text"], "experiment_kwargs": how}
        )
        return copied


def _of_mteb(model: Any, where: dict[str, Any], encode_kwargs: Any) -> Encoder:
    """A model of mteb as an encoder of texts, for one task."""
    # mteb's wrappers of PyLate and MultiVectorEncoder search by themselves; had they an encode, mteb would take them for dense
    encode = model._encode if hasattr(model, "_encode") else model.encode
    kwargs = {**encode_kwargs, "show_progress_bar": False}

    def side(prompt_type: PromptType) -> Callable[[list[str]], Any]:
        def matrices(texts: list[str]) -> Any:
            loader = DataLoader(Dataset.from_dict({"text": texts}), batch_size=kwargs.get("batch_size", 32))
            given = encode(loader, prompt_type=prompt_type, **where, **kwargs)
            padded = getattr(given, "ndim", 0) == 3  # with zeros, to one length
            return [matrix[(matrix != 0).any(-1)] for matrix in given] if padded else given

        return matrices

    return Encoder(side(PromptType.query), side(PromptType.document))
