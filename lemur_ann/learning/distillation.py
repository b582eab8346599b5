"""Tune the reduction for the top of the ranking.

The least-squares map keeps the error small over all documents; retrieval cares for the first hundred. So two linear maps,
starting from the least-squares ones, learn to rank each query's best documents, by their exact MaxSim, among themselves and
among random ones, by their estimates: KL divergence between the softmax of both scores, at a temperature of a share of the
scores' deviation over random documents.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from lemur_ann.learning.training import autocast
from lemur_ann.progress import Progress

QUERIES_PER_STEP = 64
CANDIDATES = 256  # of each query by the estimates, for which exact scores are computed
BEST_DOCUMENTS = 160  # of these by their exact scores
OWN_DOCUMENTS = 128  # of these, drawn anew each step
RANDOM_DOCUMENTS = 2000
TEMPERATURE = 0.2
LEARNING_RATE = 1e-3
TOP, FIRST = 10, 100  # by which it is judged
MIN_DOCUMENTS, MIN_QUERIES = 5000, 900  # with fewer, the maps would learn the sample by heart; of 1,000 some are held back


def candidate_documents(
    documents: npt.NDArray[np.float32], queries: npt.NDArray[np.float32], device: str = "cpu"
) -> npt.NDArray[np.int64]:
    """Ascending rows of the documents (n, width) with the largest inner product with each query (m, width)."""
    rows = torch.from_numpy(documents).to(device)
    count = min(CANDIDATES, len(documents))
    parts = torch.split(torch.from_numpy(queries).to(device), 512)
    with autocast(device)():
        blocks = [(part @ rows.T).float().topk(count, dim=1, sorted=False).indices for part in parts]
    return torch.cat(blocks).sort(dim=1).values.cpu().numpy()


def top_found(
    documents: npt.NDArray[np.float32],
    queries: npt.NDArray[np.float32],
    candidates: npt.NDArray[np.int64],
    scores: npt.NDArray[np.float32],
    document_map: npt.NDArray[np.float32],
    query_map: npt.NDArray[np.float32],
) -> float:
    """The share of queries' exact top 10 among the first 100 documents (n, width) by estimates after two maps (width, rank).

    ``candidates`` and ``scores`` as for :func:`distil`: the top is that of these.
    """
    best = np.take_along_axis(candidates, np.argsort(-scores, axis=1, kind="stable")[:, :TOP], axis=1)
    rows = torch.from_numpy(documents @ document_map)
    estimates = torch.from_numpy(queries @ query_map) @ rows.T
    first = estimates.topk(min(FIRST, len(documents)), dim=1).indices.numpy()
    return float(np.mean([np.isin(own, found).mean() for own, found in zip(best, first, strict=True)]))


def distil(
    documents: npt.NDArray[np.float32],
    queries: npt.NDArray[np.float32],
    candidates: npt.NDArray[np.int64],
    scores: npt.NDArray[np.float32],
    rank: int,
    *,
    steps: int,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Linear maps to ``rank`` dimensions that keep the ranking of each query's best documents.

    Args:
        documents: float32 (num_documents, width), vectors whose leading coordinates matter most.
        queries: float32 (num_queries, width); their inner products with documents estimate scores.
        candidates: int64 (num_queries, n), rows of documents, the best of each query among them.
        scores: float32 (num_queries, n), their exact scores, in the unit of the estimates; a constant added to all scores of a
            query changes nothing.
        rank: dimension of the result, below width.
        steps: of Adam.
        seed: for the draws.
        device: a torch device.
        progress: where to report.

    Returns:
        float32 (width, rank) for documents and for queries.
    """
    x_documents, x_queries = torch.from_numpy(documents).to(device), torch.from_numpy(queries).to(device)
    width = documents.shape[1]
    # Documents and queries on one scale, coordinate by coordinate, so that one learning rate suits both maps.
    scale = (x_documents.std(0) / x_queries.std(0).clamp_min(1e-12)).sqrt().clamp_min(1e-12)
    x_documents, x_queries = x_documents / scale, x_queries * scale
    exact, kept = torch.from_numpy(scores).to(device).topk(min(BEST_DOCUMENTS, scores.shape[1]), dim=1)
    tops = torch.from_numpy(candidates).to(device).gather(1, kept)
    own = min(OWN_DOCUMENTS, tops.shape[1])
    document_map = torch.eye(width, rank, device=device).requires_grad_()
    query_map = torch.eye(width, rank, device=device).requires_grad_()
    optimizer = torch.optim.Adam([document_map, query_map], lr=LEARNING_RATE, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    low_precision = autocast(device)
    task = (progress or Progress()).task("distillation", steps)
    for _ in range(steps):
        rows = torch.randint(len(x_queries), (QUERIES_PER_STEP,), generator=generator).to(device)
        some = torch.randperm(tops.shape[1], generator=generator)[:own].to(device)
        others = torch.randint(len(x_documents), (RANDOM_DOCUMENTS,), generator=generator).to(device)
        query, near, far = x_queries[rows], x_documents[tops[rows][:, some]], x_documents[others]
        with torch.no_grad():
            far_teacher = query @ far.T
            # exact scores are shifted to where the estimates of the same documents lie
            near_teacher = exact[rows][:, some]
            near_teacher = near_teacher + (torch.bmm(near, query[:, :, None])[:, :, 0] - near_teacher).mean(1, keepdim=True)
            teacher = torch.cat([near_teacher, far_teacher], dim=1)
            temperature = TEMPERATURE * far_teacher.std(1, keepdim=True).clamp_min(1e-12)
        with low_precision():
            small_query, small_near, small_far = query @ query_map, near @ document_map, far @ document_map
        small_query = small_query.float()
        student = [torch.bmm(small_near.float(), small_query[:, :, None])[:, :, 0], small_query @ small_far.float().T]
        loss = torch.nn.functional.kl_div(
            torch.log_softmax(torch.cat(student, dim=1) / temperature, dim=1),
            torch.softmax(teacher / temperature, dim=1),
            reduction="batchmean",
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        task.advance(note=f"loss {float(loss.detach()):.4f}")
    with torch.no_grad():
        return (document_map / scale[:, None]).cpu().numpy(), (query_map * scale[:, None]).cpu().numpy()
