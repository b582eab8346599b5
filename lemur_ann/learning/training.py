"""Learn the feature map: predict, for one token, its largest inner product with each of a sample of documents."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from lemur_ann.arrays import mapped_rows
from lemur_ann.documents.tokens import TokenStore
from lemur_ann.events import warn_caller
from lemur_ann.learning.features import FeatureMap
from lemur_ann.learning.targets import token_maxima
from lemur_ann.progress import Progress, Task

TARGET_ROWS = 4096  # rows of targets computed at a time
PATIENCE = 3  # epochs without a better validation loss after which training ends


@dataclass
class Training:
    """A feature map and what its training showed.

    Targets are standardised by ``target_mean`` and ``target_std``; losses are mean squared errors of standardised targets,
    one an epoch, so 1.0 is what predicting the mean would give.
    """

    feature_map: FeatureMap
    target_mean: float
    target_std: float
    training_loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    output_layer: torch.Tensor | None = None  # (num_documents, num_features) of the best state


def train_feature_map(
    tokens: npt.NDArray[np.float32],
    store: TokenStore,
    documents: npt.NDArray[np.int64],
    feature_map: FeatureMap,
    *,
    validation_tokens: npt.NDArray[np.float32] | None = None,
    token_weights: npt.NDArray[np.float32] | None = None,
    warm_start: bool = False,
    epochs: int = 10,
    learning_rate: float = 3e-3,
    batch_size: int = 512,
    gradient_clip: float | None = 0.5,
    precision: str = "int8",
    seed: int = 0,
    device: str = "cpu",
    num_threads: int = 1,
    progress: Progress | None = None,
    targets_on_disk: bool = False,
    directory: str | PathLike[str] | None = None,
) -> Training:
    """Train ``feature_map`` in place with Adam on mean squared error, and keep its best epoch.

    Training ends early after PATIENCE epochs without a better loss; and where the user interrupts it, which is not an error:
    the best state is kept, and a warning says so.

    Args:
        tokens: float32 (num_tokens, dim), in random order, drawn from the queries' distribution.
        store: where documents are.
        documents: int64 (num_documents,), ascending indices of the sample whose token maxima are predicted.
        feature_map: what to train. A random map is left as it is.
        validation_tokens: float32 (n, dim), to choose the best epoch by; the training loss decides where there are none.
        token_weights: float32 (num_tokens,), of each token's error in the loss, of mean 1; None for equal weights.
        warm_start: whether the feature map has been trained before; the output layer then begins as its least-squares one, and
            both stay as they are where no epoch does better on the validation tokens.
        epochs: passes over the tokens; 0 only measures the mean and deviation of the targets.
        learning_rate, batch_size, gradient_clip: Adam's rate, decayed to zero along a cosine; tokens a step; and the largest
            norm of a step's gradient, None for no limit. Only ``adapters/lemur.py``, which has the reference's own, sets them.
        precision: of the targets, "int8" or "float32".
        seed: for the order of tokens and the output layer, which exists for training alone.
        device: a torch device.
        num_threads: threads for the targets.
        progress: where to report.
        targets_on_disk: keep the targets in a temporary file in ``directory``, mapped, instead of in memory.
        directory: None means that of Python's ``tempfile``.
    """
    progress = progress or Progress()
    sample = token_maxima(tokens[:TARGET_ROWS], store, documents, precision, device, num_threads).double()
    mean, std = float(sample.mean()), max(float(sample.std(correction=0)), 1e-6)
    del sample
    result = Training(feature_map, mean, std)
    if epochs == 0 or feature_map.config["kind"] == "random":
        return result

    def data(x: npt.NDArray[np.float32]) -> _Data:
        return _Data(x, store, documents, mean, std, precision, device, num_threads, progress, targets_on_disk, directory)

    training = data(tokens)
    validation = None if validation_tokens is None or not len(validation_tokens) else data(validation_tokens)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        output = nn.Linear(feature_map.num_features, len(documents), bias=False)
    model = nn.Sequential(feature_map, output).to(device)
    if warm_start:
        output.weight.data = _best_output(feature_map, training)
    weights = torch.ones(len(tokens)) if token_weights is None else torch.from_numpy(token_weights)
    steps = math.ceil(len(tokens) / batch_size)
    task = progress.task("training", epochs * steps)
    epoch = _Epoch(model, training, weights.to(device), epochs, steps, learning_rate, batch_size, gradient_clip, seed, task)
    best = _Best(model, validation, batch_size, epochs, task, result)
    if warm_start:
        best.begin()
    for number in range(1, epochs + 1):
        try:
            epoch.run(number)
        except KeyboardInterrupt:
            if epoch.count == 0 and best.number == 0:
                raise  # nothing has been learned
            best.take(number, epoch.total / max(epoch.count, 1))
            warn_caller(
                f"training was interrupted in epoch {number} of {epochs}: going on with the best state so far, loss "
                f"{best.loss:.4f}. The index will be usable; refit(queries, resume=True) trains on from there. Interrupt again "
                "to give up"
            )
            break
        best.take(number, epoch.total / epoch.count)
        if number - best.number >= PATIENCE:
            break
    if not any(map(math.isfinite, result.validation_loss or result.training_loss)):
        raise FloatingPointError(f"training diverged: no finite loss in {epochs} epochs at learning_rate {learning_rate}")
    model.load_state_dict(best.state)
    result.output_layer = output.weight.detach().cpu()
    feature_map.requires_grad_(False)
    return result


class _Epoch:
    """Passes over the tokens, each in an order of its own, by Adam with a rate that falls to zero along a cosine."""

    def __init__(
        self,
        model: nn.Module,
        data: _Data,
        weights: torch.Tensor,
        epochs: int,
        steps: int,
        learning_rate: float,
        batch_size: int,
        gradient_clip: float | None,
        seed: int,
        task: Task,
    ) -> None:
        self._model, self._data, self._weights = model, data, weights
        self._epochs, self._steps, self._batch_size, self._gradient_clip = epochs, steps, batch_size, gradient_clip
        self._task = task
        self._generator = torch.Generator().manual_seed(seed)
        self._optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate, fused=True)
        self._schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self._optimizer, epochs * steps)
        self._low_precision = autocast(data.x.device.type)
        self.total, self.count = 0.0, 0  # of this pass so far: losses, and tokens

    def run(self, number: int) -> None:
        """The pass of this number."""
        self._model.train()
        order = torch.randperm(len(self._data), generator=self._generator)
        self.total, self.count = 0.0, 0
        for step in range(self._steps):
            rows = order[step * self._batch_size : (step + 1) * self._batch_size]
            loss = self._step(rows.to(self._data.x.device))
            self.total += loss * len(rows)
            self.count += len(rows)
            self._task.advance(note=f"epoch {number}/{self._epochs}  loss {loss:.4f}")

    def _step(self, rows: torch.Tensor) -> float:
        x, y = self._data.batch(rows)
        self._optimizer.zero_grad(set_to_none=True)
        with self._low_precision():
            predicted = self._model(x)
        errors = (predicted.float() - y).square_().mean(1)
        loss = (errors * self._weights[rows]).mean()
        loss.backward()
        if self._gradient_clip is not None:
            nn.utils.clip_grad_norm_(self._model.parameters(), self._gradient_clip)
        self._optimizer.step()
        self._schedule.step()
        return float(loss.detach())


class _Best:
    """The best state so far, by validation loss; by training loss where there is nothing to validate with."""

    def __init__(
        self, model: nn.Module, validation: _Data | None, batch_size: int, epochs: int, task: Task, result: Training
    ) -> None:
        self._model, self._validation, self._batch_size = model, validation, batch_size
        self._epochs, self._task, self._result = epochs, task, result
        self.loss, self.number = math.inf, 0
        self.state: dict[str, torch.Tensor] = {}

    def begin(self) -> None:
        """Hold the state from before the first epoch. Without validation nothing compares it with those after it."""
        if self._validation is not None:
            self._keep(0, _loss(self._model, self._validation, self._batch_size))

    def _keep(self, number: int, loss: float) -> None:
        if loss < self.loss:
            self.loss, self.number = loss, number
            self.state = {name: value.detach().clone() for name, value in self._model.state_dict().items()}

    def take(self, number: int, training_loss: float) -> None:
        """An epoch has ended: keep its state if it is the best."""
        result = self._result
        result.training_loss.append(training_loss)
        if self._validation is not None:
            result.validation_loss.append(_loss(self._model, self._validation, self._batch_size))
            note = f"epoch {number}/{self._epochs}  validation loss {result.validation_loss[-1]:.4f}"
            self._task.advance(0, note=note)
        self._keep(number, (result.validation_loss or result.training_loss)[-1])


class _Data:
    """Tokens and their standardised targets, which half precision holds well enough in half the memory."""

    def __init__(
        self,
        tokens: npt.NDArray[np.float32],
        store: TokenStore,
        documents: npt.NDArray[np.int64],
        mean: float,
        std: float,
        precision: str,
        device: str,
        num_threads: int,
        progress: Progress,
        on_disk: bool,
        directory: str | PathLike[str] | None,
    ) -> None:
        self.x = torch.from_numpy(np.ascontiguousarray(tokens)).to(device)
        shape = (len(tokens), len(documents))
        task = progress.task("targets", len(tokens))

        def blocks() -> Iterator[torch.Tensor]:
            for begin in range(0, len(tokens), TARGET_ROWS):
                block = token_maxima(tokens[begin : begin + TARGET_ROWS], store, documents, precision, device, num_threads).T
                yield ((block - mean) / std).half()
                task.advance(len(block))

        if on_disk:
            self.y = torch.from_numpy(mapped_rows((block.cpu().numpy() for block in blocks()), shape, np.float16, directory))
            return
        self.y = torch.empty(shape, dtype=torch.float16, device=device)
        begin = 0
        for block in blocks():
            self.y[begin : begin + len(block)] = block
            begin += len(block)

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows = rows.to(self.x.device)
        return self.x[rows], self.y[rows.to(self.y.device)].to(self.x.device).float()


@torch.no_grad()
def _best_output(feature_map: FeatureMap, data: _Data) -> torch.Tensor:
    """The output layer of least squared error for these features, float32 (num_documents, num_features)."""
    gram = torch.zeros((feature_map.num_features,) * 2, dtype=torch.float64)
    moments = torch.zeros((feature_map.num_features, data.y.shape[1]), dtype=torch.float64)
    for begin in range(0, len(data), TARGET_ROWS):
        x, y = data.batch(torch.arange(begin, min(begin + TARGET_ROWS, len(data))))
        features = feature_map(x)
        gram += (features.T @ features).double().cpu()
        moments += (features.T @ y).double().cpu()
    gram.diagonal().add_(1e-6 * gram.diagonal().mean())
    return torch.cholesky_solve(moments, torch.linalg.cholesky(gram)).T.float().contiguous().to(data.x.device)


@torch.inference_mode()
def _loss(model: nn.Module, data: _Data, batch_size: int) -> float:
    low_precision = autocast(data.x.device.type)
    model.eval()
    total = 0.0
    for begin in range(0, len(data), batch_size):
        x, y = data.batch(torch.arange(begin, min(begin + batch_size, len(data))))
        with low_precision():
            predicted = model(x)
        total += float(nn.functional.mse_loss(predicted.float(), y)) * len(x)
    return total / len(data)


def autocast(device: str) -> Any:
    """bfloat16 matrix products where the hardware has them."""
    kind = torch.device(device).type
    if kind == "cpu":
        fast = any(getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    else:
        fast = kind == "cuda" and torch.cuda.is_bf16_supported()
    return (lambda: torch.autocast(kind, dtype=torch.bfloat16)) if fast else nullcontext
