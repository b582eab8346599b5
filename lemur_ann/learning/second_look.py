"""What a second look learns: centroids of document tokens, and how estimate and centroids rank a shortlist together.

The centroids are those of spherical k-means (I. S. Dhillon and D. S. Modha, Machine Learning 42, 2001), with the assignment by
int8 codes of both sides, so that a token has the same centroid whenever and wherever it is looked up.

The network learns from queries that the map has not seen: it would trust the estimates too much else. Its loss is listwise: the
cross entropy of the softmax over a query's shortlist with the exact top 10 of it (Z. Cao et al., ICML 2007).
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch

from lemur_ann import _core
from lemur_ann.candidates.look import NUM_HIDDEN, NUM_KNOWN
from lemur_ann.documents.inputs import directions_of
from lemur_ann.documents.rows import Rows
from lemur_ann.documents.tokens import TokenStore
from lemur_ann.validate import Offsets

TOKENS_PER_CENTROID, SAMPLE_VALUES = 64, 2**24  # of the sample; and values of it at most, 32 MiB of float16
TOKENS_PER_BLOCK = 2**14  # of it, which are summed together
ROUNDS = 6
STEPS, QUERIES_PER_STEP, LEARNING_RATE = 1500, 32, 3e-3
TOP = 10
LOWEST = -1e4  # of a document that is not there
CHECKED_SHARE = 0.2  # of the queries, by which it is judged
FIRST = 60  # among so many the exact top is looked for

# What ranks a shortlist where there are no queries to learn from: the place by estimate and sharp matches. A line fitted to 600
# queries of the corpus that benchmarks/ measures.
PLACE, SHARP = -1.3, 0.4
UNLEARNED = (
    np.array([[PLACE, 0, 0, SHARP, 0], [-PLACE, 0, 0, -SHARP, 0]], np.float32),
    np.zeros(2, np.float32),
    np.array([1, -1], np.float32),
)

ESTIMATE = (  # the place alone
    np.array([[-1, 0, 0, 0, 0], [1, 0, 0, 0, 0]], np.float32),
    np.zeros(2, np.float32),
    np.array([1, -1], np.float32),
)

Ranking = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float32]]


def learn_centroids(
    store: TokenStore, rows: Rows, count: int, random: np.random.Generator, num_threads: int = 1
) -> npt.NDArray[np.float32]:
    """At most ``count`` centroids of the tokens of some documents, float32 (count, dim) of length 1."""
    dim = store.dim or 1
    directions = sample_directions(store, rows, min(count * TOKENS_PER_CENTROID, max(SAMPLE_VALUES // dim, count)), random)
    count = min(count, len(directions))
    if count == 0:
        return np.empty((0, dim), np.float32)
    centroids, _ = directions_of(directions[random.choice(len(directions), count, replace=False)])  # of float16, not quite 1
    for _ in range(ROUNDS):
        coded, sums = _core.Centroids(centroids), np.zeros((count, dim), np.float32)
        for begin in range(0, len(directions), TOKENS_PER_BLOCK):
            block = directions[begin : begin + TOKENS_PER_BLOCK]
            ids = coded.nearest(block, num_threads).astype(np.int64)
            order = np.argsort(ids, kind="stable")
            used, begins = np.unique(ids[order], return_index=True)
            sums[used] += np.add.reduceat(block[order].astype(np.float32), begins, axis=0)
        means, norms = directions_of(sums)
        centroids = np.where(norms[:, None] > 0, means, centroids)
    return np.unique(centroids, axis=0)


def sample_directions(store: TokenStore, rows: Rows, count: int, random: np.random.Generator) -> npt.NDArray[np.float16]:
    """Directions of about ``count`` tokens, of as many documents as it takes, whole documents at a time."""
    out, size = np.empty((min(count, store.num_tokens), store.dim or 1), np.float16), 0
    for row in random.permutation(rows).tolist():
        directions, lengths = directions_of(store[row])
        part = directions[lengths > 0][: len(out) - size]
        out[size : size + len(part)] = part
        size += len(part)
        if size == len(out):
            break
    return out[:size]


def learn_ranking(
    known: npt.NDArray[np.float32], scores: npt.NDArray[np.float32], *, seed: int = 0, steps: int = STEPS
) -> Ranking:
    """The weights of a network that finds the exact top 10 of shortlists, see :class:`~lemur_ann.candidates.look.LookWeights`.

    Args:
        known: float32 (num_queries, n, NUM_KNOWN), of the documents of each shortlist.
        scores: float32 (num_queries, n), their exact MaxSim; -inf where a shortlist has no more.
        seed: for the beginning and the draws.
        steps: of Adam.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = torch.nn.Sequential(
            torch.nn.Linear(NUM_KNOWN, NUM_HIDDEN), torch.nn.ReLU(), torch.nn.Linear(NUM_HIDDEN, 1, bias=False)
        )
    x, exact = torch.from_numpy(known), torch.from_numpy(scores)
    is_none = ~torch.isfinite(exact)
    best = exact.topk(min(TOP, exact.shape[1]), dim=1).indices
    wanted = torch.zeros_like(exact).scatter_(1, best, 1.0 / best.shape[1])
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        some = torch.randint(len(x), (QUERIES_PER_STEP,), generator=generator)
        ranked = network(x[some])[:, :, 0].masked_fill(is_none[some], LOWEST)
        loss = -(wanted[some] * torch.log_softmax(ranked, dim=1)).sum(1).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    arrays = {name: value.numpy() for name, value in network.state_dict().items()}
    return arrays["0.weight"], arrays["0.bias"], arrays["2.weight"][0]


def ranking(
    known: npt.NDArray[np.float32], scores: npt.NDArray[np.float32], bounds: Offsets, *, seed: int = 0
) -> tuple[Ranking, dict[str, float]]:
    """The weights to rank shortlists with, and what they found of the exact top 10, of queries that they were not learned from.

    Those of a network, or UNLEARNED where these find more. The estimate alone has to find more by two standard errors: what it
    misses are the answers, of which the top 10 has few.

    Args:
        known: float32 (n, NUM_KNOWN), of the documents of all shortlists, one after the other.
        scores: float32 (n,), their exact MaxSim.
        bounds: int64 (num_queries + 1,), where each shortlist begins and ends.
        seed: for the network.
    """
    longest = int(np.diff(bounds).max())
    padded = np.zeros((len(bounds) - 1, longest, NUM_KNOWN), np.float32)
    exact = np.full((len(bounds) - 1, longest), -np.inf, np.float32)
    for i, (begin, end) in enumerate(pairwise(bounds.tolist())):
        padded[i, : end - begin], exact[i, : end - begin] = known[begin:end], scores[begin:end]
    num_checked = max(int(len(padded) * CHECKED_SHARE), 1)
    learned = learn_ranking(padded[num_checked:], exact[num_checked:], seed=seed)
    own, wanted = padded[:num_checked], exact[:num_checked]
    weights = {"estimate": ESTIMATE, "unlearned": UNLEARNED, "learned": learned}
    shares = {name: _found(np.where(np.isfinite(wanted), _scores(own, by), -np.inf), wanted) for name, by in weights.items()}
    found = {name: float(share.mean()) for name, share in shares.items()}
    best = "learned" if found["learned"] >= found["unlearned"] else "unlearned"
    more = shares["estimate"] - shares[best]
    if more.mean() > 2 * more.std() / math.sqrt(len(more)):
        best = "estimate"
    return weights[best], found


def _scores(known: npt.NDArray[np.float32], weights: Ranking) -> npt.NDArray[np.float32]:
    hidden, bias, output = weights
    return np.asarray(np.maximum(known @ hidden.T + bias, 0) @ output)


def _found(ranked: npt.NDArray[np.float32], scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Of each shortlist, the share of its exact top among the first by ``ranked``."""
    first = np.argsort(-ranked, axis=1, kind="stable")[:, :FIRST]
    best = np.argsort(-scores, axis=1, kind="stable")[:, :TOP]
    return np.array([np.isin(own, kept).mean() for own, kept in zip(best, first, strict=True)])
