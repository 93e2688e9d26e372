"""Figures of joint encoding models and readouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from isocortex.report.drawing import (
    ACCENT,
    INK,
    MUTED,
    QUALITATIVE,
    WARM,
    new_figure,
    raster_uri,
    svg_uri,
)

MAX_MAPS = 24
"""Attention maps that are drawn; more would be too small to see."""
MAX_CENTRES = 1500
"""Receptive fields that are drawn, evenly over the voxels; more hide each other."""


def space_colours(spaces: Sequence[str]) -> dict[str, str]:
    """Colour of each feature space in its order."""
    return {name: QUALITATIVE[index % len(QUALITATIVE)] for index, name in enumerate(spaces)}


def shares_figure(
    regions: Sequence[str],
    spaces: Sequence[str],
    shares: np.ndarray,
    unique: np.ndarray | None,
) -> str:
    """Draw the split of r2 over feature spaces as stacked bars by region.

    Parameters
    ----------
    regions, spaces
        Names.
    shares
        Share of the space in r2, shape (space, region); they sum to r2 and may be negative.
    unique
        r2 that is lost without the space, same shape, drawn as hatched bars beside.

    Returns
    -------
    str
        SVG data URI.
    """
    colours = space_colours(spaces)
    longest = max(len(name) for name in regions)
    figure = new_figure(min(2.6 + 0.85 * len(regions), 11.0), 3.1 + 0.05 * longest)
    axes = figure.add_subplot()
    places = np.arange(len(regions))
    width = 0.36 if unique is not None else 0.6
    kinds: list[tuple[np.ndarray, float, str]] = [(shares, 0.0, "")]
    if unique is not None:
        kinds = [(shares, -0.2, ""), (unique, 0.2, "////")]
    for values, shift, hatch in kinds:
        values = np.nan_to_num(values)
        # What is below 0 hangs down from 0, so that no part hides another.
        up, down = np.zeros(len(regions)), np.zeros(len(regions))
        for name, row in zip(spaces, values, strict=True):
            axes.bar(
                places + shift,
                row,
                width,
                bottom=np.where(row >= 0, up, down),
                color=colours[name],
                edgecolor="white",
                linewidth=0.6,
                hatch=hatch,
                label=None if hatch else name,
            )
            up, down = up + np.maximum(row, 0), down + np.minimum(row, 0)
    axes.axhline(0, color=INK, linewidth=0.7)
    axes.set_ylabel("held-out r²")
    _region_axis(axes, regions, longest)
    handles, _ = axes.get_legend_handles_labels()
    if unique is not None:
        handles.append(
            axes.bar([np.nan], [np.nan], color="#c4cad2", edgecolor="white", hatch="////")
        )
        handles[-1].set_label("unique part")
    figure.legend(handles=handles, loc="outside right upper", handlelength=1.4)
    return svg_uri(figure)


def _region_axis(axes: Any, regions: Sequence[str], longest: int) -> None:
    slanted = longest > 6
    axes.set_xticks(
        range(len(regions)),
        regions,
        rotation=45 if slanted else 0,
        ha="right" if slanted else "center",
        rotation_mode="anchor",
    )
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.6, len(regions) - 0.4)


def beside_figure(
    regions: Sequence[str], scores: Mapping[str, np.ndarray], *, label: str = "held-out r"
) -> str:
    """Draw scores by region side by side, first the one that others are compared with.

    Parameters
    ----------
    regions
        Names.
    scores
        By name, shape (region,) or (region, subject); subjects are drawn as dots on their mean.
    label
        Of the axis.

    Returns
    -------
    str
        SVG data URI.
    """
    longest = max(len(name) for name in regions)
    n = len(scores)
    figure = new_figure(min(2.8 + 0.32 * (n + 1) * len(regions), 11.0), 2.9 + 0.05 * longest)
    axes = figure.add_subplot()
    width = 0.8 / n
    for index, (name, values) in enumerate(scores.items()):
        values = np.asarray(values, dtype=float)
        values = values[:, None] if values.ndim == 1 else values
        places = np.arange(len(regions)) + (index - (n - 1) / 2) * width
        known = np.isfinite(values)
        mean = np.where(known, values, 0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
        colour = "#b5bcc6" if index == 0 else QUALITATIVE[(index - 1) % len(QUALITATIVE)]
        axes.bar(places, mean, 0.92 * width, color=colour, label=name)
        if 1 < values.shape[1] <= 40:
            spread = np.linspace(-0.26, 0.26, values.shape[1]) * width
            axes.scatter(
                (places[:, None] + spread).ravel(),
                values.ravel(),
                s=8,
                color="white",
                edgecolors=INK,
                linewidths=0.6,
                zorder=3,
            )
    axes.axhline(0, color=INK, linewidth=0.7)
    axes.set_ylabel(label)
    _region_axis(axes, regions, longest)
    figure.legend(loc="outside right upper", handlelength=1.4)
    return svg_uri(figure)


def coverage_figure(
    x: np.ndarray, y: np.ndarray, size: np.ndarray | None, *, units: str, half_width: float | None
) -> str:
    """Draw where receptive fields lie, and how their size goes with eccentricity.

    Parameters
    ----------
    x, y, size
        Centre and standard deviation by voxel, shape (voxel,), y upwards; all finite.
    units
        Of all three.
    half_width
        Half the width of the image in these units, drawn as a frame; None: not known.

    Returns
    -------
    str
        WebP data URI.
    """
    chosen = np.linspace(0, len(x) - 1, min(len(x), MAX_CENTRES)).astype(int)
    figure = new_figure(8.6 if size is not None else 4.4, 3.8)
    cells = figure.subplots(1, 2 if size is not None else 1, squeeze=False)[0]
    axes = cells[0]
    axes.axhline(0, color=MUTED, linewidth=0.5)
    axes.axvline(0, color=MUTED, linewidth=0.5)
    axes.scatter(x[chosen], y[chosen], s=7, color=ACCENT, alpha=0.45, linewidths=0)
    reach = 1.05 * max(float(np.abs(x).max()), float(np.abs(y).max()), half_width or 1e-6)
    if half_width is not None:
        axes.plot(
            half_width * np.array([-1, 1, 1, -1, -1]),
            half_width * np.array([-1, -1, 1, 1, -1]),
            color=MUTED,
            linewidth=0.8,
            linestyle=(0, (4, 3)),
        )
    axes.set_xlim(-reach, reach)
    axes.set_ylim(-reach, reach)
    axes.set_aspect("equal")
    axes.set_xlabel(f"x, {units}")
    axes.set_ylabel(f"y, {units}")
    axes.set_title("Centres")
    if size is not None:
        axes = cells[1]
        distance = np.hypot(x, y)
        axes.scatter(distance[chosen], size[chosen], s=7, color=ACCENT, alpha=0.45, linewidths=0)
        axes.set_xlim(0, None)
        axes.set_ylim(0, None)
        axes.set_xlabel(f"eccentricity, {units}")
        axes.set_ylabel(f"size (SD), {units}")
        axes.set_title("Size")
    return raster_uri(figure)


def attention_figure(queries: Sequence[str], attention: np.ndarray) -> str:
    """Draw the mean attention of queries over the image.

    Parameters
    ----------
    queries
        Names, at most `MAX_MAPS`.
    attention
        Shape (query, row, column), 0 or more.

    Returns
    -------
    str
        WebP data URI.
    """
    columns = min(len(queries), 8)
    rows = -(-len(queries) // columns)
    height, width = attention.shape[1:]
    across = 1.3 * columns
    figure = new_figure(across + 1.0, rows * (1.3 * height / width + 0.24) + 0.1)
    grid = figure.subplots(rows, columns, squeeze=False)
    # As a multiple of even attention: 1 everywhere where a query looks at nothing in particular.
    even = attention * height * width
    reach = max(float(np.nanmax(even)), 1e-6)
    drawn = None
    for cell, name, values in zip(grid.ravel(), queries, even, strict=False):
        drawn = cell.imshow(values, cmap="magma", vmin=0, vmax=reach, interpolation="nearest")
        cell.set_title(name, fontsize=7.5, fontweight="normal", pad=2)
    for cell in grid.ravel():
        cell.set_axis_off()
    bar = figure.colorbar(drawn, ax=grid, fraction=0.03, pad=0.01)
    bar.set_label("even attention = 1")
    bar.outline.set_visible(False)
    return raster_uri(figure)


def losses_figure(curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> str:
    """Draw training and validation losses by epoch, one panel a training.

    Parameters
    ----------
    curves
        Training and validation loss by name, each of shape (fold, epoch), NaN after the last.

    Returns
    -------
    str
        SVG data URI.
    """
    columns = min(len(curves), 4)
    rows = -(-len(curves) // columns)
    figure = new_figure(1.2 + 2.3 * columns, 0.45 + 1.75 * rows)
    grid = figure.subplots(rows, columns, squeeze=False)
    for cell, (name, pair) in zip(grid.ravel(), curves.items(), strict=False):
        for losses, colour, label in zip(pair, (ACCENT, WARM), ("training", "validation")):
            epochs = np.arange(1, losses.shape[1] + 1)
            for index, row in enumerate(losses):
                cell.plot(epochs, row, color=colour, linewidth=0.9, label=None if index else label)
        cell.set_title(name)
        cell.set_xlabel("epoch")
    for cell in grid[:, 0]:
        cell.set_ylabel("loss")
    for cell in grid.ravel()[len(curves) :]:
        cell.set_visible(False)
    handles, _ = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles=handles, loc="outside right upper")
    return svg_uri(figure)
