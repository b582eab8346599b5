"""Batches of queries on a device: features, a scan of all document vectors and the exact rerank, all in torch.

Everything lies on the device: 1 KB a document for the vectors at rank 255, and the tokens as they are stored. Nothing here asks
for a GPU, so that the tests run it on CPU tensors.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from lemur_ann.documents.inputs import QueryBatch
from lemur_ann.documents.rows import RowSet
from lemur_ann.documents.tokens import TokenStore
from lemur_ann.encoder import LemurEncoder

SCORES_PER_STEP = 2**26  # of the scan: 256 MiB
TOKENS_PER_COPY = 2**20


class DeviceSearch:
    """Documents on a device.

    Args:
        encoder: whose feature map is on the device.
        vectors: float32 (num_documents, dim), the encoded documents.
        store, indices: their tokens, document i being document ``indices[i]`` of the store; indices ascend.
        device: where to.
    """

    def __init__(
        self,
        encoder: LemurEncoder,
        vectors: npt.NDArray[np.float32],
        store: TokenStore,
        indices: npt.NDArray[np.int64],
        device: str,
    ) -> None:
        self._encoder = encoder
        self._device = device
        self._rows = indices
        self._indices = torch.from_numpy(indices).to(device)
        self._vectors = torch.from_numpy(vectors).to(device)
        lengths = torch.from_numpy(np.array([len(store[index]) for index in indices.tolist()], dtype=np.int64))
        self._offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(device)
        dtype = torch.from_numpy(np.empty(0, store.dtype)).dtype
        self._tokens = torch.empty((int(lengths.sum()), store.dim or 1), dtype=dtype, device=device)
        self._copy_tokens(store, indices, lengths.numpy())

    def _copy_tokens(self, store: TokenStore, indices: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> None:
        ends = np.cumsum(lengths)
        begin = row = 0
        while begin < len(indices):
            end = max(int(np.searchsorted(ends, row + TOKENS_PER_COPY, side="right")), begin + 1)
            tokens, _ = store.gather(indices[begin:end])
            self._tokens[row : row + len(tokens)] = torch.from_numpy(tokens).to(self._device)
            begin, row = end, row + len(tokens)

    @torch.inference_mode()
    def search(
        self, queries: QueryBatch, k: int, num_candidates: int, excluded: RowSet | None = None
    ) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
        """(document indices, exact scores) of each query's best candidates, best first, the smaller index among equals.

        ``excluded`` documents of the store are no candidates.
        """
        size = len(self._indices)
        step = max(SCORES_PER_STEP // max(size, 1), 1)
        features = torch.from_numpy(self._encoder.encode_batch(queries.tokens, queries.offsets)).to(self._device)
        found = []
        out = None if excluded is None else torch.from_numpy(excluded.mask[self._rows]).to(self._device)
        left = size if out is None else size - int(out.sum())
        for begin in range(0, len(queries), step):
            products = features[begin : begin + step] @ self._vectors.T
            if out is not None:
                products[:, out] = -torch.inf
            candidates = products.topk(min(num_candidates, left), dim=1).indices.sort(dim=1).values
            for i, own in enumerate(candidates, start=begin):
                tokens = queries.tokens[queries.offsets[i] : queries.offsets[i + 1]]
                scores = self._exact(torch.from_numpy(tokens.astype(np.float32)).to(self._device), own)
                best = scores.sort(descending=True, stable=True)
                chosen = self._indices[own[best.indices[:k]]]
                found.append((chosen.cpu().numpy(), best.values[:k].cpu().numpy()))
        return found

    def _exact(self, query: torch.Tensor, documents: torch.Tensor) -> torch.Tensor:
        """MaxSim of a query (num_tokens, dim) and some documents, float32 (len(documents),)."""
        first = self._offsets[documents]
        lengths = self._offsets[documents + 1] - first
        ends = lengths.cumsum(0)
        total = int(ends[-1])
        rows = torch.arange(total, device=self._device) + (first - (ends - lengths)).repeat_interleave(lengths)
        products = self._tokens[rows].float() @ query.T
        return torch.segment_reduce(products, "max", lengths=lengths, axis=0).double().sum(1).float()
