"""Variance partitioning and partial correlations of models in the study's report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from isocortex.report.comparison import comparison_name
from isocortex.report.drawing import INK, MUTED, QUALITATIVE, RULE, new_figure, svg_uri
from isocortex.report.model_tests import ALPHA
from isocortex.report.options import ReportOptions
from isocortex.report.page import Heading, Picture, Table, count, interval, join, number, p_value
from isocortex.report.wording import level, resampled


def partition_section(opened: Sequence[xr.Dataset], choices: ReportOptions) -> list[Any]:
    """Shares of variance and partial correlations, for each task and measure."""
    blocks: list[Any] = []
    for dataset in opened:
        measure, task = str(dataset.attrs["measure"]), str(dataset.attrs["task"])
        if len(opened) > 1:
            blocks.append(Heading(f"{measure}, task {task}"))
        regions = [
            index
            for index in range(dataset.sizes["region"])
            if np.isfinite(dataset["mean"].values[:, index]).any()
        ][: choices.max_regions_shown]
        if not regions:
            continue
        blocks.append(_parts_picture(dataset, regions))
        blocks.append(_parts_table(dataset))
        blocks.append(_partial_picture(dataset, regions))
        blocks.append(_partial_table(dataset))
    return blocks


def _models(dataset: xr.Dataset) -> list[str]:
    return [str(name) for name in dataset["model"].values]


def _parts(dataset: xr.Dataset) -> list[tuple[str, ...]]:
    """Models of each part; a part of several is what exactly these share."""
    return [tuple(str(name).split("+")) for name in dataset["part"].values]


def _intervals_text(dataset: xr.Dataset) -> str:
    if dataset.attrs["bootstrap"] == "none":
        return "no intervals"
    return (
        f"lines: {level(dataset)} interval (bootstrap over {resampled(dataset)}, "
        f"{dataset.attrs['n_bootstrap']} samples)"
    )


def _parts_picture(dataset: xr.Dataset, regions: Sequence[int]) -> Picture:
    """Draw the shares as bars over a table of dots that says which models share (UpSet)."""
    models, parts = _models(dataset), _parts(dataset)
    mean, low, high, p, by_order, chance = (
        np.asarray(dataset[key].values, dtype=float)
        for key in (
            *("mean", "interval_low", "interval_high"),
            *("p_fwe", "p_permutation", "chance"),
        )
    )
    marks = np.where(p < ALPHA, "*", np.where(~np.isfinite(p) & (by_order < ALPHA), "+", ""))
    order = sorted(range(len(parts)), key=lambda part: len(parts[part]))
    n = len(parts)
    columns = min(3 if n <= 7 else 2, len(regions))
    rows = -(-len(regions) // columns)
    table = 0.17 * len(models) + 0.12
    figure = new_figure(11.0, rows * (1.75 + table + 0.3) + 0.1)
    outer = figure.add_gridspec(rows, columns)
    reach = np.r_[mean[:, regions].ravel(), low[:, regions].ravel(), high[:, regions].ravel()]
    reach = reach[np.isfinite(reach)]
    bottom, top = min(float(reach.min()), 0.0), max(float(reach.max()), 1e-3)
    pad = 0.1 * (top - bottom)
    for position, region in enumerate(regions):
        cell = outer[position // columns, position % columns]
        axes, dots = figure.add_subfigure(cell).subplots(
            2, 1, height_ratios=(1.75, table), sharex=True, gridspec_kw={"hspace": 0.0}
        )
        places = np.arange(n)
        axes.bar(
            places,
            mean[order, region],
            width=0.7,
            color=[
                QUALITATIVE[models.index(parts[part][0])] if len(parts[part]) == 1 else "#8f959e"
                for part in order
            ],
        )
        axes.plot(places, chance[order, region], "_", color=INK, markersize=9, markeredgewidth=1.2)
        known = np.isfinite(low[order, region]) & np.isfinite(high[order, region])
        axes.vlines(
            places[known],
            low[order, region][known],
            high[order, region][known],
            color=INK,
            linewidth=1.2,
        )
        tips = np.fmax(high[order, region], mean[order, region])
        for place, mark, tip in zip(places, marks[order, region], tips):
            axes.text(place, max(tip, 0) + 0.15 * pad, mark, ha="center", fontsize=10)
        axes.axhline(0, color=INK, linewidth=0.7)
        axes.set_ylim(bottom - (pad if bottom < 0 else 0), top + 1.6 * pad)
        axes.tick_params(axis="x", length=0, labelbottom=False)
        axes.spines["bottom"].set_visible(False)
        total = float(dataset["total_mean"].values[region])
        axes.set_title(f"{dataset['region'].values[region]}  (all models {number(total)})")
        if position % columns == 0:
            axes.set_ylabel("share of variance")
        _draw_membership(dots, models, [parts[part] for part in order])
        axes.set_xlim(-0.6, n - 0.4)
    mean_parts = [mean[part][regions].mean() for part in order]
    first = "+".join(parts[order[int(np.nanargmax(mean_parts))]])
    return Picture(
        [svg_uri(figure)],
        f"Bars of the variance of RDMs that each of {n} sets of models explains; the largest on "
        f"average is {first}.",
        f"Variance partitioning ({dataset.attrs['measure']})",
        "Share of the variance of a region's RDM that is explained by exactly the models with a "
        f"filled dot (one dot: by this model alone; several: shared), from regressions on all sets "
        f"of {join(models)}. Bars: mean over {count(dataset.sizes['subject'], 'subject')}; "
        f"{_intervals_text(dataset)}; dashes: mean under permuted stimulus labels; *: p < 0.05, "
        "family-wise over all parts and regions (Holm)"
        + ("; +: p < 0.05 by permuted labels alone, not corrected. " if "+" in marks else ". ")
        + "Shares can be negative where models suppress each other. In brackets: all models "
        "together.",
    )


def _draw_membership(axes: Any, models: Sequence[str], parts: Sequence[Sequence[str]]) -> None:
    """Draw which models each bar is of: a dot a model, filled where it takes part."""
    for place, part in enumerate(parts):
        rows = [models.index(name) for name in part]
        if len(rows) > 1:
            axes.vlines(place, min(rows), max(rows), color=INK, linewidth=1.3)
        for row in range(len(models)):
            inside = row in rows
            axes.plot(
                place,
                row,
                "o",
                markersize=5.5,
                color=(QUALITATIVE[row] if len(rows) == 1 else INK) if inside else RULE,
                markeredgewidth=0,
            )
    axes.set_ylim(len(models) - 0.4, -0.6)
    axes.set_yticks(range(len(models)), models, fontsize=7.5)
    axes.tick_params(length=0, labelbottom=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _parts_table(dataset: xr.Dataset) -> Table:
    mean, low, high, chance, *tests = (
        np.asarray(dataset[key].values, dtype=float)
        for key in (
            *("mean", "interval_low", "interval_high", "chance"),
            *("p", "p_fdr", "p_fwe", "p_permutation"),
        )
    )
    rows = [
        [
            str(region),
            " + ".join(part) + (" (shared)" if len(part) > 1 else " (alone)"),
            f"{number(mean[k, r], 3)} {interval(low[k, r], high[k, r], 3)}",
            number(chance[k, r], 3),
            *(p_value(values[k, r]) for values in tests),
        ]
        for r, region in enumerate(dataset["region"].values)
        for k, part in enumerate(_parts(dataset))
    ]
    return Table(
        f"Variance partitioning ({dataset.attrs['measure']})",
        (
            "Region",
            "Models",
            f"Share [{level(dataset)} interval]",
            *("Under permutation", "p", "p FDR", "p FWE", "p perm."),
        ),
        rows,
        "p: of a model alone one-sided, of its semi-partial correlation; of shared parts "
        "two-sided, against the share under permuted stimulus labels. FDR, FWE: over all parts and "
        "regions. p perm.: by permuted stimulus labels.",
        collapsed=True,
    )


def _partial_picture(dataset: xr.Dataset, regions: Sequence[int]) -> Picture:
    models = _models(dataset)
    mean, low, high, p, by_order = (
        np.asarray(dataset[f"partial_{key}"].values, dtype=float)
        for key in ("mean", "low", "high", "p_fwe", "p_permutation")
    )
    alone = ~np.isfinite(p) & np.isfinite(by_order)
    each = np.asarray(dataset["partial"].values, dtype=float)
    names = [str(dataset["region"].values[region]) for region in regions]
    figure = new_figure(min(11.0, 2.4 + 0.34 * len(models) * len(regions)), 3.1)
    axes = figure.add_subplot()
    shift = (np.arange(len(models)) - (len(models) - 1) / 2) * 0.8 / len(models)
    for row, (name, marker) in enumerate(zip(models, "osD^")):
        x = np.arange(len(regions)) + shift[row]
        colour = QUALITATIVE[row]
        spread = np.linspace(-0.05, 0.05, each.shape[2]) if each.shape[2] > 1 else np.zeros(1)
        axes.scatter(
            (x[:, None] + spread).ravel(),
            each[row][regions].ravel(),
            s=6,
            color=colour,
            alpha=0.45,
            linewidths=0,
        )
        axes.vlines(x, low[row, regions], high[row, regions], color=INK, linewidth=1.2)
        significant = np.where(alone, by_order, p)[row, regions] < ALPHA
        for chosen, face in ((significant, colour), (~significant, "white")):
            axes.plot(
                x[chosen],
                mean[row, regions][chosen],
                marker,
                markersize=6.5,
                markerfacecolor=face,
                markeredgecolor=colour if face == "white" else INK,
                markeredgewidth=1.1,
                label=name if face == colour else None,
            )
    axes.axhline(0, color=MUTED, linewidth=0.7)
    axes.set_xticks(range(len(names)), names)
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel("partial correlation")
    figure.legend(loc="outside right upper")
    return Picture(
        [svg_uri(figure)],
        "Partial correlations of the models with the regions' RDMs: "
        + "; ".join(
            f"{name} highest in {names[int(np.nanargmax(mean[row, regions]))]}"
            for row, name in enumerate(models)
            if np.isfinite(mean[row, regions]).any()
        )
        + ".",
        f"Partial correlations ({dataset.attrs['measure']})",
        f"{comparison_name(str(dataset.attrs['comparison']))} with each model, the other models "
        f"taken out of both. Large marks: mean over {count(dataset.sizes['subject'], 'subject')}, "
        "filled where above 0 at p < 0.05, one-sided, family-wise over models and regions (Holm)"
        + (
            f", or, of {join([m for m, only in zip(models, alone.any(axis=1)) if only])}, by "
            "permuted labels, not corrected"
            if alone.any()
            else ""
        )
        + f"; {_intervals_text(dataset)}; small dots: subjects.",
    )


def _partial_table(dataset: xr.Dataset) -> Table:
    mean, low, high, *tests = (
        np.asarray(dataset[f"partial_{key}"].values, dtype=float)
        for key in ("mean", "low", "high", "p", "p_fdr", "p_fwe", "p_permutation")
    )
    rows = [
        [
            str(region),
            model,
            f"{number(mean[k, r], 3)} {interval(low[k, r], high[k, r], 3)}",
            *(p_value(values[k, r]) for values in tests),
        ]
        for r, region in enumerate(dataset["region"].values)
        for k, model in enumerate(_models(dataset))
    ]
    return Table(
        f"Partial correlations ({dataset.attrs['measure']})",
        (
            *("Region", "Model", f"Partial correlation [{level(dataset)} interval]"),
            *("p", "p FDR", "p FWE", "p perm."),
        ),
        rows,
        "p: against 0, one-sided; FDR, FWE: over all models and regions; p perm.: by "
        "permuted stimulus labels of the model.",
        collapsed=len(rows) > 12,
    )
