"""Pictures of an explanation, by matplotlib: a matrix of similarities, or a heat map over the patches of a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from lemur_ann import validate

MAX_LABELS = 80  # document tokens that a picture names

Labels = tuple[list[str], list[str]]  # of the query tokens, and of the document tokens


class Pictured(Protocol):
    """What a picture shows of an explanation, which has it by these names."""

    @property
    def doc_id(self) -> Any:
        """Names the picture."""

    @property
    def score(self) -> float:
        """In its title."""

    @property
    def similarities(self) -> npt.NDArray[np.float32]:
        """(num_query_tokens, num_document_tokens)."""

    @property
    def original_similarities(self) -> npt.NDArray[np.float32]:
        """(num_query_tokens, num_original_tokens): the same where tokens are not pooled."""

    @property
    def best_tokens(self) -> npt.NDArray[np.int64]:
        """(num_query_tokens,), where dots are."""

    @property
    def document_words(self) -> tuple[str, ...] | None:
        """Along the axis, where there are not too many."""


@dataclass(frozen=True)
class Patches:
    """Which document tokens are the patches of a page: ``rows`` x ``columns`` of them from the token ``offset`` on."""

    rows: int
    columns: int
    offset: int

    @classmethod
    def of(cls, grid: Any, offset: int, num_tokens: int) -> Patches:
        """Those that a caller named, checked."""
        if not isinstance(grid, Sequence) or len(grid) != 2:
            raise TypeError(f"grid must be (rows, columns), got {grid!r}")
        rows, columns = (validate.positive_int(size, "grid") for size in grid)
        if offset + rows * columns > num_tokens:
            raise ValueError(
                f"grid {rows} x {columns} from token {offset} needs {offset + rows * columns} document tokens, "
                f"and there are {num_tokens}"
            )
        return cls(rows, columns, offset)

    def take(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Their values, (rows, columns), of those of all document tokens."""
        return values[self.offset : self.offset + self.rows * self.columns].reshape(self.rows, self.columns)


def draw(
    explanation: Pictured,
    labels: Labels,
    target: Any,
    *,
    image: Any,
    grid: tuple[int, int] | None,
    offset: int,
    query_token: int | None,
) -> Any:
    """See :meth:`lemur_ann.insight.explanation.Explanation.picture`."""
    num_query, num_document = explanation.similarities.shape
    if query_token is not None and validate.integer(query_token, "query_token", least=0) >= num_query:
        raise ValueError(f"query_token must be below {num_query}, the number of query tokens, got {query_token}")
    offset = validate.integer(offset, "offset", least=0)
    if grid is None and (image is not None or offset):
        raise ValueError("image= and offset= go with grid=(rows, columns), the patches of the page")
    by_patch = explanation.original_similarities
    patches = None if grid is None else Patches.of(grid, offset, by_patch.shape[1])
    axes = target if hasattr(target, "imshow") else None
    if axes is None and not (target is None or isinstance(target, (str, PathLike))):
        raise TypeError(f"target must be a path or matplotlib axes, got {type(target).__name__}")
    figure_class = _matplotlib_figure()
    page = None if image is None else _page(image)
    if axes is None:
        size = _size_of_matrix(num_query, num_document) if patches is None else _size_of_heat_map(patches, page)
        axes = figure_class(figsize=size, layout="constrained").add_subplot()
    if patches is None:
        _draw_matrix(axes, explanation, labels, list(range(num_query)) if query_token is None else [query_token])
    else:
        values = by_patch.sum(axis=0) if query_token is None else by_patch[query_token]
        what = "all query tokens" if query_token is None else f"query token {labels[0][query_token]}"
        _draw_heat_map(axes, patches.take(values), page, f"{explanation.doc_id}: {what}")
    if isinstance(target, (str, PathLike)):
        axes.figure.savefig(target, dpi=120)
    return axes


def _matplotlib_figure() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("a picture needs matplotlib, which is not installed: pip install 'lemur_ann[plots]'") from error
    return Figure


def _page(image: Any) -> npt.NDArray[Any]:
    """The pixels of an image, (height, width, 3 or 4)."""
    if isinstance(image, (str, PathLike)):
        from PIL import Image  # which matplotlib depends on

        with Image.open(image) as opened:
            return _page(opened)
    page = np.asarray(image.convert("RGB") if hasattr(image, "convert") else image)
    if page.ndim == 2:
        page = np.repeat(page[:, :, None], 3, axis=2)
    if page.ndim != 3 or page.shape[2] not in (3, 4):
        raise ValueError(f"image must have shape (height, width) or (height, width, 3 or 4), got {page.shape}")
    return page


def _size_of_matrix(num_query: int, num_document: int) -> tuple[float, float]:
    """Width and height of a figure, in inches."""
    return min(max(2 + 0.16 * num_document, 5), 24), min(max(1.5 + 0.2 * num_query, 3), 16)


def _size_of_heat_map(patches: Patches, page: npt.NDArray[Any] | None) -> tuple[float, float]:
    high, wide = (patches.rows, patches.columns) if page is None else page.shape[:2]
    return 6, 0.5 + 5 * min(high / wide, 2)


def _draw_matrix(axes: Any, explanation: Pictured, labels: Labels, shown: list[int]) -> None:
    query, document = labels
    drawn = axes.imshow(explanation.similarities[shown], aspect="auto", interpolation="nearest", cmap="viridis")
    axes.plot(explanation.best_tokens[shown], range(len(shown)), ".", color="white", markeredgecolor="black")
    axes.set_yticks(range(len(shown)), [query[token] for token in shown])
    if explanation.document_words is not None and len(document) <= MAX_LABELS:
        axes.set_xticks(range(len(document)), document, rotation=90)
    axes.set_xlabel("document tokens")
    axes.set_ylabel("query tokens")
    axes.set_title(f"{explanation.doc_id}: score {explanation.score:.3f}")
    axes.figure.colorbar(drawn, ax=axes, label="similarity")


def _draw_heat_map(axes: Any, patches: npt.NDArray[np.float32], page: npt.NDArray[Any] | None, title: str) -> None:
    high, wide = patches.shape if page is None else page.shape[:2]
    if page is not None:
        axes.imshow(page)
    how: dict[str, Any] = {} if page is None else {"alpha": 0.55, "interpolation": "bilinear"}
    drawn = axes.imshow(patches, cmap="viridis", extent=(-0.5, wide - 0.5, high - 0.5, -0.5), **how)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(title)
    axes.figure.colorbar(drawn, ax=axes, label="similarity", shrink=0.8)
