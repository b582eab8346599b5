"""Why a document has its score for a query: which tokens carry it, and where it stands, exactly and by the learned estimate."""

from __future__ import annotations

import html
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lemur_ann import _core
from lemur_ann.documents.pooling import GROUPS_COLUMN, fits, is_groups
from lemur_ann.events import cached_property
from lemur_ann.insight import metrics
from lemur_ann.insight.case import Case

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

NEIGHBOURS = 2  # tokens shown on each side of the best one
CONTEXT_WIDTH, BAR_WIDTH = 30, 11  # characters
STRONGEST = 0.6  # opacity of the highlight of the token that gains most; black text and white text stay legible on it


@dataclass(frozen=True, eq=False, repr=False)
class Explanation:
    """What :meth:`lemur_ann.LemurIndex.explain` found of a query and a document.

    Attributes:
        doc_id: the document.
        similarities: float32 (num_query_tokens, num_document_tokens), the inner product of each query token with each of the
            document's.
        usual_similarities: float32 (num_query_tokens,), the largest similarity of each query token to a token of a document,
            mean over all documents.
        score: exact MaxSim, the sum of each query token's largest similarity, as a search gives it.
        rank: of that score among all documents, from 1; the document added earlier is first among equals, as in a search.
        num_documents: how many these are, without deleted ones.
        estimate: what the learned map says of the document, brought to the scale of scores: it is right up to an affine map,
            and that is fitted to all documents' exact scores by least squares. None before fit.
        estimate_rank: its rank by estimate, as the candidate index has it, so that a full scan finds it in so many candidates;
            None before fit.
        found_at: its place, from 1, in the k hits of a search at the index's own settings; None where it is not among them,
            and :meth:`lemur_ann.LemurIndex.explain_miss` says why.
        k: of that search.
        query_words, document_words: the strings of the tokens; None where they are not known, and numbers, from 0, are shown.
            Those of a pooled token are its members'.
        members: of pooled documents, for each of the document's tokens the numbers of the original tokens that it was made of,
            ascending; None of others.

    ``print(explanation)`` is a table in plain text, ``rich.print`` the same in colour; a notebook shows the tokens highlighted
    by their gains, and :meth:`picture` draws.
    """

    doc_id: Any
    similarities: npt.NDArray[np.float32]
    usual_similarities: npt.NDArray[np.float32]
    score: float
    rank: int
    num_documents: int
    estimate: float | None
    estimate_rank: int | None
    found_at: int | None
    k: int
    query_words: tuple[str, ...] | None = None
    document_words: tuple[str, ...] | None = None
    members: tuple[tuple[int, ...], ...] | None = None

    @cached_property
    def best_tokens(self) -> npt.NDArray[np.int64]:
        """The document token most similar to each query token, (num_query_tokens,); the first among equals."""
        return np.asarray(self.similarities.argmax(axis=1))

    @cached_property
    def best_similarities(self) -> npt.NDArray[np.float32]:
        """The similarity of each query token to its best document token, (num_query_tokens,); they sum to the score."""
        return np.asarray(self.similarities.max(axis=1))

    @cached_property
    def original_similarities(self) -> npt.NDArray[np.float32]:
        """The similarities by original token, (num_query_tokens, num_original_tokens): those of what each was merged into."""
        if self.members is None:
            return self.similarities
        numbers = np.empty(sum(map(len, self.members)), np.int64)
        for number, own in enumerate(self.members):
            numbers[list(own)] = number
        return self.similarities[:, numbers]

    @cached_property
    def shares(self) -> npt.NDArray[np.float64]:
        """What each query token adds to the score, as a share, (num_query_tokens,).

        It is a share of the sum of absolute values, which is the score where all similarities are positive. A negative one
        takes away.
        """
        values = self.best_similarities.astype(np.float64)
        total = np.abs(values).sum()
        return values / total if total > 0 else values

    @cached_property
    def document_shares(self) -> npt.NDArray[np.float64]:
        """The share of each document token, (num_document_tokens,): of those query tokens that it is the best for."""
        return self._by_document_token(self.shares)

    @cached_property
    def gains(self) -> npt.NDArray[np.float64]:
        """What each query token adds over what it adds to the mean document, (num_query_tokens,).

        They sum to the score less the mean score. Encoders give all tokens much the same share, markers and punctuation too;
        what sets the document apart from the others is here.
        """
        return self.best_similarities.astype(np.float64) - self.usual_similarities

    @cached_property
    def document_gains(self) -> npt.NDArray[np.float64]:
        """The gains of each document token, (num_document_tokens,): of those query tokens that it is the best for."""
        return self._by_document_token(self.gains)

    def _by_document_token(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        sums = np.zeros(self.similarities.shape[1])
        np.add.at(sums, self.best_tokens, values)
        return sums

    @property
    def _pieces(self) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        num_query, num_document = self.similarities.shape
        document = self.document_words
        if document is None and self.members is not None:
            document = tuple("+".join(map(str, own)) for own in self.members)
        return _pieces(self.query_words, num_query), _pieces(document, num_document)

    @property
    def summary(self) -> str:
        """The score, the estimate, and where a search finds it, in two lines; one before fit."""
        found = f"not in the first {self.k} of a search" if self.found_at is None else f"a search finds it at {self.found_at}"
        score = f"score {self.score:.3f} ({self.gains.sum():+.3f} over the mean)"
        lines = [f"{self.doc_id!r}: {score}, rank {self.rank:,} of {self.num_documents:,}; {found}"]
        if self.estimate is not None:
            lines.append(f"learned estimate {self.estimate:.3f}, rank {self.estimate_rank:,}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<Explanation of {self.summary.splitlines()[0]}>"

    def __str__(self) -> str:
        from rich.console import Console

        file = io.StringIO()
        Console(file=file).print(self._table())
        return "\n".join([self.summary, "", *(line.rstrip() for line in file.getvalue().splitlines())])

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        return Group(Text(self.summary), Text(), self._table())

    def _table(self) -> Table:
        from rich.bar import Bar
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, collapse_padding=True)
        table.add_column("query token", no_wrap=True, min_width=11)
        table.add_column("best document token", no_wrap=True, max_width=CONTEXT_WIDTH)
        for name, width in (("similarity", 10), ("share", 6), ("gain", 6)):
            table.add_column(name, justify="right", no_wrap=True, min_width=width)
        table.add_column("", width=BAR_WIDTH)
        query, document = self._pieces
        largest = max(float(self.gains.max()), 1e-9)
        for token, best in enumerate(self.best_tokens.tolist()):
            gain = float(self.gains[token])
            table.add_row(
                Text(query[token][1]),
                Text(document[best][1]) if self.document_words is None else _in_context(document, best),
                f"{self.best_similarities[token]:.3f}",
                f"{self.shares[token]:.1%}",
                f"{gain:+.3f}",
                Bar(largest, 0, max(gain, 0.0), color="green"),
            )
        return table

    def _repr_html_(self) -> str:
        query, document = self._pieces
        asked: list[str] = []  # what is shown when a token is pointed at
        wanted: list[list[str]] = [[] for _ in document]
        for token, best in enumerate(self.best_tokens.tolist()):
            what = f"{self.best_similarities[token]:.3f}, {self.shares[token]:.1%} of the score, gain {self.gains[token]:+.3f}"
            asked.append(f"{document[best][1]}: {what}")
            wanted[best].append(f"{query[token][1]}: {what}")
        told = ["\n".join(lines) for lines in wanted]
        small = "margin:.3em 0;opacity:.7;font-size:.9em"
        return (
            "<div style='line-height:1.7'>"
            f"<p style='margin:.3em 0'>{'<br>'.join(html.escape(line) for line in self.summary.splitlines())}</p>"
            f"<p style='{small}'>query</p><p style='margin:.3em 0'>{_highlighted(query, self.gains, asked)}</p>"
            f"<p style='{small}'>document</p><p style='margin:.3em 0'>{_highlighted(document, self.document_gains, told)}</p>"
            "</div>"
        )

    def picture(
        self,
        target: Any = None,
        *,
        image: Any = None,
        grid: tuple[int, int] | None = None,
        offset: int = 0,
        query_token: int | None = None,
    ) -> Any:
        """Draw the similarities, with matplotlib: ``pip install 'lemur_ann[plots]'``.

        With ``grid``, for a page whose tokens are patches in rows: a heat map of the similarity to each patch, over the page
        where ``image`` is given; of a pooled page the similarity to what each patch was merged into. Without it, a matrix of
        query tokens by document tokens, where a dot marks each query token's best.

        Args:
            target: the path of a file to write, such as "page.png"; or matplotlib axes to draw on; None draws on a new figure.
            image: the page: the path of an image, a PIL image, or an array (height, width) or (height, width, 3 or 4).
            grid: how many (rows, columns) of patches the page has.
            offset: the number of the document token that is the first patch; tokens before it and after the grid are left out.
            query_token: the number of the query token to show; None means the sum over all of them in a heat map (of all
                similarities, where the score counts the largest of each query token alone), and all of them in a matrix.

        Returns:
            the axes; ``axes.figure`` is the figure.

        Raises:
            ImportError: matplotlib is not installed.
            ValueError, TypeError: a grid that the document has too few tokens for, an image without a grid, or a query token
                that there is not.
        """
        from lemur_ann.insight.pictures import draw

        query, document = ([text for _, text in side] for side in self._pieces)
        return draw(self, (query, document), target, image=image, grid=grid, offset=offset, query_token=query_token)


def explain(case: Case, *, query_words: Any = None, document_words: Any = None) -> Explanation:
    """See :meth:`lemur_ann.LemurIndex.explain`; the case excludes deleted documents only."""
    document = np.ascontiguousarray(case.snapshot.store[case.row])
    names = _checked_words(query_words, len(case.query.tokens), "query_words")
    members = _members(case, len(document))
    document_names = _document_words(document_words, len(document), members)
    # Each token a document of its own: the kernel's similarities, which sum to the score to the last bit
    tokens = _core.Documents([(document, np.arange(len(document) + 1))])
    similarities = _core.token_maxima(case.query.tokens, tokens, case.num_threads)
    fitted = case.snapshot.learned is not None
    return Explanation(
        doc_id=case.doc_id,
        similarities=similarities,
        usual_similarities=case.usual_similarities(),
        score=float(case.scores[case.row]),
        rank=case.rank,
        num_documents=case.num_matching,
        estimate=_estimate_on_the_scale_of_scores(case) if fitted else None,
        estimate_rank=case.estimate_rank if fitted else None,
        found_at=case.searched(case.settings)[0],
        k=case.settings.k,
        query_words=names,
        document_words=document_names,
        members=members,
    )


def _estimate_on_the_scale_of_scores(case: Case) -> float:
    """The document's estimate through the affine map that brings all estimates nearest to the exact scores."""
    live = case.excluded.others
    fitted = metrics.fitted(case.estimates[live], case.scores[live])
    return float(fitted[np.searchsorted(live, case.row)])


def _members(case: Case, num_tokens: int) -> tuple[tuple[int, ...], ...] | None:
    """The original tokens of each pooled one, where the document's metadata says them."""
    metadata = case.snapshot.metadata
    if metadata is None or GROUPS_COLUMN not in metadata.column_names:
        return None
    column = metadata.column(GROUPS_COLUMN)
    groups = column[case.row].values if is_groups(column.type) else None
    if groups is None or groups.null_count or not fits(groups.to_numpy(zero_copy_only=False), num_tokens):
        return None  # a column of the user's own, in an index without pooling
    found: list[list[int]] = [[] for _ in range(num_tokens)]
    for original, number in enumerate(groups.to_pylist()):
        found[number].append(original)
    return tuple(map(tuple, found))


def with_words(found: Explanation, query_words: Any, document_words: Any) -> Explanation:
    """The same with the strings of its tokens, where they are given; see :meth:`lemur_ann.LemurIndex.explain`.

    Raises:
        ValueError, TypeError: more or fewer strings than tokens.
    """
    num_query, num_document = found.similarities.shape
    names = _checked_words(query_words, num_query, "query_words")
    document_names = _document_words(document_words, num_document, found.members)
    return replace(
        found,
        query_words=found.query_words if names is None else names,
        document_words=found.document_words if document_names is None else document_names,
    )


def _document_words(words: Any, count: int, members: tuple[tuple[int, ...], ...] | None) -> tuple[str, ...] | None:
    """The strings of a document's tokens; those of its original tokens are put together as they were pooled."""
    if words is None or members is None:
        return _checked_words(words, count, "document_words")
    num_originals = sum(map(len, members))
    is_list = isinstance(words, Iterable) and not isinstance(words, (str, dict, set, frozenset))
    given = list(words) if is_list else words
    of_originals = is_list and len(given) == num_originals
    if is_list and not of_originals and len(given) != count:
        raise ValueError(
            f"document_words must have a string for each of {num_originals} original tokens, or of the {count} that they were "
            f"pooled into, got {len(given)}"
        )
    names = _checked_words(given, num_originals if of_originals else count, "document_words")
    if names is None or not of_originals:
        return names
    pieces = _pieces(names, num_originals)
    return tuple(_joined(pieces, own) for own in members)


def _joined(pieces: list[tuple[str, str]], members: tuple[int, ...]) -> str:
    """The text of some tokens: of neighbours as they stand, of others with dots between."""
    text = pieces[members[0]][1]
    for before, token in pairwise(members):
        gap, word = pieces[token]
        text += f"{gap if token == before + 1 else ' … '}{word}"
    return text


def _checked_words(words: Any, count: int, name: str) -> tuple[str, ...] | None:
    if words is None:
        return None
    is_other = isinstance(words, (str, dict, set, frozenset)) or not isinstance(words, Iterable)
    given = [] if is_other else list(words)
    if is_other or not all(isinstance(word, str) for word in given):
        raise TypeError(f"{name} must be a list of strings, one for each token, got {type(words).__name__}")
    if len(given) != count:
        raise ValueError(f"{name} must have a string for each of {count} tokens, got {len(given)}")
    return tuple(str(word) for word in given)


def _pieces(words: Sequence[str] | None, count: int) -> list[tuple[str, str]]:
    """For each token what comes before it, a space or nothing, and its text; numbers where there are no words.

    Tokenizers mark a space before a token by one (as Ġ or ▁, in some), or a token without one by ##.
    """
    words = [str(i) for i in range(count)] if words is None else words
    plain = [" " + word[1:] if word[:1] in ("Ġ", "▁") and len(word) > 1 else word for word in words]
    if any(word[:1] == " " for word in plain):
        return [(" " if word[:1] == " " else "", word.strip() or word) for word in plain]
    return [("", word[2:]) if word[:2] == "##" and len(word) > 2 else (" ", word) for word in plain]


def _in_context(pieces: list[tuple[str, str]], best: int) -> Text:
    """A token and its neighbours."""
    from rich.text import Text

    text = Text()
    for token in range(max(best - NEIGHBOURS, 0), min(best + NEIGHBOURS + 1, len(pieces))):
        gap, word = pieces[token]
        text.append(gap if len(text) else "")
        text.append(f"«{word}»" if token == best else word, style="bold green" if token == best else "dim")
    return text


def _highlighted(pieces: list[tuple[str, str]], gains: npt.NDArray[np.float64], titles: list[str]) -> str:
    """Tokens as HTML, each with a background as strong as its gain, and what to show when it is pointed at.

    The backgrounds let through what is behind, so that they suit light and dark pages.
    """
    largest = max(float(gains.max()), 1e-9)
    out = []
    for (gap, word), gain, title in zip(pieces, gains.tolist(), titles, strict=True):
        opacity = STRONGEST * max(gain, 0.0) / largest
        style = f" style='background:rgba(255,140,0,{opacity:.2f});border-radius:3px'" if opacity >= 0.01 else ""
        out.append(f"{gap}<span{style} title='{html.escape(title, quote=True)}'>{html.escape(word)}</span>")
    return "".join(out)
