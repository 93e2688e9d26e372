"""A library of haemodynamic responses, ordered from early and short to late and long.

Responses differ between voxels, people and depths of the cortex mainly along one way: what peaks
early is short, what peaks late is long (Handwerker et al. 2004, NeuroImage; Allen et al. 2022,
Nature Neuroscience). The library goes along it in steps that are equally easy to tell apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import gammainc

PEAKS = (3.5, 8.0)
"""Time to peak of the first and the last response to an impulse, s."""
WIDTHS = (4.0, 7.0)
"""Their width, s: the full width at half maximum of a normal density with the same curvature at the
peak (the undershoot narrows the response by some percent); 5 s at the canonical peak of 5 s."""
CANONICAL_PEAK = 5.0
"""Time to peak of a library of one, whose width is the same, s."""
UNDERSHOOT = 0.35
"""Area of the undershoot over that of the response."""
UNDERSHOOT_DELAY = 1.5
"""Undershoot's peak after the response's, in widths of the response."""
UNDERSHOOT_WIDTH = 1.4
"""Undershoot's width, in widths of the response."""

_FINE = 1001
_LONGEST = 60.0
_MINIMUM_STEPS = 50


@dataclass(frozen=True)
class HRFLibrary:
    """Haemodynamic responses, each the difference of two gamma densities.

    Attributes
    ----------
    peak, width : numpy.ndarray, shape (n_hrfs,)
        Time to peak and width (see `WIDTHS`) of the response to an impulse, s.
    """

    peak: np.ndarray
    width: np.ndarray

    def __len__(self) -> int:
        return len(self.peak)

    @property
    def canonical(self) -> int:
        """Number of the response that peaks closest to `CANONICAL_PEAK`."""
        return int(np.abs(self.peak - CANONICAL_PEAK).argmin())

    def area(self, time: np.ndarray, index: int | slice = slice(None)) -> np.ndarray:
        """Return the integral of responses up to some times.

        Parameters
        ----------
        time : numpy.ndarray, shape (...)
            Seconds after an impulse.
        index
            Which responses.

        Returns
        -------
        numpy.ndarray, shape (n_hrfs, ...)
            0 before the impulse; 1 in the end: a stimulus that stays on reaches 1, as with
            nilearn's responses.
        """
        peak, width = np.atleast_1d(self.peak[index]), np.atleast_1d(self.width[index])
        time = np.maximum(np.asarray(time, dtype=np.float64), 0.0)

        def gamma(mode: np.ndarray, fwhm: np.ndarray) -> np.ndarray:
            scale = _gamma_scale(mode, fwhm).reshape(-1, *(1,) * time.ndim)
            return gammainc(1 + mode.reshape(scale.shape) / scale, time / scale)

        late = gamma(peak + UNDERSHOOT_DELAY * width, UNDERSHOOT_WIDTH * width)
        return (gamma(peak, width) - UNDERSHOOT * late) / (1 - UNDERSHOOT)

    def regressors(
        self,
        frame_times: np.ndarray,
        onset: Sequence[float],
        duration: Sequence[float],
        trial: Sequence[int],
        *,
        n_trials: int,
    ) -> np.ndarray:
        """Return the regressor of each trial with each response.

        Parameters
        ----------
        frame_times : numpy.ndarray, shape (n_volumes,)
            What time each volume stands for, s, in ascending order, equally spaced.
        onset, duration, trial
            Of each event: s, s, and the number of the trial that it belongs to.
        n_trials
            Number of trials.

        Returns
        -------
        numpy.ndarray, shape (n_hrfs, n_volumes, n_trials)
            In closed form, the convolution of each event's own duration with the response. An
            event without duration is as long as nilearn makes it, 1/50 of the repetition time.
        """
        made = np.zeros((len(self), len(frame_times), n_trials))
        shortest = (frame_times[1] - frame_times[0]) / _MINIMUM_STEPS
        for start, length, number in zip(onset, duration, trial, strict=True):
            after = frame_times - start
            rows = after > 0
            since = after[rows]
            made[:, rows, number] += self.area(since) - self.area(since - max(length, shortest))
        return made


def hrf_library(n_hrfs: int = 20) -> HRFLibrary:
    """Return a library of haemodynamic responses.

    Parameters
    ----------
    n_hrfs
        How many, at least 1; one alone peaks at 5 s and is 5 s wide.

    Returns
    -------
    HRFLibrary
        Time to peak and width go together from `PEAKS` and `WIDTHS` of the first to those of the
        last response, in steps of equal angle between the responses as vectors over time: any two
        neighbours are as easy to tell apart in data as any others.

    Raises
    ------
    ValueError
        Where there would be none.
    """
    if n_hrfs < 1:
        raise ValueError(f"{n_hrfs} haemodynamic responses: ask for at least 1")
    if n_hrfs == 1:
        return HRFLibrary(np.array([CANONICAL_PEAK]), np.array([CANONICAL_PEAK]))
    part = np.linspace(0, 1, _FINE)
    fine = HRFLibrary(*(low + part * (high - low) for low, high in (PEAKS, WIDTHS)))
    curve = np.diff(fine.area(np.arange(0, _LONGEST, 0.2)), axis=1)
    curve /= np.linalg.norm(curve, axis=1, keepdims=True)
    # Chord for arc: neighbours of a thousand are too close for the difference to show.
    path = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(curve, axis=0), axis=1))])
    chosen = np.interp(np.linspace(0, path[-1], n_hrfs), path, part)
    return HRFLibrary(*(low + chosen * (high - low) for low, high in (PEAKS, WIDTHS)))


def _gamma_scale(mode: np.ndarray, fwhm: np.ndarray) -> np.ndarray:
    """Return the scale of the gamma density with some mode and, nearly, some width.

    The logarithm's curvature at the mode is that of a normal density of that width.
    """
    return (fwhm / np.sqrt(8 * np.log(2))) ** 2 / mode
