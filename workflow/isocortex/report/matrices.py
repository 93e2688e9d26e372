"""Figures of dissimilarities: RDMs with stimuli, MDS, confusion and threshold grids."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke

from isocortex.report.drawing import (
    INK,
    MUTED,
    RULE,
    category_colours,
    new_figure,
    raster_uri,
    svg_uri,
)


@dataclass(frozen=True)
class StimulusOrder:
    """Stimuli in the order in which every figure shows them.

    Parameters
    ----------
    names
        Stimulus ids, ordered by category, then by id.
    categories
        Category of each, empty where there are none.
    source
        Where the categories come from, for captions.
    """

    names: tuple[str, ...]
    categories: tuple[str, ...]
    source: str

    @property
    def groups(self) -> list[tuple[str, int, int]]:
        """Runs of one category: name, first and one past the last position."""
        out: list[tuple[str, int, int]] = []
        for position, category in enumerate(self.categories):
            if out and out[-1][0] == category:
                out[-1] = (category, out[-1][1], position + 1)
            else:
                out.append((category, position, position + 1))
        return out


def order_stimuli(names: Sequence[str], given: Mapping[str, str] | None = None) -> StimulusOrder:
    """Order stimuli by category.

    Parameters
    ----------
    names
        Stimulus ids.
    given
        Category of each id, for example the condition in the events. Ignored where it puts every
        stimulus into a category of its own, or all into one.

    Notes
    -----
    Without given categories the folder in the id is one ("faces/03.png"), else its leading word
    ("face_03.png"), where that makes at least 2 categories of at least 2 stimuli on average.
    """
    names = sorted(dict.fromkeys(str(name) for name in names))
    ways = [("given with the data", lambda name: str((given or {}).get(name, "")))]
    if all("/" in name for name in names):
        ways.append(("the folder in the stimulus name", lambda name: name.rsplit("/", 1)[0]))
    ways.append(("the leading word of the stimulus name", _leading_word))
    for source, category_of in ways:
        categories = {name: category_of(name) for name in names}
        unique = set(categories.values())
        if "" not in unique and 2 <= len(unique) <= len(names) / 2:
            ordered = sorted(names, key=lambda name: (categories[name], name))
            return StimulusOrder(
                tuple(ordered), tuple(categories[name] for name in ordered), source
            )
    return StimulusOrder(tuple(names), (), "")


FEWEST_TO_CLUSTER = 8
"""With fewer stimuli their own order is easier to read than that of clusters."""


def order_by_similarity(order: StimulusOrder, matrix: np.ndarray) -> StimulusOrder:
    """Order stimuli without categories so that similar ones stand together.

    Parameters
    ----------
    order
        Stimuli; returned as they are where they have categories or are few.
    matrix
        Dissimilarities in `order`, shape (n, n); NaN pairs take the mean.

    Returns
    -------
    StimulusOrder
        In the order of the leaves of a hierarchical clustering (average linkage, optimal leaves up
        to 200 stimuli).
    """
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    n = len(order.names)
    if order.categories or n < FEWEST_TO_CLUSTER:
        return order
    filled = _filled(matrix)
    np.fill_diagonal(filled, 0.0)
    # Crossnobis estimates may be negative; a shift leaves average linkage as it is.
    condensed = squareform(filled, checks=False)
    tree = linkage(condensed - condensed.min(), "average", optimal_ordering=n <= 200)
    names = tuple(order.names[leaf] for leaf in leaves_list(tree))
    return StimulusOrder(names, (), "hierarchical clustering of the regions' mean RDM")


def _filled(matrix: np.ndarray) -> np.ndarray:
    """Copy with the mean off the diagonal in place of NaN."""
    out = np.array(matrix, dtype=float)
    out[~np.isfinite(out)] = np.nanmean(out[~np.eye(len(out), dtype=bool)])
    return out


def _leading_word(name: str) -> str:
    found = re.match(r"([A-Za-z]+(?:[ -][A-Za-z]+)*)[_\-. ]?\d", name.rsplit("/", 1)[-1])
    return found.group(1) if found else ""


def square(
    values: np.ndarray, first: Sequence[str], second: Sequence[str], order: Sequence[str]
) -> np.ndarray:
    """Put pair values into a square matrix by stimulus id.

    Parameters
    ----------
    values
        Shape (pair,).
    first, second
        Stimulus ids of each pair.
    order
        Stimuli of the rows and columns.

    Returns
    -------
    numpy.ndarray
        Shape (len(order), len(order)), symmetric; 0 on the diagonal, NaN for pairs not given.
    """
    place = {name: position for position, name in enumerate(order)}
    out = np.full((len(order), len(order)), np.nan)
    np.fill_diagonal(out, 0.0)
    rows = np.array([place.get(str(name), -1) for name in first])
    columns = np.array([place.get(str(name), -1) for name in second])
    known = (rows >= 0) & (columns >= 0)
    out[rows[known], columns[known]] = np.asarray(values)[known]
    out[columns[known], rows[known]] = np.asarray(values)[known]
    return out


def percentiles(matrix: np.ndarray) -> np.ndarray:
    """Replace the dissimilarities by their percentile, 0 to 100 (ties share the mean rank).

    As in Kriegeskorte et al. 2008, so that RDMs of different scale can be compared by eye.
    """
    from scipy.stats import rankdata

    upper = np.triu_indices(len(matrix), 1)
    values = matrix[upper]
    finite = np.isfinite(values)
    ranks = np.full(values.shape, np.nan)
    if finite.sum() > 1:
        ranks[finite] = 100 * (rankdata(values[finite]) - 1) / (finite.sum() - 1)
    out = np.zeros_like(matrix)
    out[upper] = ranks
    out.T[upper] = ranks
    return out


def classical_mds(dissimilarity: np.ndarray) -> tuple[np.ndarray, float]:
    """Place stimuli in the plane by classical (Torgerson) scaling.

    Parameters
    ----------
    dissimilarity
        Shape (n, n), taken as squared distances, which correlation distances and crossnobis
        estimates are; may be negative. NaN pairs take the mean.

    Returns
    -------
    positions
        Shape (n, 2).
    share
        Share of the positive eigenvalues' sum that two dimensions carry.
    """
    matrix = _filled(dissimilarity)
    centring = np.eye(len(matrix)) - 1 / len(matrix)
    inner = -0.5 * centring @ matrix @ centring
    values, vectors = np.linalg.eigh(inner)
    values, vectors = values[::-1], vectors[:, ::-1]
    positive = np.clip(values, 0, None)
    positions = vectors[:, :2] * np.sqrt(positive[:2])
    # The sign of an eigenvector is arbitrary: fix it, so that pictures do not flip.
    peak = np.abs(positions).argmax(axis=0)
    signs = np.sign(positions[peak, np.arange(positions.shape[1])])
    positions = positions * np.where(signs == 0, 1, signs)
    return positions, float(positive[:2].sum() / positive.sum()) if positive.sum() > 0 else 0.0


def metric_mds(dissimilarity: np.ndarray) -> tuple[np.ndarray, float]:
    """Place stimuli in the plane by metric scaling (SMACOF, started from classical scaling).

    Parameters
    ----------
    dissimilarity
        Shape (n, n), taken as distances; negative ones count as 0, NaN pairs take the mean.

    Returns
    -------
    positions
        Shape (n, 2).
    stress
        Kruskal's stress-1: 0 where distances in the plane equal the dissimilarities.
    """
    from sklearn.manifold import smacof

    matrix = np.clip(_filled(dissimilarity), 0, None)
    np.fill_diagonal(matrix, 0.0)
    start, _ = classical_mds(matrix**2)
    if not matrix.any():
        return start, 0.0
    return smacof(
        matrix,
        metric=True,
        n_components=2,
        init=start,
        n_init=1,
        max_iter=300,
        normalized_stress=True,
    )


def align(configurations: Sequence[np.ndarray], *, rounds: int = 10) -> list[np.ndarray]:
    """Align point sets by generalised Procrustes: shift, scale, rotate or mirror to their mean.

    Parameters
    ----------
    configurations
        Arrays of shape (n, 2) over the same points.
    rounds
        Times the mean is formed anew.

    Returns
    -------
    list of numpy.ndarray
        Unit-norm configurations in the order given.
    """

    def normalised(points: np.ndarray) -> np.ndarray:
        centred = points - points.mean(axis=0)
        norm = np.linalg.norm(centred)
        return centred / norm if norm > 0 else centred

    aligned = [normalised(points) for points in configurations]
    mean = aligned[0]
    for _ in range(rounds):
        for index, points in enumerate(aligned):
            left, _, right = np.linalg.svd(points.T @ mean)
            aligned[index] = points @ (left @ right)
        mean = normalised(np.mean(aligned, axis=0))
    return aligned


def rdm_figure(
    matrices: Mapping[str, np.ndarray],
    order: StimulusOrder,
    *,
    thumbnails: Mapping[str, np.ndarray],
    notes: Mapping[str, str] | None = None,
) -> str:
    """Draw RDMs in percentiles, with the stimuli along the axes: as images, or by name.

    Names stand where there are no images and few enough stimuli for them to be read.

    Parameters
    ----------
    matrices
        Dissimilarities by region, shape (n, n) in `order`.
    order
        Stimuli and categories.
    thumbnails
        Images by stimulus id; may be empty.
    notes
        A few words after a region's name, for example its number of voxels.

    Returns
    -------
    str
        WebP data URI.
    """
    n = len(order.names)
    columns = 2 if (thumbnails and n > 12) or len(matrices) < 3 else 3
    rows = -(-len(matrices) // columns)
    side = 10.6 / columns
    figure = new_figure(11.0, rows * (side * 0.98) + 0.55, layout=None)
    colours = category_colours(order.categories)
    total_height = figure.get_figheight()
    # Staggered in several lanes a thumbnail may be wider than its row.
    lanes = 1 if n <= 16 else 2 if n <= 36 else 3
    strip = lanes * min(lanes / n, 0.22) if thumbnails else 0.0
    bar = 0.018 if order.categories else 0.0
    names, fontsize = ([], 0.0) if thumbnails else _readable_names(order.names, side * 0.95)
    if names:
        # Room for the longest name, in units of the matrix; a letter is about 0.6 em wide.
        inches = max(len(name) for name in names) * 0.6 * fontsize / 72 + 0.08
        strip = inches / (side * 0.95 - inches)
    strips = _thumbnail_strips(order.names, thumbnails, lanes, -bar) if thumbnails else []
    edge = lanes / (2 * n) if thumbnails else 0.0
    for index, (region, matrix) in enumerate(matrices.items()):
        row, column = divmod(index, columns)
        left = (0.2 + column * side) / 11.0
        top = 1 - (0.05 + row * side * 0.98) / total_height
        width, height = side * 0.95 / 11.0, side * 0.95 / total_height
        axes = figure.add_axes((left, top - height, width, height))
        axes.set_aspect("equal", adjustable="box", anchor="NW")
        axes.imshow(
            percentiles(matrix),
            extent=(0, 1, 1, 0),
            cmap="magma",
            vmin=0,
            vmax=100,
            interpolation="nearest",
        )
        axes.set_axis_off()
        label = region if not notes else f"{region}  {notes.get(region, '')}"
        axes.text(0, -strip - bar - 0.02, label, fontweight="bold", va="bottom", fontsize=9.5)
        for name, start, stop in order.groups:
            for box in (
                (start / n, -bar, (stop - start) / n, bar * 0.75),
                (-bar, start / n, bar * 0.75, (stop - start) / n),
            ):
                axes.add_patch(
                    Rectangle(box[:2], box[2], box[3], facecolor=colours[name], edgecolor="none")
                )
        for image, extent in strips:
            axes.imshow(image, extent=extent, interpolation="antialiased", zorder=3)
        for place, name in enumerate(names):
            at, gap = (place + 0.5) / n, -bar - 0.012
            axes.text(gap, at, name, ha="right", va="center", fontsize=fontsize)
            axes.text(at, gap, name, ha="center", va="bottom", rotation=90, fontsize=fontsize)
        axes.set_xlim(-strip - bar - 0.005, 1 + edge)
        axes.set_ylim(1 + edge, -strip - bar - 0.06)
    foot = 0.42 / total_height
    mappable = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(0, 100), "magma")
    bar_axes = figure.add_axes((0.02, foot * 0.62, 0.16, foot * 0.26))
    colourbar = figure.colorbar(mappable, cax=bar_axes, orientation="horizontal")
    colourbar.outline.set_visible(False)
    bar_axes.tick_params(labelsize=7, length=2)
    figure.text(0.19, foot * 0.75, "percentile of dissimilarity", fontsize=8, va="center")
    _category_legend(figure, colours, anchor=(0.36, foot * 0.75))
    return raster_uri(figure, dpi=150)


def _readable_names(names: Sequence[str], width: float) -> tuple[list[str], float]:
    """Shorten names for the axes of an RDM.

    Parameters
    ----------
    names
        Stimulus ids.
    width
        Room for the RDM and its names, inches.

    Returns
    -------
    list of str
        Names of at most 16 letters; empty where the rows are too low for any to be read.
    float
        Font size, points.
    """
    fontsize = min(8.0, 0.7 * width * 72 / max(len(names), 1))
    if fontsize < 5:
        return [], 0.0
    return [name if len(name) <= 16 else f"{name[:15]}…" for name in names], fontsize


def _thumbnail_strips(
    names: Sequence[str], thumbnails: Mapping[str, np.ndarray], lanes: int, edge: float
) -> list[tuple[np.ndarray, tuple[float, float, float, float]]]:
    """Compose the images along the top and the left side, each lane shifted by one stimulus.

    Returns
    -------
    list
        RGBA image and extent of the strip above and of the strip on the left, in units of the
        matrix, whose edge towards the strips is at `edge`.
    """
    n = len(names)
    size = next(iter(thumbnails.values())).shape[0]
    # An image is as wide as `lanes` stimuli, or as high as its lane where that is less.
    share = min(lanes / n, 0.22)
    length = round(size / share * (1 + lanes / n))
    strips = [
        np.zeros((lanes * size, length, 4), np.uint8),
        np.zeros((length, lanes * size, 4), np.uint8),
    ]
    for position, name in enumerate(names):
        if name not in thumbnails:
            continue
        image = np.full((size, size, 4), 255, np.uint8)
        image[1:-1, 1:-1, :3] = thumbnails[name][1:-1, 1:-1]
        along = round(((position + 0.5) / n + lanes / (2 * n)) * size / share - size / 2)
        along = min(max(along, 0), length - size)
        across = (lanes - 1 - position % lanes) * size
        strips[0][across : across + size, along : along + size] = image
        strips[1][along : along + size, across : across + size] = image
    low, high = -lanes / (2 * n), 1 + lanes / (2 * n)
    depth = lanes * share
    return [
        (strips[0], (low, high, edge, edge - depth)),
        (strips[1], (edge - depth, edge, high, low)),
    ]


def _category_legend(
    figure: Figure, colours: Mapping[str, str], *, anchor: tuple[float, float]
) -> None:
    if not colours or len(colours) > 14:
        return
    figure.legend(
        handles=[Patch(facecolor=colour, label=name) for name, colour in colours.items()],
        loc="center left",
        bbox_to_anchor=anchor,
        ncols=min(len(colours), 7),
        handlelength=1.1,
        columnspacing=1.2,
        fontsize=8,
    )


def mds_figure(
    positions: Mapping[str, np.ndarray],
    stress: Mapping[str, float],
    order: StimulusOrder,
    *,
    thumbnails: Mapping[str, np.ndarray],
) -> str:
    """Draw stimuli of each region in the plane.

    Parameters
    ----------
    positions
        Aligned positions by region, shape (n, 2).
    stress
        Stress-1 by region.
    order
        Stimuli and categories.
    thumbnails
        Images by stimulus id; stimuli without one are dots, with their names where they are few.

    Returns
    -------
    str
        WebP data URI.
    """
    columns = min(3, len(positions))
    rows = -(-len(positions) // columns)
    figure = new_figure(11.0, rows * 3.55 + 0.35)
    axes_list = figure.subplots(rows, columns, squeeze=False).ravel()
    colours = category_colours(order.categories)
    tints = [colours[name] for name in order.categories] or [MUTED] * len(order.names)
    reach = max(float(np.abs(points).max()) for points in positions.values()) * 1.12 or 1.0
    pixels = 520
    size = reach * (0.085 if len(order.names) > 30 else 0.13)
    for axes, (region, points) in zip(axes_list, positions.items()):
        axes.set_title(f"{region}  (stress {stress[region]:.2f})")
        limit = reach + size
        canvas = np.zeros((pixels, pixels, 4), np.uint8)
        half = round(size / limit * pixels / 2)
        for (x, y), name, tint in zip(points, order.names, tints):
            if name not in thumbnails:
                axes.plot(x, y, "o", color=tint, markersize=5, markeredgecolor="white", zorder=3)
                if len(order.names) <= 16:
                    short = _readable_names([name], 3.0)[0][0]
                    # Beside the point, on the side where there is room.
                    side, shift = ("left", 4) if x < limit / 3 else ("right", -4)
                    axes.annotate(
                        short,
                        (x, y),
                        (shift, 0),
                        textcoords="offset points",
                        ha=side,
                        va="center",
                        fontsize=7.5,
                    )
                continue
            row = round((limit - y) / (2 * limit) * pixels)
            column = round((x + limit) / (2 * limit) * pixels)
            tile = np.full((2 * half, 2 * half, 4), 255, np.uint8)
            tile[..., :3] = np.round(255 * np.array(matplotlib.colors.to_rgb(tint)))
            pick = np.linspace(0, len(thumbnails[name]) - 1, 2 * half - 4).round().astype(int)
            tile[2:-2, 2:-2, :3] = thumbnails[name][np.ix_(pick, pick)]
            top, left = max(row - half, 0), max(column - half, 0)
            part = canvas[top : row + half, left : column + half]
            part[:] = tile[: part.shape[0], : part.shape[1]]
        axes.imshow(canvas, extent=(-limit, limit, -limit, limit), interpolation="antialiased")
        axes.set_xlim(-limit, limit)
        axes.set_ylim(-limit, limit)
        axes.set_aspect("equal")
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(True)
            spine.set_color(RULE)
    for axes in axes_list[len(positions) :]:
        axes.set_visible(False)
    if colours and len(colours) <= 14:
        figure.legend(
            handles=[Patch(facecolor=colour, label=name) for name, colour in colours.items()],
            loc="outside lower center",
            ncols=min(len(colours), 7),
            handlelength=1.1,
        )
    return raster_uri(figure, dpi=140)


def confusion_figure(
    confusions: Mapping[str, np.ndarray],
    regions: Sequence[str],
    predicted: Sequence[str],
    *,
    columns: int = 3,
    what: str = "region",
) -> str:
    """Draw confusion matrices side by side, rows in percent of the true region's cases.

    Parameters
    ----------
    confusions
        Counts by title, shape (region, predicted).
    regions, predicted
        Names of rows and columns.
    columns
        Matrices beside each other.
    what
        What is identified, for the axes' labels.

    Returns
    -------
    str
        SVG data URI.
    """
    columns = min(columns, len(confusions))
    rows = -(-len(confusions) // columns)
    width = min(3.7 if len(regions) <= 8 else 5.0, 10.2 / columns)
    longest = max(len(name) for name in [*regions, *predicted])
    figure = new_figure(width * columns + 0.6, rows * (width * 0.86 + 0.25) + 0.05 * longest + 0.1)
    axes_grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    drawn = None
    small = width < 2.6
    for axes, (name, counts) in zip(axes_grid.ravel(), confusions.items()):
        counts = np.asarray(counts, dtype=float)
        total = counts.sum(axis=1, keepdims=True)
        share = np.divide(100 * counts, total, out=np.zeros_like(counts), where=total > 0)
        drawn = axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
        axes.set_title(name, fontsize=8.5 if small else None)
        axes.set_xticks(
            range(len(predicted)),
            predicted,
            rotation=60 if longest > 2 else 0,
            ha="right" if longest > 2 else "center",
            rotation_mode="anchor",
            fontsize=7 if small else None,
        )
        axes.set_yticks(range(len(regions)), regions, fontsize=7 if small else None)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        if len(regions) <= 12 and not small:
            for (row, column), value in np.ndenumerate(counts):
                if value:
                    axes.text(
                        column,
                        row,
                        f"{int(value)}",
                        ha="center",
                        va="center",
                        fontsize=7.5,
                        color="white" if share[row, column] > 55 else INK,
                    )
    for axes in axes_grid.ravel()[len(confusions) :]:
        axes.set_visible(False)
    for axes in axes_grid[:, 0]:
        axes.set_ylabel(f"true {what}")
    for axes in _lowest(axes_grid, len(confusions)):
        axes.set_xlabel(f"predicted {what}")
    bar = figure.colorbar(drawn, ax=list(axes_grid.ravel()), fraction=0.03, pad=0.02, aspect=24)
    bar.set_label(f"% of the true {what}")
    bar.outline.set_visible(False)
    return svg_uri(figure)


def _lowest(grid: np.ndarray, n: int) -> list[Any]:
    """Lowest of the first `n` axes in each column of a grid, with their tick labels on."""
    columns = grid.shape[1]
    lowest = list(grid.ravel()[max(n - columns, 0) : n])
    for axes in lowest:
        axes.tick_params(labelbottom=True)
    return lowest


def cells_figure(
    panels: Mapping[str, np.ndarray],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    label: str,
    marks: Mapping[str, np.ndarray] | None = None,
    shared: bool = True,
    cmap: str = "viridis",
) -> str:
    """Draw tables of numbers as heat maps side by side, the number in each cell.

    Parameters
    ----------
    panels
        Values by title, shape (row, column); NaN cells stay empty.
    rows, columns
        Names.
    label
        Name and unit of the values.
    marks
        Cells that get an asterisk, same shapes.
    shared
        One colour scale for all panels, else each has its own.
    cmap
        Colours, from low to high, dark to light.

    Returns
    -------
    str
        SVG data URI.
    """
    longest_row = max(len(name) for name in rows)
    longest = max(len(name) for name in columns)
    left = 0.075 * longest_row + 0.3
    side = min((10.0 - left) / (len(panels) * len(columns)), 0.72)
    figure = new_figure(
        min(11.0, left + 1.0 + len(panels) * (len(columns) * side + 0.25)),
        len(rows) * min(max(side * 0.6, 0.24), 0.4) + 0.055 * longest + 0.75,
    )
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    everything = np.concatenate([values.ravel() for values in panels.values()])
    bars: list[tuple[Any, list[Any]]] = []
    for axes, (name, values) in zip(grid, panels.items()):
        norm = _span(everything if shared else values)
        drawn = axes.imshow(np.ma.masked_invalid(values), cmap=cmap, norm=norm, aspect="auto")
        bars.append((drawn, [axes]))
        axes.set_title(name)
        axes.set_xticks(
            range(len(columns)),
            columns,
            rotation=45 if longest > 4 else 0,
            ha="right" if longest > 4 else "center",
            rotation_mode="anchor",
        )
        axes.set_yticks(range(len(rows)), rows)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        if side < 0.36:
            continue
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                star = "*" if marks is not None and marks[name][row, column] else ""
                axes.text(
                    column,
                    row,
                    f"{value:.2f}{star}".replace("-", "−"),
                    ha="center",
                    va="center",
                    fontsize=7.5,
                    color=INK if norm(value) > 0.6 else "white",
                )
    for drawn, axes in [(bars[-1][0], list(grid))] if shared else bars:
        bar = figure.colorbar(drawn, ax=axes, fraction=0.03, pad=0.02, aspect=24)
        bar.set_label(label)
        bar.outline.set_visible(False)
    return svg_uri(figure)


def _span(values: np.ndarray) -> Any:
    """Colour scale from the lowest to the highest value."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    return matplotlib.colors.Normalize(low, high if high > low else low + 1e-6)


def threshold_grid_figure(
    lower: np.ndarray,
    upper: np.ndarray,
    families: Sequence[str],
    panels: Mapping[str, np.ndarray],
    *,
    chance: float,
    baselines: Mapping[str, np.ndarray],
) -> str:
    """Draw identification accuracy over the triangle of thresholds l < u, the families outlined.

    Parameters
    ----------
    lower, upper
        Thresholds, shape (cell,).
    families
        Family of each cell's pair of thresholds.
    panels
        Accuracies by title, shape (cell,), 0 to 1.
    chance
        Chance level, the bottom of the colour scale.
    baselines
        Accuracies of other statistics, one a panel, by name; drawn on the same scale in the empty
        half.

    Returns
    -------
    str
        SVG data URI.
    """
    lows, highs = np.unique(lower), np.unique(upper)
    at = (np.searchsorted(highs, upper), np.searchsorted(lows, lower))
    codes = {name: index for index, name in enumerate(dict.fromkeys(families))}
    family = np.full((len(highs), len(lows)), -1)
    family[at] = [codes[name] for name in families]
    everything = np.concatenate([*panels.values(), *baselines.values()])
    top = max(float(np.nanmax(everything)), chance + 0.05)
    norm = matplotlib.colors.Normalize(chance, top)
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    width = 6.4 if columns == 1 else 10.4 / columns
    figure = new_figure(
        width + 0.4 if columns == 1 else 11.0, rows * width * (0.76 if columns == 1 else 0.84)
    )
    axes_list = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    drawn = None
    for panel, (axes, (title, accuracy)) in enumerate(zip(axes_list.ravel(), panels.items())):
        matrix = np.full(family.shape, np.nan)
        matrix[at] = accuracy
        drawn = axes.imshow(
            np.ma.masked_invalid(matrix),
            cmap="viridis",
            norm=norm,
            origin="lower",
            interpolation="nearest",
            aspect="auto",
        )
        axes.set_title(title)
        _outline(axes, family)
        _name_families(axes, family, codes, fontsize=8 if columns == 1 else 7)
        _baseline_cells(
            axes, {name: float(values[panel]) for name, values in baselines.items()}, norm
        )
        ticks = [range(0, len(values), -(-len(values) // 6)) for values in (lows, highs)]
        axes.set_xticks(ticks[0], [f"{lows[index]:.2f}" for index in ticks[0]])
        axes.set_yticks(ticks[1], [f"{highs[index]:.2f}" for index in ticks[1]])
        axes.tick_params(length=2)
    for axes in axes_list.ravel()[len(panels) :]:
        axes.set_visible(False)
    for axes in _lowest(axes_list, len(panels)):
        axes.set_xlabel("lower threshold l")
    for axes in axes_list[:, 0]:
        axes.set_ylabel("upper threshold u")
    bar = figure.colorbar(
        drawn, ax=list(axes_list.ravel()), fraction=0.035, pad=0.02, extend="min", aspect=26
    )
    bar.set_label(f"identification accuracy (chance {chance:.2f})")
    bar.outline.set_visible(False)
    return svg_uri(figure)


def _outline(axes: Any, family: np.ndarray) -> None:
    """Draw a line wherever two neighbouring cells are of different families."""
    padded = np.pad(family, 1, constant_values=-1)
    edges = []
    for row, column in zip(*np.nonzero(padded[:, 1:] != padded[:, :-1])):
        edges.append([(column - 0.5, row - 1.5), (column - 0.5, row - 0.5)])
    for row, column in zip(*np.nonzero(padded[1:] != padded[:-1])):
        edges.append([(column - 1.5, row - 0.5), (column - 0.5, row - 0.5)])
    for colour, width in (("white", 2.6), (INK, 1.1)):
        axes.add_collection(
            LineCollection(edges, colors=colour, linewidths=width, clip_on=False, zorder=4)
        )
    for spine in axes.spines.values():
        spine.set_visible(False)


def _name_families(
    axes: Any, family: np.ndarray, codes: Mapping[str, int], *, fontsize: float
) -> None:
    """Write each family's name over the cell nearest to the middle of its cells."""
    for name, code in codes.items():
        cells = np.argwhere(family == code)
        middle = cells[np.linalg.norm(cells - cells.mean(axis=0), axis=1).argmin()]
        text = axes.text(
            middle[1],
            middle[0],
            name.replace("-", "-\n"),
            ha="center",
            va="center",
            fontsize=fontsize,
            fontweight="bold",
            linespacing=0.95,
            zorder=6,
        )
        text.set_path_effects([withStroke(linewidth=2.4, foreground="white")])


def _baseline_cells(axes: Any, values: Mapping[str, float], norm: Any) -> None:
    """List other statistics with their colour in the empty half under the diagonal."""
    for row, (name, value) in enumerate(values.items()):
        bottom = 0.05 + 0.09 * (len(values) - 1 - row)
        axes.add_patch(
            Rectangle(
                (0.93, bottom),
                0.055,
                0.07,
                transform=axes.transAxes,
                facecolor=matplotlib.colormaps["viridis"](norm(value)),
                edgecolor=INK,
                linewidth=0.6,
            )
        )
        axes.text(
            0.915,
            bottom + 0.035,
            f"{name} {100 * value:.0f}%",
            transform=axes.transAxes,
            ha="right",
            va="center",
            fontsize=7.5,
        )
