"""Tissue classes of a noisy template: right, and the same each time."""

import nibabel as nib
import numpy as np
import pytest

from isocortex.preprocess.registration import load_template
from isocortex.preprocess.tissues import tissue_classes


@pytest.fixture(scope="module")
def twice():
    template, mask = load_template(4.0), np.asarray(load_template(4.0, "mask").dataobj) > 0.5
    values = np.asarray(template.dataobj, dtype=np.float32)
    noise = np.random.default_rng(0).normal(0, 0.05 * values.max(), values.shape)
    head = nib.Nifti1Image((values + noise).astype(np.float32), template.affine)
    return mask, [tissue_classes(head, mask, [], seed=1) for _ in range(2)]


def test_the_same_bytes_each_time(twice):
    _, (first, second) = twice
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])


def test_tissues_are_the_template_s(twice):
    mask, (found, _) = twice
    labels, probabilities = found
    assert set(np.unique(labels[mask])) == {1, 2, 3}
    assert not labels[~mask].any()
    np.testing.assert_allclose(probabilities.sum(axis=0)[mask], 1, atol=1e-5)
    for label, name in ((1, "GM"), (2, "WM")):
        wanted = (np.asarray(load_template(4.0, name).dataobj) > 0.5) & mask
        overlap = 2 * (wanted & (labels == label)).sum() / (wanted.sum() + (labels == label).sum())
        assert overlap > 0.75
