"""What ``fit`` learns: from a document's tokens to one vector, from a query's tokens to one vector."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from safetensors import numpy as safetensors

from lemur_ann import _core, formats, validate
from lemur_ann.arrays import arrays_of, in_place_of, map_arrays, metadata_of, read_metadata
from lemur_ann.candidates.look import LookWeights
from lemur_ann.documents.inputs import iterate_documents, queries_of, read_queries
from lemur_ann.documents.intake import tokens_alone
from lemur_ann.documents.sources import opened
from lemur_ann.documents.tokens import TokenStore
from lemur_ann.errors import CorruptIndex
from lemur_ann.events import cached_property, timed
from lemur_ann.learning import learned_parts
from lemur_ann.learning.familiarity import nearness
from lemur_ann.learning.memory import parse_bytes
from lemur_ann.learning.projection import Encoded, MapParts, reduced_weights
from lemur_ann.learning.query_features import FeatureWeights
from lemur_ann.learning.reduction import augment
from lemur_ann.learning.targets import Targets
from lemur_ann.options import Options
from lemur_ann.progress import Show, Task, progress_lines

if TYPE_CHECKING:
    from lemur_ann.learning.features import FeatureMap

# what a fingerprint is of: these and no others, for ever, whatever :meth:`LemurEncoder.arrays` comes to hold
NAMED_BY = re.compile(
    r"feature_map\.layers\.\d+\.(weight|bias)|sample_tokens|token_weights|target_mean|projection|offset|query_map|radius"
)


class LemurEncoder:
    """The learned map.

    ``<encode_queries(Q), encode_documents(D)>`` estimates MaxSim(Q, D) up to an affine map that is the same for all documents
    of a query. A document's vector is linear in its token maxima over a sample of query tokens, and depends on nothing else.

    It stands on its own: :meth:`save` writes it without any document, and another engine's index can find candidates by its
    vectors. By inner product, L2 distance and cosine alike the order of documents is the same, since every encoded document has
    the norm ``radius`` and every query a 0 where documents have the coordinate that makes it so (see reduction.py). Never
    normalise them. A later document of larger weights than any seen before, beyond the radius, is longer than that, and ranks
    lower than it should by L2 and cosine; the radius has room for a tenth.

    Args:
        feature_weights: the parameters of psi.
        targets: token maxima over the sample of query tokens.
        token_weights: float32 (num_sample_tokens,), what each of these counted in the solve.
        projection: float32 (num_sample_tokens, rank), takes token maxima to reduced weights.
        offset: float32 (rank,), subtracted from them.
        query_map: float32 (num_features, rank), takes query features to reduced ones.
        radius: the norm of every encoded document, see reduction.py.
        look: what a second look at candidates has learned, see candidates/look.py; None where it has learned nothing.
        training: what training showed, plain values for the manifest.

    Example:
        >>> import numpy as np
        >>> random = np.random.default_rng(0)
        >>> documents = [random.normal(size=(20, 8)).astype(np.float32) for _ in range(100)]
        >>> encoder = LemurEncoder.fit(documents, [d[:4] for d in documents], num_features=64, epochs=1, rank=15)
        >>> encoder.encode_documents(documents).shape
        (100, 16)
        >>> encoder.encode_queries(documents[7]).shape
        (16,)
    """

    def __init__(
        self,
        feature_weights: FeatureWeights,
        targets: Targets,
        token_weights: npt.NDArray[np.float32],
        projection: npt.NDArray[np.float32],
        offset: npt.NDArray[np.float32],
        query_map: npt.NDArray[np.float32],
        radius: float,
        training: dict[str, Any],
        look: LookWeights | None = None,
    ) -> None:
        self.feature_weights = feature_weights
        self.targets = targets
        self.token_weights = token_weights
        self.projection = projection
        self.offset = offset
        self.query_map = query_map
        self.radius = radius
        self.training = training
        self.look = look
        # with a column of zeros, for the appended coordinate
        self._padded_query_map = np.pad(query_map, ((0, 0), (0, 1)))
        self._packed: _core.Columns | None = None
        self._query_encoder = feature_weights.query_encoder(self._padded_query_map)

    @cached_property
    def feature_map(self) -> FeatureMap:
        """psi as a torch module, on the encoder's device."""
        return self.feature_weights.module(self.targets.device)

    @property
    def dim(self) -> int:
        """Dimension of an encoded document or query: the rank, and the appended coordinate."""
        return int(self.query_map.shape[1]) + 1

    @property
    def token_dim(self) -> int:
        """Dimension of the tokens it takes."""
        return int(self.targets.sample_tokens.shape[1])

    def __repr__(self) -> str:
        return f"<LemurEncoder of tokens of dim {self.token_dim} to vectors of dim {self.dim}>"

    def encode_documents(
        self, documents: Any, *, offsets: Any = None, num_threads: int | None = None, progress: Show = None
    ) -> npt.NDArray[np.float32]:
        """Documents in any form that :meth:`lemur_ann.LemurIndex.fit` takes, as float32 (num_documents, dim).

        A document's vector depends on nothing but the document. A stream is read batch by batch.

        Args:
            documents: of token dim ``token_dim``; ids and other columns are ignored.
            offsets: int (num_documents + 1,), with a flat matrix only.
            num_threads: None means all cores.
            progress: as for :meth:`lemur_ann.LemurIndex.fit`.

        Raises:
            ValueError, TypeError: bad documents.
        """
        threads = validate.num_threads(num_threads)
        batches = iterate_documents(opened(documents), offsets=offsets, dim=self.token_dim)
        stores = (TokenStore([(batch.tokens, batch.offsets)]) for batch in batches)
        vectors = [np.empty((0, self.dim), np.float32)]
        with progress_lines(progress) as lines:
            task = lines.task("document weights", None)
            vectors += [self.encode_store(store, num_threads=threads, task=task) for store in stores]
        return np.concatenate(vectors)

    def encode_queries(self, queries: Any, *, offsets: Any = None, num_threads: int | None = None) -> npt.NDArray[np.float32]:
        """Queries in any form that :meth:`lemur_ann.LemurIndex.search` takes: float32 (num_queries, dim), or (dim,) for one.

        The last coordinate is 0.

        Args:
            queries: one matrix (num_tokens, token_dim), or a batch.
            offsets: int (num_queries + 1,), with a flat matrix only.
            num_threads: None means all cores.

        Raises:
            ValueError, TypeError: bad queries.
        """
        threads = validate.num_threads(num_threads)
        asked = queries_of(opened(queries), self.token_dim, offsets)
        encoded = self.encode_batch(asked.batch.tokens, asked.batch.offsets, num_threads=threads)
        return encoded[0] if asked.is_one else encoded

    @property
    def packed_bytes(self) -> int:
        """Memory of what query features are computed from, beside the arrays of :meth:`arrays`."""
        padded = self._padded_query_map.nbytes
        return (
            2 * padded
            + (0 if self._packed is None else self.projection.nbytes)
            + sum(array.nbytes for array in self.feature_weights.arrays.values())
        )

    def _columns(self, num_threads: int) -> npt.NDArray[np.float32] | _core.Columns:
        """The projection; packed once for all documents to come, where the kernels multiply by it."""
        if self.targets.device != "cpu":
            return self.projection
        if self._packed is None:
            self._packed = _core.Columns(self.projection, num_threads)
        return self._packed

    def encode_blocks(
        self, store: TokenStore, indices: npt.NDArray[np.int64], *, num_threads: int = 1, known: Encoded | None = None
    ) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
        """Some documents, block by block: (slice of ``indices``, float32 (block, dim)); ``known`` ones are not solved again."""
        known = known or Encoded(np.empty(0, np.int64), np.empty((0, self.dim), np.float32))
        step = self.targets.documents_per_block
        for begin in range(0, len(indices), step):
            block = slice(begin, min(begin + step, len(indices)))
            part = indices[block]
            is_known = np.isin(part, known.indices)
            vectors = np.empty((len(part), self.dim), np.float32)
            vectors[is_known] = known.vectors[np.searchsorted(known.indices, part[is_known])]
            reduced = reduced_weights(
                store, part[~is_known], self.targets, self._columns(num_threads), self.offset, num_threads
            )
            vectors[~is_known] = augment(reduced, self.radius)
            yield block, vectors

    def encode_store(self, store: TokenStore, *, num_threads: int = 1, task: Task | None = None) -> npt.NDArray[np.float32]:
        """All documents of a store, float32 (num_documents, dim)."""
        vectors = np.empty((len(store), self.dim), np.float32)
        for block, encoded in self.encode_blocks(store, np.arange(len(store)), num_threads=num_threads):
            vectors[block] = encoded
            if task is not None:
                task.advance(len(encoded))
        return vectors

    def encode_batch(
        self, tokens: npt.NDArray[Any], offsets: npt.NDArray[np.int64], *, num_threads: int = 1
    ) -> npt.NDArray[np.float32]:
        """Queries as flat tokens with offsets, float32 (num_queries, dim)."""
        if self.targets.device == "cpu":
            return self._query_encoder.encode(np.ascontiguousarray(tokens, dtype=np.float32), offsets, num_threads)
        import torch

        with torch.inference_mode():
            features = self.feature_map.query_features(tokens, offsets)
            return (features @ torch.from_numpy(self._padded_query_map).to(features.device)).cpu().numpy()

    def num_unfamiliar(self, store: TokenStore, *, num_threads: int = 1) -> int:
        """How many documents of a store are unlike those it learned from, see learning/familiarity.py.

        0 of a map of an older version, which kept no measure of it.
        """
        low = self.training.get("nearness", {}).get("low")
        if low is None:
            return 0
        found = nearness(store, np.arange(len(store)), self.targets.sample_tokens, num_threads)
        return int(np.count_nonzero(found < low))

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Everything learned, for storage; psi's parameters under their names in the module."""
        psi = {f"feature_map.{name}": array for name, array in self.feature_weights.arrays.items()}
        return {
            **psi,
            "sample_tokens": self.targets.sample_tokens,
            "token_weights": self.token_weights,
            "target_mean": np.float64(self.targets.mean).reshape(1),
            "projection": self.projection,
            "offset": self.offset,
            "query_map": self.query_map,
            "radius": np.float64(self.radius).reshape(1),
            **({} if self.look is None else self.look.arrays),
        }

    def save(self, path: str | PathLike[str]) -> None:
        """Write the map to one safetensors file, in the place of what is there once it is whole.

        It holds the sample of query tokens and the projection, (token_dim + rank) floats for each of num_sample_tokens, which
        is most of it, and the feature map.
        """
        with in_place_of(validate.path(path)) as file:
            file.write(self.to_bytes())

    @classmethod
    def load(cls, path: str | PathLike[str], *, device: str = "cpu") -> LemurEncoder:
        """What :meth:`save` wrote; it encodes with the same bits, on the same device.

        Args:
            path: the file.
            device: where to encode.

        Raises:
            FileNotFoundError: there is no such file.
            CorruptIndex: it is damaged, of a newer format, or something else.
            ValueError: the device is not here.
        """
        path = validate.path(path)
        return cls._read(read_metadata(path), lambda: map_arrays(path), path, device)

    def to_bytes(self) -> bytes:
        """What :meth:`save` writes, for a place that is no file."""
        plain = {"feature_map": self.feature_weights.config, "training": self.training, "precision": self.targets.precision}
        described = {**formats.map_header(), "lemur_ann_version": _core.version, "encoder": json.dumps(plain)}
        return safetensors.save({name: np.ascontiguousarray(array) for name, array in self.arrays().items()}, described)

    @classmethod
    def from_bytes(cls, data: Any, *, device: str = "cpu") -> LemurEncoder:
        """What :meth:`to_bytes` gave, or the bytes of a file that :meth:`save` wrote; it encodes with the same bits.

        Args:
            data: bytes, or another buffer of them.
            device: where to encode.

        Raises:
            CorruptIndex: they are damaged, of a newer format, or something else.
            ValueError: the device is not here.
        """
        whole, name = np.frombuffer(bytes(memoryview(data)), np.uint8), "what these bytes hold"
        return cls._read(metadata_of(whole, name), lambda: arrays_of(whole, name), name, device)

    @classmethod
    def _read(
        cls, described: dict[str, str], arrays: Callable[[], dict[str, npt.NDArray[Any]]], name: Any, device: str
    ) -> LemurEncoder:
        """The map that a header describes; its arrays are read once the header is known to be one of ours."""
        formats.check_map_header(described, name)
        here = Options(device=device)
        check_device(here.device)
        try:
            plain = json.loads(described["encoder"])
            formats.check_training(plain["training"])
            options = replace(here, target_precision=plain["precision"])
            learned = formats.learned_map(arrays(), plain["feature_map"])
            config = formats.feature_map(plain["feature_map"], learned)
            return cls.from_arrays(learned, config, plain["training"], options)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise CorruptIndex(f"{name} cannot be read: {error!r}") from error

    @property
    def fingerprint(self) -> str:
        """A name for the map, 16 hexadecimal digits: the same for the same learned arrays, in every version of this library."""
        state = hashlib.sha256()
        for name, array in sorted(self.arrays().items()):
            if NAMED_BY.fullmatch(name):
                state.update(f"{name} {array.dtype} {array.shape}".encode())
                state.update(np.ascontiguousarray(array).data)
        return state.hexdigest()[:16]

    @classmethod
    def fit(
        cls,
        documents: Any,
        queries: Any = None,
        *,
        ids: Any = None,
        offsets: Any = None,
        query_offsets: Any = None,
        encode_query: Callable[[list[str]], Any] | None = None,
        text_column: str | None = "text",
        directory: str | PathLike[str] | None = None,
        memory_limit: int | str | None = None,
        num_threads: int | None = None,
        progress: Show = None,
        **options: Any,
    ) -> LemurEncoder:
        """Learn the map for documents like these, which are not kept; another way to one is :attr:`LemurIndex.encoder`.

        Args:
            documents, queries: as for :meth:`lemur_ann.LemurIndex.fit`; of a large corpus a sample of some ten thousand will
                do, and :meth:`encode_documents` takes the others.
            ids, offsets, query_offsets, encode_query, text_column, directory, memory_limit, num_threads, progress: as there.
            **options: options of :class:`~lemur_ann.LemurIndex`, such as rank, num_features and epochs. With a
                ``pool_factor`` the map is learned from pooled documents; :meth:`encode_documents` takes what
                :func:`lemur_ann.pool` makes.

        Raises:
            ValueError, TypeError: bad documents, queries or options.
        """
        known = {field.name for field in fields(Options)} - {"candidates", "token_codes"}
        validate.names(options, sorted(known), "LemurEncoder.fit()")
        validate.function(encode_query, "encode_query")
        chosen = Options(candidates="exact", token_codes=None, **options)
        threads, limit = validate.num_threads(num_threads), parse_bytes(memory_limit)
        directory = validate.directory(directory)
        if queries is not None and encode_query is not None:
            raise TypeError("encode_query= takes the place of queries; pass one of them")
        training = None if queries is None else read_queries(opened(queries), offsets=query_offsets)
        with progress_lines(progress) as lines, timed("fit") as told:
            store, metadata = tokens_alone(
                documents,
                ids=ids,
                offsets=offsets,
                directory=directory,
                progress=lines,
                pooling=chosen.pooled_by,
                num_threads=threads,
            )
            parts, _ = learned_parts(
                store,
                np.arange(len(store)),
                metadata,
                training,
                chosen,
                encode_query=encode_query,
                text_column=text_column,
                num_threads=threads,
                progress=lines,
                memory_limit=limit,
                directory=directory,
            )
            told["num_documents"] = len(store)
        return cls.of(parts)

    @classmethod
    def of(cls, parts: MapParts) -> LemurEncoder:
        """What was learned, put together."""
        return cls(**vars(parts))

    def copy(self, options: Options, look: LookWeights | None = None) -> LemurEncoder:
        """The same map for an index with these options, on its device, or with another ``look``; arrays are shared."""
        arrays = self.arrays() | ({} if look is None else look.arrays)
        return LemurEncoder.from_arrays(arrays, self.feature_weights.config, copy.deepcopy(self.training), options)

    @classmethod
    def from_arrays(
        cls, arrays: dict[str, npt.NDArray[Any]], config: dict[str, Any], training: dict[str, Any], options: Options
    ) -> LemurEncoder:
        """What :meth:`arrays` gave, or :func:`lemur_ann.formats.learned_map` of a file; it encodes with the same bits."""
        check_device(options.device)
        if options.device != "cpu":
            arrays = {name: np.array(array) for name, array in arrays.items()}  # torch wants arrays that could be written
        prefix = "feature_map."
        psi = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
        return cls(
            feature_weights=FeatureWeights(config, psi),
            targets=Targets(
                arrays["sample_tokens"], float(arrays["target_mean"][0]), options.target_precision, device=options.device
            ),
            token_weights=arrays["token_weights"],
            projection=arrays["projection"],
            offset=arrays["offset"],
            query_map=arrays["query_map"],
            radius=float(arrays["radius"][0]),
            training=training,
            look=LookWeights.of(arrays),
        )


def check_device(device: str) -> None:
    """ValueError where torch, which is asked of any but the processor, does not see the device."""
    if device != "cpu":
        from lemur_ann.learning import features

        features.check_device(device)
