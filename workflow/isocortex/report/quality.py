"""Data quality: confounds, motion, quality-control figures that preprocessing left."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isocortex import bids
from isocortex.errors import InputError
from isocortex.report.drawing import ACCENT, MUTED, RULE, WARM, file_uri, new_figure, svg_uri
from isocortex.report.page import Heading, Note, Picture, Table, count, number

TRANSLATIONS = ("trans_x", "trans_y", "trans_z")
ROTATIONS = ("rot_x", "rot_y", "rot_z")


@dataclass(frozen=True)
class RunConfounds:
    """The confounds of one run.

    Parameters
    ----------
    name
        Name of the run, from the file's name.
    columns
        Values by column, shape (volume,); NaN for n/a.
    """

    name: str
    columns: Mapping[str, np.ndarray]

    @property
    def n_volumes(self) -> int:
        """Number of volumes."""
        return len(next(iter(self.columns.values())))

    def motion_outliers(self) -> np.ndarray:
        """Volumes with a motion outlier regressor."""
        marked = [
            np.flatnonzero(values > 0.5)
            for name, values in self.columns.items()
            if name.startswith("motion_outlier")
        ]
        return np.unique(np.concatenate(marked)) if marked else np.array([], dtype=int)


def read_confounds(path: Path | str) -> RunConfounds:
    """Read a confounds table.

    Raises
    ------
    InputError
        If it has no rows or a cell is neither a number nor n/a.
    """
    path = Path(path)
    rows = bids.read_table(path)
    if not rows:
        raise InputError(f"{path} has no rows: make the confounds again")
    columns = {}
    for name in rows[0]:
        try:
            columns[name] = np.array(
                [
                    np.nan if row[name] in ("n/a", "", "nan", "NaN") else float(row[name])
                    for row in rows
                ]
            )
        except ValueError as error:
            raise InputError(
                f"column {name} of {path} holds a cell that is no number ({error}): write n/a "
                "instead"
            ) from error
    return RunConfounds(run_name(path), columns)


def run_name(path: Path | str) -> str:
    """Name of a run without subject, description and suffix."""
    name = Path(path).name
    name = re.sub(r"_desc-confounds.*$|_confounds\.tsv$|\.tsv$", "", name)
    return re.sub(r"^sub-[A-Za-z0-9]+_", "", name)


def _finite(values: np.ndarray | None) -> np.ndarray:
    if values is None:
        return np.array([])
    return values[np.isfinite(values)]


def _largest(run: RunConfounds, names: Sequence[str], scale: float = 1.0) -> float:
    values = [np.abs(_finite(run.columns.get(name))) * scale for name in names]
    values = [value.max() for value in values if value.size]
    return max(values) if values else np.nan


def confounds_table(runs: Sequence[RunConfounds]) -> Table:
    """Summarise motion and signal changes run by run."""
    rows = []
    for run in runs:
        displacement = _finite(run.columns.get("framewise_displacement"))
        dvars = _finite(run.columns.get("std_dvars"))
        steady = sum(name.startswith("non_steady_state_outlier") for name in run.columns)
        rows.append(
            [
                run.name,
                run.n_volumes,
                number(displacement.mean() if displacement.size else np.nan, 3),
                number(displacement.max() if displacement.size else np.nan, 2),
                number(100 * np.mean(displacement > 0.5) if displacement.size else np.nan, 1),
                number(_largest(run, TRANSLATIONS), 2),
                number(_largest(run, ROTATIONS, 180 / np.pi), 2),
                number(dvars.mean() if dvars.size else np.nan, 2),
                len(run.motion_outliers()),
                steady,
            ]
        )
    return Table(
        "Confounds by run",
        (
            "Run",
            "Volumes",
            "FD mean, mm",
            "FD max, mm",
            "FD > 0.5 mm, %",
            "Translation max, mm",
            "Rotation max, °",
            "DVARS mean, std.",
            "Motion outliers",
            "Non-steady volumes",
        ),
        rows,
        "FD: framewise displacement (Power et al. 2012). Translations and rotations are absolute, "
        "relative to the reference volume.",
    )


def confounds_figure(runs: Sequence[RunConfounds]) -> Picture:
    """Draw motion, framewise displacement and DVARS of all runs one after the other."""
    figure = new_figure(11.0, 5.8)
    axes = figure.subplots(4, 1, sharex=True)
    start = 0
    middles = []
    for index, run in enumerate(runs):
        time = start + np.arange(run.n_volumes)
        label = index == 0
        for axis, names, scale in (
            (axes[0], TRANSLATIONS, 1.0),
            (axes[1], ROTATIONS, 180 / np.pi),
        ):
            for name, colour in zip(names, (ACCENT, WARM, MUTED)):
                if name in run.columns:
                    axis.plot(
                        time,
                        run.columns[name] * scale,
                        color=colour,
                        linewidth=0.9,
                        label=name[-1] if label else None,
                    )
        if "framewise_displacement" in run.columns:
            axes[2].plot(time, run.columns["framewise_displacement"], color=ACCENT, linewidth=0.9)
        if "std_dvars" in run.columns:
            axes[3].plot(time, run.columns["std_dvars"], color=ACCENT, linewidth=0.9)
        for volume in run.motion_outliers():
            for axis in axes[2:]:
                axis.axvline(start + volume, color=WARM, linewidth=0.6, alpha=0.6)
        middles.append(start + run.n_volumes / 2)
        start += run.n_volumes
        if run is not runs[-1]:
            for axis in axes:
                axis.axvline(start - 0.5, color=RULE, linewidth=1)
    wanted = (TRANSLATIONS, ROTATIONS, ("framewise_displacement",), ("std_dvars",))
    for axis, names in zip(axes, wanted):
        if not any(name in run.columns for run in runs for name in names):
            axis.set_yticks([])
            axis.text(
                *(0.5, 0.5, "not among the confounds"),
                transform=axis.transAxes,
                ha="center",
                va="center",
                color=MUTED,
            )
    axes[2].axhline(0.5, color=MUTED, linewidth=0.7, linestyle=(0, (4, 3)))
    for axis, label in zip(axes, ("translation, mm", "rotation, °", "FD, mm", "DVARS, std.")):
        axis.set_ylabel(label)
        axis.set_xlim(-0.5, start - 0.5)
    for axis in axes[:2]:
        if axis.get_legend_handles_labels()[0]:
            axis.legend(loc="center left", handlelength=1.0, bbox_to_anchor=(1.0, 0.5))
    axes[3].set_xlabel("volume, runs one after the other")
    if len(runs) <= 8:
        for middle, run in zip(middles, runs):
            axes[0].text(
                middle,
                1.06,
                run.name,
                transform=axes[0].get_xaxis_transform(),
                ha="center",
                fontsize=7.5 if len(runs) <= 4 else 6,
                color=MUTED,
            )
    figure.align_ylabels(axes)
    total = sum(run.n_volumes for run in runs)
    return Picture(
        [svg_uri(figure)],
        f"Time courses of head motion, framewise displacement and DVARS over {len(runs)} runs.",
        "Head motion and signal change",
        f"Translations and rotations about x, y and z, framewise displacement (FD, dashed: 0.5 mm) "
        f"and standardised DVARS; {total} volumes in {count(len(runs), 'run')}. Vertical lines in "
        "the two "
        "lower panels mark volumes with a motion outlier regressor.",
    )


def figure_blocks(directory: Path | str) -> list[Any]:
    """Show what preprocessing left in a figures directory.

    Parameters
    ----------
    directory
        Holds ``figures.json``, a list of ``{file, title, caption}`` where ``file`` is a name or a
        pair of names shown in turn (``labels`` names the two, ``alt`` describes them), and
        ``qc.json``, numbers by name.

    Returns
    -------
    list
        Heading, pictures and a table.
    """
    directory = Path(directory)
    listing = directory / "figures.json"
    if not listing.is_file():
        raise InputError(f"{listing} is missing: run preprocessing of this subject again")
    title = f"Run {run_name(directory)}"
    if directory.name == "anat":
        title = "Anatomy"
    elif "_fmapid-" in directory.name:
        title = f"Fieldmap {directory.name.partition('_fmapid-')[2]}"
    blocks: list[Any] = [Heading(title)]
    for entry in _read_listing(listing):
        files = entry.get("files") or entry["file"]
        files = [files] if isinstance(files, str) else list(files)
        blocks.append(
            Picture(
                [file_uri(directory / name) for name in files[:2]],
                str(entry.get("alt") or f"{str(entry['title']).rstrip('.')}: {entry['caption']}"),
                str(entry["title"]).rstrip("."),
                str(entry["caption"]),
                labels=tuple(entry.get("labels") or ("first image", "second image")),
            )
        )
    numbers = directory / "qc.json"
    rows = quality_rows(bids.read_json(numbers)) if numbers.is_file() else []
    if rows:
        blocks.append(
            Table(
                f"Quality measures: {title.lower()}",
                ("Measure", "Value"),
                rows,
                collapsed=True,
                wrap=True,
            )
        )
    if len(blocks) == 1:
        blocks.append(Note("Preprocessing left no figure here."))
    return blocks


def _read_listing(path: Path) -> list[dict[str, Any]]:
    try:
        listing = json.loads(path.read_text(encoding="utf-8"))
        for entry in listing:
            entry["title"], entry["caption"], entry.get("files") or entry["file"]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{path} is no list of file, title and caption ({error}): run preprocessing again"
        ) from error
    return listing


def quality_rows(measures: Mapping[str, Any], prefix: str = "") -> list[list[str]]:
    """Flatten quality measures to rows of name and value."""
    rows = []
    for name, value in sorted(measures.items()):
        label = f"{prefix}{name}"
        if isinstance(value, Mapping):
            rows += quality_rows(value, f"{label}: ")
        elif isinstance(value, bool) or value is None or isinstance(value, str):
            rows.append([label, "n/a" if value is None else str(value)])
        elif isinstance(value, (list, tuple)):
            rows.append(
                [label, ", ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in value)]
            )
        else:
            rows.append([label, f"{value:.4g}" if isinstance(value, float) else str(value)])
    return rows
