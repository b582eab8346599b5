"""Late-interaction encoders of other libraries, as two functions: queries and documents are encoded differently."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from lemur_ann.documents.inputs import QueryBatch, read_documents, read_queries, to_offsets


@dataclass(frozen=True)
class Encoder:
    """A query encoder and a document encoder.

    Attributes:
        queries: takes a list of strings and gives their token embeddings, a (num_tokens, dim) matrix each, in any form that
            :meth:`lemur_ann.LemurIndex.fit` takes for queries.
        documents: the same for documents. Where pages are images, it takes what stands for a page: a path, for example.
        query_words, document_words: take a list of strings and give for each the strings of its tokens, one for each row of
            its matrix, as a tokenizer names them, or None where that cannot be said: for explanations. None where there are
            no such functions.
    """

    queries: Callable[[list[str]], Any]
    documents: Callable[[list[str]], Any]
    query_words: Callable[[list[str]], Any] | None = None
    document_words: Callable[[list[str]], Any] | None = None


def as_encoder(model: Any) -> Encoder:
    """The two encoders of a late-interaction model.

    Args:
        model: a sentence-transformers ``MultiVectorEncoder``; a PyLate ``models.ColBERT``; a fastembed
            ``LateInteractionTextEmbedding``; anything else with methods ``encode_query`` and ``encode_document`` (or
            ``encode_queries`` and ``encode_documents``) from a list of strings to one matrix each, and optional methods
            ``query_words`` and ``document_words``, see :class:`Encoder`; a pair of such functions; or an :class:`Encoder`.
            The tokens of the first two have names by themselves.

    Raises:
        TypeError: it is none of these.
    """
    if isinstance(model, Encoder):
        return model
    if isinstance(model, tuple) and len(model) == 2 and all(map(callable, model)):
        return Encoder(*model)
    packages = {base.__module__.partition(".")[0] for base in type(model).__mro__}
    # Partial functions of the model, and no lambdas: they are pickled where the model is.
    if "pylate" in packages:  # it derives from sentence-transformers' dense encoder, whose methods it has as well
        return Encoder(
            partial(model.encode, is_query=True, show_progress_bar=False),
            partial(model.encode, is_query=False, show_progress_bar=False),
            partial(_pylate_words, model, is_query=True),
            partial(_pylate_words, model, is_query=False),
        )
    if "sentence_transformers" in packages:
        if getattr(model, "model_type", None) in ("SentenceTransformer", "SparseEncoder"):
            raise TypeError(
                f"encoder must give a vector for each token, and {type(model).__name__} gives one for a text: use a "
                "late-interaction model, such as sentence-transformers' MultiVectorEncoder"
            )
        return Encoder(
            partial(model.encode_query, show_progress_bar=False, convert_to_numpy=True),
            partial(model.encode_document, show_progress_bar=False, convert_to_numpy=True),
            partial(_sentence_transformers_words, model, model.encode_query),
            partial(_sentence_transformers_words, model, model.encode_document),
        )
    if "fastembed" in packages and callable(getattr(model, "query_embed", None)):
        return Encoder(partial(_listed, model.query_embed), partial(_listed, model.embed))
    for query, document in (("encode_query", "encode_document"), ("encode_queries", "encode_documents")):
        if callable(getattr(model, query, None)) and callable(getattr(model, document, None)):
            words = (getattr(model, name, None) for name in ("query_words", "document_words"))
            return Encoder(getattr(model, query), getattr(model, document), *words)
    raise TypeError(
        "encoder must be a late-interaction model with encode_query and encode_document, a pair of functions "
        f"(encode_queries, encode_documents), or a lemur_ann.encoders.Encoder; got {type(model).__name__}"
    )


def _listed(encode: Callable[[list[str]], Any], texts: list[str]) -> list[Any]:
    return list(encode(texts))


def _sentence_transformers_words(model: Any, encode: Callable[..., Any], texts: list[str]) -> list[list[str] | None]:
    words = []
    for output in encode(texts, show_progress_bar=False, output_value=None):
        ids, mask = output.get("input_ids"), output["attention_mask"].bool()
        # where tokens are pooled, vectors are no longer those of single tokens
        is_named = ids is not None and ids.shape == mask.shape == output["token_embeddings"].shape[:1]
        words.append(_names(model.tokenizer, ids[mask].tolist()) if is_named else None)
    return words


def _pylate_words(model: Any, texts: list[str], *, is_query: bool) -> list[list[str] | None]:
    output = model.encode(texts, is_query=is_query, show_progress_bar=False, output_value=None)
    pairs = zip(output["input_ids"], output["masks"], strict=True)
    return [_names(model.tokenizer, np.asarray(ids)[np.asarray(mask, np.bool_)].tolist()) for ids, mask in pairs]


def _names(tokenizer: Any, ids: list[int]) -> list[str]:
    names: list[str] = tokenizer.convert_ids_to_tokens(ids)
    if any(name.startswith("Ġ") for name in names):  # bytes, each as a letter that stands for it
        return [tokenizer.convert_tokens_to_string([name]) for name in names]
    return names


def encoded(encode: Callable[[list[str]], Any], texts: list[str], side: str, dim: int | None, first_row: int = 0) -> QueryBatch:
    """What an encoder gives for some texts, checked.

    Args:
        encode: the encoder.
        texts: at least one.
        side: "query" or "document", as errors call it.
        dim: expected dimension of tokens; None where any will do.
        first_row: the number of the first of the texts, in errors.

    Raises:
        ValueError, TypeError: it gives something else than one matrix of tokens for each text.
    """
    given = encode(texts)
    where = f", for the texts from row {first_row} on" if first_row else ""
    try:
        parts: list[Any] = [read_queries(given, dim=dim)] if side == "query" else read_documents(given, dim=dim)
    except (TypeError, ValueError) as error:
        hint = "; it must give a matrix of token embeddings for each text" if getattr(given, "ndim", 3) == 2 else ""
        raise type(error)(f"{side} encoder{where}: {error}{hint}") from error
    count = sum(map(len, parts))
    if count != len(texts):
        raise ValueError(f"{side} encoder{where} was given {len(texts)} texts and returned {count} matrices")
    lengths = np.concatenate([np.diff(part.offsets) for part in parts])
    return QueryBatch(np.concatenate([part.tokens for part in parts]), to_offsets(lengths))
