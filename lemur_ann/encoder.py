"""What ``fit`` learns: from a document's tokens to one vector, from a query's tokens to one vector."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from lemur_ann import _core
from lemur_ann import _validate as validate
from lemur_ann.documents.inputs import is_single_query, iterate_documents, read_queries
from lemur_ann.documents.sources import opened
from lemur_ann.documents.tokens import TokenStore
from lemur_ann.errors import CorruptIndex
from lemur_ann.learning.query_features import FeatureWeights
from lemur_ann.learning.reduction import augment
from lemur_ann.learning.targets import Targets
from lemur_ann.options import Options
from lemur_ann.progress import Show, Task
from lemur_ann.progress import progress as progress_lines
from lemur_ann.saved.storage import map_arrays, read_metadata, write_arrays

if TYPE_CHECKING:
    from lemur_ann.learning.features import FeatureMap

FORMAT = "lemur_ann encoder 1"
# what a fingerprint is of: these and no others, for ever, whatever :meth:`LemurEncoder.arrays` comes to hold
NAMED_BY = re.compile(
    r"feature_map\.layers\.\d+\.(weight|bias)|sample_tokens|token_weights|target_mean|projection|offset|query_map|radius"
)
ROWS_PER_PRODUCT = 4096


@dataclass
class Encoded:
    """Documents encoded already: ascending indices int64 (n,), and their vectors float32 (n, dim)."""

    indices: npt.NDArray[np.int64]
    vectors: npt.NDArray[np.float32]


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
    ) -> None:
        self.feature_weights = feature_weights
        self.targets = targets
        self.token_weights = token_weights
        self.projection = projection
        self.offset = offset
        self.query_map = query_map
        self.radius = radius
        self.training = training
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
        single = offsets is None and is_single_query(queries)
        batch = read_queries([queries] if single else opened(queries), offsets=offsets, dim=self.token_dim)
        encoded = self.encode_batch(batch.tokens, batch.offsets, num_threads=threads)
        return encoded[0] if single else encoded

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
        }

    def save(self, path: str | PathLike[str]) -> None:
        """Write the map to one safetensors file, in the place of what is there.

        It holds the sample of query tokens and the projection, (token_dim + rank) floats for each of num_sample_tokens, which
        is most of it, and the feature map.
        """
        plain = {"feature_map": self.feature_weights.config, "training": self.training, "precision": self.targets.precision}
        described = {"format": FORMAT, "lemur_ann_version": _core.version, "encoder": json.dumps(plain)}
        temporary = Path(f"{os.fspath(path)}.{os.getpid()}")
        try:
            write_arrays(temporary, self.arrays(), described)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | PathLike[str], *, device: str = "cpu") -> LemurEncoder:
        """What :meth:`save` wrote; it encodes with the same bits, on the same device.

        Args:
            path: the file.
            device: where to encode.

        Raises:
            FileNotFoundError: there is no such file.
            CorruptIndex: it is damaged, of a newer format, or something else.
        """
        described = read_metadata(Path(path))
        if described.get("format") != FORMAT:
            raise CorruptIndex(f"{path} is not an encoder of this format: expected {FORMAT!r}, got {described.get('format')!r}")
        try:
            plain = json.loads(described["encoder"])
            options = Options(target_precision=plain["precision"], device=device)
            return cls.from_arrays(map_arrays(Path(path)), plain["feature_map"], plain["training"], options)
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptIndex(f"{path} cannot be read: {error!r}") from error

    def to_bytes(self) -> bytes:
        """What :meth:`save` writes, for a place that is no file."""
        plain = {"feature_map": self.feature_weights.config, "training": self.training, "precision": self.targets.precision}
        described = {"format": FORMAT, "lemur_ann_version": _core.version, "encoder": json.dumps(plain)}
        return safetensors.save({name: np.ascontiguousarray(array) for name, array in self.arrays().items()}, described)

    @classmethod
    def from_bytes(cls, data: Any, *, device: str = "cpu") -> LemurEncoder:
        """What :meth:`to_bytes` gave, or the bytes of a file that :meth:`save` wrote; it encodes with the same bits.

        Args:
            data: bytes, or another buffer of them.
            device: where to encode.

        Raises:
            CorruptIndex: they are damaged, of a newer format, or something else.
        """
        data = bytes(data)
        try:
            described = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
            if described["format"] != FORMAT:
                raise ValueError(f"expected format {FORMAT!r}, got {described['format']!r}")
            plain = json.loads(described["encoder"])
            options = Options(target_precision=plain["precision"], device=device)
            return cls.from_arrays(safetensors.load(data), plain["feature_map"], plain["training"], options)
        except (KeyError, TypeError, ValueError, SafetensorError) as error:
            raise CorruptIndex(f"these bytes are not an encoder: {error!r}") from error

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
    def fit(cls, documents: Any, queries: Any = None, **how: Any) -> LemurEncoder:
        """Learn the map for documents like these, which are not kept; another way to one is :attr:`LemurIndex.encoder`.

        Args:
            documents, queries: as for :meth:`lemur_ann.LemurIndex.fit`; of a large corpus a sample of some ten thousand will
                do, and :meth:`encode_documents` takes the others.
            **how: options of :class:`~lemur_ann.LemurIndex`, such as rank, num_features and epochs, and the other arguments of
                its ``fit``, such as encode_query, memory_limit and num_threads.
        """
        from lemur_ann.index import LemurIndex

        names = {field.name for field in fields(Options)} - {"candidates", "token_codes"}
        options = {name: value for name, value in how.items() if name in names}
        others = {name: value for name, value in how.items() if name not in names}
        return LemurIndex(candidates="exact", token_codes=None, **options).fit(documents, queries, **others).encoder

    def copy(self, options: Options) -> LemurEncoder:
        """The same map for an index with these options, on its device; arrays are shared."""
        return LemurEncoder.from_arrays(self.arrays(), self.feature_weights.config, copy.deepcopy(self.training), options)

    @classmethod
    def from_arrays(
        cls, arrays: dict[str, npt.NDArray[Any]], config: dict[str, Any], training: dict[str, Any], options: Options
    ) -> LemurEncoder:
        """What :meth:`arrays` gave; it encodes a document as the one before did."""
        if options.device != "cpu":
            from lemur_ann.learning.features import check_device

            check_device(options.device)
            arrays = {name: np.array(array) for name, array in arrays.items()}  # torch wants arrays that could be written
        prefix = "feature_map."
        psi = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
        weights = FeatureWeights(config, psi)
        if "cholesky" in arrays:
            arrays = _from_format_1(arrays, weights.module("cpu"))
        projection, offset = arrays["projection"], arrays["offset"]
        if "document_map" in arrays:  # formats up to 4 had maps in two steps
            projection, offset = composed(projection, offset, arrays["document_map"])
        return cls(
            weights,
            Targets(arrays["sample_tokens"], float(arrays["target_mean"][0]), options.target_precision, device=options.device),
            arrays["token_weights"],
            projection,
            offset,
            arrays["query_map"],
            float(arrays["radius"][0]),
            training,
        )


def _from_format_1(arrays: dict[str, npt.NDArray[Any]], feature_map: FeatureMap) -> dict[str, npt.NDArray[Any]]:
    """Arrays of the first format, which kept the factor of the solve and the reduction apart."""
    import torch

    arrays = {name: np.array(array) for name, array in arrays.items()}  # torch wants arrays that could be written
    document_map = torch.from_numpy(arrays["document_map"])
    solved = torch.cholesky_solve(document_map.double(), torch.from_numpy(arrays["cholesky"]))
    features = feature_map.token_features(arrays["sample_tokens"]).cpu()
    projection = (features.double() @ solved / float(arrays["target_std"][0])).float().numpy()
    kept = {name: array for name, array in arrays.items() if name != "document_map"}
    weights = np.ones(len(projection), np.float32)
    return {
        **kept,
        "token_weights": weights,
        "projection": projection,
        "offset": arrays["reduction_mean"] @ arrays["document_map"],
    }


def reduced_weights(
    store: TokenStore,
    indices: npt.NDArray[np.int64],
    targets: Targets,
    projection: npt.NDArray[np.float32] | _core.Columns,
    offset: npt.NDArray[np.float32],
    num_threads: int,
    task: Task | None = None,
) -> npt.NDArray[np.float32]:
    """The first reduction, float32 (num_documents, width): a document's the same to the last bit whatever stands beside it."""
    wide = np.empty((len(indices), len(offset)), np.float32)
    for block, part in targets.projected(store, indices, projection, num_threads):
        wide[block] = part - offset
        if task is not None:
            task.advance(len(part))
    return wide


def composed(
    projection: npt.NDArray[np.float32], offset: npt.NDArray[np.float32], document_map: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """The projection and offset of both steps in one: (p(maxima) - offset) times ``document_map`` (width, rank)."""
    further = document_map.astype(np.float64)
    small = np.empty((len(projection), document_map.shape[1]), np.float32)
    for begin in range(0, len(small), ROWS_PER_PRODUCT):
        rows = slice(begin, begin + ROWS_PER_PRODUCT)
        small[rows] = projection[rows].astype(np.float64) @ further
    return small, (offset.astype(np.float64) @ further).astype(np.float32)
