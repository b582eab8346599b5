"""How distillation is set: what its temperature, batches and teacher find, each with the same features and documents.

    python benchmarks/distillation.py CORPUS --work DIR [--limit N] [--try "temperature=.2 batch=64"] ...

Query i of the corpus was written for the document whose name it has. A map is learned once from queries_train, and what its
distillation was given is distilled anew in each way. Of queries_dev it says how much of the exact top 10 is among the first
documents by a scan of estimates, and how many of the answers that are in that top 10.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import known_answers
import numpy as np
import torch

FIRST = (60, 120, 300, 600, 1000)
NAMES = {"temperature": "TEMPERATURE", "batch": "QUERIES_PER_STEP", "random": "RANDOM_DOCUMENTS", "own": "OWN_DOCUMENTS"}
NAMES |= {"candidates": "CANDIDATES", "best": "BEST_DOCUMENTS", "rate": "LEARNING_RATE"}
USUAL = ["", "temperature=.3 batch=32", "temperature=.2 batch=32", "temperature=.15 batch=32", "candidates=1000 best=600"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--num-queries", type=int, default=1600)
    parser.add_argument("--try", dest="tried", action="append", help="names of " + ", ".join([*NAMES, "steps"]))
    arguments = parser.parse_args()
    import lemur_ann
    from lemur_ann.learning import distillation, fitting

    known = known_answers.read(arguments.corpus, arguments.limit, arguments.num_queries)
    given: dict[str, Any] = {}
    distilled = fitting._distilled

    def noted(job: Any, wide: Any, target_std: float) -> Any:
        given.update(wide=wide, target_std=target_std, store=job.store)
        return distilled(job, wide, target_std)

    fitting._distilled = noted
    index = lemur_ann.LemurIndex().fit(known.documents, arguments.corpus / "queries_train.parquet", num_threads=2)
    wide, store = given["wide"], given["store"]
    exact = known_answers.exact_top(arguments.work, index, known.queries)
    asked = known.batch.as_float32
    with torch.inference_mode():
        features = index.encoder.feature_map.query_features(asked.tokens, asked.offsets).cpu().numpy()
    queries, learned = features @ wide.query_map, wide.query_features @ wide.query_map
    torch.set_num_threads(2)
    for tried in arguments.tried or USUAL:
        values = dict(pair.split("=") for pair in tried.split())
        steps = int(values.pop("steps", 1000))
        before = {name: getattr(distillation, name) for name in NAMES.values()}
        for name, value in values.items():
            setattr(distillation, NAMES[name], type(before[NAMES[name]])(value))
        candidates = distillation.candidate_documents(wide.documents, learned)
        bounds = np.arange(len(learned) + 1) * candidates.shape[1]
        tokens, rows = wide.queries.as_float32.tokens, wide.kept[candidates.reshape(-1)]
        scores = store.candidate_scores(tokens, wide.queries.offsets, rows, bounds, num_threads=2).reshape(candidates.shape)
        begin = time.perf_counter()
        maps = distillation.distil(
            wide.documents, learned, candidates, scores / np.float32(given["target_std"]), index.options.rank or 1, steps=steps
        )
        seconds = time.perf_counter() - begin
        for name, value in before.items():
            setattr(distillation, name, value)
        print(f"{tried or 'as it is'}: {seconds:.0f} s; " + judged(wide, maps, queries, exact, known.grades), flush=True)


def judged(wide: Any, maps: Any, queries: Any, exact: Any, grades: list[dict[int, float]]) -> str:
    """The share of the exact top 10, and of the answers there, among the first by estimate."""
    vectors = torch.from_numpy(wide.documents @ maps[0])
    asked = torch.from_numpy(queries @ maps[1]).split(200)
    best = wide.kept[torch.cat([(part @ vectors.T).topk(max(FIRST), dim=1).indices for part in asked]).numpy()]
    figures = []
    for count in FIRST:
        found = [set(own[:count].tolist()) for own in best]
        top = np.mean([np.isin(own, list(first)).mean() for own, first in zip(exact, found, strict=True)])
        answers = [row in first for own, first, own_grades in zip(exact, found, grades, strict=True) for row in own_grades
                   if row in own]  # fmt: skip
        figures.append(f"{count}: {top:.4f} {np.mean(answers):.3f}")
    return ", ".join(figures)


if __name__ == "__main__":
    main()
