"""Quality of all runs and anatomies of the study: what differs from the others, and which way."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isocortex import provenance
from isocortex.report.drawing import ACCENT, MUTED, RULE, WARM, new_figure, svg_uri
from isocortex.report.page import Heading, Note, Picture, Table, capital, count, number
from isocortex.report.processing import coregistration_refused

THRESHOLD = 3.0
"""Robust z over which a run is marked."""
FEWEST = 4
"""Runs below which none is marked: the deviation of three is not known."""


@dataclass(frozen=True)
class Measure:
    """A measure of quality.

    Parameters
    ----------
    name
        In qc.json; MRIQC's where it has the measure (Esteban et al. 2017).
    label
        In the report, with its unit.
    worse
        Which way is worse: "high", "low", or "both".
    least
        Deviation below which no difference counts: one spike among none is not 3 deviations.
    digits
        In the table.
    """

    name: str
    label: str
    worse: str
    least: float = 0.0
    digits: int = 2


MEASURES = (
    Measure("fd_mean", "FD mean, mm", "high", 0.01, 3),
    Measure("fd_perc", "FD over threshold, %", "high", 1.0, 1),
    Measure("n_motion_outliers", "Motion outliers", "high", 1.0, 0),
    Measure("dvars_std", "DVARS, std.", "high", 0.01, 3),
    Measure("dvars_vstd", "DVARS, voxel-wise std.", "high", 0.01, 3),
    Measure("tsnr", "tSNR", "low", 0.5, 1),
    Measure("snr", "SNR", "low", 0.05),
    Measure("efc", "EFC", "high", 0.005, 3),
    Measure("fber", "FBER", "low", 0.5, 1),
    Measure("fwhm_avg", "FWHM, mm", "both", 0.05),
    Measure("gsr_y", "Ghost back-front", "high", 0.002, 4),
    Measure("gsr_x", "Ghost left-right", "high", 0.002, 4),
    Measure("gcor", "Global correlation", "high", 0.002, 3),
    Measure("aor", "Outlier fraction (aor)", "high", 0.0005, 4),
    Measure("aqi", "Distance to median (aqi)", "high", 0.0005, 4),
    Measure("spikes_num", "Spikes", "high", 1.0, 0),
    Measure("coverage_brain", "Brain in view, %", "low", 1.0, 1),
    Measure("coverage_template", "Template in view, %", "low", 1.0, 1),
    Measure("coregistration_cost", "Coregistration cost", "high", 0.005, 3),
    Measure("dice_t1w_mask", "Dice with T1w mask", "low", 0.005, 3),
)
ANATOMY_MEASURES = (
    Measure("brain_volume_ml", "Brain, ml", "both", 10.0, 0),
    Measure("grey_matter_ml", "Grey matter, ml", "both", 10.0, 0),
    Measure("white_matter_ml", "White matter, ml", "both", 10.0, 0),
    Measure("csf_ml", "CSF, ml", "both", 10.0, 0),
    Measure("dice_template_mask", "Dice with template, brain", "low", 0.005, 3),
    Measure("dice_template_grey", "Dice with template, grey matter", "low", 0.005, 3),
    Measure("template_correlation", "Correlation with template", "low", 0.005, 3),
    Measure("jacobian_folded_percent", "Folded by the warp, %", "high", 0.01, 2),
)


@dataclass(frozen=True)
class QualityTable:
    """Measures of all runs.

    Parameters
    ----------
    runs
        Names.
    measures
        Those that at least one run has.
    values
        (run, measure); NaN where a run has none.
    z
        (run, measure): robust z, positive where worse; NaN where none can be called.
    """

    runs: list[str]
    measures: list[Measure]
    values: np.ndarray
    z: np.ndarray

    @property
    def flagged(self) -> np.ndarray:
        """(run, measure) boolean: over `THRESHOLD` in the way that is worse."""
        return np.nan_to_num(self.z) > THRESHOLD

    @property
    def called(self) -> np.ndarray:
        """(measure,) boolean: whether there are runs enough."""
        return np.isfinite(self.z).any(axis=0)


def robust_z(values: np.ndarray, *, worse: str, least: float = 0.0) -> np.ndarray:
    """Distance from the median over the scaled median absolute deviation, positive where worse.

    Parameters
    ----------
    values
        (run,), NaN where there is none.
    worse
        "high", "low" or "both".
    least
        Smallest deviation.

    Returns
    -------
    numpy.ndarray
        (run,); all NaN below `FEWEST` finite values, or where none deviates.
    """
    values = np.asarray(values, float)
    there = np.isfinite(values)
    if there.sum() < FEWEST:
        return np.full(len(values), np.nan)
    distance = values - np.median(values[there])
    scale = max(1.4826 * float(np.median(np.abs(distance[there]))), least)
    if not scale > 0:
        return np.full(len(values), np.nan)
    signed = {"high": distance, "low": -distance, "both": np.abs(distance)}[worse]
    return signed / scale


def quality_table(
    runs: Sequence[Mapping[str, Any]], *, wanted: Sequence[Measure] = MEASURES
) -> QualityTable:
    """Measures and outliers of a study's runs, or anatomies.

    Parameters
    ----------
    runs
        The qc dictionary of each run, with its name under ``run``.
    wanted
        Which measures.

    Returns
    -------
    QualityTable
        Runs in the given order.
    """

    def value(run: Mapping[str, Any], name: str) -> float:
        found = run.get(name)
        return float(found) if isinstance(found, int | float) else np.nan

    values = np.array([[value(run, m.name) for m in wanted] for run in runs], float)
    values = values.reshape(len(runs), len(wanted))
    has = np.isfinite(values).any(axis=0)
    measures = [m for m, there in zip(wanted, has) if there]
    values = values[:, has]
    z = np.full(values.shape, np.nan)
    for column, measure in enumerate(measures):
        z[:, column] = robust_z(values[:, column], worse=measure.worse, least=measure.least)
    return QualityTable([str(run["run"]) for run in runs], measures, values, z)


@functools.cache
def chance_rate(n_runs: int, *, both: bool = False, n_studies: int = 4000) -> float:
    """Share of runs of a normally distributed measure that are marked by chance.

    Parameters
    ----------
    n_runs
        Of the study.
    both
        Whether either direction counts.
    n_studies
        Simulated, from a fixed seed.

    Returns
    -------
    float
        0.0013 one way with very many runs, and more with few, where the deviation is uncertain.
    """
    if n_runs < FEWEST:
        return 0.0
    n_studies = min(n_studies, 2_000_000 // n_runs + 100)
    values = np.random.default_rng(0).standard_normal((n_studies, n_runs))
    values -= np.median(values, axis=1, keepdims=True)
    scale = 1.4826 * np.median(np.abs(values), axis=1, keepdims=True)
    over = (np.abs(values) if both else values) > THRESHOLD * scale
    return float(over.mean())


def read_run_quality(paths: Sequence[Path | str]) -> list[dict[str, Any]]:
    """Quality measures of runs out of the manifests of preprocessing.

    Parameters
    ----------
    paths
        Manifests of any kind; those of runs have ``run`` and ``qc``.

    Returns
    -------
    list of dict
        Measures by name, and the run's name, sorted by it; ``coregistration_cost`` is that of the
        pose that was accepted.
    """
    found = [
        {
            **manifest["qc"],
            **_accepted_cost(manifest["qc"]),
            "run": Path(str(manifest["run"])).name,
        }
        for manifest in _measured(paths)
        if manifest.get("run")
    ]
    return sorted(found, key=lambda run: run["run"])


def _accepted_cost(qc: Mapping[str, Any]) -> dict[str, Any]:
    when = f"coregistration_cost_{'before' if coregistration_refused(qc) else 'after'}"
    return {"coregistration_cost": qc[when]} if when in qc else {}


def read_anatomy_quality(paths: Sequence[Path | str]) -> list[dict[str, Any]]:
    """Quality measures of anatomies out of the manifests of preprocessing.

    Parameters
    ----------
    paths
        Manifests of any kind; those of anatomies have ``qc`` and neither ``run`` nor ``fieldmap``.

    Returns
    -------
    list of dict
        Measures by name, and ``sub-<label>`` under ``run``, sorted by it.
    """
    found = [
        {**manifest["qc"], "run": f"sub-{manifest['subject']}"}
        for manifest in _measured(paths)
        if not manifest.get("run") and not manifest.get("fieldmap")
    ]
    return sorted(found, key=lambda anatomy: anatomy["run"])


def _measured(paths: Sequence[Path | str]) -> Iterator[Mapping[str, Any]]:
    for path in map(Path, paths):
        manifest = provenance.read_manifest(path) if path.is_file() else {}
        if isinstance(manifest.get("qc"), Mapping):
            yield manifest


def quality_section(paths: Sequence[Path | str]) -> list[Any]:
    """The measures of runs and of anatomies side by side, with those that stand out.

    Parameters
    ----------
    paths
        Manifests.

    Returns
    -------
    list
        Blocks of the page; empty where nothing was preprocessed here.
    """
    return [
        *_quality_blocks(
            quality_table(read_run_quality(paths)),
            title="Image quality of the runs",
            listed="Image quality by run",
            what="run",
            source="Measures that MRIQC has are defined as there (Esteban et al. 2017); the cost "
            "is that of the registration to the T1w image that was accepted.",
        ),
        *_quality_blocks(
            quality_table(read_anatomy_quality(paths), wanted=ANATOMY_MEASURES),
            title="Anatomies of the subjects",
            listed="Anatomy by subject",
            what="subject",
            source="Volumes are in the subject's own space; Dice and correlation are those of the "
            "T1w image in template space with the template.",
        ),
    ]


def _quality_blocks(
    table: QualityTable, *, title: str, listed: str, what: str, source: str
) -> list[Any]:
    if not table.runs or not table.measures:
        return []
    n = len(table.runs)
    blocks: list[Any] = [Heading(title)]
    if n < FEWEST:
        blocks.append(
            Note(
                f"With {count(n, what)} no outlier can be called: the spread between {what}s is "
                f"known from {FEWEST} on."
            )
        )
    else:
        figure = quality_figure(table, title=title, what=what, source=source)
        blocks += [_outliers(table, what=what), figure]
    blocks.append(
        Table(
            listed,
            (capital(what), *(m.label for m in table.measures)),
            [
                [run, *(number(v, m.digits) for v, m in zip(row, table.measures))]
                for run, row in zip(table.runs, table.values)
            ],
            source,
            collapsed=True,
        )
    )
    return blocks


def _outliers(table: QualityTable, *, what: str) -> Table | Note:
    expected = sum(
        chance_rate(int(n), both=m.worse == "both") * n
        for n, m in zip(np.isfinite(table.z).sum(axis=0), table.measures)
    )
    said = (
        f"normally distributed measures of {count(len(table.runs), what)} would give about "
        f"{expected:.1f} by chance"
    )
    where = np.argwhere(table.flagged)
    if not len(where):
        return Note(
            f"No {what} is an outlier in any of {count(int(table.called.sum()), 'measure')}: none "
            f"is more than {THRESHOLD:g} robust deviations worse than the median {what}; {said}."
        )
    worst = sorted(where.tolist(), key=lambda place: -table.z[tuple(place)])
    return Table(
        f"{capital(what)}s that stand out",
        (capital(what), "Measure", "Value", f"Median of the {what}s", "Robust z"),
        [
            [
                table.runs[row],
                table.measures[column].label,
                number(table.values[row, column], table.measures[column].digits),
                number(float(np.nanmedian(table.values[:, column])), table.measures[column].digits),
                number(table.z[row, column], 1),
            ]
            for row, column in worst
        ],
        f"More than {THRESHOLD:g} robust deviations (1.4826 times the median absolute deviation) "
        f"worse than the median {what}; {count(len(where), 'mark')}, where {said}.",
        collapsed=len(worst) > 20,
    )


def quality_figure(
    table: QualityTable,
    *,
    title: str = "Image quality of the runs",
    what: str = "run",
    source: str = "",
) -> Picture:
    """Each measure's runs as points on a strip, outliers labelled.

    Parameters
    ----------
    table
        Of at least `FEWEST` runs.
    title, what, source
        Of the figure, what a point is, and where the measures come from.
    """
    n_columns = 4
    n_rows = -(-len(table.measures) // n_columns)
    figure = new_figure(11.0, 0.95 * n_rows + 0.2)
    panels = figure.subplots(n_rows, n_columns, squeeze=False)
    for axes in panels.ravel()[len(table.measures) :]:
        axes.axis("off")
    # points apart up and down, the same each time
    rise = np.random.default_rng(0).uniform(-0.28, 0.28, len(table.runs))
    for column, (measure, axes) in enumerate(zip(table.measures, panels.ravel())):
        values, flagged = table.values[:, column], table.flagged[:, column]
        size = 18 if len(values) <= 60 else 7
        axes.axvline(float(np.nanmedian(values)), color=RULE, linewidth=1.4, zorder=0)
        axes.scatter(
            values[~flagged], rise[~flagged], s=size, color=ACCENT, alpha=0.65, linewidths=0
        )
        axes.scatter(values[flagged], rise[flagged], s=1.6 * size, color=WARM, marker="D")
        arrow = {"high": "  →", "low": "  ←", "both": "  ↔"}[measure.worse]
        axes.set_title(measure.label + arrow, fontsize=8.5, fontweight="normal", pad=3)
        axes.set(ylim=(-0.5, 1.0 if flagged.any() else 0.5), yticks=[])
        axes.spines["left"].set_visible(False)
        axes.tick_params(labelsize=7, length=2)
        axes.locator_params(axis="x", nbins=4)
        axes.margins(x=0.08)
        marked = np.flatnonzero(flagged)
        if len(marked):
            worst = marked[table.z[marked, column].argmax()]
            others = f" and {len(marked) - 1} more" if len(marked) > 1 else ""
            low, high = axes.get_xlim()
            right = values[worst] > (low + high) / 2
            axes.annotate(
                _short(table.runs[worst]) + others,
                (values[worst], rise[worst]),
                xytext=(1.0 if right else 0.0, 0.97),
                textcoords="axes fraction",
                ha="right" if right else "left",
                va="top",
                fontsize=7,
                color=WARM,
                arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.5, "shrinkB": 3},
            )
    n_flagged = int(table.flagged.any(axis=1).sum())
    return Picture(
        [svg_uri(figure)],
        f"Strips of {count(len(table.measures), 'quality measure')}, a point a {what}; {n_flagged} "
        f"of {count(len(table.runs), what)} stand out in at least one.",
        title,
        f"A point a {what} (n = {len(table.runs)}), a line at the median; the arrow shows which "
        f"way is worse. Diamonds: more than {THRESHOLD:g} robust deviations worse than the median; "
        f"the worst is named. {source}".rstrip(),
    )


def _short(run: str) -> str:
    """Subject, session, task and run as on a label."""
    parts = dict(part.split("-", 1) for part in run.split("_") if "-" in part)
    kept = [f"{key}-{parts[key]}" for key in ("sub", "ses", "run") if key in parts]
    return " ".join(kept) or run
