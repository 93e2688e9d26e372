"""Time series of continuous designs: cleaned here, or taken over from elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pandas as pd
import xarray as xr
from threadpoolctl import threadpool_limits

from isocortex import bids, parallel, store
from isocortex.errors import InputError
from isocortex.glm.confounds import OUTLIERS
from isocortex.glm.design import balanced, find_stimulus_column, make_design, matches
from isocortex.glm.images import (
    check_grid,
    intersect_masks,
    open_image,
    read_volume_groups,
    read_volumes,
)
from isocortex.glm.noise_ceiling import describe_repeats_blocks
from isocortex.glm.prepare import Recording, check_lists, read_recordings
from isocortex.glm.scratch import RunBlocks, lazy_columns
from isocortex.glm.series import Series
from isocortex.jobs import working_folder

log = logging.getLogger(__name__)

MISSING = ("", "n/a")
LONGEST_AXIS = 32767
"""Most voxels along an axis of a NIfTI image."""
_SETTLED = 4.0
"""Seconds after a stimulus' start in which voxels still respond to what came before it."""
_NO_EVENTS = pd.DataFrame({"onset": [], "duration": [], "trial_type": []})


def clean_bold(
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
    drift: str = "cosine",
    high_pass: float = 0.01,
    drift_order: int = 1,
    confound_columns: str | Sequence[str] = "motion6",
    stimulus_column: str = "auto",
    trial_types: Sequence[str] = ("*",),
    nuisance_types: Sequence[str] = (),
    code: str = "",
    threads: int = 1,
) -> Path:
    """Take drift and confounds out of a subject's runs of one continuous task.

    Parameters
    ----------
    bold, mask, sidecar, events, runs, confounds
        One file a run, see `isocortex.glm.fit.fit_glm`.
    out
        The timeseries store to write.
    subject, task, space
        Labels.
    drift, high_pass, drift_order
        Drift regressors, see `isocortex.glm.design.make_design`.
    confound_columns
        See `isocortex.glm.confounds.choose_confounds`.
    stimulus_column
        Column of the events tables that holds the stimulus ids.
    trial_types, nuisance_types
        Names or patterns of the conditions whose events count as stimuli, or do not.
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
    Each voxel is scaled to percent of its mean over the run, and drift and confounds are regressed
    out within the run, by least squares. Volumes that confounds mark as outliers (non-steady
    state, and motion outliers where those columns are chosen) do not take part and are not in the
    store, which is the same as a regressor of their own; times count from the run's first volume.
    A volume stands at ``StartTime`` plus its multiple of the TR where slices were brought to one
    time, else at the middle of its acquisition. Memory holds a few blocks of voxels and of
    volumes; a run lies in temporary files.
    """
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
    shown = [
        read_shown(
            path,
            end=run.n_volumes * run.tr,
            stimulus_column=stimulus_column,
            trial_types=trial_types,
            nuisance_types=nuisance_types,
        )
        for path, run in zip(events, recordings, strict=True)
    ]
    plans = [
        _nuisance(run, path, drift=drift, high_pass=high_pass, drift_order=drift_order)
        for run, path in zip(recordings, bold, strict=True)
    ]
    shared, affine = intersect_masks(mask, bold)
    n_voxels = int(shared.sum())
    with working_folder("clean", out) as scratch:
        kept = [int(steady.sum()) for steady, _, _ in plans]
        series = Series(scratch, bold, shared, threads=threads)
        signal = RunBlocks(
            Path(scratch) / "signal", kept, n_voxels, block_voxels=series.blocks[0].stop
        )
        tsnr = np.zeros(n_voxels)
        for number, (run, plan) in enumerate(zip(recordings, plans, strict=True)):
            tsnr += _regress_out(series, number, *plan, out=signal, threads=threads)
            log.info(
                "run %d of %d (%s): %d of %d volumes, %d regressors taken out, %d voxels",
                number + 1,
                len(recordings),
                run.name,
                kept[number],
                run.n_volumes,
                plan[1].shape[1],
                n_voxels,
            )
        keep = np.flatnonzero(series.usable)
        counts = series.count_bad()
        _check_some(keep, n_voxels, counts, bold[0])
        times = [_times(run)[plan[0]] for run, plan in zip(recordings, plans, strict=True)]
        dataset = _assemble(
            lazy_columns(signal, keep, spec="timeseries"),
            names=[(run.name, run.session) for run in recordings],
            times=times,
            shown=shown,
            tr=recordings[0].tr,
            indices=tuple(axis[keep] for axis in np.nonzero(shared)),
            threads=threads,
        )
        dataset["tsnr"] = ("voxel", (tsnr[keep] / len(recordings)).astype(np.float32))
        dropped = sum(run.n_volumes for run in recordings) - sum(kept)
        taken_out = f"{drift} drift" if drift != "none" else "the mean"
        dataset.attrs = {
            "affine": affine.tolist(),
            "shape": [int(n) for n in shared.shape],
            "space": space,
            "TR": recordings[0].tr,
            "subject": subject,
            "task": task,
            "drift": drift,
            "n_voxels_mask": n_voxels,
            **counts,
            "n_volumes_left_out": dropped,
            "confounds": [[str(name) for name in run.confounds.columns] for run in recordings],
            "methods": (
                f"Volumes were scaled to percent signal change and {taken_out} and "
                f"{len(recordings[0].confounds.columns)} confounds were regressed out within each "
                f"of {len(recordings)} runs"
                + (f"; {dropped} outlying volumes were left out." if dropped else ".")
            ),
        }
        with parallel.dask_workers(threads):
            return store.write(
                dataset,
                out,
                spec="timeseries",
                sources=[*bold, *mask, *confounds, *sidecar, *events],
                code=code,
            )


def _times(run: Recording) -> np.ndarray:
    """Time that each volume of a run stands for, s."""
    middle = 0.0 if run.timed else run.tr / 2
    return run.start_time + middle + run.tr * np.arange(run.n_volumes)


def _nuisance(
    run: Recording, path: str | Path, *, drift: str, high_pass: float, drift_order: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which volumes of a run take part, and bases of what is taken out and of drift alone."""
    spikes = [name for name in run.confounds.columns if str(name).startswith(OUTLIERS)]
    steady = ~(run.confounds[spikes].to_numpy(float) != 0).any(axis=1)
    if steady.sum() < 3:
        raise InputError(
            f"{path}: confounds mark all but {steady.sum()} of {run.n_volumes} volumes as "
            "outliers: correct the confounds, or exclude the subject"
        )
    try:
        design = make_design(
            [],
            _NO_EVENTS,
            n_volumes=run.n_volumes,
            tr=run.tr,
            start_time=run.start_time,
            drift=drift,
            high_pass=high_pass,
            drift_order=drift_order,
            confounds=run.confounds,
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    matrix, _ = balanced(design)
    regular = [k for k, name in enumerate(design.names) if name not in spikes]
    drifts = np.isin(regular, design.drift_columns)
    rest = matrix[np.ix_(steady, regular)]
    # On one thread: the number of cores must not change the last bits.
    with threadpool_limits(limits=1):
        return steady, np.linalg.qr(rest)[0], np.linalg.qr(rest[:, drifts])[0]


def _regress_out(
    series: Series,
    run: int,
    steady: np.ndarray,
    nuisance: np.ndarray,
    drift: np.ndarray,
    *,
    out: RunBlocks,
    threads: int,
) -> np.ndarray:
    """Write the cleaned run in percent signal change; return the temporal SNR of each voxel."""
    tsnr = np.empty(series.n_voxels)
    freedom = max(1, int(steady.sum()) - drift.shape[1])

    def clean_block(part: slice) -> None:
        scaled = series.read(run, part, volumes=steady)
        level = scaled - drift @ (drift.T @ scaled)
        with np.errstate(divide="ignore", invalid="ignore"):
            tsnr[part] = 100 / np.sqrt(np.einsum("tv,tv->v", level, level) / freedom)
        out.write(run, part, scaled - nuisance @ (nuisance.T @ scaled))

    with parallel.dask_workers(threads):
        dask.compute([dask.delayed(clean_block)(part) for part in series.blocks])
    return tsnr


def read_shown(
    path: str | Path,
    *,
    end: float,
    stimulus_column: str = "auto",
    trial_types: Sequence[str] = ("*",),
    nuisance_types: Sequence[str] = (),
) -> list[tuple[float, float, str]]:
    """Return what an events table says was shown: onset (s), duration (s), stimulus id.

    Parameters
    ----------
    path
        The table.
    end
        End of the run, s.
    stimulus_column, trial_types, nuisance_types
        As for `clean_bold`.

    Raises
    ------
    InputError
        Where no event shows a stimulus, or one begins after the run.
    """
    rows = bids.read_events(path)
    try:
        column = find_stimulus_column(rows, stimulus_column)
        shown = []
        for number, row in enumerate(rows, start=1):
            stimulus = str(row.get(column, "")).strip()
            condition = str(row.get("trial_type", stimulus)).strip()
            wanted = matches(condition, trial_types) and not matches(condition, nuisance_types)
            if stimulus in MISSING or not wanted:
                continue
            onset = row["onset"]
            if onset >= end:
                raise InputError(
                    f"event {number} begins at {onset:g} s, after the run's end ({end:g} s): "
                    "correct the onsets, or the recording is incomplete"
                )
            shown.append((onset, row["duration"], stimulus))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if not shown:
        raise InputError(
            f"{path} names no stimulus: fill in the column {column}, or check glm.trial_types"
        )
    return sorted(shown)


def _check_some(keep: np.ndarray, total: int, counts: Mapping[str, int], where: object) -> None:
    if not keep.size:
        raise InputError(
            f"no voxel of {total} in {where} and its fellow runs is usable "
            f"({counts['n_voxels_nan']} have NaN, {counts['n_voxels_constant']} are constant, "
            f"{counts['n_voxels_nonpositive_mean']} have no positive mean): check the images"
        )


def _assemble(
    signal: da.Array,
    *,
    names: Sequence[tuple[str, str]],
    times: Sequence[np.ndarray],
    shown: Sequence[Sequence[tuple[float, float, str]]],
    tr: float,
    indices: tuple[np.ndarray, ...],
    threads: int,
) -> xr.Dataset:
    """Put signal, volumes and events together as the store holds them."""
    run = np.repeat([name for name, _ in names], [len(t) for t in times]).astype(object)
    session = np.repeat([session for _, session in names], [len(t) for t in times]).astype(object)
    time = np.concatenate(times)
    events = [(name, *event) for (name, _), own in zip(names, shown, strict=True) for event in own]
    ceiling = volume_ceiling(signal, run, time, events, tr=tr, threads=threads)
    return xr.Dataset(
        {"signal": (("volume", "voxel"), signal), "noise_ceiling": ("voxel", ceiling)},
        coords={
            "run": ("volume", run),
            "session": ("volume", session),
            "time": ("volume", time.astype(float)),
            "event_run": ("event", np.array([e[0] for e in events], dtype=object)),
            "event_onset": ("event", np.array([e[1] for e in events], dtype=float)),
            "event_duration": ("event", np.array([e[2] for e in events], dtype=float)),
            "event_stimulus": ("event", np.array([e[3] for e in events], dtype=object)),
            **{
                name: ("voxel", axis.astype(np.int32))
                for name, axis in zip("ijk", indices, strict=True)
            },
        },
    )


def volume_ceiling(
    signal: da.Array,
    run: np.ndarray,
    time: np.ndarray,
    events: Sequence[tuple[str, float, float, str]],
    *,
    tr: float,
    threads: int = 1,
) -> np.ndarray:
    """Estimate the explainable share of the variance of single volumes from repeated stimuli.

    Parameters
    ----------
    signal : dask.array.Array, shape (volumes, voxels)
        Cleaned time series.
    run, time
        Of each volume.
    events
        Run, onset (s), duration (s) and stimulus of each event.
    tr
        Repetition time, s.
    threads
        Blocks that are worked on at a time.

    Returns
    -------
    numpy.ndarray of float32, shape (voxels,)
        ncsnr^2 / (ncsnr^2 + 1) as `isocortex.glm.noise_ceiling.estimate_noise_ceiling` has it,
        where volumes at the same time of the same stimulus are repeats; runs take the place of
        sessions. The first seconds of a stimulus, in which voxels still respond to what came
        before, do not count. NaN where nothing was repeated.
    """
    labels = np.array([f"{name}#{t:.3f}" for name, t in zip(run, time, strict=True)], dtype=object)
    repeats = pd.Series([stimulus for *_, stimulus in events]).value_counts()
    for name, onset, duration, stimulus in events:
        if repeats[stimulus] < 2:
            continue
        since = time - onset
        during = (run == name) & (since >= _SETTLED) & (since < duration)
        for index in np.flatnonzero(during):
            labels[index] = f"{stimulus}@{int(since[index] / tr + 1e-6)}"
    if len(np.unique(labels.astype(str))) == len(labels):
        return np.full(signal.shape[1], np.nan, dtype=np.float32)
    ncsnr = describe_repeats_blocks(signal, list(labels), list(run), threads=threads)["ncsnr"]
    with np.errstate(invalid="ignore"):
        share = ncsnr.astype(float) ** 2 / (ncsnr.astype(float) ** 2 + 1)
    return np.where(np.isinf(ncsnr), 1.0, share).astype(np.float32)


def read_columns(path: str | Path) -> np.ndarray:
    """Read a time series of vertices or plain columns.

    Parameters
    ----------
    path
        ``.npy`` (time x location); ``.tsv``, ``.tsv.gz``, ``.csv`` with or without a header, a
        first column ``time`` or ``volume`` is passed over; ``.gii`` with an array a volume.

    Returns
    -------
    numpy.ndarray of float32, shape (volumes, locations)

    Raises
    ------
    InputError
        Where the file cannot be read as one.
    """
    path = Path(path)
    name = path.name.lower()
    try:
        if name.endswith(".npy"):
            values = np.load(path, allow_pickle=False)
        elif name.endswith(".gii"):
            import nibabel

            values = np.stack([array.data for array in nibabel.load(path).darrays])
        else:
            header = bids.series_header(path)
            frame = pd.read_csv(path, sep=bids.series_separator(path), header=0 if header else None)
            if header and header[0].strip().lower() in bids.TIME_COLUMNS:
                frame = frame.iloc[:, 1:]
            values = frame.to_numpy()
        values = np.asarray(values, dtype=np.float32)
    except (OSError, EOFError, ValueError, TypeError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path} cannot be read as a time series ({first}): restore it") from None
    if values.ndim != 2 or min(values.shape) < 1:
        raise InputError(f"{path} has the shape {values.shape}: give time x location")
    return values


def import_timeseries(
    *,
    files: Sequence[str | Path],
    events: Sequence[str | Path],
    tr: float,
    runs: Sequence[Mapping[str, str | None]],
    out: str | Path,
    subject: str,
    task: str,
    space: str = "none",
    mask: Sequence[str | Path] = (),
    stimulus_column: str = "auto",
    trial_types: Sequence[str] = ("*",),
    nuisance_types: Sequence[str] = (),
    code: str = "",
    threads: int = 1,
) -> Path:
    """Take time series that were cleaned elsewhere into a store.

    Parameters
    ----------
    files
        One a run: 4D NIfTI, or what `read_columns` reads.
    events
        Events tables of the runs.
    tr
        Repetition time, s; volumes stand at the middle of their acquisition.
    runs
        For each run its ``session`` and its name, ``run``.
    out
        The timeseries store to write.
    subject, task, space
        Labels; the space of vertices or plain columns is ``none`` whatever is given.
    mask
        Of each run, or empty: a NIfTI mask, or a value a location; what is not above 0 in one is
        left out. Without, all that are neither NaN nor constant.
    stimulus_column, trial_types, nuisance_types
        As for `clean_bold`.
    code
        Code version, for the provenance.
    threads
        Cores to use.

    Returns
    -------
    pathlib.Path
        The store's manifest.

    Raises
    ------
    InputError
        Where runs do not fit together, or no location is left.

    Notes
    -----
    Vertices and plain columns have no grid: they lie one after the other on an image of identity
    affine and shape (n, 1, 1), or of rows of 32,767, the most that NIfTI holds.
    """
    on_grid = str(files[0]).endswith((".nii", ".nii.gz"))
    if any(str(file).endswith((".nii", ".nii.gz")) != on_grid for file in files):
        raise InputError(
            f"{files[0]} and its fellow runs are of different kinds: give all of a subject's runs "
            "as NIfTI, or none"
        )
    if on_grid:
        chosen, affine = _grid_mask(files, mask)
        shape = chosen.shape
        n_locations = int(chosen.sum())
    else:
        # Read again below: a run at a time is in memory
        sizes = [read_columns(file).shape for file in files]
        for (_, n_columns), file in zip(sizes, files, strict=True):
            if n_columns != sizes[0][1]:
                raise InputError(
                    f"{file} has {n_columns} locations, {files[0]} {sizes[0][1]}: give the same "
                    "in all runs"
                )
        inside = np.ones(sizes[0][1], dtype=bool)
        for path in mask:
            values = read_columns(path).ravel()
            if values.size != inside.size:
                raise InputError(f"{path} has {values.size} values for {inside.size} locations")
            inside &= values > 0
        n_locations = int(inside.sum())
        width = min(inside.size, LONGEST_AXIS)
        shape = (width, -(-inside.size // width), 1)
        affine, space = np.eye(4), "none"
    with working_folder("series", out) as scratch:
        if on_grid:
            lengths = [open_image(file, n_dims=4).shape[3] for file in files]
        else:
            lengths = [length for length, _ in sizes]
        signal = RunBlocks(Path(scratch) / "signal", lengths, n_locations)
        nan, constant = np.zeros(n_locations, dtype=bool), np.zeros(n_locations, dtype=bool)
        shown = []
        for number, file in enumerate(files):
            groups = (
                read_volume_groups(file, chosen)
                if on_grid
                else [(0, read_columns(file)[:, inside])]
            )
            for first, values in groups:
                signal.write(number, slice(0, n_locations), values, first_row=first)
            for part in signal.blocks:
                block = signal.read(number, part)
                finite = np.isfinite(block).all(axis=0)
                nan[part] |= ~finite
                with np.errstate(invalid="ignore"):
                    constant[part] |= finite & (np.ptp(block, axis=0) == 0)
            shown.append(
                read_shown(
                    events[number],
                    end=lengths[number] * tr,
                    stimulus_column=stimulus_column,
                    trial_types=trial_types,
                    nuisance_types=nuisance_types,
                )
            )
        keep = np.flatnonzero(~(nan | constant))
        counts = {
            "n_voxels_nan": int(nan.sum()),
            "n_voxels_constant": int((constant & ~nan).sum()),
            "n_voxels_nonpositive_mean": 0,
        }
        _check_some(keep, n_locations, counts, files[0])
        if on_grid:
            indices = tuple(axis[keep] for axis in np.nonzero(chosen))
        else:
            position = np.flatnonzero(inside)[keep]
            indices = (position % shape[0], position // shape[0], np.zeros_like(position))
        dataset = _assemble(
            lazy_columns(signal, keep, spec="timeseries"),
            names=[(str(run["run"]), str(run["session"] or "")) for run in runs],
            times=[tr * (np.arange(length) + 0.5) for length in lengths],
            shown=shown,
            tr=tr,
            indices=indices,
            threads=threads,
        )
        dataset.attrs = {
            "affine": np.asarray(affine, dtype=float).tolist(),
            "shape": [int(n) for n in shape],
            "space": space,
            "TR": float(tr),
            "subject": subject,
            "task": task,
            "drift": "unknown",
            "n_voxels_mask": n_locations,
            **counts,
            "n_volumes_left_out": 0,
            "confounds": [],
            "methods": f"Time series of {len(files)} runs were cleaned elsewhere and imported.",
        }
        log.info("%d runs, %d volumes, %d locations imported", len(files), sum(lengths), keep.size)
        with parallel.dask_workers(threads):
            return store.write(
                dataset, out, spec="timeseries", sources=[*files, *events, *mask], code=code
            )


def _grid_mask(
    files: Sequence[str | Path], masks: Sequence[str | Path]
) -> tuple[np.ndarray, np.ndarray]:
    """Voxels of images to take, and their affine; without masks all that are not 0 throughout."""
    if masks and len(masks) == len(files):
        return intersect_masks(masks, files)
    reference = open_image(files[0], n_dims=4)
    chosen = np.ones(reference.shape[:3], dtype=bool)
    for file in files:
        image = open_image(file, n_dims=4)
        check_grid(image, file, reference, files[0])
        filled = np.zeros(reference.shape[:3], dtype=bool)
        for volume in range(image.shape[3]):
            values = read_volumes(image.slicer[..., volume : volume + 1], file)[..., 0]
            filled |= np.nan_to_num(values) != 0
        chosen &= filled
    for path in masks:
        mask = open_image(path, n_dims=3)
        check_grid(mask, path, reference, files[0])
        chosen &= read_volumes(mask, path) > 0
    if not chosen.any():
        raise InputError(f"{files[0]} and its fellow runs have no voxel in the mask: check it")
    return chosen, np.asarray(reference.affine, dtype=float)
