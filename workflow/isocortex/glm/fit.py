"""The GLM of one subject and task: from preprocessed runs to a betas store."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from isocortex import parallel, store
from isocortex.errors import InputError
from isocortex.glm.estimate import fit_trials
from isocortex.glm.estimators import Estimates, Estimator, fixed_effects_z
from isocortex.glm.halves import average_repeats, combine_halves, halves_of, scaling_groups
from isocortex.glm.images import intersect_masks
from isocortex.glm.methods import describe_methods
from isocortex.glm.noise_ceiling import describe_repeats_blocks
from isocortex.glm.optimised import fit_optimised
from isocortex.glm.prepare import PreparedRun, prepare_runs
from isocortex.glm.scratch import BLOCK_VOXELS, RunBlocks, lazy_columns
from isocortex.glm.series import Series
from isocortex.jobs import working_folder

log = logging.getLogger(__name__)

_WEAK = 5.0
"""A trial whose beta has more than this many times the median standard error is pointed out."""


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
    estimator: str = "lsa",
    lss_others: str = "together",
    optimised: Mapping[str, Any] | None = None,
    noise_model: str = "ols",
    scaling: str = "run",
    repeats: str = "keep",
    split_half: bool = False,
    code: str = "",
    threads: int = 1,
) -> Path:
    """Estimate the responses to all trials of a subject's runs of one task.

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
    estimator
        ``lsa``: least squares, all trials of a run at once
        (`isocortex.glm.estimate.fit_trials`). ``lss``: each trial by a model of its own
        (`isocortex.glm.lss`). ``optimised``: response, noise components and regularisation
        chosen by the data (`isocortex.glm.optimised.fit_optimised`).
    lss_others
        What a separate model has beside its trial: one regressor for all others (``together``),
        or one for the others of each condition (``condition``).
    optimised
        Options of the optimised estimator.
    noise_model
        ``ols``, or ``ar1``: series and design are prewhitened, voxel by voxel, by an
        autoregressive model of first order (`isocortex.glm.autocorrelation`).
    scaling
        Percent of each voxel's mean over the ``run``, or over the runs of the ``session``.
    repeats
        ``keep`` each trial, or ``average`` those of one stimulus in a session.
    split_half
        Whether odd and even runs are two halves that share no information: scaling by session and
        averages stay inside a half, and every choice of an estimator is made inside one.
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
    One run is enough; a noise ceiling needs repeated stimuli and is NaN without them. It is that
    of the single trials, also where repeats are averaged. Runs are read once, volume by volume,
    into a scratch file in blocks of voxels; betas and residuals lie in scratch files, too, until
    the store is written: memory holds a few blocks, however many voxels there are.
    """
    prepared = prepare_runs(
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
    halves = halves_of(prepared, split=split_half)
    fit = _estimator(
        estimator, noise_model=noise_model, lss_others=lss_others, optimised=optimised or {}
    )
    shared, affine = intersect_masks(mask, bold)
    with working_folder("glm", out) as scratch:
        series = Series(
            scratch,
            bold,
            shared,
            groups=scaling_groups(prepared, halves, scaling=scaling),
            threads=threads,
        )
        rows = [len(run.design.trials) for run in prepared]
        beta, residual = (
            RunBlocks(Path(scratch) / name, n, series.n_voxels, block_voxels=series.blocks[0].stop)
            for name, n in (("beta", rows), ("residual", series.n_volumes))
        )
        for run in prepared:
            log.info(
                "%s: %d trials, %d regressors, %d volumes",
                run.name,
                len(run.design.trials),
                len(run.design.names),
                len(run.design.frame_times),
            )
        parts = [
            fit(
                series.select(half),
                [prepared[run] for run in half],
                beta=beta.select(half),
                residual=residual.select(half),
                threads=threads,
            )
            for half in halves
        ]
        estimates = combine_halves(parts, halves, rows)
        counts = series.count_bad()
        keep = np.flatnonzero(series.usable)
        if not keep.size:
            raise InputError(
                f"no voxel of {series.n_voxels} in the mask of {bold[0]} and its fellow runs is "
                f"usable ({counts['n_voxels_nan']} have NaN, {counts['n_voxels_constant']} are "
                f"constant, {counts['n_voxels_nonpositive_mean']} have no positive mean): check "
                "the preprocessed images"
            )
        dataset = _assemble(
            prepared,
            estimates,
            halves=halves,
            repeats=repeats,
            beta=beta,
            residual=residual,
            keep=keep,
            mask=shared,
            threads=threads,
        )
        dataset.attrs = {
            "affine": affine.tolist(),
            "shape": [int(n) for n in shared.shape],
            "space": space,
            "TR": prepared[0].tr,
            "estimator": _NAMES[estimator],
            "subject": subject,
            "task": task,
            "hrf": hrf,
            "drift": drift,
            "trials": trials,
            "noise_model": noise_model,
            "scaling": scaling,
            "repeats": repeats,
            "split_half": split_half,
            "stimulus_column": prepared[0].stimulus_column,
            "n_voxels_mask": series.n_voxels,
            **counts,
            "degrees_of_freedom": sum(estimates.degrees_of_freedom),
            "design": _describe(prepared, estimates),
            **estimates.attrs,
            "methods": describe_methods(
                prepared,
                counts,
                estimates=estimates,
                hrf=hrf,
                drift=drift,
                high_pass=high_pass,
                drift_order=drift_order,
                trials=trials,
                estimator=estimator,
                lss_others=lss_others,
                noise_model=noise_model,
                scaling=scaling,
                repeats=repeats,
                split_half=split_half,
                ceiling=bool(np.isfinite(dataset["noise_ceiling"].values).any()),
            ),
        }
        del parts, estimates, keep
        with parallel.dask_workers(threads):
            return store.write(
                dataset,
                out,
                spec="betas",
                sources=[*bold, *mask, *confounds, *sidecar, *events],
                code=code,
            )


_NAMES = {
    "lsa": "least squares, all trials of a run at once",
    "lss": "least squares, each trial separately",
    "optimised": "fractional ridge with each voxel's response and noise components",
}


def _estimator(
    name: str, *, noise_model: str, lss_others: str, optimised: Mapping[str, Any]
) -> Estimator:
    """Return the estimator that the config names."""
    if name not in _NAMES:
        raise ValueError(f"estimator is {name!r}: pass one of {', '.join(_NAMES)}")
    if name == "optimised":
        if noise_model != "ols":
            raise InputError(
                f"glm.noise_model is {noise_model} with glm.estimator optimised, which has no "
                "prewhitening: set it to ols"
            )
        return partial(fit_optimised, **optimised)
    return partial(fit_trials, estimator=name, noise_model=noise_model, lss_others=lss_others)


def _assemble(
    runs: Sequence[PreparedRun],
    estimates: Estimates,
    *,
    halves: Sequence[Sequence[int]],
    repeats: str,
    beta: RunBlocks,
    residual: RunBlocks,
    keep: np.ndarray,
    mask: np.ndarray,
    threads: int,
) -> xr.Dataset:
    """Return the dataset of the betas store, without attributes."""
    pairs = [(run, trial) for run in runs for trial in run.design.trials]
    half = {run: number for number, members in enumerate(halves, start=1) for run in members}
    table = {
        "stimulus": [trial.stimulus for _, trial in pairs],
        "condition": [trial.condition for _, trial in pairs],
        "session": [run.session for run, _ in pairs],
        "run": [run.name for run, _ in pairs],
        "onset": np.array([trial.onset for _, trial in pairs]),
        "duration": np.array([trial.duration for _, trial in pairs]),
        "half": np.array(
            [half[k] for k, run in enumerate(runs) for _ in run.design.trials], dtype=np.int16
        ),
        "beta_se": estimates.beta_se,
    }
    single = lazy_columns(beta, keep)
    described = describe_repeats_blocks(
        single,
        table["stimulus"],
        table["session"],
        half=table["half"] if len(halves) > 1 else None,
        threads=threads,
    )
    responses = lazy_columns(beta, keep, spec="betas")
    if repeats == "average":
        table, mean = average_repeats(table)
        responses = lazy_columns(
            beta, keep, spec="betas", transform=mean, n_rows=len(table["stimulus"])
        )
    if len(halves) == 1:
        del table["half"]
    beta_se = table.pop("beta_se")
    z = np.empty(keep.size, dtype=np.float32)
    for start in range(0, keep.size, BLOCK_VOXELS):
        part = keep[start : start + BLOCK_VOXELS]
        z[start : start + BLOCK_VOXELS] = fixed_effects_z(
            estimates.effect[part],
            estimates.variance[part],
            sum(estimates.effect_degrees_of_freedom),
        )
    where = np.unravel_index(np.flatnonzero(mask)[keep], mask.shape)
    i, j, k = (axis.astype(np.int32) for axis in where)
    first = runs[0].design
    per_voxel = {
        "r2": 1 - estimates.residual_squares[keep] / estimates.nuisance_squares[keep],
        **described,
        "tsnr": estimates.tsnr[keep],
        "z_stimulus": z,
        **{name: values[keep] for name, values in estimates.voxel.items()},
    }
    time_run = [run.name for run in runs for _ in run.design.frame_times]
    texts = ("stimulus", "condition", "session", "run")
    return xr.Dataset(
        {
            "beta": (("trial", "voxel"), responses),
            "beta_se": ("trial", beta_se),
            "residual": (("time", "voxel"), lazy_columns(residual, keep, spec="betas")),
            "hrf_index": ("voxel", estimates.hrf_index[keep]),
            "design": (("volume", "regressor"), first.matrix.astype(np.float32)),
            **{
                name: ("voxel", v.astype(np.float32) if v.dtype.kind == "f" else v)
                for name, v in per_voxel.items()
            },
        },
        coords={
            **{
                name: ("trial", np.array(values, dtype=object) if name in texts else values)
                for name, values in table.items()
            },
            "time_run": ("time", np.array(time_run, dtype=object)),
            "regressor": ("regressor", np.array(first.names, dtype=object)),
            "frame_time": ("volume", first.frame_times),
            "i": ("voxel", i),
            "j": ("voxel", j),
            "k": ("voxel", k),
        },
    )


def _describe(runs: Sequence[PreparedRun], estimates: Estimates) -> list[dict[str, Any]]:
    """Return what a report says about the runs' designs."""
    found, first = [], 0
    for number, run in enumerate(runs):
        design = run.design
        se = estimates.beta_se[first : first + len(design.trials)]
        first += len(design.trials)
        weak = np.flatnonzero(se > _WEAK * np.median(se))
        if weak.size:
            log.warning(
                "run %s: %d trials are hardly measured (standard error over %g times the median), "
                "at %s s",
                run.name,
                weak.size,
                _WEAK,
                ", ".join(f"{design.trials[k].onset:g}" for k in weak[:5]),
            )
        found.append(
            {
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
                "degrees_of_freedom": estimates.degrees_of_freedom[number],
                "condition_number": round(estimates.condition_number[number], 6),
                "weak_trials": [design.trials[k].onset for k in weak],
            }
        )
    return found
