"""Maps of one subject: values where they belong, in the volume and on fsaverage5."""

import json

import nibabel
import numpy as np
import pytest
import xarray as xr

from isocortex.encoding import maps
from isocortex.surface import sampling_weights, template_surface


def encoding_dataset(shape, affine, voxels, *, space, rng):
    n = len(voxels)
    score = rng.uniform(-0.1, 0.5, (3, n)).astype(np.float32)
    score[:, 5] = np.nan
    best = np.where(np.isnan(score).any(0), -1, np.nan_to_num(score, nan=-9).argmax(0))
    return xr.Dataset(
        {
            "score": (("layer", "voxel"), score),
            "score_normalised": (("layer", "voxel"), score * 2),
            "r2": (("layer", "voxel"), score**2),
            "p_fwe": (("layer", "voxel"), np.where(np.isnan(score), np.nan, 0.01)),
            "best_layer": ("voxel", best.astype(np.int16)),
        },
        coords={
            "layer": np.array(["a", "b", "c"], dtype=object),
            **{axis: ("voxel", voxels[:, n].astype(np.int32)) for n, axis in enumerate("ijk")},
        },
        attrs={
            "affine": affine.tolist(),
            "shape": list(shape),
            "space": space,
            "subject": "01",
            "task": "objects",
            "model": "net",
        },
    )


@pytest.fixture(scope="module")
def occipital():
    """Voxels of 4 mm of the back of the MNI brain."""
    affine = np.array([[4.0, 0, 0, -70], [0, 4, 0, -110], [0, 0, 4, -30], [0, 0, 0, 1]])
    shape = (36, 14, 16)
    voxels = np.stack(np.unravel_index(np.arange(np.prod(shape)), shape), 1)
    return shape, affine, voxels


def test_volume_maps_hold_the_best_layers_values(tmp_path):
    rng = np.random.default_rng(0)
    voxels = np.array([(i, j, 1) for i in range(4) for j in range(3)])
    affine = np.diag([2.0, 2, 2, 1])
    data = encoding_dataset((4, 3, 2), affine, voxels, space="T1w", rng=rng)
    maps.write_subject_maps(tmp_path, data)
    stem = tmp_path / "sub-01_task-objects_model-net_space-T1w_"
    best = data["best_layer"].values
    at = (np.maximum(best, 0), np.arange(12))
    for suffix, values in (
        ("stat-r", data["score"].values[at]),
        ("stat-rnormalised", data["score_normalised"].values[at]),
        ("stat-r2", data["r2"].values[at]),
        ("stat-logp", np.where(best < 0, 0, 2.0)),
    ):
        image = nibabel.load(f"{stem}{suffix}_statmap.nii.gz")
        np.testing.assert_array_equal(image.affine, affine)
        got = image.get_fdata()[tuple(voxels.T)]
        np.testing.assert_allclose(got, np.nan_to_num(values), rtol=1e-6)
        assert not image.get_fdata()[:, :, 0].any()
    labels = nibabel.load(f"{stem}desc-bestlayer_dseg.nii.gz")
    np.testing.assert_array_equal(labels.get_fdata()[tuple(voxels.T)], best + 1)
    legend = json.loads((tmp_path / f"{stem.name}desc-bestlayer_dseg.json").read_text())
    assert legend["Levels"] == {"0": "n/a", "1": "a", "2": "b", "3": "c"}
    assert not list(tmp_path.glob("*.gii"))  # an individual space has no template surface


def test_surface_maps_on_the_template(tmp_path, occipital):
    shape, affine, voxels = occipital
    rng = np.random.default_rng(1)
    data = encoding_dataset(shape, affine, voxels, space="MNI152NLin2009aSym", rng=rng)
    maps.write_subject_maps(tmp_path, data)
    surface = template_surface()
    weights = sampling_weights(surface, voxels, shape, affine)
    best = data["best_layer"].values
    r = data["score"].values[np.maximum(best, 0), np.arange(len(best))]
    for side, letter in (("left", "L"), ("right", "R")):
        stem = tmp_path / f"sub-01_task-objects_model-net_hemi-{letter}_space-fsaverage5_"
        values = nibabel.load(f"{stem}stat-r.func.gii").agg_data()
        labels = nibabel.load(f"{stem}desc-bestlayer.label.gii").agg_data()
        assert values.shape == labels.shape == (10242,)
        here = surface.hemisphere == side
        inside = weights[here].sum(1) > 0.99
        assert inside.sum() > 500
        expected = weights[here][inside] @ np.nan_to_num(r) / weights[here][inside].sum(1)
        around = weights[here][inside][:, [5]].toarray().ravel() == 0
        np.testing.assert_allclose(values[inside][around], expected[around], atol=1e-5)
        outside = weights[here].sum(1) == 0
        assert np.isnan(values[outside]).all()
        assert not labels[outside].any()
        assert set(labels[inside]) <= {1, 2, 3}
    legend = tmp_path / "sub-01_task-objects_model-net_space-fsaverage5_desc-bestlayer_dseg.json"
    assert json.loads(legend.read_text())["Levels"]["2"] == "b"


def test_sampling_of_labels_and_of_missing_values(occipital):
    shape, affine, voxels = occipital
    weights = sampling_weights(template_surface(), voxels, shape, affine)
    inside = weights.sum(1) > 0.99
    flat = maps.sample_on_surface(weights, np.full(len(voxels), 0.3), labels=False)
    np.testing.assert_allclose(flat[inside], 0.3, rtol=1e-6)
    half = np.where(voxels[:, 0] < 18, 2, 5)  # left and right of x = 0
    labels = maps.sample_on_surface(weights, half, labels=True)
    x = template_surface().midthickness[:, 0]
    assert (labels[inside & (x < -8)] == 2).all()
    assert (labels[inside & (x > 8)] == 5).all()
    missing = np.where(half == 2, np.nan, 1.0)
    sampled = maps.sample_on_surface(weights, missing, labels=False)
    assert np.isnan(sampled[x < -8]).all()
    np.testing.assert_allclose(sampled[inside & (x > 8)], 1, rtol=1e-6)
    nothing = maps.sample_on_surface(weights, np.zeros(len(voxels), np.int16), labels=True)
    assert not nothing.any()


def test_regions_of_voxels(tmp_path):
    volume = np.arange(24).reshape(4, 3, 2).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "r.nii.gz")
    coords = {"i": np.array([0, 3]), "j": np.array([1, 2]), "k": np.array([1, 0])}
    attrs = {"shape": [4, 3, 2], "affine": np.eye(4).tolist()}
    got = maps.regions_of_voxels(tmp_path / "r.nii.gz", coords, attrs, where="subject 01")
    np.testing.assert_array_equal(got, [volume[0, 1, 1], volume[3, 2, 0]])
