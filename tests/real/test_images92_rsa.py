"""Kriegeskorte et al. (2008): human IT RDMs of 92 images against the published model RDMs."""

import numpy as np
import pytest
import xarray as xr
from PIL import Image
from rsatoolbox.inference import boot_noise_ceiling
from rsatoolbox.rdm import RDMs, compare
from scipy.io import loadmat

from isocortex import store
from isocortex.features import extract_features
from isocortex.rsa import (
    compare_rdms,
    compute_model_rdms,
    correlate,
    import_rdms,
    load_rdms,
    noise_ceiling,
    pair_labels,
    to_vectors,
)

NAMES = [f"object{k:02d}" for k in range(92)]
PEER = {"pearson": "corr", "spearman": "spearman", "corr_cov": "corr_cov", "rho_a": "rho-a"}
OTHERS = {"cosine": "cosine", "cosine_cov": "cosine_cov", "tau_a": "tau-a", "tau_b": "tau-b"}


@pytest.fixture(scope="module")
def features(data, tmp_path_factory):
    """Model RDMs made here from the 92 images: a trained ResNet-20 and Gabor energy."""
    folder = tmp_path_factory.mktemp("features")
    file = loadmat(data / "images92" / "Kriegeskorte_Neuron2008_supplementalData.mat")
    files = []
    for name, cell in zip(NAMES, file["stimuli_92objs"][0]):
        files.append(folder / f"{name}.png")
        Image.fromarray(np.asarray(cell["image"], dtype=np.uint8)).save(files[-1])
    checkpoint = str(data / "resnet20-cifar10" / "resnet20-12fca82f.th")
    wanted = {
        "gabor": {"architecture": "gabor"},
        "resnet20": {"architecture": "resnet20-cifar", "weights": checkpoint},
    }
    stores = []
    for model, options in wanted.items():
        out = folder / f"{model}.zarr"
        ids = [file.stem for file in files]
        extract_features(
            stimuli=files, stimulus_ids=ids, out=out, model=model, device="cpu", **options
        )
        stores.append(folder / f"{model}_rdms.zarr")
        compute_model_rdms(features=out, out=stores[-1])
    return stores


@pytest.fixture(scope="module")
def study(data, tmp_path_factory):
    """Stores of four subjects (two sessions, and their mean, as regions) and of the models."""
    folder = tmp_path_factory.mktemp("images92")
    brain = loadmat(data / "images92" / "92_brainRDMs.mat")["RDMs"][0]
    (folder / "ids.txt").write_text("\n".join(NAMES))
    stores = []
    for subject, sessions in enumerate(brain, start=1):
        first, second = (np.asarray(cell["RDM"], dtype=float) for cell in sessions)
        files = []
        for name, square in (("1", first), ("2", second), ("mean", (first + second) / 2)):
            files.append(folder / f"sub-{subject}_session-{name}.npy")
            np.save(files[-1], square)
        stores.append(folder / f"sub-{subject}.zarr")
        import_rdms(
            files=files,
            regions=["hIT session 1", "hIT session 2", "hIT"],
            stimuli=[folder / "ids.txt"] * 3,
            subject=str(subject),
            out=stores[-1],
        )
    models = loadmat(data / "images92" / "92_modelRDMs.mat")["Models"][0]
    first, second = pair_labels(NAMES)
    layers = [str(m["name"][0]) for m in models]
    vectors = np.array([to_vectors(np.asarray(m["RDM"], dtype=float)) for m in models])
    store.write(
        xr.Dataset(
            {"dissimilarity": (("layer", "pair"), vectors)},
            coords={
                "layer": ("layer", np.array(layers, object)),
                "stimulus_i": ("pair", first),
                "stimulus_j": ("pair", second),
            },
            attrs={"model": "published", "measure": "given"},
        ),
        folder / "models.zarr",
        spec="model_rdms",
    )
    comparisons = list(PEER)
    compare_rdms(
        rdms=stores,
        model_rdms=[folder / "models.zarr"],
        out=folder / "scores.zarr",
        comparisons=comparisons,
        bootstrap={"over": "both", "samples": 200},
        seed=1,
    )
    return store.open(folder / "scores.zarr", "scores").load(), load_rdms(stores), vectors, stores


def test_scores_and_ceilings_are_rsatoolbox_s(study):
    scores, brain, vectors, _ = study
    assert scores.sizes["subject"] == 4
    assert scores.sizes["predictor"] == 8
    for comparison, peer in PEER.items():
        for r in range(len(brain.regions)):
            found = RDMs(brain.dissimilarity[:, r])
            cell = scores.sel(comparison=comparison).isel(region=r)
            wanted = compare(RDMs(vectors), found, peer)
            np.testing.assert_allclose(cell["score"].values, wanted, atol=1e-8)
            ceiling = [cell["ceiling_low"].item(), cell["ceiling_high"].item()]
            np.testing.assert_allclose(ceiling, boot_noise_ceiling(found, peer), atol=1e-8)


@pytest.mark.filterwarnings("ignore:Noise ceiling for tau")
@pytest.mark.parametrize("comparison", OTHERS)
def test_other_comparisons_are_rsatoolbox_s(study, comparison):
    """Of models with many ties, as animacy, and of measured RDMs."""
    _, brain, vectors, _ = study
    found = brain.dissimilarity[:, brain.regions.index("hIT")]
    wanted = compare(RDMs(vectors), RDMs(found), OTHERS[comparison])
    np.testing.assert_allclose(correlate(vectors, found, comparison=comparison), wanted, atol=1e-8)
    peer = boot_noise_ceiling(RDMs(found), method=OTHERS[comparison])
    np.testing.assert_allclose(noise_ceiling(found, comparison=comparison), peer, atol=1e-8)


def test_categories_and_monkey_it_beat_early_vision(study):
    """The paper's finding: human IT separates what is alive, as monkey IT does, unlike V1."""
    for comparison in PEER:
        scores = study[0].sel(comparison=comparison, region="hIT")
        mean = scores["mean"].sel(predictor="published/monkeyIT")
        for early in ("V1", "Silhouette", "RADON", "HMAX"):
            assert mean > scores["mean"].sel(predictor=f"published/{early}")
        assert scores["best_predictor"].item() == "published/animacy"
        low, high = scores["ceiling_low"].item(), scores["ceiling_high"].item()
        assert 0 < mean < low < high < 1
        assert scores["p"].sel(predictor="published/monkeyIT") < 0.05
        # Two sessions hold less noise than one: the ceiling rises.
        one = study[0].sel(comparison=comparison)["ceiling_low"]
        assert low > one.sel(region=["hIT session 1", "hIT session 2"]).max()


def test_features_of_the_images_against_human_it(study, features, tmp_path):
    out = tmp_path / "scores.zarr"
    compare_rdms(rdms=study[3], model_rdms=features, out=out, comparisons=["spearman"])
    scores = store.open(out, "scores").load().sel(comparison="spearman", region="hIT")
    mean = scores["mean"].to_series()
    assert (mean > 0).all()
    assert scores["best_predictor"].item() in ("resnet20/layer3.2", "resnet20/avgpool")
    assert mean.max() > 1.5 * mean["gabor/energy"]
    assert mean.max() < scores["ceiling_low"].item()
    assert scores["p"].sel(predictor="resnet20/avgpool") < 0.05
