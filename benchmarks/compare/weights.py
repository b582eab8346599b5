"""The full LEMUR weights that two contenders share: ten epochs, by lemur_ann's adapter with the reference's own interface."""

from __future__ import annotations

from pathlib import Path

import common
import numpy as np


def build(corpus: common.Corpus, folder: Path) -> None:
    """mlp.pt and w.pt, as the reference saves and loads them."""
    import torch
    from lemur_ann.adapters.lemur import Lemur

    documents, queries = corpus.documents, corpus.training_queries
    model = Lemur(index=folder, device="cpu")
    model.fit(
        train=torch.from_numpy(documents.tokens.astype(np.float32)),
        train_counts=torch.from_numpy(documents.counts.astype(np.int32)),
        learn=torch.from_numpy(queries.tokens),
        learn_counts=torch.from_numpy(queries.counts.astype(np.int32)),
        epochs=10,
        verbose=False,
    )
