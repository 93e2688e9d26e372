"""Models of encoding against each other: layers along the hierarchy, differences, families."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from isocortex.report.drawing import QUALITATIVE, new_figure, svg_uri
from isocortex.report.encoding_regions import mean_over
from isocortex.report.page import (
    Paragraph,
    Picture,
    Table,
    equals,
    interval,
    join,
    number,
    p_value,
)
from isocortex.report.wording import level


def comparison_blocks(dataset: xr.Dataset) -> list[Any]:
    """Show the comparisons of models that a summary of encoding holds; nothing where it has none.

    Parameters
    ----------
    dataset
        Encoding summary of one task.
    """
    blocks: list[Any] = []
    if _holds(dataset, "spatial_score"):
        blocks += _spatial(dataset)
    for name in ("difference", "stimulus_difference"):
        if _holds(dataset, name):
            blocks += _differences(dataset, name)
    if _holds(dataset, "family_slope"):
        blocks += _families(dataset)
    return blocks


def _holds(dataset: xr.Dataset, name: str) -> bool:
    return name in dataset and bool(np.isfinite(dataset[name].values).any())


def _names(dataset: xr.Dataset, dimension: str) -> list[str]:
    return [str(name) for name in dataset[dimension].values]


def _values(dataset: xr.Dataset, name: str, *dims: str) -> np.ndarray:
    """An array in the order of dimensions that the report takes; NaN where there is none."""
    if name not in dataset:
        return np.full([dataset.sizes[dim] for dim in dims], np.nan)
    return np.asarray(dataset[name].transpose(*dims).values, dtype=float)


def _spatial(dataset: xr.Dataset) -> list[Any]:
    """Whether deeper layers predict regions that are higher in the hierarchy."""
    models = _names(dataset, "candidate")
    by_subject = _values(dataset, "spatial_score", "candidate", "subject")
    mean, low, high, p = (
        _values(dataset, f"spatial_{key}", "candidate") for key in ("mean", "low", "high", "p")
    )
    corrected = _values(dataset, "spatial_p_corrected", "candidate")
    order = [row for row in np.argsort(-mean, kind="stable") if np.isfinite(mean[row])]
    with_interval = bool(np.isfinite(low).any())
    rows = []
    for row in order:
        known = by_subject[row][np.isfinite(by_subject[row])]
        spread = (
            f"{number(known.min())} – {number(known.max())}" if known.size > 1 else "one subject"
        )
        cells = [models[row], number(mean[row]) + f" {interval(low[row], high[row])}"]
        rows.append([*(cells if with_interval else [models[row], number(mean[row])]), spread])
        rows[-1] += [p_value(p[row]), p_value(corrected[row])]
    above = [models[row] for row in order if corrected[row] < 0.05]
    first = models[order[0]]
    return [
        Paragraph(
            f"Layers along the hierarchy: {first} has the highest spatial score, "
            f"{number(mean[order[0]])} (p {equals(p[order[0]])}); "
            + (f"above 0: {join(above)}." if above else "none is above 0 after correction.")
        ),
        Table(
            "Spatial score: depth of the best layer against the regions' hierarchy",
            (
                "Model",
                f"Score [{level(dataset)} interval]" if with_interval else "Score",
                "Subjects",
                "p",
                "p, corrected",
            ),
            rows,
            "Correlation over regions of the depth of the best layer with the region's place in "
            "the hierarchy, mean over subjects; 1: deeper layers predict higher regions. p is "
            "one-sided, corrected over models.",
        ),
    ]


def _differences(dataset: xr.Dataset, name: str) -> list[Any]:
    """Models against each other by region, tested over subjects or over stimuli."""
    over = "stimuli" if name.startswith("stimulus") else "subjects"
    models, regions = _names(dataset, "candidate"), _names(dataset, "region")
    dims = ("candidate", "other", "region")
    difference, low, high, p, fdr, fwe = (
        _values(dataset, f"{name}{key}", *dims)
        for key in ("", "_low", "_high", "_p", "_p_fdr", "_p_fwe")
    )
    rows, better = [], dict.fromkeys(models, 0)
    n_tested = 0
    for column, region in enumerate(regions):
        for one in range(len(models)):
            for two in range(one + 1, len(models)):
                value = difference[one, two, column]
                if not np.isfinite(value):
                    continue
                ahead, behind, sign = (one, two, 1) if value >= 0 else (two, one, -1)
                ends = sorted((sign * low[one, two, column], sign * high[one, two, column]))
                rows.append(
                    [
                        region,
                        models[ahead],
                        models[behind],
                        f"{number(abs(value), 3)} {interval(*ends, 3)}",
                        *(p_value(v[one, two, column]) for v in (p, fdr, fwe)),
                    ]
                )
                n_tested += bool(np.isfinite(p[one, two, column]))
                better[models[ahead]] += bool(fwe[one, two, column] < 0.05)
    found = sum(better.values())
    if not n_tested:
        words = f"Differences between models have no test over {over}: there are too few."
    elif not found:
        words = (
            f"Of {n_tested} differences between models by region none is significant over {over} "
            "(family-wise p < 0.05)."
        )
    else:
        most = max(better, key=lambda name: better[name])
        words = (
            f"Of {n_tested} differences between models by region {found} are significant over "
            f"{over} (family-wise p < 0.05); {most} is the better one in {better[most]} of them."
        )
    return [
        Paragraph(words),
        Table(
            f"Differences between models, tested over {over}",
            (
                "Region",
                "Better model",
                "Other model",
                f"Difference of r [{level(dataset)} interval]",
                "p",
                "p, false discovery rate",
                "p, family-wise",
            ),
            rows,
            "Each model at the layer that is best for the other subjects"
            + (
                "; subjects are those whose stores say what each stimulus adds"
                if over == "stimuli"
                else ""
            )
            + ". p two-sided, corrected over pairs of models and regions (family-wise: Holm).",
            collapsed=len(rows) > 12,
        ),
    ]


def _families(dataset: xr.Dataset) -> list[Any]:
    """How scores go with what tells the models of a family apart."""
    factors, regions = _names(dataset, "factor"), _names(dataset, "region")
    slope, rho, p = (
        _values(dataset, f"family_{key}", "factor", "region") for key in ("slope", "rho", "p")
    )
    p_models = _values(dataset, "family_p_models", "factor", "region")
    with_models = bool(np.isfinite(p_models).any())
    spatial = {
        key: _values(dataset, f"family_spatial_{key}", "factor")
        for key in ("slope", "rho", "p", "p_models")
    }
    rows, words = [], []
    for row, factor in enumerate(factors):
        known = np.flatnonzero(np.isfinite(slope[row]))
        for column in known:
            rows.append(
                [
                    factor,
                    regions[column],
                    number(slope[row, column], 3),
                    number(rho[row, column]),
                    p_value(p[row, column]),
                    *([p_value(p_models[row, column])] if with_models else []),
                ]
            )
        if np.isfinite(spatial["slope"][row]):
            cells = [number(spatial["slope"][row], 3), number(spatial["rho"][row])]
            cells += [p_value(spatial["p"][row])]
            cells += [p_value(spatial["p_models"][row])] if with_models else []
            rows.append([factor, "(spatial score)", *cells])
        if known.size:
            up = int((slope[row, known] > 0).sum())
            passed = int((p[row, known] < 0.05).sum())
            words.append(
                f"r rises with {factor} in {up} of {known.size} regions ({passed} with p < 0.05)"
            )
    blocks: list[Any] = [
        Paragraph(f"Families of models: {'; '.join(words)}."),
        Table(
            "Families of models",
            (
                "Factor",
                "Region",
                "Change of r by a tenfold factor",
                "Spearman ρ",
                "p",
                *(["p, models permuted"] if with_models else []),
            ),
            rows,
            "Slope of each model's r over the logarithm of the factor, and rank correlation, means "
            "over subjects; p two-sided over subjects, not corrected.",
            collapsed=len(rows) > 12,
        ),
    ]
    if _holds(dataset, "model_score") and _holds(dataset, "family_value"):
        blocks.append(_family_figure(dataset, factors, regions))
    return blocks


def _family_figure(dataset: xr.Dataset, factors: Sequence[str], regions: Sequence[str]) -> Picture:
    """Scores of the models by factor, one panel a factor, one colour a region."""
    models = _names(dataset, "candidate")
    score = _values(dataset, "model_score", "candidate", "region", "subject")
    score = mean_over(score, np.ones(score.shape[-1], bool))
    value = _values(dataset, "family_value", "factor", "candidate")
    shown = list(range(min(len(regions), len(QUALITATIVE))))
    columns = min(3, len(factors))
    rows = -(-len(factors) // columns)
    figure = new_figure(1.6 + 3.1 * columns, 0.5 + 2.6 * rows)
    grid = figure.subplots(rows, columns, squeeze=False)
    for cell, row in zip(grid.ravel(), range(len(factors))):
        of_family = np.flatnonzero(np.isfinite(value[row]))
        of_family = of_family[np.argsort(value[row, of_family], kind="stable")]
        for column in shown:
            cell.plot(
                value[row, of_family],
                score[of_family, column],
                marker="o",
                markersize=4,
                linewidth=0.9,
                color=QUALITATIVE[column],
                label=regions[column] if row == 0 else None,
            )
        cell.set_xscale("log")
        cell.set_title(factors[row])
        cell.set_xlabel(
            " < ".join(models[i] for i in of_family) if len(of_family) <= 4 else "factor"
        )
    for cell in grid[:, 0]:
        cell.set_ylabel("held-out r")
    for cell in grid.ravel()[len(factors) :]:
        cell.set_visible(False)
    figure.legend(loc="outside right upper", handlelength=1.4)
    return Picture(
        [svg_uri(figure)],
        f"Lines of r over {join(list(factors))}, one a region.",
        "Scores of the models by what tells them apart",
        "Held-out r of each model at its best layer, mean over subjects, over the factor "
        "(logarithmic)"
        + (
            f"; the first {len(shown)} of {len(regions)} regions."
            if len(shown) < len(regions)
            else "."
        ),
        narrow=columns == 1,
    )
