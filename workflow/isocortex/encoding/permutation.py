"""p-values of held-out correlations by permuting responses and fitting again.

Every permutation is a fit of its own, training and test permuted alike. To permute the held-out
part alone, with predictions that stay as they are, would be wrong with more than one fold: the
fold that tests on A trains on B and the other way round, so their correlations agree more than
independent ones do (with many folds the variance of their mean is up to twice as large), and five
per cent would become ten. Penalties stay those that the real responses chose.

What is permuted, and what stays together, decides what the test assumes:

stimuli (trials)
    Responses are permuted between stimuli, in the same way in all runs. Repeats of a stimulus
    keep their common response, which need not have anything to do with the features; trials
    permuted one by one would take it for noise and give p-values that are too small.
blocks (volumes, or trials in a fixed order)
    Responses of each run are shifted round by a random number of samples, cut into blocks and the
    blocks are permuted, in the same way in all runs: what repeats from run to run does so
    afterwards, also where runs are not equally long (volumes left out of one). Noise keeps its
    autocorrelation except at the borders of blocks, so blocks must be long compared with it
    (Winkler et al. 2014 for exchangeability blocks).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from isocortex.encoding.folds import CrossValidation
from isocortex.multiple_tests import correct_p

TIE = 1e-5  # correlations closer than this are the same but for rounding


def permute_stimuli(cv: CrossValidation, *, permutations: int, seed: int) -> np.ndarray:
    """Whose response each trial gets, where responses are permuted between stimuli.

    Parameters
    ----------
    cv
        Trials, their stimuli and groups of runs.
    permutations, seed
        How many, and of the random numbers.

    Returns
    -------
    numpy.ndarray
        Shape (permutations, trials). Stimuli change places that are shown equally often in each
        group of runs; one that has no such partner stays in place, which leaves the test valid
        and makes it weaker.
    """
    counts = np.zeros((len(cv.stimuli), len(cv.groups)), int)
    np.add.at(counts, (cv.stimulus, cv.group), 1)
    _, alike = np.unique(counts, axis=0, return_inverse=True)
    alike = np.asarray(alike).reshape(-1)
    rng = np.random.default_rng([seed, permutations])
    moved = np.tile(np.arange(len(cv.stimuli)), (permutations, 1))
    for label in range(alike.max() + 1):
        members = np.flatnonzero(alike == label)
        moved[:, members] = rng.permuted(np.tile(members, (permutations, 1)), axis=1)
    # Trials by group, then stimulus: the same number of each stimulus that may change places
    n_groups = len(cv.groups)
    key = cv.stimulus * n_groups + cv.group
    sorted_ = np.argsort(key, kind="stable")
    start = np.searchsorted(key[sorted_], np.arange(len(cv.stimuli) * n_groups))
    repeat = np.empty(len(key), int)
    repeat[sorted_] = np.arange(len(key)) - start[key[sorted_]]
    return sorted_[start[moved[:, cv.stimulus] * n_groups + cv.group] + repeat]


def permute_blocks(runs: Sequence[str], *, block: int, permutations: int, seed: int) -> np.ndarray:
    """Whose response each sample gets, where blocks of a run are permuted after a random shift.

    Parameters
    ----------
    runs
        Run of each sample; samples of a run are in order of time.
    block
        Samples a block. The longest run is cut into blocks of about this length, or only shifted
        where it has fewer than two; shorter runs have the same order without what they lack.
    permutations, seed
        How many, and of the random numbers.

    Returns
    -------
    numpy.ndarray
        Shape (permutations, samples).
    """
    runs = np.asarray(runs)
    groups = [np.flatnonzero(runs == run) for run in dict.fromkeys(runs.tolist())]
    length = max(map(len, groups))
    rng = np.random.default_rng([seed, permutations, length])
    count = max(1, round(length / block))
    out = np.empty((permutations, len(runs)), np.int64)
    for row in out:
        pieces = np.array_split(np.roll(np.arange(length), rng.integers(length)), count)
        order = np.concatenate([pieces[index] for index in rng.permutation(count)])
        for members in groups:
            row[members] = members[order[order < len(members)]]
    return out


def count_permutations(observed: np.ndarray, null: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many permutations reach what was observed, and the largest score of each.

    Parameters
    ----------
    observed
        Shape (voxels,), NaN without a score.
    null
        Shape (permutations, voxels).
    """
    scored = np.isfinite(observed)
    largest = np.where(scored, null, -np.inf).max(1, initial=-np.inf)
    return (null >= observed - TIE).sum(0), largest


class PermutationTest:
    """Counts, over blocks of voxels, how often permutations reach what was observed.

    Parameters
    ----------
    n_layers, n_voxels, permutations
        Sizes.

    Notes
    -----
    p = (1 + permutations with a score at least as high) / (1 + permutations), which is valid for
    any number of permutations (Phipson & Smyth 2010). Family-wise correction is by the largest
    score of each permutation over voxels and layers (Nichols & Holmes 2002).
    """

    def __init__(self, n_layers: int, n_voxels: int, permutations: int) -> None:
        self.permutations = permutations
        self.observed = np.full((n_layers, n_voxels), np.nan)
        self.above = np.zeros((n_layers, n_voxels), int)
        self.largest = np.full(permutations, -np.inf)

    def add(
        self, layer: int, part: slice, rows: slice, above: np.ndarray, largest: np.ndarray
    ) -> None:
        """Add the counts (of `count_permutations`) of a layer, of voxels and of permutations."""
        self.above[layer, part] += above
        self.largest[rows] = np.maximum(self.largest[rows], largest)

    @property
    def p(self) -> np.ndarray:
        """One-sided p-value of each voxel and layer alone; NaN without a score."""
        return self._share(self.above)

    @property
    def p_fdr(self) -> np.ndarray:
        """The same, false discovery rate (Benjamini-Hochberg) over a layer's voxels."""
        return np.stack([correct_p(row, correction="fdr") for row in self.p])

    @property
    def p_fwe(self) -> np.ndarray:
        """The same, family-wise over all voxels and layers."""
        reached = np.searchsorted(np.sort(self.largest), self.observed - TIE, side="left")
        return self._share(self.permutations - reached)

    def _share(self, reached: np.ndarray) -> np.ndarray:
        share = (1 + reached) / (1 + self.permutations)
        return np.where(np.isfinite(self.observed), share, np.nan)
