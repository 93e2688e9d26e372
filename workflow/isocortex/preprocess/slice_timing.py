"""Slice timing: what a volume would be if all of its slices were read at one moment.

Samples in time are joined by cubic splines, continued beyond the run's ends by point reflection,
so that a straight line stays one. Volumes before the steady state are left as they are and are
not mixed into others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.ndimage import map_coordinates, spline_filter1d

from isocortex.errors import InputError

ORDERS = ("slices_first", "motion_first")
_REACH = 14  # volumes after which the spline has forgotten a sample: 0.268 ** 14 is 1e-8
_FEWEST = 4  # volumes that a cubic spline needs
_STEPS, _CLOSE = 12, 1e-5  # of the fixed point: at most so many, until it moves less (volumes)


@dataclass(frozen=True)
class SliceTiming:
    """When the slices of a run were read, and what is made of it.

    Attributes
    ----------
    times
        Seconds after the volume's start, one a slice; slices of several bands repeat them.
    axis
        Array axis of the slices.
    repetition_time
        Seconds.
    reference_time
        Seconds after the volume's start that the result refers to.
    n_dummy
        Volumes before the steady state.
    order
        ``slices_first``: slices are brought to the reference time where they were recorded, and
        the head's motion is undone after that. ``motion_first``: every sample follows the moving
        head and carries the acquisition time of the place in the volume at which it was taken.
    """

    times: tuple[float, ...]
    axis: int
    repetition_time: float
    reference_time: float
    n_dummy: int = 0
    order: str = "slices_first"

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise ValueError(f"slice timing in order {self.order!r}: choose {' or '.join(ORDERS)}")

    def check(self, shape: Sequence[int]) -> None:
        """Raise `InputError` where there is not one time a slice of a series of this shape."""
        if len(self.times) != shape[self.axis]:
            raise InputError(
                f"SliceTiming has {len(self.times)} values for {shape[self.axis]} slices: "
                "correct the sidecar"
            )

    def applies(self, n_volumes: int) -> bool:
        """Whether a run of this length is long enough to be interpolated in time."""
        return n_volumes - self.n_dummy >= _FEWEST


def correct_slice_timing(
    series: np.ndarray,
    *,
    slice_times: Sequence[float],
    repetition_time: float,
    reference_time: float,
    slice_axis: int = 2,
    n_dummy: int = 0,
) -> np.ndarray:
    """Shift every slice in time to one reference, by cubic splines.

    Parameters
    ----------
    series
        Shape (x, y, z, time).
    slice_times
        Seconds after the volume's start at which each slice was recorded.
    repetition_time
        Seconds.
    reference_time
        Seconds after the volume's start that the result refers to.
    slice_axis
        Array axis of the slices.
    n_dummy
        Volumes before the steady state: left as they are, and not mixed into others.

    Returns
    -------
    numpy.ndarray
        float32, the shape of ``series``.
    """
    timing = SliceTiming(
        tuple(slice_times), slice_axis, repetition_time, reference_time, n_dummy=n_dummy
    )
    return corrected_volumes(series, timing, 0, series.shape[3])


def corrected_volumes(series: np.ndarray, timing: SliceTiming, start: int, stop: int) -> np.ndarray:
    """Volumes ``start`` to ``stop`` of a run with every slice at the reference time.

    Only the volumes that the spline reaches are read: `_REACH` more on either side.

    Parameters
    ----------
    series
        Shape (x, y, z, time); may lie on disk.
    timing
        When the slices were read.
    start, stop
        Volumes wanted.

    Returns
    -------
    numpy.ndarray
        float32 (x, y, z, stop - start).
    """
    timing.check(series.shape)
    out = np.array(series[..., start:stop], dtype=np.float32, order="F")
    n_volumes = series.shape[3]
    first = max(start, timing.n_dummy)
    if first >= stop or not timing.applies(n_volumes):
        return out
    low = max(first - _REACH, timing.n_dummy)
    high = min(stop + _REACH, n_volumes)
    # time is the first axis of both, and each slice a plane: no copy of a Fortran-ordered series
    window = np.moveaxis(series[..., low:high].T, 3 - timing.axis, 1)
    wanted = np.moveaxis(out[..., first - start :].T, 3 - timing.axis, 1)
    for k, time in enumerate(timing.times):
        shift = (timing.reference_time - time) / timing.repetition_time
        if abs(shift) < 1e-9:
            continue
        weights = _weights(high - low, first - low, stop - first, shift)
        plane = np.asarray(window[:, k], np.float32)
        shape = wanted[:, k].shape
        wanted[:, k] = (weights @ plane.reshape(len(plane), -1)).reshape(shape)
    return out


def interpolate_samples(samples: np.ndarray, times: np.ndarray, timing: SliceTiming) -> np.ndarray:
    """Values at the reference time of every volume, of samples taken at times of their own.

    Samples and their times are both cubic splines of the volume's number; the value is read
    where the time is the reference time. With the same time in every volume this is the cubic
    spline through equally spaced samples; and two samples that the head's motion brings close
    in time give no overshoot.

    Parameters
    ----------
    samples
        (time, points).
    times
        (time, points): seconds after the start of its volume at which each was taken.
    timing
        Repetition time, reference time and volumes before the steady state.

    Returns
    -------
    numpy.ndarray
        float32 (time, points).
    """
    out = np.array(samples, dtype=np.float32)
    if not timing.applies(len(samples)):
        return out
    steady = slice(timing.n_dummy, None)
    shift = (timing.reference_time - np.asarray(times, float)[steady]) / timing.repetition_time
    number = np.arange(len(shift), dtype=float)[:, None]
    shifts = _Spline(shift)
    index = number + shift
    for _ in range(_STEPS):
        # the place s, in samples, whose own shift leads from s to the volume
        before, index = index, number + np.clip(shifts.at(index), -1.5, 1.5)
        if np.abs(index - before).max(initial=0) < _CLOSE:
            break
    out[steady] = _Spline(np.asarray(samples, float)[steady]).at(index)
    return out


def acquisition_times(timing: SliceTiming, index: np.ndarray, *, order: int) -> np.ndarray:
    """Seconds after the volume's start at which values between slices were taken.

    A value between slices is a weighted sum of slices, and so is its time: with the weights of
    the same spline it is exact where the signal changes linearly over a repetition time.

    Parameters
    ----------
    timing
        Times of the slices.
    index
        (n,): place along the slice axis, in slices.
    order
        Of the spatial spline.
    """
    times = np.asarray(timing.times, float)
    if len(times) == 1:
        return np.full(len(index), times[0])
    return map_coordinates(times, np.asarray(index)[None], order=order, mode="mirror")


@lru_cache(maxsize=4096)
def _weights(n_samples: int, first: int, count: int, shift: float) -> np.ndarray:
    """(count, n_samples): weights of samples in values at first, first + 1, ... + shift."""
    index = np.repeat((first + np.arange(count) + shift)[:, None], n_samples, axis=1)
    weights = _Spline(np.eye(n_samples)).at(index).astype(np.float32)
    weights.flags.writeable = False
    return weights


class _Spline:
    """The cubic B-spline through samples (time, points), point-reflected at both ends."""

    def __init__(self, samples: np.ndarray) -> None:
        self._pad = pad = min(_REACH, len(samples) - 1)
        before = 2 * samples[:1] - samples[pad:0:-1]
        after = 2 * samples[-1:] - samples[-2 : -pad - 2 : -1]
        padded = np.concatenate([before, samples, after])
        self._coefficients = spline_filter1d(padded, order=3, axis=0, mode="mirror")

    def at(self, index: np.ndarray) -> np.ndarray:
        """Values at places (m, points), in samples."""
        whole = np.floor(index)
        f = index - whole
        weights = (
            (1 - f) ** 3 / 6,
            (3 * f**3 - 6 * f**2 + 4) / 6,
            (-3 * f**3 + 3 * f**2 + 3 * f + 1) / 6,
            f**3 / 6,
        )
        rows = whole.astype(np.int64) + self._pad - 1
        last = len(self._coefficients) - 1
        return sum(
            weight * np.take_along_axis(self._coefficients, np.clip(rows + n, 0, last), axis=0)
            for n, weight in enumerate(weights)
        )
