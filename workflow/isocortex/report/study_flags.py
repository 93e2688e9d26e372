"""What is absent or needs care, for the study's report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from isocortex.fieldmaps_index import NO_FIELDMAP, OFF
from isocortex.report.options import ReportOptions
from isocortex.report.page import (
    Paragraph,
    Table,
    count,
    join,
)
from isocortex.report.processing import (
    coregistration_refused,
    coregistration_text,
    normalisation_text,
)
from isocortex.report.study_quality import read_anatomy_quality, read_run_quality
from isocortex.report.wording import (
    voxel_reason,
)


def flags_section(
    opened: Mapping[str, Sequence[xr.Dataset]],
    excluded: Mapping[str, str],
    stimuli: Mapping[str, Path | str],
    choices: ReportOptions,
    left_out: Sequence[Sequence[str]] = (),
    manifests: Sequence[Path | str] = (),
) -> list[Any]:
    """Collect what is absent or needs care, out of the stores themselves.

    Parameters
    ----------
    opened
        Stores by kind.
    excluded
        Reason by excluded subject.
    stimuli
        Image file by stimulus id.
    choices
        Options of the report.
    left_out
        Parts that the report leaves out, with the reason.
    manifests
        Those of preprocessed anatomies and runs hold what of them needs a look.
    """
    rows: list[list[str]] = [
        ["Excluded subject", f"sub-{key}", why] for key, why in sorted(excluded.items())
    ]
    rows += [["Not part of this report", *row] for row in left_out]
    rows += processing_flags(manifests)
    for kind, key in (
        ("scores", "p"),
        ("identification", "p"),
        ("topology", "p"),
        ("encoding_summary", "p"),
        ("partition", "p"),
        ("dependence", "p"),
    ):
        for dataset in opened.get(kind, ()):
            values = np.asarray(dataset[key].values)
            absent = int((~np.isfinite(values)).sum())
            if absent:
                n = dataset.sizes["subject"]
                rows.append(
                    [
                        "No p-value",
                        _name(kind, dataset),
                        f"{absent} of {values.size} tests; n = {count(n, 'subject')}"
                        + (", too few for this test" if absent == values.size else ""),
                    ]
                )
    for kind in _NAMES:
        for dataset in opened.get(kind, ()):
            rows += [
                ["Said by the analysis", _name(kind, dataset), text] for text in _said(dataset)
            ]
    for dataset in opened["encoding_summary"]:
        rows += [
            ["No noise ceiling", f"subject {subject}, encoding", "every voxel counts as responsive"]
            for subject in dataset.attrs["subjects_without_ceiling"]
        ]
    for dataset in opened["scores"]:
        for region in [str(r) for r in dataset["region"].values]:
            scores = np.asarray(dataset["score"].sel(region=region).values)
            without = [
                str(subject)
                for index, subject in enumerate(dataset["subject"].values)
                if not np.isfinite(scores[..., index]).any()
            ]
            if without:
                rows.append(["Region without a score", region, f"subject {join(without)}"])
    for dataset in opened["rdms"]:
        values = np.asarray(dataset["dissimilarity"].values)
        for index, region in enumerate(dataset["region"].values):
            absent = int((~np.isfinite(values[index])).sum())
            if absent:
                rows.append(
                    [
                        "Dissimilarities without a value",
                        f"subject {dataset.attrs['subject']}, {region}, {dataset.attrs['measure']}",
                        f"{absent} of {values.shape[1]} pairs",
                    ]
                )
        dropped = dataset.attrs.get("n_voxels_dropped") or {}
        if not isinstance(dropped, Mapping):
            dropped = {"all regions": int(dropped)}
        lost = [f"{name}: {int(n):,}" for name, n in dropped.items() if n]
        if lost:
            rows.append(
                [
                    "Voxels left out of the RDMs",
                    f"subject {dataset.attrs['subject']}, {dataset.attrs['measure']}",
                    ", ".join(lost),
                ]
            )
    for dataset in opened["betas"]:
        for key in sorted(dataset.attrs):
            if key.startswith("n_voxels_") and key != "n_voxels_mask" and dataset.attrs[key]:
                rows.append(
                    [
                        "Voxels left out of the GLM",
                        f"subject {dataset.attrs['subject']}, task {dataset.attrs['task']}",
                        f"{int(dataset.attrs[key]):,} {voxel_reason(key)}",
                    ]
                )
        for run in dataset.attrs.get("design") or []:
            if isinstance(run, Mapping) and run.get("weak_trials"):
                rows.append(
                    [
                        "Trials that are hardly measured",
                        f"subject {dataset.attrs['subject']}, run {run['run']}",
                        f"onsets {', '.join(f'{onset:g}' for onset in run['weak_trials'])} s",
                    ]
                )
    if opened["rdms"] and choices.thumbnails:
        names = sorted({str(name) for ds in opened["rdms"] for name in ds["stimulus_i"].values})
        if len(names) + 1 > choices.max_thumbnails:
            rows.append(
                [
                    "Stimulus images",
                    "not drawn",
                    f"more than report.max_thumbnails = {choices.max_thumbnails} stimuli",
                ]
            )
        elif not any(name in stimuli for name in names):
            rows.append(["Stimulus images", "not drawn", "the study names no image files"])
    if not rows:
        return [
            Paragraph(
                "Nothing: every test has a p-value, every region a score, no voxel was left out."
            )
        ]
    return [
        Table(
            "Flagged and left out",
            ("What", "Where", "Detail"),
            rows,
            collapsed=len(rows) > 30,
            wrap=True,
        )
    ]


def processing_flags(manifests: Sequence[Path | str]) -> list[list[str]]:
    """Registrations that need a look, and runs whose fieldmap could not be used.

    Parameters
    ----------
    manifests
        Those of preprocessed anatomies and runs among others.

    Returns
    -------
    list
        What, where and detail, a row a flag.
    """
    runs = read_run_quality(manifests)
    rows = [
        ["Registration to the template", f"{qc['run']}{what}", said]
        for found, what in ((read_anatomy_quality(manifests), ", anatomy"), (runs, ""))
        for qc in found
        if (said := normalisation_text(qc))
    ]
    for qc in runs:
        if coregistration_refused(qc):
            rows.append(
                ["Refinement of the registration refused", qc["run"], coregistration_text(qc)]
            )
        note = str(qc.get("distortion_note") or "")
        if note not in ("", OFF, NO_FIELDMAP):
            rows.append(["Distortion not corrected", qc["run"], note])
    return rows


def _said(dataset: xr.Dataset) -> list[str]:
    """What a stage itself put down as absent or needing care."""
    attrs = dataset.attrs
    flags = attrs.get("flags") or []
    said = [flags] if isinstance(flags, str) else [str(flag) for flag in flags]
    said += [str(attrs[key]) for key in ("flag", "warning") if attrs.get(key)]
    for key in ("regions_left_out", "layers_left_out", "left_out"):
        if isinstance(attrs.get(key), Mapping):
            said += [f"{name} left out: {why}" for name, why in attrs[key].items()]
    return list(dict.fromkeys(said))


_NAMES = {
    "scores": "RSA",
    "partition": "variance partitioning",
    "identification": "region identification",
    "topology": "topological RSA",
    "layers": "layer identification",
    "dependence": "geo-topological dependence",
    "persistence": "persistent homology",
    "searchlight": "searchlight",
    "searchlight_surface": "surface searchlight",
    "encoding": "encoding",
    "encoding_summary": "encoding",
}


def _name(kind: str, dataset: xr.Dataset) -> str:
    keys = ("model", "network", "measure")
    where = [str(dataset.attrs[key]) for key in keys if key in dataset.attrs]
    if "subject" in dataset.attrs:
        where.append(f"subject {dataset.attrs['subject']}")
    return ", ".join([_NAMES[kind], *where])
