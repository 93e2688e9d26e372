"""Bar charts of model scores with noise ceilings and the tests between models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from isocortex.report.drawing import CEILING, INK, MUTED, new_figure, svg_uri

HATCHES = {"fixed": "", "weighted": "////", "selected": "....", "interpolated": "xxxx"}


@dataclass(frozen=True)
class BarPanel:
    """What one panel of a bar chart shows: a region.

    Parameters
    ----------
    title
        Name of the region.
    names, kinds, colours
        Of the predictors, in the order of the bars.
    mean, low, high
        Score with interval, shape (predictor,); NaN ends draw no line.
    subjects
        Scores of the subjects, shape (predictor, subject).
    ceiling
        Lower and upper noise ceiling, shape (2,); NaN draws none.
    ceiling_interval
        Ends of their intervals, shape (2, 2).
    above_zero, below_ceiling
        True, False, or None where there was no test, by predictor.
    wins
        Whether the row's predictor is significantly better than the column's, shape
        (predictor, predictor).
    """

    title: str
    names: Sequence[str]
    kinds: Sequence[str]
    colours: Sequence[Any]
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    subjects: np.ndarray
    ceiling: np.ndarray
    ceiling_interval: np.ndarray
    above_zero: Sequence[bool | None]
    below_ceiling: Sequence[bool | None]
    wins: np.ndarray


def bars_figure(panels: Sequence[BarPanel], *, label: str) -> str:
    """Draw scores as bars, a panel a region, with wings for the tests between predictors.

    Above the bars each predictor that is significantly better than another has a line: a dot over
    itself, a tick over each that it beats (the wings of Golan et al. 2020). Below the bars dots say
    which are above 0 and which below the lower noise ceiling.

    Parameters
    ----------
    panels
        Regions in reading order.
    label
        Name of the score.

    Returns
    -------
    str
        SVG data URI.
    """
    most = max(len(panel.names) for panel in panels)
    columns = min(3 if most <= 8 else 2, len(panels))
    rows = -(-len(panels) // columns)
    wing_rows = max(int(panel.wins.any(axis=1).sum()) for panel in panels)
    tests = _test_rows(panels)
    longest = max(len(name) for panel in panels for name in panel.names)
    heights = (max(0.1 * wing_rows, 0.02), 1.75, max(0.15 * len(tests), 0.02))
    foot = min(0.15 + 0.058 * longest, 1.6)
    figure = new_figure(11.0, rows * (sum(heights) + foot + 0.42) + 0.35)
    figure.get_layout_engine().set(hspace=0.02, h_pad=0.03)
    outer = figure.add_gridspec(rows, columns)
    reach = [np.r_[panel.subjects.ravel(), panel.low, panel.high, panel.mean] for panel in panels]
    reach += [np.r_[panel.ceiling_interval.ravel(), panel.ceiling] for panel in panels]
    finite = np.concatenate([values[np.isfinite(values)] for values in reach])
    low, high = min(float(finite.min()), 0.0), max(float(finite.max()), 0.0)
    margin = 0.06 * (high - low or 1.0)
    first = None
    for index, panel in enumerate(panels):
        cell = outer[index // columns, index % columns]
        wings, bars, dots = figure.add_subfigure(cell).subplots(
            3, 1, height_ratios=heights, sharex=True, gridspec_kw={"hspace": 0.0}
        )
        _draw_wings(wings, panel, wing_rows)
        wings.set_title(panel.title)
        _draw_bars(bars, panel)
        bars.set_ylim(low - margin if low < 0 else 0, high + margin)
        if index % columns == 0:
            bars.set_ylabel(label)
        _draw_tests(dots, panel, tests)
        dots.set_xticks(
            range(len(panel.names)),
            panel.names,
            rotation=45 if longest > 4 else 0,
            ha="right" if longest > 4 else "center",
            rotation_mode="anchor",
            fontsize=8,
        )
        first = first or bars
        bars.set_xlim(-0.7, most - 0.3 + (0.9 if np.isfinite(panel.ceiling).any() else 0))
    handles = _legend(panels)
    figure.legend(
        handles=handles,
        loc="outside upper right",
        ncols=len(handles),
        columnspacing=1.2,
        handlelength=1.6,
    )
    return svg_uri(figure)


def _test_rows(panels: Sequence[BarPanel]) -> list[tuple[str, str]]:
    """Name and field of the tests that at least one panel has."""
    rows = [("above 0", "above_zero"), ("below ceiling", "below_ceiling")]
    return [
        (name, key)
        for name, key in rows
        if any(value is not None for panel in panels for value in getattr(panel, key))
    ]


def _draw_wings(axes: Any, panel: BarPanel, rows: int) -> None:
    axes.set_axis_off()
    axes.set_ylim(-0.7, max(rows, 1) - 0.3)
    winners = sorted(np.flatnonzero(panel.wins.any(axis=1)), key=lambda i: panel.mean[i])
    for height, winner in enumerate(winners):
        beaten = np.flatnonzero(panel.wins[winner])
        ends = [winner, *beaten]
        axes.hlines(height, min(ends), max(ends), color=INK, linewidth=0.8)
        axes.vlines(beaten, height - 0.45, height, color=INK, linewidth=0.8)
        axes.plot(
            winner,
            height,
            "o",
            color=panel.colours[winner],
            markeredgecolor=INK,
            markeredgewidth=0.7,
            markersize=5,
        )


def _draw_bars(axes: Any, panel: BarPanel) -> None:
    places = np.arange(len(panel.names))
    if np.isfinite(panel.ceiling).all():
        axes.axhspan(*panel.ceiling, color=CEILING, linewidth=0, zorder=0)
        # A ceiling thinner than a line would not be seen.
        axes.axhline(panel.ceiling[1], color=CEILING, linewidth=1, zorder=0)
        for place, value, ends in zip(
            (len(places) - 0.2, len(places) + 0.15), panel.ceiling, panel.ceiling_interval
        ):
            if np.isfinite(ends).all():
                axes.vlines(place, *ends, color=MUTED, linewidth=1.2)
                axes.plot(place, value, "_", color=MUTED, markersize=6, markeredgewidth=1.4)
    for kind in dict.fromkeys(panel.kinds):
        chosen = [index for index, other in enumerate(panel.kinds) if other == kind]
        axes.bar(
            places[chosen],
            panel.mean[chosen],
            width=0.74,
            color=[panel.colours[index] for index in chosen],
            edgecolor="white" if HATCHES[kind] else "none",
            hatch=HATCHES[kind],
            linewidth=0,
            zorder=1,
        )
    n = panel.subjects.shape[1]
    if 1 < n <= 40:
        spread = np.linspace(-0.24, 0.24, n)
        axes.scatter(
            (places[:, None] + spread).ravel(),
            panel.subjects.ravel(),
            s=7,
            color="white",
            edgecolors=MUTED,
            linewidths=0.6,
            zorder=2,
        )
    known = np.isfinite(panel.low) & np.isfinite(panel.high)
    axes.vlines(
        places[known], panel.low[known], panel.high[known], color=INK, linewidth=1.4, zorder=3
    )
    axes.axhline(0, color=INK, linewidth=0.7, zorder=3)
    axes.tick_params(axis="x", length=0, labelbottom=False)
    axes.spines["bottom"].set_visible(False)


def _draw_tests(axes: Any, panel: BarPanel, rows: Sequence[tuple[str, str]]) -> None:
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_ylim(len(rows) - 0.4 if rows else 0.5, -0.75)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=7)
    axes.tick_params(length=0)
    for row, (_, key) in enumerate(rows):
        for place, value in enumerate(getattr(panel, key)):
            if value is not None:
                axes.plot(
                    place,
                    row,
                    "o",
                    markersize=4.5,
                    color=INK if value else "white",
                    markeredgecolor=INK,
                    markeredgewidth=0.7,
                )


def _legend(panels: Sequence[BarPanel]) -> list[Any]:
    kinds = dict.fromkeys(kind for panel in panels for kind in panel.kinds)
    handles: list[Any] = []
    if set(kinds) != {"fixed"}:
        handles += [
            Patch(facecolor=MUTED, edgecolor="white", hatch=HATCHES[kind], linewidth=0, label=kind)
            for kind in HATCHES
            if kind in kinds
        ]
    handles.append(Line2D([], [], color=INK, linewidth=1.4, label="interval"))
    handles.append(
        Line2D(
            *([], []),
            marker="o",
            color="none",
            markerfacecolor="white",
            markeredgecolor=MUTED,
            markersize=3,
            label="subject",
        )
    )
    if any(np.isfinite(panel.ceiling).any() for panel in panels):
        handles.append(Patch(facecolor=CEILING, label="noise ceiling"))
    if _test_rows(panels):
        handles.append(
            Line2D([], [], marker="o", color="none", markerfacecolor=INK, markersize=4.5)
        )
        handles[-1].set_label("p < 0.05")
        handles[-1].set_markeredgecolor(INK)
        handles.append(
            Line2D([], [], marker="o", color="none", markerfacecolor="white", markersize=4.5)
        )
        handles[-1].set_label("p ≥ 0.05")
        handles[-1].set_markeredgecolor(INK)
    return handles
