"""Model comparison figures and tables, for RSA and encoding alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from isocortex.report.drawing import (
    ACCENT,
    CEILING,
    INK,
    MUTED,
    new_figure,
    predictor_colours,
    svg_uri,
)
from isocortex.report.page import interval, number, p_value


def comparison_name(name: str) -> str:
    """Name of a comparison of RDMs in words."""
    name, _, transform = name.partition(":")
    known = {
        "pearson": "Pearson correlation",
        "spearman": "Spearman correlation",
        "corr_cov": "whitened correlation",
        "cosine": "cosine similarity",
        "cosine_cov": "whitened cosine similarity",
        "rho_a": "rank correlation rho-a",
        "tau_a": "rank correlation tau-a",
        "tau_b": "rank correlation tau-b",
        "bures": "Bures similarity",
        "riemann": "negative Riemannian distance",
    }
    of = f"{transform} of RDMs" if transform else "RDMs"
    return f"{known.get(name, name.replace('_', ' '))} of {of}"


@dataclass(frozen=True)
class Scores:
    """Scores of predictors by region.

    Parameters
    ----------
    predictors, regions, subjects
        Names.
    score
        Each subject's, shape (predictor, region, subject).
    mean, low, high, p
        Over subjects with interval and corrected p-value, shape (predictor, region).
    best
        Best predictor of each region; empty where there is no score.
    ceiling_low, ceiling_high
        Noise ceiling by region, or None.
    """

    predictors: list[str]
    regions: list[str]
    subjects: list[str]
    score: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray
    best: list[str]
    ceiling_low: np.ndarray | None = None
    ceiling_high: np.ndarray | None = None

    def of(self, region: str, predictor: str) -> dict[str, float | list[float]]:
        """Numbers of one region and predictor."""
        row, column = self.predictors.index(predictor), self.regions.index(region)
        numbers: dict[str, float | list[float]] = {
            "score": float(self.mean[row, column]),
            "interval": [float(self.low[row, column]), float(self.high[row, column])],
            "p_corrected": float(self.p[row, column]),
        }
        if self.ceiling_low is not None and self.ceiling_high is not None:
            numbers["ceiling"] = [float(self.ceiling_low[column]), float(self.ceiling_high[column])]
        return numbers

    def regions_with_scores(self) -> list[str]:
        """Regions where at least one predictor has a score."""
        known = np.isfinite(self.mean).any(axis=0)
        return [region for region, has in zip(self.regions, known) if has]

    def runner_up(self, column: int, among: Sequence[int] | None = None) -> int | None:
        """Index of a region's second highest predictor, None where there is no other.

        Parameters
        ----------
        column
            Index of the region.
        among
            Predictors that count; None takes all.
        """
        known = np.flatnonzero(np.isfinite(self.mean[:, column]))
        others = [int(row) for row in known if self.predictors[row] != self.best[column]]
        if among is not None:
            others = [row for row in others if row in among]
        return max(others, key=lambda row: self.mean[row, column]) if others else None

    def best_rows(self) -> list[list[str]]:
        """Table rows: region, best predictor, score, interval, ceiling, p, runner-up."""
        rows = []
        for column, region in enumerate(self.regions):
            best = self.best[column]
            if best not in self.predictors:
                rows.append(
                    [region, "no score"] + ["n/a"] * (4 if self.ceiling_low is not None else 3)
                )
                continue
            row = self.predictors.index(best)
            cells = [
                region,
                best,
                f"{number(self.mean[row, column])} "
                f"{interval(self.low[row, column], self.high[row, column])}",
            ]
            if self.ceiling_low is not None and self.ceiling_high is not None:
                cells.append(
                    f"{number(self.ceiling_low[column])} – {number(self.ceiling_high[column])}"
                )
            cells.append(p_value(self.p[row, column]))
            second = self.runner_up(column)
            if second is not None:
                cells.append(f"{self.predictors[second]} ({number(self.mean[second, column])})")
            else:
                cells.append("none")
            rows.append(cells)
        return rows


def comparison_figure(scores: Scores, *, label: str, shown: Sequence[str]) -> str:
    """Draw each region's scores: mean with interval, subjects as dots, noise ceiling as a band.

    Parameters
    ----------
    scores
        What to draw.
    label
        Name and unit of the score.
    shown
        Regions to draw.

    Returns
    -------
    str
        SVG data URI.
    """
    n = len(scores.predictors)
    columns = min(3 if n <= 14 else 2 if n <= 26 else 1, len(shown))
    rows = -(-len(shown) // columns)
    longest = max(len(name) for name in scores.predictors)
    foot = min(0.35 + 0.055 * longest, 1.9)
    figure = new_figure(11.0, rows * 2.15 + foot + 0.35)
    figure.get_layout_engine().set(hspace=0.06)
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    colours = predictor_colours(scores.predictors)
    # Subjects side by side around the mean, in the order of the store.
    spread = np.linspace(-0.22, 0.22, len(scores.subjects)) if len(scores.subjects) > 1 else [0.0]
    for index, region in enumerate(shown):
        axes = grid[index // columns, index % columns]
        column = scores.regions.index(region)
        if scores.ceiling_low is not None and scores.ceiling_high is not None:
            low, high = scores.ceiling_low[column], scores.ceiling_high[column]
            if np.isfinite(low) and np.isfinite(high):
                axes.axhspan(low, high, color=CEILING, linewidth=0, zorder=0)
                # A ceiling thinner than a line would not be seen.
                axes.axhline(high, color=CEILING, linewidth=1, zorder=0)
        axes.axhline(0, color=MUTED, linewidth=0.6)
        mean, low, high = (values[:, column] for values in (scores.mean, scores.low, scores.high))
        tints = [colours[predictor] for predictor in scores.predictors]
        places = np.arange(n)
        if len(scores.subjects) <= 60:
            axes.scatter(
                (places[:, None] + np.asarray(spread)).ravel(),
                scores.score[:, column].ravel(),
                s=10,
                c=[tint for tint in tints for _ in scores.subjects],
                alpha=0.65,
                linewidths=0,
            )
        known = np.isfinite(low) & np.isfinite(high)
        axes.vlines(places[known], low[known], high[known], color=INK, linewidth=1.2, zorder=3)
        best = np.array([predictor == scores.best[column] for predictor in scores.predictors])
        for chosen, marker, area, width in ((~best, "o", 25, 0.5), (best, "D", 42, 1.2)):
            axes.scatter(
                places[chosen],
                mean[chosen],
                s=area,
                marker=marker,
                c=[tint for tint, take in zip(tints, chosen) if take] or None,
                edgecolors=INK,
                linewidths=width,
                zorder=4,
            )
        axes.set_title(region)
        axes.set_xlim(-0.6, n - 0.4)
        axes.tick_params(axis="x", length=0)
        last = index + columns >= len(shown)
        axes.set_xticks(
            range(n),
            scores.predictors if last else [""] * n,
            rotation=60,
            ha="right",
            rotation_mode="anchor",
            fontsize=8 if n <= 26 else 6,
        )
        if index % columns == 0:
            axes.set_ylabel(label)
    for index in range(len(shown), rows * columns):
        grid[index // columns, index % columns].set_visible(False)
    handles = [
        Line2D([], [], marker="D", color="none", markeredgecolor=INK, label="best of the region"),
        Line2D([], [], marker="o", color=INK, markersize=5, label="mean and interval"),
        Line2D(
            [],
            [],
            marker="o",
            color="none",
            markerfacecolor=MUTED,
            markersize=3,
            markeredgewidth=0,
            label="subject",
        ),
    ]
    if scores.ceiling_low is not None:
        handles.append(Patch(facecolor=CEILING, label="noise ceiling"))
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles))
    return svg_uri(figure)


def identification_figure(
    statistics: Sequence[str],
    accuracy: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    by_subject: np.ndarray,
    *,
    chance: float,
) -> str:
    """Draw identification accuracies: mean with interval, subjects as dots, chance as a line.

    Parameters
    ----------
    statistics
        Names, shape (statistic,).
    accuracy, low, high
        Shape (statistic,), 0 to 1.
    by_subject
        Shape (statistic, subject).
    chance
        Chance level.

    Returns
    -------
    str
        SVG data URI.
    """
    figure = new_figure(5.6, 0.6 + 0.34 * len(statistics) + 0.4)
    axes = figure.add_subplot()
    n_subjects = by_subject.shape[1]
    spread = np.linspace(-0.2, 0.2, n_subjects) if n_subjects > 1 else np.zeros(1)
    for row in range(len(statistics)):
        axes.plot(
            100 * by_subject[row],
            row + spread,
            "o",
            color=MUTED,
            alpha=0.5,
            markersize=3,
            markeredgewidth=0,
        )
        if np.isfinite(low[row]) and np.isfinite(high[row]):
            axes.plot([100 * low[row], 100 * high[row]], [row, row], color=INK, linewidth=1.3)
        axes.plot(100 * accuracy[row], row, "o", color=ACCENT, markeredgecolor=INK, markersize=6)
    axes.axvline(100 * chance, color=MUTED, linestyle=(0, (4, 3)), linewidth=0.9)
    axes.text(
        100 * chance,
        1.01,
        " chance",
        transform=axes.get_xaxis_transform(),
        fontsize=7.5,
        color=MUTED,
        va="bottom",
    )
    axes.set_yticks(range(len(statistics)), statistics)
    axes.set_ylim(len(statistics) - 0.5, -0.5)
    axes.set_xlim(-3, 103)
    axes.set_xlabel("regions identified, %")
    axes.tick_params(axis="y", length=0)
    return svg_uri(figure)
