"""Finger patterns in primary motor cortex at 7 T: cross-validated RDMs agree between people."""

import numpy as np
import pytest
from rsatoolbox.data import Dataset
from rsatoolbox.rdm import calc_rdm
from scipy.io import loadmat

from isocortex.rsa import correlate, crossnobis_distance, noise_ceiling, to_matrices


@pytest.fixture(scope="module")
def subjects(data):
    file = loadmat(data / "finger7t" / "data_recipe_finger7T.mat")
    return [
        (patterns, fingers.ravel().astype(str), runs.ravel().astype(str))
        for patterns, fingers, runs in zip(file["Y"][0], file["condVec"][0], file["partVec"][0])
    ]


@pytest.fixture(scope="module")
def rdms(subjects):
    return np.array([crossnobis_distance(*subject)[0] for subject in subjects])


def test_rdms_are_rsatoolbox_s(subjects, rdms):
    for (patterns, fingers, runs), ours in zip(subjects, rdms):
        dataset = Dataset(patterns, obs_descriptors={"finger": list(fingers), "run": list(runs)})
        peer = calc_rdm(dataset, method="crossnobis", descriptor="finger", cv_descriptor="run")
        np.testing.assert_allclose(ours, peer.get_vectors()[0], rtol=0, atol=1e-8)


def test_subjects_agree(rdms):
    agreement = correlate(rdms, rdms)[np.triu_indices(7, 1)]
    assert agreement.mean() == pytest.approx(0.79, abs=0.03)
    low, high = noise_ceiling(rdms)
    assert 0.8 < low < high < 1


def test_thumb_is_furthest_and_neighbours_are_closest(rdms):
    square = to_matrices(rdms.mean(axis=0))
    far = square.sum(axis=1)
    assert far.argmax() == 0
    steps = np.abs(np.subtract.outer(np.arange(5), np.arange(5)))
    assert square[steps == 1].mean() < square[steps == 2].mean() < square[steps >= 3].mean()
