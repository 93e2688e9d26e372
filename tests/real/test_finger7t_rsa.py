"""Finger patterns in primary motor cortex at 7 T: cross-validated RDMs agree between people.

The patterns are responses of one run each, univariately in units of the noise already; there are
no residuals, so what can be tested is no normalisation, and normalisation by the patterns
themselves. The recipe's three models come with them: how the fingers move together in everyday
use, in which muscles they share, and how far they are apart on the hand.
"""

import nibabel as nib
import numpy as np
import pytest
import xarray as xr
from rsatoolbox.data import Dataset
from rsatoolbox.rdm import calc_rdm
from scipy.io import loadmat

from isocortex import store
from isocortex.glm import import_betas
from isocortex.rsa import (
    compare_rdms,
    compute_rdms,
    correlate,
    crossnobis_distance,
    load_rdms,
    noise_ceiling,
    pair_labels,
    to_matrices,
    to_vectors,
)

FINGERS = ("1", "2", "3", "4", "5")
NOISE = {
    "none": {"source": "none"},
    "betas, shrinkage_diag": {"source": "betas"},
    "betas, shrinkage_eye": {"source": "betas", "shrinkage": "shrinkage_eye"},
    "betas, diag": {"source": "betas", "shrinkage": "diag"},
}


@pytest.fixture(scope="module")
def recipe(data):
    return loadmat(data / "finger7t" / "data_recipe_finger7T.mat")


@pytest.fixture(scope="module")
def subjects(recipe):
    return [
        (patterns, fingers.ravel().astype(str), runs.ravel().astype(str))
        for patterns, fingers, runs in zip(
            recipe["Y"][0], recipe["condVec"][0], recipe["partVec"][0]
        )
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("finger7t")


@pytest.fixture(scope="module")
def rdm_stores(subjects, folder):
    """The RDM stores of each noise normalisation, by way of images of betas."""
    found = {name: [] for name in NOISE}
    (folder / "regions.tsv").write_text("index\tname\n1\tM1\n")
    for number, (patterns, fingers, runs) in enumerate(subjects, start=1):
        image = nib.Nifti1Image(patterns.T[:, None, None].astype(np.float32), np.eye(4))
        nib.save(image, folder / "betas.nii.gz")
        rows = "".join(f"{finger}\t{run}\n" for finger, run in zip(fingers, runs))
        (folder / "events.tsv").write_text("stimulus\trun\n" + rows)
        import_betas(
            image=folder / "betas.nii.gz",
            events=folder / "events.tsv",
            out=folder / "betas.zarr",
            subject=f"{number:02d}",
            task="fingers",
            space="M1",
        )
        ones = np.ones((patterns.shape[1], 1, 1), np.int16)
        nib.save(nib.Nifti1Image(ones, np.eye(4)), folder / "regions.nii.gz")
        for name, noise in NOISE.items():
            out = folder / f"{name.replace(', ', '-')}_sub-{number:02d}.zarr"
            compute_rdms(
                betas=folder / "betas.zarr",
                regions=folder / "regions.nii.gz",
                region_labels=folder / "regions.tsv",
                out=out,
                measure="crossnobis",
                noise_normalisation=noise,
            )
            found[name].append(out)
    return found


@pytest.fixture(scope="module", params=NOISE)
def rdms(request, rdm_stores):
    brain = load_rdms(rdm_stores[request.param])
    assert brain.stimuli == FINGERS
    assert len(brain.subjects) == 7
    opened = store.open(rdm_stores[request.param][0], "rdms")
    assert opened.attrs["noise_normalisation"] == request.param
    return brain.dissimilarity[:, 0]


def test_rdms_are_rsatoolbox_s(subjects, rdm_stores):
    """Of the patterns as they are, and to the precision of the betas store (float32)."""
    brain = load_rdms(rdm_stores["none"])
    for (patterns, fingers, runs), stored in zip(subjects, brain.dissimilarity[:, 0]):
        dataset = Dataset(patterns, obs_descriptors={"finger": list(fingers), "run": list(runs)})
        peer = calc_rdm(dataset, method="crossnobis", descriptor="finger", cv_descriptor="run")
        peer = peer.get_vectors()[0]
        ours = crossnobis_distance(patterns, fingers, runs)[0]
        np.testing.assert_allclose(ours, peer, rtol=0, atol=1e-8)
        np.testing.assert_allclose(stored, peer, rtol=0, atol=1e-6)


def test_subjects_agree(rdms):
    """r .79 without normalisation, as published with the recipe; not worse with it."""
    agreement = correlate(rdms, rdms)[np.triu_indices(7, 1)]
    assert 0.76 < agreement.mean() < 0.84
    low, high = noise_ceiling(rdms)
    assert 0.8 < low < high < 1


def test_agreement_is_the_known_one(rdm_stores):
    rdms = load_rdms(rdm_stores["none"]).dissimilarity[:, 0]
    agreement = correlate(rdms, rdms)[np.triu_indices(7, 1)]
    assert agreement.mean() == pytest.approx(0.79, abs=0.005)


def test_thumb_is_furthest_and_neighbours_are_closest(rdms):
    for single in to_matrices(rdms):
        assert single.sum(axis=1).argmax() == 0
    square = to_matrices(rdms.mean(axis=0))
    steps = np.abs(np.subtract.outer(np.arange(5), np.arange(5)))
    assert square[steps == 1].mean() < square[steps == 2].mean() < square[steps >= 3].mean()


def test_everyday_use_explains_the_fingers_best(recipe, rdm_stores, folder):
    """Above muscles and the distance on the hand (Ejaz, Hamada & Diedrichsen 2015)."""
    models = [(str(m["name"][0]), to_vectors(m["RDM"])) for m in recipe["Model"][0]]
    assert [name for name, _ in models] == ["Muscle", "Naturalstats", "somatotopy"]
    first, second = pair_labels(FINGERS)
    store.write(
        xr.Dataset(
            {"dissimilarity": (("layer", "pair"), np.array([rdm for _, rdm in models]))},
            coords={
                "layer": ("layer", np.array([name for name, _ in models], dtype=object)),
                "stimulus_i": ("pair", first),
                "stimulus_j": ("pair", second),
            },
            attrs={"model": "hand", "measure": "euclidean"},
        ),
        folder / "models.zarr",
        spec="model_rdms",
    )
    for name, stores in rdm_stores.items():
        out = folder / f"scores-{name.replace(', ', '-')}.zarr"
        compare_rdms(
            rdms=stores,
            model_rdms=[folder / "models.zarr"],
            out=out,
            comparisons=["pearson", "corr_cov"],
        )
        scores = store.open(out, "scores").load()
        assert (scores["best_predictor"] == "hand/Naturalstats").all()
        best = scores.sel(predictor="hand/Naturalstats", region="M1")
        assert (best["p_corrected"] < 0.01).all()
        assert (best["mean"] > 0.8).all()
        assert scores.attrs["bootstrap"] == "subjects"
        assert scores.attrs["n_pairs_missing"] == {"M1": 0}
