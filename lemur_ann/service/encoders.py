"""Encoders by the name that a command line has for them."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from lemur_ann.encoders import Encoder, as_encoder

FORMS = "demo, sentence-transformers:NAME, pylate:NAME, fastembed:NAME, onnx:FOLDER, or module:function of your own"


def load(name: str) -> Encoder:
    """An encoder of texts.

    Args:
        name: ``demo``, of the sample that ships with the package; ``sentence-transformers:NAME``, ``pylate:NAME`` or
            ``fastembed:NAME``, a model of that library; ``onnx:FOLDER``, see :class:`lemur_ann.service.onnx.OnnxEncoder`; or
            ``module:function``, which is called and gives what :func:`lemur_ann.encoders.as_encoder` takes.

    Raises:
        ValueError: it is none of these.
        ImportError: the library is not installed.
    """
    kind, _, rest = name.partition(":")
    if name == "demo":
        from lemur_ann.demo import demo_encoder

        return demo_encoder()
    if not rest:
        raise ValueError(f"encoder {name!r} is none of {FORMS}")
    if kind == "onnx":
        from lemur_ann.service.onnx import OnnxEncoder

        return as_encoder(OnnxEncoder(Path(rest)))
    if kind in LIBRARIES:
        module, made = LIBRARIES[kind]
        model: Any = importlib.import_module(module)
        for part in made.split("."):
            model = getattr(model, part)
        return as_encoder(model(rest))
    return as_encoder(getattr(importlib.import_module(kind), rest)())


LIBRARIES = {
    "sentence-transformers": ("sentence_transformers", "MultiVectorEncoder"),
    "pylate": ("pylate", "models.ColBERT"),
    "fastembed": ("fastembed", "LateInteractionTextEmbedding"),
}
