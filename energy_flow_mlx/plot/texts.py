"""Pictures of texts: what tokens look at, and which embeddings are near each other."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from .styling import canvas, colour_bar


def attention(tokens: Sequence[str], weights: Any, *, layer: int = -1, head: int | None = None, ax: Axes | None = None) -> Axes:
    """What each token (a row) looks at.

    Args:
        tokens: T tokens.
        weights: [layers, heads, T, T]; `model.text_encoder.attention(text)` gives both.
        head: None: the mean over the heads.
    """
    chosen = np.asarray(weights)[layer]
    shown = chosen.mean(axis=0) if head is None else chosen[head]
    if shown.shape != (len(tokens),) * 2:
        raise ValueError(f"weights: shape {np.shape(weights)} came, accepted is (layers, heads, {len(tokens)}, {len(tokens)})")
    with canvas(ax, size=(3.3, 3.0)) as ax:
        image = ax.imshow(shown, cmap="viridis", vmin=0, interpolation="nearest")
        places = range(len(tokens))
        ax.set_xticks(places, tokens, rotation=90)
        ax.set_yticks(places, tokens)
        ax.tick_params(length=0)
        ax.grid(False)
        ax.set(xlabel="looked at", ylabel="token")
        colour_bar(ax, image, "weight")
    return ax


def embedding_map(embeddings: Mapping[str, Any] | Any, *, method: str = "pca", ax: Axes | None = None) -> Axes:
    """Embeddings, each scaled to length 1, in two dimensions.

    Args:
        embeddings: [N, E], or several such arrays by name, which get a colour each.
        method: "pca", or "umap", which needs umap-learn.
    """
    groups = embeddings if isinstance(embeddings, Mapping) else {"": embeddings}
    rows = {name: np.array(group, dtype=np.float64) for name, group in groups.items()}
    names = list(rows)
    axes, points = _project(np.concatenate(list(rows.values())), method)
    with canvas(ax, size=(3.3, 3.0)) as ax:
        parts = np.split(points, np.cumsum([len(group) for group in rows.values()])[:-1])
        for name, own, marker in zip(names, parts, itertools.cycle("os^DvPX"), strict=False):
            ax.scatter(own[:, 0], own[:, 1], s=9, marker=marker, alpha=0.75, linewidths=0, label=name)
        ax.set(xlabel=axes[0], ylabel=axes[1])
        if len(rows) > 1:
            ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    return ax


def _project(rows: NDArray[np.float64], method: str) -> tuple[tuple[str, str], NDArray[np.float64]]:
    """Names of two axes, and the rows [N, E] in them [N, 2]."""
    if method not in ("pca", "umap"):
        raise ValueError(f"method={method!r} came, accepted are 'pca' and 'umap'")
    if rows.ndim != 2 or len(rows) < 3:
        raise ValueError(f"embeddings: shape {rows.shape} came, accepted is (3 or more, E)")
    if method == "umap":
        try:
            from umap import UMAP
        except ImportError:
            raise ImportError("method='umap': umap-learn is not installed (pip install umap-learn)") from None
        return ("UMAP 1", "UMAP 2"), UMAP(metric="cosine", random_state=0).fit_transform(rows)
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    centred = rows - rows.mean(axis=0)
    _, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    share = 100 * sizes**2 / max(np.sum(sizes**2), 1e-12)
    return (f"PC 1, {share[0]:.0f} % of variance", f"PC 2, {share[1]:.0f} % of variance"), centred @ directions[:2].T
