"""Encoding models in the study's report: scores by region and the group's maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from isocortex.report.comparison import comparison_figure
from isocortex.report.encoding_regions import samples_of
from isocortex.report.maps import average_encoding, layer_pictures
from isocortex.report.options import ReportOptions
from isocortex.report.page import (
    Heading,
    Note,
    Paragraph,
    Picture,
    Table,
    count,
    join,
    number,
    percent,
)
from isocortex.report.study_comparisons import comparison_blocks
from isocortex.report.study_findings import encoding_scores
from isocortex.report.study_predictors import TaskScores, predictor_blocks
from isocortex.report.wording import corrected_header, level


def encoding_section(
    opened: Sequence[xr.Dataset],
    encoding: Sequence[xr.Dataset],
    predictors: Sequence[TaskScores],
    choices: ReportOptions,
) -> list[Any]:
    """Encoding scores by region, models compared, further predictors, and the group's maps.

    Parameters
    ----------
    opened
        Encoding summaries, one a task.
    encoding
        Encoding stores of all subjects, tasks and models.
    predictors
        Scores of joint models, readouts and universal encoders.
    choices
        Options of the report.
    """
    blocks: list[Any] = []
    samples = {str(ds.attrs["task"]): samples_of(ds.attrs) for ds in encoding}
    for dataset in opened:
        task = str(dataset.attrs["task"])
        if len(opened) > 1:
            blocks.append(Heading(f"Task {task}"))
        scores = encoding_scores(dataset)
        shown = scores.regions_with_scores()[: choices.max_regions_shown]
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
                "Pearson correlation r of predicted and measured responses in held-out "
                f"{samples.get(task, 'trials')}, mean over the region's responsive voxels. Points: "
                f"mean over {count(len(scores.subjects), 'subject')}; "
                f"lines: {level(dataset)} interval; small dots: subjects."
                + _responsive_text(dataset, samples.get(task, "trials")),
            )
        )
        normalised = np.asarray(dataset["score_normalised"].values)
        explained = np.asarray(dataset["r2"].values) if "r2" in dataset else None
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
                    *([_mean_text(explained, row, column)] if explained is not None else []),
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
                    *(["r²"] if explained is not None else []),
                    corrected_header(dataset),
                    "Runner-up",
                    "Voxels a subject",
                ),
                rows,
                "r / ceiling: divided by the highest correlation that the noise allows, where that "
                "is known.",
            )
        )
        blocks += comparison_blocks(dataset)
    if encoding and not opened:
        blocks.append(Note("There is no summary by region, because the study has no regions."))
    blocks += predictor_blocks(predictors, choices)
    if opened or encoding:
        blocks += _encoding_maps(encoding, opened, choices)
    return blocks


def _mean_text(values: np.ndarray, row: int | None, column: int) -> str:
    """Mean over subjects of a predictor's values in a region, as text."""
    chosen = values[row, column] if row is not None else np.array([np.nan])
    chosen = chosen[np.isfinite(chosen)]
    return number(float(chosen.mean()), 3) if chosen.size else "n/a"


def _responsive_text(dataset: xr.Dataset, samples: str) -> str:
    """Say which voxels count as responsive, and for whom that is not known."""
    share = percent(float(dataset.attrs["responsive_ceiling"]))
    text = f" Responsive: at least {share} of the single-{samples[:-1]} variance can be explained"
    without = [str(subject) for subject in dataset.attrs["subjects_without_ceiling"]]
    if not without:
        return f"{text}."
    who = f"subject{'s' * (len(without) > 1)} {join(without)}"
    return f"{text}; of {who} every voxel counts, because no stimulus repeats."


def _encoding_maps(
    encoding: Sequence[xr.Dataset], opened: Sequence[xr.Dataset], choices: ReportOptions
) -> list[Any]:
    """Draw the maps of the model that is best in most regions; name the others."""
    groups: dict[tuple[str, str], list[xr.Dataset]] = {}
    for dataset in encoding:
        attrs = dataset.attrs
        groups.setdefault((str(attrs["task"]), str(attrs["model"])), []).append(dataset)
    if not groups:
        return [Note("No encoding stores of the subjects were given, so there are no maps.")]
    blocks: list[Any] = []
    for task in dict.fromkeys(task for task, _ in groups):
        models = [model for other, model in groups if other == task]
        wins = dict.fromkeys(models, 0)
        for dataset in opened:
            if str(dataset.attrs["task"]) == task:
                # Of those with maps here: joint models and readouts are predictors, too.
                drawn = dataset.isel(predictor=np.isin(dataset["model"].values.astype(str), models))
                means = np.asarray(drawn["mean"].values)
                for column in means.T[np.isfinite(means).any(axis=0)]:
                    wins[str(drawn["model"].values[int(np.nanargmax(column))])] += 1
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
        maps = average_encoding(groups[task, chosen])
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
