"""The GLM of one subject and task: from preprocessed runs to a betas store."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pandas as pd
import xarray as xr

from isocortex import bids, parallel, store
from isocortex.errors import InputError
from isocortex.glm.confounds import choose_confounds
from isocortex.glm.design import Design, find_stimulus_column, make_design, make_trials
from isocortex.glm.estimate import RunFit, fit_run, stimulus_z
from isocortex.glm.images import intersect_masks, read_series
from isocortex.glm.noise_ceiling import estimate_noise_ceiling
from isocortex.glm.scratch import BLOCK_VOXELS, lazy_columns, scratch_array

log = logging.getLogger(__name__)

_WEAK = 5.0
"""A trial whose beta has more than this many times the median standard error is pointed out."""


@dataclass(frozen=True)
class PreparedRun:
    """One run, checked, with its design; its images are not read yet."""

    name: str
    session: str
    bold: Path
    design: Design
    tr: float
    start_time: float
    stimulus_column: str
    confounds: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    n_other_events: int = 0


def fit_glm(
    *,
    bold: Sequence[str | Path],
    mask: Sequence[str | Path],
    sidecar: Sequence[str | Path],
    events: Sequence[str | Path],
    runs: Sequence[Mapping[str, str | None]],
    out: str | Path,
    subject: str,
    task: str,
    space: str,
    confounds: Sequence[str | Path] = (),
    hrf: str = "glover",
    drift: str = "cosine",
    high_pass: float = 0.01,
    drift_order: int = 1,
    confound_columns: str | Sequence[str] = "motion6",
    trials: str = "single",
    block_gap: float = 4.0,
    stimulus_column: str = "auto",
    trial_types: Sequence[str] = ("*",),
    nuisance_types: Sequence[str] = (),
    code: str = "",
    threads: int = 1,
) -> Path:
    """Fit all trials of a subject's runs of one task by least squares, run by run.

    Parameters
    ----------
    bold
        Preprocessed time series on one grid, one a run.
    mask
        Brain masks of the runs; voxels that all share are fitted.
    sidecar
        JSON of each time series: ``RepetitionTime``, ``StartTime``, ``SliceTimingCorrected``.
    events
        Events tables of the runs.
    runs
        For each run its ``session``, None or empty where there is none, and its name, ``run``,
        which is unique over sessions (`isocortex.bids.Run.name`).
    out
        The betas store to write.
    subject, task, space
        Labels.
    confounds
        Confounds tables of the runs; may be empty where ``confound_columns`` asks for none.
    hrf, drift, high_pass, drift_order
        The model, see `isocortex.glm.design.make_design`.
    confound_columns
        See `isocortex.glm.confounds.choose_confounds`.
    trials, block_gap, stimulus_column, trial_types, nuisance_types
        What a trial is, see `isocortex.glm.design.make_trials`.
    code
        Code version, for the provenance.
    threads
        Cores to use; the results do not depend on it.

    Returns
    -------
    pathlib.Path
        The store's manifest.

    Raises
    ------
    InputError
        Where runs, events, confounds, masks or grids do not fit together, see the messages.

    Notes
    -----
    One run is enough; a noise ceiling needs repeated stimuli and is NaN without them. Memory
    holds one run's time series inside the mask; betas and residuals lie in temporary files until
    the store is written.
    """
    prepared = _prepare_runs(
        bold=bold,
        mask=mask,
        sidecar=sidecar,
        events=events,
        runs=runs,
        confounds=confounds,
        confound_columns=confound_columns,
        trial_options={
            "trials": trials,
            "block_gap": block_gap,
            "stimulus_column": stimulus_column,
            "trial_types": tuple(trial_types),
            "nuisance_types": tuple(nuisance_types),
        },
        design_options={
            "hrf": hrf,
            "drift": drift,
            "high_pass": high_pass,
            "drift_order": drift_order,
        },
    )
    shared, affine = intersect_masks(mask, bold)
    n_voxels = int(shared.sum())
    n_trials = [len(run.design.trials) for run in prepared]
    n_volumes = [len(run.design.frame_times) for run in prepared]

    with tempfile.TemporaryDirectory(prefix="isocortex-glm-") as scratch:
        beta = scratch_array(scratch, "beta", (sum(n_trials), n_voxels))
        residual = scratch_array(scratch, "residual", (sum(n_volumes), n_voxels))
        fits: list[RunFit] = []
        reasons = {name: np.zeros(n_voxels, dtype=bool) for name in ("nan", "constant", "negative")}
        first_trial = first_volume = 0
        for number, run in enumerate(prepared, start=1):
            series = read_series(run.bold, shared)
            find_bad_voxels(series, run.bold, reasons)
            rows = slice(first_trial, first_trial + len(run.design.trials))
            times = slice(first_volume, first_volume + len(run.design.frame_times))
            first_trial, first_volume = rows.stop, times.stop
            fits.append(
                fit_run(
                    series, run.design, beta=beta[rows], residual=residual[times], threads=threads
                )
            )
            log.info(
                "run %d of %d (%s): %d trials, %d regressors, %d volumes, %d voxels",
                number,
                len(prepared),
                run.name,
                len(run.design.trials),
                len(run.design.names),
                len(run.design.frame_times),
                n_voxels,
            )
            del series
        keep = np.flatnonzero(~(reasons["nan"] | reasons["constant"] | reasons["negative"]))
        if not keep.size:
            raise InputError(
                f"no voxel of {n_voxels} in the mask of {bold[0]} and its fellow runs is usable "
                f"({reasons['nan'].sum()} have NaN, {reasons['constant'].sum()} are constant, "
                f"{reasons['negative'].sum()} have no positive mean): check the preprocessed images"
            )
        dataset = _assemble(
            prepared,
            fits,
            beta=lazy_columns(beta, keep),
            residual=lazy_columns(residual, keep),
            keep=keep,
            mask=shared,
            threads=threads,
        )
        counts = count_bad(reasons)
        dataset.attrs = {
            "affine": affine.tolist(),
            "shape": [int(n) for n in shared.shape],
            "space": space,
            "TR": prepared[0].tr,
            "estimator": "least squares, all trials of a run at once",
            "subject": subject,
            "task": task,
            "hrf": hrf,
            "drift": drift,
            "trials": trials,
            "stimulus_column": prepared[0].stimulus_column,
            "n_voxels_mask": n_voxels,
            **counts,
            "degrees_of_freedom": sum(fit.degrees_of_freedom for fit in fits),
            "design": [_describe(run, fit) for run, fit in zip(prepared, fits, strict=True)],
            "methods": _methods(
                prepared,
                counts,
                hrf=hrf,
                drift=drift,
                high_pass=high_pass,
                drift_order=drift_order,
                trials=trials,
                repeats=bool(np.isfinite(dataset["noise_ceiling"].values).any()),
            ),
        }
        with parallel.dask_workers(threads):
            return store.write(
                dataset,
                out,
                spec="betas",
                sources=[*bold, *mask, *confounds, *sidecar, *events],
                code=code,
            )


def check_lists(
    bold: Sequence[str | Path],
    *,
    mask: Sequence[str | Path],
    sidecar: Sequence[str | Path],
    events: Sequence[str | Path],
    runs: Sequence[Mapping[str, str | None]],
    confounds: Sequence[str | Path],
    confound_columns: str | Sequence[str],
) -> None:
    """Raise `InputError` where there is not one file of each kind a run."""
    lengths = {
        "masks": len(mask),
        "sidecars": len(sidecar),
        "events tables": len(events),
        "run labels": len(runs),
    }
    if not bold:
        raise InputError("no runs: check input.tasks and that the subject has recordings")
    for name, length in lengths.items():
        if length != len(bold):
            raise InputError(
                f"{length} {name} for {len(bold)} runs, the first of them {bold[0]}: give one a run"
            )
    if confounds and len(confounds) != len(bold):
        raise InputError(
            f"{len(confounds)} confounds tables for {len(bold)} runs, the first run is {bold[0]}: "
            f"give one a run"
        )
    if not confounds and confound_columns != "none" and list(confound_columns) != []:
        raise InputError(
            f"glm.confound_columns asks for {confound_columns} but there is no confounds "
            f"table beside {bold[0]}: add the tables or set it to none"
        )


@dataclass(frozen=True)
class Recording:
    """What header, sidecar and confounds table of a run say."""

    name: str
    session: str
    n_volumes: int
    tr: float
    start_time: float
    timed: bool
    confounds: pd.DataFrame
    dropped: list[str]


def read_recordings(
    bold: Sequence[str | Path],
    *,
    sidecar: Sequence[str | Path],
    runs: Sequence[Mapping[str, str | None]],
    confounds: Sequence[str | Path],
    confound_columns: str | Sequence[str],
) -> list[Recording]:
    """Read headers, sidecars and confounds of runs that are analysed together.

    Parameters
    ----------
    bold, sidecar, runs, confounds, confound_columns
        As for `fit_glm`.

    Returns
    -------
    list
        One a run: name, session, n_volumes, TR and start time (s), whether its slices were
        brought to one time (``timed``), the chosen confounds and those left out.

    Raises
    ------
    InputError
        Where a run is there twice, is no series, or has another TR than the first.
    """
    found: list[Recording] = []
    for index, path in enumerate(map(Path, bold)):
        name, session = str(runs[index]["run"]), str(runs[index]["session"] or "")
        if name in {run.name for run in found}:
            raise InputError(f"run {name} is there twice, the second time as {path}: remove one")
        info = bids.read_json(sidecar[index])
        header = bids.read_header(path)
        if len(header.shape) != 4:
            raise InputError(f"{path} has {len(header.shape)} dimensions, not 4: pass a series")
        tr = bids.repetition_time(path, info, header)
        if found and abs(tr - found[0].tr) > 1e-3:
            raise InputError(
                f"{path} has TR {tr:g} s, {bold[0]} {found[0].tr:g} s: give the runs "
                f"different task names"
            )
        table, dropped = choose_confounds(
            bids.read_table(confounds[index]) if confounds else [],
            confound_columns if confounds else "none",
            n_volumes=header.shape[3],
            where=str(confounds[index]) if confounds else "",
        )
        if dropped:
            log.info("%s: confounds without change left out: %s", path.name, ", ".join(dropped))
        start = _start_time(info, sidecar[index])
        timed = bool(info.get("SliceTimingCorrected"))
        found.append(Recording(name, session, header.shape[3], tr, start, timed, table, dropped))
    return found


def _prepare_runs(
    *,
    bold: Sequence[str | Path],
    mask: Sequence[str | Path],
    sidecar: Sequence[str | Path],
    events: Sequence[str | Path],
    runs: Sequence[Mapping[str, str | None]],
    confounds: Sequence[str | Path],
    confound_columns: str | Sequence[str],
    trial_options: Mapping[str, Any],
    design_options: Mapping[str, Any],
) -> list[PreparedRun]:
    """Check all that can be checked without the images' data, and make the designs."""
    check_lists(
        bold,
        mask=mask,
        sidecar=sidecar,
        events=events,
        runs=runs,
        confounds=confounds,
        confound_columns=confound_columns,
    )
    recordings = read_recordings(
        bold, sidecar=sidecar, runs=runs, confounds=confounds, confound_columns=confound_columns
    )
    prepared: list[PreparedRun] = []
    conditions: set[str] = set()
    for index, (path, recording) in enumerate(zip(map(Path, bold), recordings, strict=True)):
        rows = bids.read_events(events[index])
        conditions |= {str(row.get("trial_type", "")).strip() for row in rows}
        try:
            made, frame = make_trials(rows, **trial_options)
            column = find_stimulus_column(rows, trial_options["stimulus_column"])
            design = make_design(
                made,
                frame,
                n_volumes=recording.n_volumes,
                tr=recording.tr,
                start_time=recording.start_time,
                confounds=recording.confounds,
                **design_options,
            )
        except InputError as error:
            raise InputError(f"{events[index]} with {path.name}: {error}") from None
        if prepared and column != prepared[0].stimulus_column:
            raise InputError(
                f"{events[index]} has its stimuli in column {column}, the first run in "
                f"{prepared[0].stimulus_column}: name one in glm.stimulus_column"
            )
        other = int(frame["trial_type"].str.startswith("event_").sum())
        if other:
            log.info("%s: %d events are no trials", Path(events[index]).name, other)
        prepared.append(
            PreparedRun(
                name=recording.name,
                session=recording.session,
                bold=path,
                design=design,
                tr=recording.tr,
                start_time=recording.start_time,
                stimulus_column=column,
                confounds=[str(c) for c in recording.confounds.columns],
                dropped=recording.dropped,
                n_other_events=other,
            )
        )
    for key in ("trial_types", "nuisance_types"):
        for pattern in trial_options[key]:
            if not any(fnmatchcase(condition, pattern) for condition in conditions):
                raise InputError(
                    f"glm.{key} names {pattern!r}, which no event of {Path(events[0]).name} and "
                    f"its fellow runs has: there are {', '.join(sorted(conditions))}"
                )
    return prepared


def _start_time(info: Mapping[str, Any], path: str | Path) -> float:
    """Return the time that a series' first volume stands for, s."""
    start = info.get("StartTime")
    if start is None:
        if info.get("SliceTimingCorrected"):
            raise InputError(
                f"{path} says SliceTimingCorrected but has no StartTime, so onsets cannot be "
                f"placed: add the time within the TR that slices were shifted to"
            )
        return 0.0
    if isinstance(start, bool) or not isinstance(start, int | float) or not np.isfinite(start):
        raise InputError(f"{path} has StartTime {start!r}: give it in seconds")
    return float(start)


def find_bad_voxels(series: np.ndarray, path: Path, reasons: dict[str, np.ndarray]) -> None:
    """Mark voxels of a run that cannot be fitted; the first reason counts."""
    for start in range(0, series.shape[1], BLOCK_VOXELS):
        part = slice(start, start + BLOCK_VOXELS)
        block = series[:, part]
        finite = np.isfinite(block).all(axis=0)
        with np.errstate(invalid="ignore"):
            constant = finite & (np.ptp(block, axis=0) == 0)
            negative = finite & ~constant & (block.mean(axis=0, dtype=np.float64) <= 0)
        reasons["nan"][part] |= ~finite
        reasons["constant"][part] |= constant
        reasons["negative"][part] |= negative
    empty = [k for k in range(series.shape[0]) if not np.isfinite(series[k]).any()]
    if empty:
        raise InputError(
            f"{path} has no number in the mask at {len(empty)} volumes, the first {empty[0]} "
            f"(counted from 0): make the preprocessed image again"
        )


def count_bad(reasons: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Return how many voxels were left out, each counted under its first reason."""
    nan = reasons["nan"]
    constant = reasons["constant"] & ~nan
    negative = reasons["negative"] & ~nan & ~constant
    return {
        "n_voxels_nan": int(nan.sum()),
        "n_voxels_constant": int(constant.sum()),
        "n_voxels_nonpositive_mean": int(negative.sum()),
    }


def noise_ceiling_blocks(
    beta: da.Array, stimulus: Sequence[str], session: Sequence[str], *, threads: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return noise ceiling and ncsnr of lazy responses, block by block.

    Parameters
    ----------
    beta : dask.array.Array, shape (n_trials, n_voxels)
        Responses, all trials of a voxel in one block.
    stimulus, session
        Of each trial.
    threads
        Blocks that are worked on at a time.

    Returns
    -------
    noise_ceiling, ncsnr : numpy.ndarray of float32, shape (n_voxels,)
        See `estimate_noise_ceiling`.
    """
    parts = [
        dask.delayed(estimate_noise_ceiling)(block, list(stimulus), list(session))
        for block in beta.rechunk({0: -1}).to_delayed().ravel()
    ]
    with parallel.dask_workers(threads):
        done = dask.compute(*parts)
    ceiling, ncsnr = (np.concatenate(values).astype(np.float32) for values in zip(*done))
    return ceiling, ncsnr


def _assemble(
    runs: Sequence[PreparedRun],
    fits: Sequence[RunFit],
    *,
    beta: da.Array,
    residual: da.Array,
    keep: np.ndarray,
    mask: np.ndarray,
    threads: int,
) -> xr.Dataset:
    """Return the dataset of the betas store, without attributes."""
    pairs = [(run, trial) for run in runs for trial in run.design.trials]
    stimulus = [trial.stimulus for _, trial in pairs]
    session = [run.session for run, _ in pairs]
    ceiling, ncsnr = noise_ceiling_blocks(beta, stimulus, session, threads=threads)
    whole = sum(fit.residual_squares[keep] for fit in fits)
    nuisance = sum(fit.nuisance_squares[keep] for fit in fits)
    z = stimulus_z(list(fits))[keep]
    i, j, k = (axis[keep].astype(np.int32) for axis in np.nonzero(mask))
    first = runs[0].design
    per_voxel = {
        "r2": 1 - whole / nuisance,
        "noise_ceiling": ceiling,
        "ncsnr": ncsnr,
        "tsnr": np.mean([fit.tsnr[keep] for fit in fits], axis=0),
        "z_stimulus": z,
    }
    time_run = [run.name for run in runs for _ in run.design.frame_times]
    return xr.Dataset(
        {
            "beta": (("trial", "voxel"), beta),
            "beta_se": ("trial", np.concatenate([fit.beta_se for fit in fits])),
            "residual": (("time", "voxel"), residual),
            "hrf_index": ("voxel", np.zeros(keep.size, dtype=np.int16)),
            "design": (("volume", "regressor"), first.matrix.astype(np.float32)),
            **{name: ("voxel", v.astype(np.float32)) for name, v in per_voxel.items()},
        },
        coords={
            "stimulus": ("trial", np.array(stimulus, dtype=object)),
            "condition": ("trial", np.array([t.condition for _, t in pairs], dtype=object)),
            "session": ("trial", np.array(session, dtype=object)),
            "run": ("trial", np.array([run.name for run, _ in pairs], dtype=object)),
            "onset": ("trial", np.array([t.onset for _, t in pairs])),
            "duration": ("trial", np.array([t.duration for _, t in pairs])),
            "time_run": ("time", np.array(time_run, dtype=object)),
            "regressor": ("regressor", np.array(first.names, dtype=object)),
            "frame_time": ("volume", first.frame_times),
            "i": ("voxel", i),
            "j": ("voxel", j),
            "k": ("voxel", k),
        },
    )


def _describe(run: PreparedRun, fit: RunFit) -> dict[str, Any]:
    """Return what a report says about a run's design."""
    design = run.design
    weak = np.flatnonzero(fit.beta_se > _WEAK * np.median(fit.beta_se))
    if weak.size:
        log.warning(
            "run %s: %d trials are hardly measured (standard error over %g times the median), "
            "at %s s",
            run.name,
            weak.size,
            _WEAK,
            ", ".join(f"{design.trials[k].onset:g}" for k in weak[:5]),
        )
    return {
        "run": run.name,
        "session": run.session,
        "n_volumes": len(design.frame_times),
        "n_trials": len(design.trials),
        "n_regressors": len(design.names),
        "n_drift": len(design.drift_columns),
        "n_other_events": run.n_other_events,
        "confounds": run.confounds,
        "confounds_without_change": run.dropped,
        "start_time": run.start_time,
        "degrees_of_freedom": fit.degrees_of_freedom,
        "condition_number": round(fit.condition_number, 6),
        "weak_trials": [design.trials[k].onset for k in weak],
    }


def _methods(
    runs: Sequence[PreparedRun],
    counts: Mapping[str, int],
    *,
    hrf: str,
    drift: str,
    high_pass: float,
    drift_order: int,
    trials: str,
    repeats: bool,
) -> str:
    """Return the methods text of what was done."""
    unit = {
        "single": "each trial",
        "block": "each block of successive events of one condition",
        "condition": "each condition",
    }[trials]
    drifts = {
        "cosine": f"a cosine drift set (high-pass {high_pass:g} Hz)",
        "polynomial": f"a polynomial drift of order {drift_order}",
        "none": "a constant",
    }[drift]
    starts = sorted({run.start_time for run in runs})
    names = sorted({name for run in runs for name in run.confounds})
    sentences = [
        f"Responses were estimated run by run ({len(runs)} run{'s' if len(runs) > 1 else ''}) by "
        f"ordinary least squares with one regressor for {unit} of a run, convolved with the "
        f"{hrf} haemodynamic response (nilearn), together with {drifts}"
        + (f" and {len(names)} confounds ({', '.join(names)})." if names else "."),
        f"Volumes were placed in time at {', '.join(f'{start:g}' for start in starts)} s plus "
        f"multiples of the repetition time of {runs[0].tr:g} s.",
        "Responses are in percent of each voxel's mean over the run.",
        "The noise ceiling follows Allen et al. (2022)."
        if repeats
        else "No stimulus repeats, so there is no noise ceiling.",
    ]
    if sum(counts.values()):
        sentences.append(
            f"{sum(counts.values())} voxels were left out ({counts['n_voxels_nan']} with NaN, "
            f"{counts['n_voxels_constant']} constant, {counts['n_voxels_nonpositive_mean']} "
            f"without a positive mean)."
        )
    return " ".join(sentences)
