"""p-values of held-out correlations by permuting which prediction goes with which response.

The models are not fitted again: a fold's predictions are of stimuli that its training never saw,
so under the null hypothesis (the features say nothing of the responses) any of them could as well
have been another's. What is permuted, and what stays together, decides what the test assumes:

stimuli (trials)
    Predictions are permuted between the stimuli of a fold, in the same way in all folds that test
    the same stimuli. Repeats of a stimulus keep their common response, which need not have
    anything to do with the features; trials permuted one by one would take it for noise and give
    p-values that are too small.
blocks (volumes, or trials in a fixed order)
    Predictions of each run are shifted round by a random number of samples, cut into blocks and
    the blocks are permuted, in the same way in all runs of the same length. Noise and features
    keep their autocorrelation except at the borders of blocks, so blocks must be long compared
    with it (Winkler et al. 2014 for exchangeability blocks).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from isocortex.encoding.design import centre
from isocortex.encoding.folds import CrossValidation
from isocortex.multiple_tests import correct_p

GATHER_BYTES = 64 << 20
PAIRS = 24  # below this many units a product with all pairs is faster than permuted copies
TIE = 1e-6  # correlations closer than this are the same but for rounding


@dataclass(frozen=True)
class Exchange:
    """What is permuted in one fold.

    Attributes
    ----------
    unit
        Which unit each test sample belongs to, shape (test samples,).
    first
        One test sample of each unit, shape (units,).
    order
        Shape (permutations, units): whose prediction each unit gets.
    """

    unit: np.ndarray
    first: np.ndarray
    order: np.ndarray


def exchange_stimuli(cv: CrossValidation, *, permutations: int, seed: int) -> list[Exchange]:
    """Permute predictions between the stimuli that the same folds test.

    Stimuli that are shown in other groups of runs than all others of their fold stay in place,
    which leaves the test valid and makes it weaker.
    """
    tested = [np.unique(cv.stimulus[fold.test_trials]) for fold in cv.folds]
    shown = np.zeros((len(cv.stimuli), len(cv.folds)), bool)
    for number, stimuli in enumerate(tested):
        shown[stimuli, number] = True
    _, alike = np.unique(shown, axis=0, return_inverse=True)
    alike = np.asarray(alike).reshape(-1)
    rng = np.random.default_rng([seed, permutations])
    moved = np.tile(np.arange(len(cv.stimuli)), (permutations, 1))
    for label in range(alike.max() + 1):
        members = np.flatnonzero((alike == label) & shown.any(1))
        if len(members) > 1:
            shuffled = np.tile(members, (permutations, 1))
            moved[:, members] = rng.permuted(shuffled, axis=1)
    out = []
    for fold, stimuli in zip(cv.folds, tested, strict=True):
        _, first, unit = np.unique(
            cv.stimulus[fold.test_trials], return_index=True, return_inverse=True
        )
        order = np.searchsorted(stimuli, moved[:, stimuli])
        out.append(Exchange(unit, first, order))
    return out


def exchange_blocks(
    cv: CrossValidation, runs: Sequence[str], *, block: int, permutations: int, seed: int
) -> list[Exchange]:
    """Permute blocks of a run's predictions after a random shift.

    Parameters
    ----------
    cv
        The folds; samples of a run are in order of time.
    runs
        Run of each sample.
    block
        Samples a block. Runs are cut into blocks of about this length; a run with fewer than two
        is only shifted.
    permutations, seed
        How many, and of the random numbers.
    """
    runs = np.asarray(runs)
    known: dict[int, np.ndarray] = {}

    def orders(length: int) -> np.ndarray:
        if length not in known:
            rng = np.random.default_rng([seed, permutations, length])
            count = max(1, round(length / block))
            order = np.empty((permutations, length), np.int64)
            for row in order:
                shifted = np.roll(np.arange(length), rng.integers(length))
                pieces = np.array_split(shifted, count)
                row[:] = np.concatenate([pieces[index] for index in rng.permutation(count)])
            known[length] = order
        return known[length]

    out = []
    for fold in cv.folds:
        own = runs[fold.test_trials]
        order = np.empty((permutations, len(own)), np.int64)
        for run in dict.fromkeys(own.tolist()):
            members = np.flatnonzero(own == run)
            order[:, members] = members[orders(len(members))]
        unit = np.arange(len(own))
        out.append(Exchange(unit, unit, order))
    return out


def _standardised(values: torch.Tensor) -> torch.Tensor:
    """Columns with mean 0 and length 1; constant ones are 0."""
    eps = torch.finfo(values.dtype).eps
    centred = values - values.mean(0)
    length = centred.square().sum(0).sqrt()
    varies = length > values.square().sum(0).sqrt() * 10 * eps
    return centred * torch.where(varies, 1 / torch.where(varies, length, 1.0), 0.0)


def null_correlations(
    prediction: torch.Tensor, response: torch.Tensor, exchange: Exchange
) -> tuple[torch.Tensor, torch.Tensor]:
    """Correlations of one fold, as observed and under each permutation.

    Parameters
    ----------
    prediction, response
        Shape (test samples, voxels).
    exchange
        Of the fold.

    Returns
    -------
    observed, null
        Shape (voxels,) and (permutations, voxels).

    Notes
    -----
    Both are standardised once; a permutation's correlations are then sums of products. Where
    units stand for unequal numbers of samples, the mean and spread of the permuted predictions
    follow from two more matrix products.
    """
    unit = torch.from_numpy(exchange.unit).to(prediction.device)
    first = torch.from_numpy(exchange.first).to(prediction.device)
    order = torch.from_numpy(exchange.order).to(prediction.device)
    n_units, n_voxels = len(first), prediction.shape[1]
    standard = _standardised(response)
    summed = standard.new_zeros((n_units, n_voxels))
    summed = summed.index_add(0, unit, standard) if n_units < len(unit) else standard
    counts = torch.bincount(unit, minlength=n_units)
    scaled = _standardised(prediction)[first]  # once more below where permuting rescales

    identity = torch.arange(n_units, device=order.device)[None]
    observed = _products(scaled, summed, identity)[0]
    null = _products(scaled, summed, order)
    if bool((counts != counts[0]).any()):
        # samples that get each unit's prediction, (permutations, units)
        gets = scaled.new_zeros(order.shape).scatter_(1, order, counts.to(scaled).expand_as(order))
        total = counts.sum()
        mean = gets @ scaled / total
        spread = (gets @ scaled.square() - total * mean.square()).clamp(min=0).sqrt()
        varies = spread > 1e-4
        null = torch.where(varies, null / torch.where(varies, spread, 1.0), 0.0)
    return observed, null.clamp(-1, 1)


def _products(
    prediction: torch.Tensor, response: torch.Tensor, order: torch.Tensor
) -> torch.Tensor:
    """Sums over units of response times permuted prediction, shape (permutations, voxels)."""
    n_units, n_voxels = prediction.shape
    if n_units <= PAIRS < len(order):
        pairs = (response[:, None] * prediction[None]).reshape(n_units**2, n_voxels)
        chosen = torch.zeros((len(order), n_units, n_units), dtype=pairs.dtype, device=pairs.device)
        chosen.scatter_(2, order[:, :, None], 1.0)
        return chosen.reshape(len(order), -1) @ pairs
    step = max(1, GATHER_BYTES // max(prediction.element_size() * n_units * n_voxels, 1))
    parts = [torch.einsum("puv,uv->pv", prediction[rows], response) for rows in order.split(step)]
    return torch.cat(parts)


@dataclass(frozen=True)
class PermutationTest:
    """Results of `permutation_test`, each of shape (layers, voxels), NaN without a score.

    Attributes
    ----------
    p
        One-sided p-value of the voxel and layer alone.
    p_fdr
        False discovery rate (Benjamini-Hochberg) over a layer's voxels.
    p_fwe
        Family-wise over all voxels and layers: by the largest correlation of each permutation.
    """

    p: np.ndarray
    p_fdr: np.ndarray
    p_fwe: np.ndarray


def permutation_test(
    predictions: np.ndarray,
    read_block: Callable[[int, int], np.ndarray],
    cv: CrossValidation,
    exchanges: Sequence[Exchange],
    *,
    voxel_batch: int = 1024,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> PermutationTest:
    """Test held-out correlations, mean over folds, against permuted predictions.

    Parameters
    ----------
    predictions
        Held-out predictions, shape (layers, samples, voxels); only blocks of voxels are read.
    read_block
        Gives the responses of voxels first to last, shape (samples, last - first).
    cv
        The folds.
    exchanges
        Of each fold: `exchange_stimuli` or `exchange_blocks`. All folds have the same number of
        permutations.
    voxel_batch
        Voxels that are worked on together.
    device, dtype
        Where and in which precision.

    Notes
    -----
    p = (1 + permutations with a statistic at least as high) / (1 + permutations), which is valid
    for any number of permutations (Phipson & Smyth 2010). Family-wise correction by the largest
    statistic: Nichols & Holmes 2002.
    """
    device = torch.device(device)
    n_layers, _, n_voxels = predictions.shape
    permutations = len(exchanges[0].order)
    observed = np.full((n_layers, n_voxels), np.nan)
    p = np.full((n_layers, n_voxels), np.nan)
    largest = np.full(permutations, -np.inf)
    for first in range(0, n_voxels, voxel_batch):
        last = min(first + voxel_batch, n_voxels)
        values, usable = centre(read_block(first, last), cv)
        responses = torch.from_numpy(values).to(device, dtype)
        for layer in range(n_layers):
            own = torch.from_numpy(np.array(predictions[layer, :, first:last])).to(device, dtype)
            real = torch.zeros(last - first, device=device, dtype=dtype)
            null = torch.zeros((permutations, last - first), device=device, dtype=dtype)
            count = torch.zeros(last - first, device=device, dtype=dtype)
            for fold, exchange in zip(cv.folds, exchanges, strict=True):
                test = torch.from_numpy(fold.test_trials).to(device)
                r, of_null = null_correlations(own[test], responses[test], exchange)
                real += r
                null += of_null
                count += (_standardised(responses[test]).abs().sum(0) > 0).to(dtype)
            scored = (count > 0).cpu().numpy() & usable
            count = count.clamp(min=1)
            real, null = real / count, null / count
            above = (null >= real - TIE).sum(0).cpu().numpy()
            here = np.where(scored, real.double().cpu().numpy(), np.nan)
            observed[layer, first:last] = here
            p[layer, first:last] = np.where(scored, (1 + above) / (1 + permutations), np.nan)
            if scored.any():
                kept = torch.from_numpy(np.flatnonzero(scored)).to(device)
                top = null[:, kept].max(1).values.double().cpu().numpy()
                largest = np.maximum(largest, top)
    ranked = np.sort(largest)
    reached = permutations - np.searchsorted(ranked, observed - TIE, side="left")
    p_fwe = np.where(np.isfinite(observed), (1 + reached) / (1 + permutations), np.nan)
    p_fdr = np.stack([correct_p(row, correction="fdr") for row in p])
    return PermutationTest(p, p_fdr, p_fwe)
