"""The interface of the reference implementation of LEMUR (github.com/ejaasaari/lemur), so that its programs run here.

Change the imports, keep the rest::

    from lemur_ann.adapters.lemur import Lemur, MaxSim

    lemur = Lemur(index="lemur_index", device="cpu")
    lemur.fit(train=train, train_counts=train_counts, learn=learn, learn_counts=learn_counts, epochs=10)
    features = lemur.compute_features((test, test_counts))
    candidates = torch.topk(features @ lemur.W.T, 200, dim=1).indices.numpy().astype(np.int32)
    found = MaxSim(train, train_counts).rerank_subset(test, test_counts, 10, candidates)

It reads and writes the reference's checkpoints (``mlp.pt``, ``w.pt``), loading tensors only, never pickled code. Where it
differs: counts may be any integer type; weights are solved with a small ridge over one fixed token sample, so that
:meth:`Lemur.compute_weights` gives a document the same weights whenever it is asked; arrays passed to :class:`MaxSim` are kept
alive.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from lemur_ann import NotFitted, validate
from lemur_ann.documents import TokenStore, to_offsets
from lemur_ann.learning.features import FeatureMap
from lemur_ann.learning.targets import Targets
from lemur_ann.learning.training import Training, train_feature_map
from lemur_ann.learning.weights import WeightSolver
from lemur_ann.progress import progress_lines
from lemur_ann.saved import in_place_of

QUERY_SCALE = 32  # the reference divides the sum over a query's tokens by this, whatever their number
MAX_TEST_TOKENS = 32_000


class Lemur:
    """Learn features and document weights; see the module's example.

    Args:
        index: folder for ``mlp.pt`` and ``w.pt``, written by :meth:`fit` and used by it when they exist; None keeps no files.
        device: a torch device for training and features.

    Attributes:
        W: float32 (num_documents, final_hidden_dim), after :meth:`fit`.
        mlp: the network, with ``feature_extractor`` and ``output_layer``.
        mean, std: of the targets.
        final_hidden_dim: width of the features.
    """

    def __init__(self, index: str | Path | None = None, device: str = "cpu") -> None:
        self.device = torch.device(device)
        self.index_path = None if index is None else Path(index)
        self.final_hidden_dim: int | None = None
        self.mlp: _Network
        self.W: torch.Tensor
        self.mean: torch.Tensor
        self.std: torch.Tensor
        self._learn: npt.NDArray[np.float32] | None = None
        self._solvers: dict[int, WeightSolver] = {}

    def fit(
        self,
        train: Any,
        train_counts: Any,
        learn: Any = None,
        learn_counts: Any = None,
        test: Any = None,
        test_counts: Any = None,
        train_subset_size: int = 8192,
        learn_subset_size: int = 100_000,
        ols_sample_size: int = 16_384,
        num_layers: int = 1,
        hidden_dim: int = 512,
        final_hidden_dim: int | None = 2048,
        activation: str = "gelu",
        epochs: int = 100,
        lr: float = 3e-3,
        batch_size: int = 512,
        grad_clip: float | None = 0.5,
        force_retrain: bool = False,
        verbose: bool = True,
    ) -> Lemur:
        """Learn from ``learn`` (the documents where None) and compute the weights of ``train``.

        Args:
            train, train_counts: document tokens (total_tokens, dim), and the number of tokens of each document.
            learn, learn_counts: tokens to learn from, best from queries, at least 100,000.
            test, test_counts: tokens whose loss chooses the best epoch.
            train_subset_size: documents that training predicts.
            learn_subset_size: tokens to train on.
            ols_sample_size: tokens over which weights are solved.
            num_layers, hidden_dim, final_hidden_dim, activation: the network; hidden_dim is of the layers before the last.
            epochs: 0 uses random features.
            lr, batch_size, grad_clip: of Adam.
            force_retrain: ignore checkpoints in the index folder.
            verbose: show progress on a terminal.
        """
        train_tokens, train_offsets = _ragged(train, train_counts, "train")
        learn_tokens = train_tokens if learn is None else _ragged(learn, learn_counts, "learn")[0]
        test_tokens = None if test is None else _ragged(test, test_counts, "test")[0]
        documents = TokenStore([(train_tokens, train_offsets)])
        dim = train_tokens.shape[1]
        for name, other in (("learn", learn_tokens), ("test", test_tokens)):
            if other is not None and other.shape[1] != dim:
                raise ValueError(f"{name} has dim {other.shape[1]}, train has dim {dim}")
        validate.integer(epochs, "epochs", least=0)
        sizes = {"train_subset_size": train_subset_size, "learn_subset_size": learn_subset_size, "batch_size": batch_size}
        sizes |= {"ols_sample_size": ols_sample_size, "num_layers": num_layers, "hidden_dim": hidden_dim}
        for name, size in sizes.items():
            validate.positive_int(size, name)
        seed = int(torch.randint(2**31, ()))  # torch.manual_seed makes a program repeatable, as in the reference
        random = np.random.default_rng(seed)
        # a sample for training and for the solve, in random order
        keep = max(learn_subset_size, ols_sample_size)
        learn_sample = learn_tokens[random.permutation(len(learn_tokens))[:keep]]
        cached = None if force_retrain else self._checkpoint("mlp.pt")
        with progress_lines(None if verbose else False) as lines:
            if cached is not None:
                self.load_mlp(cached)
                if self.mlp.feature_map.dim != dim:
                    raise ValueError(f"{cached} is for tokens of dim {self.mlp.feature_map.dim}, train has dim {dim}")
            else:
                chosen = np.sort(random.permutation(len(documents))[:train_subset_size])
                config = {
                    "dim": dim,
                    "num_features": hidden_dim if final_hidden_dim is None else final_hidden_dim,
                    "kind": "trained" if epochs else "random",
                    "hidden_dims": (hidden_dim,) * (num_layers - 1) if epochs else (),
                    "activation": activation,
                }
                training = train_feature_map(
                    learn_sample[:learn_subset_size],
                    documents,
                    chosen,
                    _feature_map(config, seed).to(self.device),
                    validation_tokens=None if test_tokens is None else random.permutation(test_tokens)[:MAX_TEST_TOKENS],
                    epochs=epochs,
                    learning_rate=lr,
                    batch_size=batch_size,
                    gradient_clip=grad_clip,
                    precision="float32",
                    seed=seed,
                    device=str(self.device),
                    num_threads=validate.num_threads(None),
                    progress=lines,
                )
                self._keep(training, len(chosen), hidden_dim)
            self._learn, self._solvers = learn_sample, {}
            cached_weights = None if cached is None else self._checkpoint("w.pt")
            if cached_weights is not None:
                self._load_weights(cached_weights, len(documents))
                return self
            task = lines.task("document weights", len(documents))
            self.W = self._solve(documents, ols_sample_size, task.advance)
            if self.index_path is not None:
                self.save_w()
        return self

    def _checkpoint(self, name: str) -> Path | None:
        """A file of the index folder, where it is there."""
        path = None if self.index_path is None else self.index_path / name
        return path if path is not None and path.exists() else None

    def _keep(self, training: Training, num_documents: int, hidden_dim: int) -> None:
        """The network that was learned; in the index folder too, where there is one."""
        self._set_network(training.feature_map, num_documents, hidden_dim, training.output_layer)
        self.mean, self.std = torch.tensor(training.target_mean), torch.tensor(training.target_std)
        if self.index_path is not None:
            self.save_mlp()

    def _load_weights(self, path: Path, num_documents: int) -> None:
        self.load_w(path)
        expected = (num_documents, self.mlp.feature_map.num_features)
        if self.W.shape != expected:
            raise ValueError(
                f"{path} holds weights of shape {tuple(self.W.shape)}, expected {expected}; remove it or pass "
                "force_retrain=True"
            )

    def compute_weights(self, X: Any, X_counts: Any, sample_size: int = 16_384, verbose: bool = True) -> torch.Tensor:
        """The weights of more documents, float32 (num_documents, final_hidden_dim)."""
        return self._solve(TokenStore([_ragged(X, X_counts, "X")]), validate.positive_int(sample_size, "sample_size"))

    def _solve(self, store: TokenStore, sample_size: int, advance: Callable[[int], None] = lambda _: None) -> torch.Tensor:
        if self._learn is None:
            raise NotFitted("call fit first: weights are solved over a sample of its tokens")
        if store.dim != self.mlp.feature_map.dim:
            raise ValueError(f"documents have dim {store.dim}, the features were learned for dim {self.mlp.feature_map.dim}")
        if sample_size not in self._solvers:
            targets = Targets(self._learn[:sample_size], float(self.mean), "float32")
            self._solvers[sample_size] = WeightSolver(self.mlp.feature_map, targets, float(self.std))
        weights = torch.empty((len(store), self.mlp.feature_map.num_features))
        for block, solved in self._solvers[sample_size].solve(store, np.arange(len(store)), validate.num_threads(None)):
            weights[block] = torch.from_numpy(solved)
            advance(len(solved))
        return weights.to(self.device)

    def compute_features(self, X: Any) -> torch.Tensor:
        """Query features, float32 (num_queries, final_hidden_dim).

        Args:
            X: (tokens, counts): the sum over each query's tokens, divided by 32; or one array (num_queries, num_tokens, dim):
                the mean over each query's tokens.
        """
        if self.final_hidden_dim is None:
            raise NotFitted("call fit or load_mlp first")
        if isinstance(X, tuple):
            if len(X) != 2:
                raise ValueError(f"X must be (tokens, counts), got a tuple of {len(X)}")
            tokens, offsets = _ragged(X[0], X[1], "X", allow_empty=True)
            return self._features(tokens, offsets) / QUERY_SCALE
        array = validate.as_array(X, "X")
        if array.ndim != 3:
            raise ValueError(f"X must be (tokens, counts) or of shape (num_queries, num_tokens, dim), got {array.shape}")
        offsets = np.arange(array.shape[0] + 1, dtype=np.int64) * array.shape[1]
        flat = np.ascontiguousarray(array, dtype=np.float32).reshape(-1, array.shape[2])
        means: torch.Tensor = self._features(flat, offsets) / array.shape[1]
        return means

    def _features(self, tokens: npt.NDArray[np.float32], offsets: npt.NDArray[np.int64]) -> torch.Tensor:
        if tokens.shape[1] != self.mlp.feature_map.dim:
            raise ValueError(
                f"queries have dim {tokens.shape[1]}, the features were learned for dim {self.mlp.feature_map.dim}"
            )
        features: torch.Tensor = self.mlp.feature_map.query_features(tokens, offsets)
        return features

    def save_mlp(self, path: str | Path | None = None) -> Path:
        """Write the network as the reference does; returns the path."""
        target = self._path(path, "mlp.pt")
        payload = {
            "state_dict": self.mlp.state_dict(),
            "config": self.mlp.config,
            "output_mean": float(self.mean),
            "output_std": float(self.std),
        }
        _write(payload, target)
        return target

    def load_mlp(self, path: str | Path | None = None) -> nn.Module:
        """Read a network that :meth:`save_mlp` or the reference wrote."""
        source = self._path(path, "mlp.pt")
        payload = torch.load(source, map_location=self.device, weights_only=True)
        if not isinstance(payload, dict) or not {"config", "state_dict", "output_mean", "output_std"} <= payload.keys():
            raise ValueError(f"{source} is not a network of LEMUR: expected config, state_dict, output_mean and output_std")
        config, state = payload["config"], payload["state_dict"]
        layers = int(config.get("num_layers", 1))
        ours = {
            "dim": config["input_dim"],
            "num_features": config["final_hidden_dim"],
            "kind": "random" if config["model_type"] == "elm" else "trained",
            "hidden_dims": (config.get("hidden_dim"),) * (layers - 1),
            "activation": config["activation"],
        }
        self._set_network(_feature_map(ours, 0), config["output_dim"], config.get("hidden_dim", 512), None)
        self.mlp.load_state_dict(state)
        self.mean = torch.tensor(payload["output_mean"])
        self.std = torch.tensor(payload["output_std"])
        return self.mlp

    def save_w(self, path: str | Path | None = None) -> Path:
        """Write the document weights as the reference does; returns the path."""
        target = self._path(path, "w.pt")
        _write({"W": self.W}, target)
        return target

    def load_w(self, path: str | Path | None = None) -> torch.Tensor:
        """Read document weights that :meth:`save_w` or the reference wrote."""
        payload = torch.load(self._path(path, "w.pt"), map_location=self.device, weights_only=True)
        weights = payload["W"] if isinstance(payload, dict) else payload
        if not torch.is_tensor(weights):
            raise ValueError("w.pt must hold a tensor or {'W': tensor}")
        self.W = weights
        return weights

    def _path(self, path: str | Path | None, name: str) -> Path:
        if path is not None:
            return Path(path)
        if self.index_path is None:
            raise ValueError("pass a path: this Lemur has no index folder")
        self.index_path.mkdir(parents=True, exist_ok=True)
        return self.index_path / name

    def _set_network(
        self, feature_map: FeatureMap, output_dim: int, hidden_dim: int, output_layer: torch.Tensor | None
    ) -> None:
        self.mlp = _Network(feature_map.requires_grad_(False), output_dim, hidden_dim).to(self.device).eval()
        if output_layer is not None:
            self.mlp.output_layer.weight.data.copy_(output_layer)
        self.final_hidden_dim = feature_map.num_features
        self._solvers = {}


class MaxSim:
    """Exact MaxSim over fixed documents.

    Args:
        train: float32 (total_tokens, dim).
        train_counts: tokens of each document.
    """

    def __init__(self, train: Any, train_counts: Any) -> None:
        self._store = TokenStore([_ragged(train, train_counts, "train")])

    def rerank_subset(
        self, queries: Any, query_counts: Any, k: int, indices: Any, num_threads: int = -1
    ) -> npt.NDArray[np.int32]:
        """The k best of each query's candidates by MaxSim.

        Args:
            queries: float32 (total_tokens, dim), or the same flattened.
            query_counts: tokens of each query.
            k: how many to return.
            indices: integers (num_queries, num_candidates), document indices.
            num_threads: below 1 for all cores.

        Returns:
            int32 (num_queries, k), best first, -1 where there are fewer candidates than k.
        """
        counts = _counts(query_counts, "query_counts")
        tokens = validate.as_array(queries, "queries")
        if tokens.ndim == 1 and counts.sum():  # the reference takes flattened queries too
            tokens = tokens.reshape(counts.sum(), -1)
        tokens, offsets = _ragged(tokens, counts, "queries")
        candidates = validate.as_array(indices, "indices")
        if candidates.ndim != 2 or candidates.shape[0] != len(counts):
            raise ValueError(f"indices must have shape ({len(counts)}, num_candidates), got {candidates.shape}")
        if candidates.dtype.kind not in "iu":
            raise TypeError(f"indices must be integers, got {candidates.dtype}")
        flat = np.ascontiguousarray(candidates, dtype=np.int64).reshape(-1)
        width = candidates.shape[1]
        bounds = np.arange(len(counts) + 1, dtype=np.int64) * width
        threads = validate.num_threads(None if num_threads < 1 else num_threads)
        scores = self._store.candidate_scores(tokens, offsets, flat, bounds, num_threads=threads)
        out = np.full((len(counts), validate.positive_int(k, "k")), -1, np.int32)
        for i in range(len(counts)):
            own = scores[bounds[i] : bounds[i + 1]]
            best = np.argsort(-own, kind="stable")[:k]
            best = best[own[best] > -np.inf]  # which a document without tokens has
            out[i, : len(best)] = flat[bounds[i] + best]
        return out

    def rerank_subset_fixed(self, queries: Any, k: int, indices: Any, num_threads: int = -1) -> npt.NDArray[np.int32]:
        """The same for queries of one length: float32 (num_queries, num_tokens, dim)."""
        array = validate.as_array(queries, "queries")
        if array.ndim != 3:
            raise ValueError(f"queries must have shape (num_queries, num_tokens, dim), got {array.shape}")
        counts = np.full(array.shape[0], array.shape[1], dtype=np.int64)
        return self.rerank_subset(array.reshape(-1, array.shape[2]), counts, k, indices, num_threads)


class _Network(nn.Module):
    """The reference's module layout, whose state_dict it can load."""

    def __init__(self, feature_map: FeatureMap, output_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.feature_extractor = feature_map.layers
        self.output_layer = nn.Linear(feature_map.num_features, output_dim, bias=False)
        self.__dict__["feature_map"] = feature_map  # not a submodule: its parameters are the extractor's
        ours = feature_map.config
        self.config: dict[str, Any] = {
            "model_type": "elm" if ours["kind"] == "random" else "mlp",
            "input_dim": ours["dim"],
            "output_dim": output_dim,
            "final_hidden_dim": ours["num_features"],
            "activation": ours["activation"],
        }
        if ours["kind"] == "trained":
            self.config.update(hidden_dim=hidden_dim, num_layers=len(ours["hidden_dims"]) + 1)

    feature_map: FeatureMap

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.output_layer(self.feature_extractor(x))  # type: ignore[no-any-return]


def _write(payload: Any, target: Path) -> None:
    """A checkpoint, in the place of one that is there, which stays where this fails."""
    with in_place_of(target) as new:
        torch.save(payload, new)


def _feature_map(config: dict[str, Any], seed: int) -> FeatureMap:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FeatureMap(
            config["dim"],
            config["num_features"],
            kind=config["kind"],
            hidden_dims=config["hidden_dims"],
            activation=config["activation"],
        )


def _counts(counts: Any, name: str) -> npt.NDArray[np.int64]:
    array = validate.as_array(counts, name)
    if array.ndim != 1:
        raise ValueError(f"{name} must have shape (num_documents,), got {array.shape}")
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, got {array.dtype}")
    array = array.astype(np.int64)
    if np.any(array < 0):
        raise ValueError(f"{name} must not be negative, got {array.min()}")
    return array


def _ragged(
    tokens: Any, counts: Any, name: str, *, allow_empty: bool = False
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Checked tokens and offsets."""
    if counts is None:
        raise ValueError(f"{name} and {name}_counts must be given together")
    sizes = _counts(counts, f"{name}_counts")
    matrix = np.ascontiguousarray(validate.token_matrix(tokens, name, allow_empty=True), dtype=np.float32)
    if sizes.sum() != len(matrix):
        raise ValueError(f"{name}_counts sum to {sizes.sum()}, {name} has {len(matrix)} rows")
    if not allow_empty and np.any(sizes == 0):
        raise ValueError(f"{name}_counts[{int(np.argmin(sizes))}] is 0, expected at least one token")
    row = validate.first_bad_row(matrix)
    if row is not None:
        raise ValueError(f"{name} has {validate.BAD_VALUE} in row {row}")
    return matrix, to_offsets(sizes)
