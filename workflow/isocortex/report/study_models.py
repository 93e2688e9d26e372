"""Model layers against regions in the study's report: RSA, encoding and searchlights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from isocortex import store
from isocortex.report.brain import Grid
from isocortex.report.comparison import (
    Scores,
    comparison_figure,
    comparison_name,
)
from isocortex.report.maps import LayerMaps, average_encoding, layer_pictures
from isocortex.report.options import ReportOptions
from isocortex.report.page import (
    Heading,
    Note,
    Paragraph,
    Picture,
    Table,
    capital,
    count,
    join,
    number,
    percent,
)
from isocortex.report.study_findings import encoding_scores, rsa_scores
from isocortex.report.subject import absence
from isocortex.report.wording import (
    corrected_header,
    level,
    radius_text,
    resampled,
)


def models_section(opened: Sequence[xr.Dataset], choices: ReportOptions, entry: str) -> list[Any]:
    """Scores of model layers by RSA, for each task and measure."""
    if not opened:
        return [absence("models", entry)]
    blocks: list[Any] = []
    for dataset in opened:
        measure, task = str(dataset.attrs["measure"]), str(dataset.attrs["task"])
        comparisons = [str(name) for name in dataset["comparison"].values]
        if len(opened) > 1:
            blocks.append(Heading(f"{measure}, task {task}"))
        scores = rsa_scores(dataset)
        label = comparison_name(comparisons[0])
        shown = _with_scores(scores)[: choices.max_regions_shown]
        if not shown:
            blocks.append(Note("No region has a score, so there is no figure."))
            continue
        more = (
            f" The first {len(shown)} of {len(scores.regions)} regions are shown."
            if len(shown) < len(scores.regions)
            else ""
        )
        blocks.append(
            Picture(
                [comparison_figure(scores, label=comparisons[0].replace("_", " "), shown=shown)],
                "Scores of each model layer in each region with noise ceilings; the best is "
                + "; ".join(f"{r}: {b}" for r, b in zip(scores.regions, scores.best) if r in shown)
                + ".",
                f"Model comparison ({measure})",
                f"{capital(label)}, without unit. Points: mean over "
                f"{count(len(scores.subjects), 'subject')}; "
                f"{_bootstrap_text(dataset)}; small dots: subjects; grey band: lower to upper "
                f"noise ceiling.{more}",
            )
        )
        blocks.append(
            Table(
                f"Best model layer by RSA ({measure}, {comparisons[0].replace('_', ' ')})",
                (
                    "Region",
                    "Best layer",
                    f"Score [{level(dataset)} interval]",
                    "Noise ceiling",
                    corrected_header(dataset),
                    "Runner-up",
                ),
                scores.best_rows(),
            )
        )
        if len(comparisons) > 1:
            rows = [
                [
                    region,
                    *(
                        str(dataset["best_predictor"].values[c, r]) or "no score"
                        for c in range(len(comparisons))
                    ),
                ]
                for r, region in enumerate(scores.regions)
            ]
            blocks.append(
                Table(
                    f"Best layer by comparison ({measure})",
                    ("Region", *(comparison_name(name) for name in comparisons)),
                    rows,
                    "Whether the answer depends on how RDMs are compared.",
                )
            )
    return blocks


def _bootstrap_text(dataset: xr.Dataset) -> str:
    if dataset.attrs["bootstrap"] == "none":
        return "no intervals, because there are too few stimuli and subjects to resample"
    return (
        f"lines: {level(dataset)} interval (bootstrap over {resampled(dataset)}, "
        f"{dataset.attrs['n_bootstrap']} samples)"
    )


def _with_scores(scores: Scores) -> list[str]:
    return [
        region
        for index, region in enumerate(scores.regions)
        if np.isfinite(scores.mean[:, index]).any()
    ]


def encoding_section(
    opened: Sequence[xr.Dataset], encoding: Sequence[Path | str], choices: ReportOptions, entry: str
) -> list[Any]:
    """Encoding scores by region, and the group's maps."""
    if not opened and not encoding:
        return [absence("encoding", entry)]
    blocks: list[Any] = []
    for dataset in opened:
        task = str(dataset.attrs["task"])
        if len(opened) > 1:
            blocks.append(Heading(f"Task {task}"))
        scores = encoding_scores(dataset)
        shown = _with_scores(scores)[: choices.max_regions_shown]
        if not shown:
            blocks.append(Note("No region has an encoding score, so there is no figure."))
            continue
        blocks.append(
            Picture(
                [comparison_figure(scores, label="held-out r", shown=shown)],
                "Encoding scores of each model layer in each region; the best is "
                + "; ".join(f"{r}: {b}" for r, b in zip(scores.regions, scores.best) if r in shown)
                + ".",
                "Encoding by region",
                "Pearson correlation r of predicted and measured responses in held-out trials, "
                f"mean over the region's responsive voxels. Points: mean over "
                f"{count(len(scores.subjects), 'subject')}; "
                f"lines: {level(dataset)} interval; small dots: subjects."
                + _responsive_text(dataset),
            )
        )
        normalised = np.asarray(dataset["score_normalised"].values)
        voxels = np.asarray(dataset["n_voxels"].values)
        rows = []
        for column, cells in enumerate(scores.best_rows()):
            row = scores.predictors.index(cells[1]) if cells[1] in scores.predictors else None
            value = normalised[row, column] if row is not None else np.array([np.nan])
            value = value[np.isfinite(value)]
            rows.append(
                [
                    *cells[:3],
                    number(float(value.mean())) if value.size else "n/a",
                    *cells[3:],
                    f"{voxels[column].min():,}"
                    if voxels[column].min() == voxels[column].max()
                    else f"{voxels[column].min():,} – {voxels[column].max():,}",
                ]
            )
        blocks.append(
            Table(
                "Best model layer by encoding",
                (
                    "Region",
                    "Best layer",
                    f"r [{level(dataset)} interval]",
                    "r / ceiling",
                    corrected_header(dataset),
                    "Runner-up",
                    "Voxels a subject",
                ),
                rows,
                "r / ceiling: divided by the highest correlation that the noise allows, where that "
                "is known.",
            )
        )
    if not opened:
        blocks.append(Note("There is no summary by region, because the study has no regions."))
    blocks += _encoding_maps(encoding, opened, choices)
    return blocks


def _responsive_text(dataset: xr.Dataset) -> str:
    """Say which voxels count as responsive, and for whom that is not known."""
    share = percent(float(dataset.attrs["responsive_ceiling"]))
    text = f" Responsive: at least {share} of the single-trial variance can be explained"
    without = [str(subject) for subject in dataset.attrs["subjects_without_ceiling"]]
    if not without:
        return f"{text}."
    who = f"subject{'s' * (len(without) > 1)} {join(without)}"
    return f"{text}; of {who} every voxel counts, because no stimulus repeats."


def _encoding_maps(
    encoding: Sequence[Path | str], opened: Sequence[xr.Dataset], choices: ReportOptions
) -> list[Any]:
    """Draw the maps of the model that is best in most regions; name the others."""
    groups: dict[tuple[str, str], list[Path | str]] = {}
    for path in encoding:
        attrs = store.open(path, "encoding").attrs
        groups.setdefault((str(attrs["task"]), str(attrs["model"])), []).append(path)
    if not groups:
        return [Note("No encoding stores of the subjects were given, so there are no maps.")]
    blocks: list[Any] = []
    for task in dict.fromkeys(task for task, _ in groups):
        models = [model for other, model in groups if other == task]
        wins = dict.fromkeys(models, 0)
        for dataset in opened:
            if str(dataset.attrs["task"]) == task:
                for name in dataset["best_predictor"].values:
                    model = str(name).split("/", 1)[0]
                    if model:  # a region without a score has none
                        wins[model] = wins.get(model, 0) + 1
        chosen = max(models, key=lambda model: wins[model])
        blocks.append(Heading(f"Maps, task {task}"))
        if len(models) > 1:
            blocks.append(
                Paragraph(
                    f"Maps are drawn for {chosen}, the best model in {wins[chosen]} of "
                    f"{sum(wins.values())} "
                    f"regions; the subject reports have those of "
                    f"{join([model for model in models if model != chosen])} too."
                )
            )
        paths = groups[task, chosen]
        maps = average_encoding(paths)
        if isinstance(maps, str):
            blocks.append(Note(maps))
            continue
        who = f"mean over {count(maps.n, 'subject')} at voxels that all have"
        blocks += layer_pictures(
            maps,
            what=f"Encoding by {chosen}",
            score="held-out correlation r",
            threshold=choices.encoding_threshold,
            slices=choices.slices,
            surface=choices.surface,
            who=who,
        )
    return blocks


def searchlight_section(
    opened: Sequence[xr.Dataset], choices: ReportOptions, entry: str
) -> list[Any]:
    """Maps of the group's searchlights."""
    if not opened:
        return [absence("searchlight", entry)]
    blocks: list[Any] = []
    for dataset in opened:
        n = np.asarray(dataset["n_subjects"].values)
        if not n.size or n.max() < 1:
            blocks.append(Note(f"Task {dataset.attrs['task']}: no centre has a score."))
            continue
        people = (
            count(int(n.max()), "subject")
            if n.min() == n.max()
            else f"{n.min()} to {n.max()} subjects"
        )
        p = np.asarray(dataset["p_corrected"].values)
        if np.isfinite(p).any():
            below = int((np.nanmin(np.where(np.isfinite(p), p, 1), axis=0) < 0.05).sum())
            blocks.append(
                Paragraph(
                    f"{below:,} of {p.shape[1]:,} centres are above 0 for at least one predictor "
                    "at p < 0.05, corrected over centres but not over the "
                    f"{count(p.shape[0], 'predictor')}; the maps show every centre over the "
                    "display threshold."
                )
            )
        else:
            blocks.append(Note(f"No p-values with {people}: the maps describe and do not test."))
        maps = LayerMaps(
            Grid.of(dataset),
            [str(name) for name in dataset["predictor"].values],
            np.asarray(dataset["mean"].values),
            int(n.max()),
        )
        blocks += layer_pictures(
            maps,
            what="Searchlight RSA",
            score=comparison_name(str(dataset.attrs["comparison"])),
            threshold=choices.searchlight_threshold,
            slices=choices.slices,
            who=f"mean over {people}, task {dataset.attrs['task']}, radius "
            f"{radius_text(dataset.attrs['radius'])}",
        )
    return blocks
