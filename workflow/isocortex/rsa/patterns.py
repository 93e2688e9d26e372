"""Patterns of stimuli: trials averaged over labels, or over labels within runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.sparse import csr_array

from isocortex.rsa.rdms import to_vectors


def mean_patterns(
    patterns: np.ndarray, labels: Sequence[str]
) -> tuple[np.ndarray, tuple[str, ...], np.ndarray]:
    """Average the patterns of equal labels.

    Parameters
    ----------
    patterns
        Shape (n_trials, n_voxels).
    labels
        One a trial.

    Returns
    -------
    means : numpy.ndarray
        float64, shape (n_labels, n_voxels).
    names : tuple of str
        The labels, sorted.
    counts : numpy.ndarray
        Trials of each label, int64.
    """
    names, row, counts = levels(labels)
    sums = indicator(row, len(names)) @ np.asarray(patterns, dtype=np.float64)
    return sums / counts[:, None], names, counts


def constant_patterns(means: np.ndarray) -> np.ndarray:
    """Return which patterns (rows) have no variance, so that no correlation is defined."""
    centred = means - means.mean(axis=1, keepdims=True)
    scale = np.maximum(np.abs(means).max(axis=1), np.finfo(np.float64).tiny)
    return np.abs(centred).max(axis=1) <= 1e-10 * scale


@dataclass(frozen=True, eq=False)
class CrossvalidationDesign:
    """Which trial belongs to which stimulus and run: all that a cross-validation needs, once.

    Attributes
    ----------
    stimuli, runs
        Labels, sorted.
    counts
        Trials of each stimulus in each run, int64, shape (n_stimuli, n_runs).
    cell
        Of each trial: row of its stimulus times n_runs plus its run.
    """

    stimuli: tuple[str, ...]
    runs: tuple[str, ...]
    counts: np.ndarray
    cell: np.ndarray

    @cached_property
    def balanced(self) -> bool:
        """Whether each stimulus has equally many trials, at least one, in every run."""
        return bool((self.counts > 0).all() and (self.counts == self.counts[:, :1]).all())

    @cached_property
    def common(self) -> np.ndarray:
        """Runs that hold both stimuli of a pair: int64, shape (n_pairs,)."""
        here = (self.counts > 0).astype(np.int64)
        return to_vectors(here @ here.T)

    def run_means(self, patterns: np.ndarray, *, centre: bool = True) -> np.ndarray:
        """Average trials within runs.

        Parameters
        ----------
        patterns
            Shape (n_trials, n_voxels), trials as in the labels that the design was made from.
        centre
            Take off the mean of all patterns first: no difference between stimuli depends on it,
            and less is lost to rounding.

        Returns
        -------
        numpy.ndarray
            Shape (n_stimuli, n_runs, n_voxels), floating; 0 where a run lacks a stimulus.
        """
        patterns = np.asarray(patterns)
        kind = np.result_type(patterns.dtype, np.float32)
        shape = (*self.counts.shape, patterns.shape[1])
        if (self.counts == 1).all():
            means = patterns.take(np.argsort(self.cell), axis=0).astype(kind, copy=False)
            if centre:
                means -= means.mean(axis=0)
            return means.reshape(shape)
        if centre:
            patterns = patterns - patterns.mean(axis=0, dtype=kind)
        sums = indicator(self.cell, self.counts.size, kind=kind) @ patterns
        return (sums / np.maximum(self.counts, 1).reshape(-1, 1).astype(kind)).reshape(shape)


def crossvalidation_design(labels: Sequence[str], runs: Sequence[str]) -> CrossvalidationDesign:
    """Return the design of trials with the given stimuli and runs (one of each a trial)."""
    stimuli, row, _ = levels(labels)
    names, run, _ = levels(runs)
    cell = row * len(names) + run
    counts = np.bincount(cell, minlength=len(stimuli) * len(names))
    return CrossvalidationDesign(stimuli, names, counts.reshape(len(stimuli), len(names)), cell)


def levels(labels: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Return the sorted different labels as text, the number of each label, and how often."""
    names, row, counts = np.unique(
        np.asarray(labels).astype(str), return_inverse=True, return_counts=True
    )
    return tuple(str(name) for name in names), row, counts


def indicator(row: np.ndarray, n_rows: int, *, kind: type = np.float64) -> csr_array:
    """Return the sparse matrix that sums trials into rows; dense it would cost the most."""
    cells = (np.ones(len(row), dtype=kind), (row, np.arange(len(row))))
    return csr_array(cells, shape=(n_rows, len(row)))
