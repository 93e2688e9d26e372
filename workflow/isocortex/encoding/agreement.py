"""What each stimulus adds to a region's mean score, for a bootstrap over stimuli."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from isocortex.encoding.design import centre
from isocortex.encoding.folds import CrossValidation


def stimulus_agreement(
    predictions: np.ndarray,
    read_block: Callable[[int, int], np.ndarray],
    cv: CrossValidation,
    members: np.ndarray,
    *,
    voxel_batch: int = 1024,
) -> np.ndarray:
    """What each stimulus adds to the mean over a region's voxels of held-out r.

    Parameters
    ----------
    predictions
        Held-out predictions, shape (layers, samples, voxels).
    read_block
        Gives the responses of voxels first to last, shape (samples, last - first).
    cv
        The folds.
    members
        Which voxels belong to each region, bool, shape (regions, voxels): those with a score.
    voxel_batch
        Voxels that are worked on together.

    Returns
    -------
    numpy.ndarray
        Shape (layers, regions, stimuli), NaN for regions without voxels. Its sum over stimuli is
        the region's mean r. With weights that say how often a bootstrap sample draws each
        stimulus (their mean 1), the weighted sum is the region's mean r over that sample to first
        order, so differences of models and layers keep their dependence.

    Notes
    -----
    With p and y the predictions and responses of a fold's trials, centred and of length 1,
    r = sum p y, and the weighted correlation's derivative with respect to a trial's weight is
    p y - r (p^2 + y^2) / 2 (the influence function of the correlation, Devlin et al. 1975). A
    stimulus' influence is the sum over its trials, mean over folds and voxels; influences add up
    to 0, and r / (number of stimuli) is added to each. The predictions are held: the bootstrap is
    over the stimuli that are tested, not over those that train.
    """
    n_layers, _, n_voxels = predictions.shape
    n_stimuli = len(cv.stimuli)
    totals = np.zeros((n_layers, len(members), n_stimuli))
    score = np.zeros((n_layers, len(members)))
    for first in range(0, n_voxels, voxel_batch):
        last = min(first + voxel_batch, n_voxels)
        of_block = members[:, first:last].astype(float)
        if not of_block.any():
            continue
        values, _ = centre(read_block(first, last), cv)
        responses = [_unit_length(values[fold.test_trials]) for fold in cv.folds]
        varied = [part.any(0) for part in responses]
        share = 1 / np.maximum(np.sum(varied, axis=0), 1)
        weight = (of_block * share).T
        for layer in range(n_layers):
            # a constant test response has no score: its fold does not count for the voxel
            block = np.array(predictions[layer, :, first:last], float)
            for fold, y, varies in zip(cv.folds, responses, varied, strict=True):
                p = _unit_length(block[fold.test_trials])
                r = (p * y).sum(0)
                flat = ~p.any(0)  # a constant prediction scores 0 whatever the weights
                influence = p * y - 0.5 * r * (p**2 + y**2)
                influence[:, flat | ~varies] = 0
                of_stimulus = np.zeros((n_stimuli, len(members)))
                np.add.at(of_stimulus, cv.stimulus[fold.test_trials], influence @ weight)
                totals[layer] += of_stimulus.T
                score[layer] += r @ weight
    count = members.sum(1).astype(float)[None]
    with np.errstate(invalid="ignore", divide="ignore"):
        return ((totals + score[..., None] / n_stimuli) / count[..., None]).astype(np.float32)


def _unit_length(values: np.ndarray) -> np.ndarray:
    """Columns centred and of length 1; constant ones are 0."""
    centred = values - values.mean(0)
    length = np.sqrt((centred**2).sum(0))
    varies = length > 1e-6 * np.sqrt((values**2).sum(0))
    return np.where(varies, centred / np.where(varies, length, 1), 0.0)
