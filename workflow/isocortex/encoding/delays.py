"""Features in the time of the scanner: stimuli placed in runs, resampled to volumes, delayed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import scipy.sparse

from isocortex.errors import InputError

RESAMPLINGS = ("average", "lanczos")
LANCZOS_WINDOW = 3
NO_STIMULUS = ("", "n/a")


@dataclass(frozen=True)
class Events:
    """What was shown when, over all runs.

    Parameters
    ----------
    run, stimulus
        Run and stimulus id of each event.
    onset, duration
        Seconds from the run's start; a duration of 0 is not known: a movie or a list of words
        lasts as long as it has samples, an image is an impulse.
    """

    run: np.ndarray
    onset: np.ndarray
    duration: np.ndarray
    stimulus: np.ndarray


@dataclass(frozen=True)
class Samples:
    """The rows of a features store in time.

    Parameters
    ----------
    ids
        Stimulus id of each row.
    source
        Id of the stimulus file that a row is a part of; empty for one without time (an image).
    time, duration
        Start and length of each row's part of its stimulus, s; ignored where there is no source.
    """

    ids: np.ndarray
    source: np.ndarray
    time: np.ndarray
    duration: np.ndarray


def whole_volumes(delays: Sequence[float], tr: float) -> tuple[int, ...]:
    """Return delays in volumes, ascending; those that round to the same volume count once.

    Parameters
    ----------
    delays
        Seconds.
    tr
        Repetition time, s.

    Raises
    ------
    InputError
        Where there is none, or one is negative or no number.
    """
    values = np.asarray(list(delays), dtype=float)
    if not values.size or not np.isfinite(values).all() or (values < 0).any():
        raise InputError(f"encoding.delays is {list(delays)}: give seconds from 0 on, at least one")
    return tuple(sorted({int(n) for n in np.rint(values / tr)}))


def delayed(
    features: np.ndarray, delays: Sequence[int], *, runs: Sequence[str] | None = None
) -> np.ndarray:
    """Put delayed copies of features beside one another: a finite impulse response model.

    Parameters
    ----------
    features
        Shape (volumes, features); the volumes of a run follow one another.
    delays
        Whole volumes. A copy that is delayed by d has at volume t what was there at t - d.
    runs
        Run of each volume; one run where None. Nothing is carried from one run to another.

    Returns
    -------
    numpy.ndarray, shape (volumes, delays x features)
        Copies in the order of the delays; 0 where there is nothing yet.

    Notes
    -----
    As `Delayer` of the voxelwise tutorials (Dupré la Tour et al. 2022), run by run.
    """
    features = np.asarray(features)
    n_volumes, n_features = features.shape
    labels = np.zeros(n_volumes, int) if runs is None else np.asarray(runs)
    edges = [0, *(np.flatnonzero(labels[1:] != labels[:-1]) + 1), n_volumes]
    out = np.zeros((n_volumes, len(delays), n_features), dtype=features.dtype)
    for first, last in pairwise(edges):
        for number, delay in enumerate(delays):
            if delay < last - first:
                out[first + delay : last, number] = features[first : last - delay]
    return out.reshape(n_volumes, len(delays) * n_features)


def place_samples(events: Events, run: str, samples: Samples, *, where: str = "the features"):
    """Place the samples of the stimuli that a run shows on the run's time axis.

    Parameters
    ----------
    events
        What was shown when.
    run
        The run.
    samples
        The rows of the features.
    where
        For messages: where the rows are from.

    Returns
    -------
    row : numpy.ndarray of int
        Row of the features, one entry for each time that a sample was shown.
    start, duration : numpy.ndarray
        Seconds from the run's start. What lies beyond its event's end is cut off.

    Raises
    ------
    InputError
        Where a stimulus has no row.
    """
    rows: list[np.ndarray] = []
    starts: list[np.ndarray] = []
    ends: list[np.ndarray] = []
    for index in np.flatnonzero(events.run == run):
        name, length = str(events.stimulus[index]), float(events.duration[index])
        if name in NO_STIMULUS:
            continue
        found = np.flatnonzero((samples.source == name) & (samples.source != ""))
        if found.size:
            start = samples.time[found].astype(float)
            end = start + samples.duration[found]
            if length > 0:
                found, start, end = (part[start < length] for part in (found, start, end))
                end = np.minimum(end, length)
        else:
            found = np.flatnonzero(samples.ids == name)
            start, end = np.zeros(found.size), np.full(found.size, length)
            if not found.size:
                raise InputError(
                    f"stimulus {name!r} of run {run} has no features in {where}: put its file "
                    "into the stimulus folder under that name"
                )
        rows.append(found)
        starts.append(events.onset[index] + start)
        ends.append(events.onset[index] + end)
    if not rows:
        return np.empty(0, int), np.empty(0), np.empty(0)
    start, end = np.concatenate(starts), np.concatenate(ends)
    return np.concatenate(rows), start, end - start


def averaging_weights(
    start: np.ndarray, duration: np.ndarray, *, first: float, tr: float, n_volumes: int
) -> scipy.sparse.csr_array:
    """Return the weights that average samples over each volume's acquisition.

    Parameters
    ----------
    start, duration
        Of each sample, s.
    first
        Middle of the first volume, s.
    tr
        Repetition time, s: a volume's acquisition lasts that long.
    n_volumes
        Number of volumes.

    Returns
    -------
    scipy.sparse.csr_array, shape (n_volumes, samples)
        The share of the acquisition that a sample was on. Time in which nothing was on counts as
        0; where windows of one movie overlap, their mean is taken, for the time that they cover. A
        sample of no duration (a word whose onset alone is known) has the weight 1 in the volume
        that it falls into.
    """
    impulse = duration <= 0
    grid = {"edge": first - tr / 2, "tr": tr, "n_volumes": n_volumes}
    weights = _shares(start, start + duration, impulse, **grid)
    lasting = weights @ (~impulse).astype(float)
    opens, closes = _union(start[~impulse], (start + duration)[~impulse])
    covered = _shares(opens, closes, np.zeros(opens.size, bool), **grid).sum(1)
    overlap = np.where(lasting > covered + 1e-9, covered / np.maximum(lasting, 1e-9), 1.0)
    entries = weights.tocoo()
    row, column = entries.coords
    value = entries.data * np.where(impulse[column], 1.0, overlap[row])
    return scipy.sparse.csr_array((value, (row, column)), shape=weights.shape)


def _shares(
    start: np.ndarray,
    end: np.ndarray,
    impulse: np.ndarray,
    *,
    edge: float,
    tr: float,
    n_volumes: int,
) -> scipy.sparse.csr_array:
    """Share of each volume that each interval takes, 1 for an impulse in it."""
    low = np.floor((start - edge) / tr + 1e-9).astype(int)
    last = np.where(impulse, low, np.ceil((end - edge) / tr - 1e-9).astype(int) - 1)
    parts = []
    for step in range(int((last - low).max(initial=-1)) + 1):
        volume = low + step
        column = np.flatnonzero((volume <= last) & (volume >= 0) & (volume < n_volumes))
        volume = volume[column]
        opens = edge + volume * tr
        overlap = np.minimum(end[column], opens + tr) - np.maximum(start[column], opens)
        parts.append((volume, column, np.where(impulse[column], tr, overlap.clip(0)) / tr))
    return _sparse(parts, (n_volumes, start.size))


def _union(start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Starts and ends of the stretches that intervals cover, which do not overlap."""
    order = np.argsort(start, kind="stable")
    start, reached = start[order], np.maximum.accumulate(end[order])
    breaks = np.flatnonzero(start[1:] > reached[:-1]) + 1
    opens = np.concatenate([start[:1], start[breaks]])
    return opens, np.concatenate([reached[breaks - 1], reached[-1:]])


def lanczos_weights(
    start: np.ndarray,
    duration: np.ndarray,
    *,
    first: float,
    tr: float,
    n_volumes: int,
    window: int = LANCZOS_WINDOW,
) -> scipy.sparse.csr_array:
    """Return the weights of a Lanczos filter that takes samples to volumes.

    Parameters
    ----------
    start, duration
        Of each sample, s; a sample stands at the middle of its time.
    first, tr, n_volumes
        As in `averaging_weights`; volumes stand at the middle of their acquisition.
    window
        Lobes of the filter.

    Returns
    -------
    scipy.sparse.csr_array, shape (n_volumes, samples)

    Notes
    -----
    The low-pass filter of Huth et al. (2016, Nature), cut-off at the volumes' Nyquist frequency;
    samples are summed, so words come out by their rate.
    """
    centre = (start + duration / 2 - first) / tr
    nearest = np.rint(centre).astype(int)
    parts = []
    for step in range(-window, window + 1):
        volume = nearest + step
        x = volume - centre
        column = np.flatnonzero((np.abs(x) <= window) & (volume >= 0) & (volume < n_volumes))
        value = np.sinc(x[column]) * np.sinc(x[column] / window)
        parts.append((volume[column], column, value))
    return _sparse(parts, (n_volumes, start.size))


def _sparse(parts, shape: tuple[int, int]) -> scipy.sparse.csr_array:
    """Matrix of (rows, columns, values), an entry once at most."""
    row, column, value = (
        np.concatenate([np.empty(0, dtype), *(part[axis] for part in parts)])
        for axis, dtype in enumerate((int, int, float))
    )
    return scipy.sparse.csr_array((value, (row, column)), shape=shape)


def resampling_weights(
    start: np.ndarray,
    duration: np.ndarray,
    *,
    first: float,
    tr: float,
    n_volumes: int,
    method: str = "average",
) -> scipy.sparse.csr_array:
    """Return the weights that take samples to volumes, by ``average`` or ``lanczos``.

    Raises
    ------
    InputError
        For another method.
    """
    if method not in RESAMPLINGS:
        raise InputError(
            f"encoding.resampling is {method!r}: choose one of {', '.join(RESAMPLINGS)}"
        )
    weights = averaging_weights if method == "average" else lanczos_weights
    return weights(start, duration, first=first, tr=tr, n_volumes=n_volumes)
