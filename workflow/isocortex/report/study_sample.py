"""Who was analysed, and how good each subject's data are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from isocortex.report.page import Paragraph, Table, count, join, number
from isocortex.report.quality import read_confounds


def sample_section(
    betas: Sequence[xr.Dataset],
    confounds: Sequence[Path | str],
    subjects: Sequence[str],
    excluded: Mapping[str, str],
) -> list[Any]:
    """Say who was analysed and who was not, and put the subjects' data side by side.

    Parameters
    ----------
    betas
        Betas stores of all subjects.
    confounds
        Confounds tables of all runs.
    subjects
        Labels of those that were analysed.
    excluded
        Reason by excluded subject.

    Returns
    -------
    list
        Blocks of the page; empty where there are no subjects at all.
    """
    if not subjects and not excluded:
        return []
    blocks: list[Any] = [
        Paragraph(
            f"{count(len(subjects), 'subject')} analysed: {join([str(s) for s in subjects])}."
            if subjects
            else "No subject was analysed."
        )
    ]
    if excluded:
        blocks.append(
            Table(
                "Excluded subjects",
                ("Subject", "Reason"),
                [[k, v] for k, v in sorted(excluded.items())],
            )
        )
    else:
        blocks.append(Paragraph("No subject was excluded."))
    if betas:
        blocks.append(_data_table(betas, _displacement(confounds)))
    return blocks


def _displacement(confounds: Sequence[Path | str]) -> dict[str, np.ndarray]:
    """Framewise displacement of all runs by subject, finite values."""
    found: dict[str, list[np.ndarray]] = {}
    for path in confounds:
        values = read_confounds(path).columns.get("framewise_displacement")
        if values is not None:
            label = Path(path).name.split("_", 1)[0].removeprefix("sub-")
            found.setdefault(label, []).append(values[np.isfinite(values)])
    return {label: np.concatenate(values) for label, values in found.items()}


def _data_table(betas: Sequence[xr.Dataset], displacement: Mapping[str, np.ndarray]) -> Table:
    with_intervals = any("ncsnr_low" in ds for ds in betas)
    with_reliability = any("reliability" in ds for ds in betas)
    rows = []
    for dataset in betas:
        subject = str(dataset.attrs["subject"])
        moved = displacement.get(subject, np.array([]))
        n_runs, n_trials = _size(dataset)
        rows.append(
            [
                subject,
                str(dataset.attrs["task"]),
                n_runs,
                n_trials,
                len(set(dataset["stimulus"].values)),
                f"{dataset.sizes['voxel']:,}",
                _percentile(dataset, "tsnr", 50, digits=1),
                _percentile(dataset, "ncsnr", 95),
                *([_with_signal(dataset)] if with_intervals else []),
                *([_percentile(dataset, "reliability", 95)] if with_reliability else []),
                _percentile(dataset, "r2", 95),
                number(float(moved.mean()) if moved.size else np.nan, 3),
                number(float(moved.max()) if moved.size else np.nan, 2),
            ]
        )
    said = "95%: 95th percentile over voxels."
    if with_intervals:
        said += (
            " With signal: voxels whose 95% interval of ncsnr lies above 0 (2.5% without any "
            "signal)."
        )
    if with_reliability:
        said += " Reliability: split-half correlation over stimuli."
    return Table(
        "Data quality by subject",
        (
            "Subject",
            "Task",
            "Runs",
            "Trials",
            "Stimuli",
            "Voxels",
            "tSNR, median",
            "ncsnr, 95%",
            *(["With signal, %"] if with_intervals else []),
            *(["Reliability, 95%"] if with_reliability else []),
            "R², 95%",
            "FD mean, mm",
            "FD max, mm",
        ),
        rows,
        f"{said} FD: framewise displacement over all runs of the subject with a confounds table.",
    )


def _size(dataset: xr.Dataset) -> tuple[int, int]:
    """Runs and trials, also of betas that are means over repeats."""
    if "n_repeats" not in dataset:
        return len(set(dataset["run"].values)), dataset.sizes["trial"]
    runs = dataset.attrs.get("design") or set(dataset["time_run"].values)
    return len(runs), int(dataset["n_repeats"].values.sum())


def _percentile(dataset: xr.Dataset, name: str, percentile: float, *, digits: int = 2) -> str:
    values = np.asarray(dataset[name].values) if name in dataset else np.array([])
    values = values[np.isfinite(values)]
    return number(float(np.percentile(values, percentile)), digits) if values.size else "n/a"


def _with_signal(dataset: xr.Dataset) -> str:
    if "ncsnr_low" not in dataset:
        return "n/a"
    low = np.asarray(dataset["ncsnr_low"].values)
    low = low[np.isfinite(low)]
    return number(100 * float((low > 0).mean()), 1) if low.size else "n/a"
