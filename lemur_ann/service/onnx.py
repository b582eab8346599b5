"""A late-interaction encoder from an ONNX file: it needs onnxruntime and tokenizers, and neither torch nor a model library."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lemur_ann import validate

SETTINGS = ("onnx_config.json", "config_sentence_transformers.json")  # the first that is there
Row = tuple[list[int], list[int]]  # ids of tokens and the attention that each gets


@dataclass(frozen=True)
class Config:
    """What a model wants of its texts, with the names that ``pylate-onnx-export`` writes to ``onnx_config.json``.

    Attributes:
        query_prefix, document_prefix: the token after the first that says what a text is; "" for none.
        query_prefix_id, document_prefix_id: its id; None looks it up in the tokenizer.
        query_length, document_length: tokens of a text at most, the prefix and the tokenizer's own among them.
        do_query_expansion: fill queries up to query_length with mask tokens, whose vectors are the query's too.
        attend_to_expansion_tokens: whether other tokens attend to those.
        mask_token_id, pad_token_id: None looks them up.
        skiplist_words: tokens of documents whose vectors are left out.
        do_lower_case: before the tokenizer, which may do so itself.
        embedding_dim: of the vectors; None takes what the model gives.
    """

    query_prefix: str = "[Q] "
    document_prefix: str = "[D] "
    query_prefix_id: int | None = None
    document_prefix_id: int | None = None
    query_length: int = 32
    document_length: int = 300
    do_query_expansion: bool = True
    attend_to_expansion_tokens: bool = False
    mask_token_id: int | None = None
    pad_token_id: int | None = None
    skiplist_words: tuple[str, ...] = ()
    do_lower_case: bool = False
    embedding_dim: int | None = None


class OnnxEncoder:
    """A model that was exported to ONNX, such as ``pylate-onnx-export`` makes of ColBERT models.

    Args:
        folder: with ``model.onnx``, whose first output is (batch, tokens, dim); ``tokenizer.json``; and, where it is there, a
            JSON file of settings, see :class:`Config`. Other keys of it are left alone.
        file: the model's file; "model_int8.onnx" is what exports call their small one.
        batch_size: texts that go through the model together; those of like lengths do.
        num_threads: of the model; None for all cores.

    Raises:
        FileNotFoundError: a file is not there.
        ImportError: onnxruntime or tokenizers is not installed.
        ValueError: the files do not go together.

    Methods take a list of strings. Rows are of length one, float16.
    """

    def __init__(
        self, folder: Path | str, *, file: str = "model.onnx", batch_size: int = 32, num_threads: int | None = None
    ) -> None:
        try:
            import onnxruntime
            from tokenizers import Tokenizer
        except ImportError as error:
            raise ImportError(f"{error}; an encoder of ONNX needs more packages: pip install 'lemur_ann[onnx]'") from error
        self._made = (Path(folder), file, validate.positive_int(batch_size, "batch_size"), num_threads)
        folder = Path(folder)
        for name in (file, "tokenizer.json"):
            if not (folder / name).is_file():
                raise FileNotFoundError(
                    f"{folder} has no {name}; an encoder of ONNX is a folder with {file} and tokenizer.json"
                )
        self.config = _read_config(folder)
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 0 if num_threads is None else validate.num_threads(num_threads)
        self._session = onnxruntime.InferenceSession(str(folder / file), options, providers=["CPUExecutionProvider"])
        self._inputs = [given.name for given in self._session.get_inputs()]
        unknown = set(self._inputs) - {"input_ids", "attention_mask", "token_type_ids"}
        if unknown or "input_ids" not in self._inputs:
            raise ValueError(
                f"{folder / file} takes {', '.join(self._inputs)}; expected input_ids, attention_mask, token_type_ids"
            )
        self._batch_size = batch_size
        config = self.config
        self._query_prefix = self._prefix(config.query_prefix, config.query_prefix_id, "query_prefix")
        self._document_prefix = self._prefix(config.document_prefix, config.document_prefix_id, "document_prefix")
        self._mask = self._special(config.mask_token_id, ("[MASK]", "<mask>"))
        self._pad = self._special(config.pad_token_id, ("[PAD]", "<pad>")) or 0
        self._skipped = {self._tokenizer.token_to_id(word) for word in config.skiplist_words} - {None}
        if config.do_query_expansion and self._mask is None:
            raise ValueError(
                f"{folder / 'tokenizer.json'} has no mask token, and queries are filled up with it: give mask_token_id"
            )

    def __reduce__(self) -> Any:
        folder, file, batch_size, num_threads = self._made
        return _made, (folder, file, batch_size, num_threads)

    def encode_query(self, texts: Sequence[str]) -> list[npt.NDArray[np.float16]]:
        """A matrix (num_tokens, dim) for each query."""
        rows = self._query_rows(texts)
        return [matrix[: len(ids)] for matrix, (ids, _) in zip(self._run(rows), rows, strict=True)]

    def encode_document(self, texts: Sequence[str]) -> list[npt.NDArray[np.float16]]:
        """A matrix (num_tokens, dim) for each document."""
        rows = self._document_rows(texts)
        return [matrix[self._kept(ids)] for matrix, (ids, _) in zip(self._run(rows), rows, strict=True)]

    def query_words(self, texts: Sequence[str]) -> list[list[str]]:
        """The tokens that the rows of a query are of."""
        return [self._names(ids) for ids, _ in self._query_rows(texts)]

    def document_words(self, texts: Sequence[str]) -> list[list[str]]:
        """The tokens that the rows of a document are of."""
        return [self._names([ids[i] for i in self._kept(ids)]) for ids, _ in self._document_rows(texts)]

    def _query_rows(self, texts: Sequence[str]) -> list[Row]:
        rows = self._rows(texts, self._query_prefix, self.config.query_length)
        if not self.config.do_query_expansion or self._mask is None:
            return rows
        attention = int(self.config.attend_to_expansion_tokens)
        missing = [self.config.query_length - len(ids) for ids, _ in rows]
        return [
            (ids + [self._mask] * count, seen + [attention] * count) for (ids, seen), count in zip(rows, missing, strict=True)
        ]

    def _document_rows(self, texts: Sequence[str]) -> list[Row]:
        return self._rows(texts, self._document_prefix, self.config.document_length)

    def _rows(self, texts: Sequence[str], prefix: list[int], length: int) -> list[Row]:
        """The ids of tokens of texts: the first, the prefix, what there is room for of the rest, and the last."""
        strings = [str(text).lower() if self.config.do_lower_case else str(text) for text in texts]
        rows: list[Row] = []
        for encoding in self._tokenizer.encode_batch(strings):
            ids, specials = encoding.ids, encoding.special_tokens_mask
            begin, end = int(bool(ids and specials[0])), int(len(ids) > 1 and specials[-1])
            middle = ids[begin : len(ids) - end][: max(0, length - begin - len(prefix) - end)]
            row = [*ids[:begin], *prefix, *middle, *ids[len(ids) - end :]]
            row = row or [self._pad]  # no special tokens and no text: a row is a row
            rows.append((row, [1] * len(row)))
        return rows

    def _run(self, rows: list[Row]) -> list[npt.NDArray[np.float16]]:
        """The normalised outputs of the model for rows, each as wide as the widest of its batch."""
        order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
        outputs: list[Any] = [None] * len(rows)
        for begin in range(0, len(order), self._batch_size):
            batch = order[begin : begin + self._batch_size]
            width = max(len(rows[i][0]) for i in batch)
            ids = np.full((len(batch), width), self._pad, np.int64)
            attention = np.zeros((len(batch), width), np.int64)
            for row, i in enumerate(batch):
                ids[row, : len(rows[i][0])] = rows[i][0]
                attention[row, : len(rows[i][1])] = rows[i][1]
            given = {"input_ids": ids, "attention_mask": attention, "token_type_ids": np.zeros_like(ids)}
            states = self._session.run(None, {name: given[name] for name in self._inputs})[0]
            self._check(states, ids.shape)
            lengths = np.linalg.norm(states.astype(np.float32), axis=2, keepdims=True)
            vectors = (states / np.maximum(lengths, 1e-12)).astype(np.float16)
            for row, i in enumerate(batch):
                outputs[i] = vectors[row]
        return outputs

    def _check(self, states: Any, shape: tuple[int, ...]) -> None:
        dim = self.config.embedding_dim
        if states.ndim != 3 or states.shape[:2] != shape or (dim is not None and states.shape[2] != dim):
            expected = f"({shape[0]}, {shape[1]}, {'dim' if dim is None else dim})"
            raise ValueError(
                f"the model's first output has shape {states.shape}, expected {expected}: a vector for each token, projected "
                "to embedding_dim where the settings have it"
            )

    def _kept(self, ids: list[int]) -> list[int]:
        """Which tokens of a document have vectors."""
        return [i for i, token in enumerate(ids) if token not in self._skipped] or [0]

    def _prefix(self, text: str, number: int | None, name: str) -> list[int]:
        if number is not None:
            return [number]
        if not text:
            return []
        for form in (text, text.strip()):
            found = self._tokenizer.token_to_id(form)
            if found is not None:
                return [found]
        raise ValueError(f"{name} {text!r} is no token of the tokenizer; give another, or {name}_id, or '' for none")

    def _special(self, number: int | None, names: tuple[str, ...]) -> int | None:
        if number is not None:
            return number
        return next((found for found in map(self._tokenizer.token_to_id, names) if found is not None), None)

    def _names(self, ids: list[int]) -> list[str]:
        return [self._tokenizer.id_to_token(number) or str(number) for number in ids]


def _made(folder: Path, file: str, batch_size: int, num_threads: int | None) -> OnnxEncoder:
    return OnnxEncoder(folder, file=file, batch_size=batch_size, num_threads=num_threads)


def _read_config(folder: Path) -> Config:
    path = next((folder / name for name in SETTINGS if (folder / name).is_file()), None)
    if path is None:
        return Config()
    try:
        given = json.loads(path.read_text("utf-8"))
        known = {field.name: given[field.name] for field in fields(Config) if given.get(field.name) is not None}
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} is no JSON object of settings: {error}") from error
    defaults = Config()
    for name, value in known.items():
        kind: Any = type(getattr(defaults, name))
        kind = {type(None): int, tuple: list}.get(kind, kind)
        if not isinstance(value, kind) or (kind is int and (isinstance(value, bool) or value < 0)):
            raise ValueError(f"{path} has {name} {value!r}, expected {kind.__name__}")
    if "skiplist_words" in known:
        known["skiplist_words"] = tuple(map(str, known["skiplist_words"]))
    config = Config(**known)
    for name in ("query_length", "document_length"):
        if getattr(config, name) < 4:
            raise ValueError(
                f"{path} has {name} {getattr(config, name)}, expected 4 at least: two tokens around a text, its prefix"
            )
    return config
