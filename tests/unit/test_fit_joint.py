"""Joint models from stores: shares of planted spaces, no leakage, calibration, bad input."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
import xarray as xr
from scipy.stats import binom

from isocortex import store
from isocortex.encoding.fit_joint import fit_joint, joint_scores, scaled_space
from isocortex.encoding.folds import cross_validation_folds
from isocortex.errors import InputError
from isocortex.study import load_study

ALPHAS = np.geomspace(0.01, 100, 6).tolist()
CV = {"over": "run", "new_stimuli": True, "stimulus_folds": 3, "run_folds": 2}
SIZES = (8, 15, 70)


def simulated(*, voxels=40, planted=(0.7, 0.3, 0.0), noise=0.5, seed=0, stimuli=60, runs=2):
    """Every stimulus once a run; three spaces, the first of two layers, the last p > n."""
    rng = np.random.default_rng(seed)
    names = [f"s{index:03d}" for index in range(stimuli)]
    order = np.concatenate([rng.permutation(stimuli) for _ in range(runs)])
    run = np.repeat([str(number) for number in range(runs)], stimuli)
    spaces = [rng.standard_normal((stimuli, size)) * 3 + 1 for size in SIZES]
    signal = 0
    for space, share in zip(spaces, planted, strict=True):
        part = (space - 1) @ rng.standard_normal((space.shape[1], voxels))
        signal = signal + np.sqrt(share) * part / part.std(0)
    beta = signal[order] + noise * rng.standard_normal((len(order), voxels))
    return names, order, run, [space.astype(np.float32) for space in spaces], beta


def scores(spaces, beta, cv, **options):
    loaders = [lambda s=s: [s[:, :3], s[:, 3:]] if s is spaces[0] else [s] for s in spaces]
    return joint_scores(
        loaders, lambda first, last: beta[:, first:last], beta.shape[1], cv, ALPHAS, **options
    )


def folds_of(names, order, run):
    return cross_validation_folds(
        [names[index] for index in order], run, stimulus_folds=3, run_folds=2
    )


@pytest.mark.parametrize(
    "options", [{"candidates": 25}, {"candidates": 10, "gradient_steps": 4}, {"method": "stacking"}]
)
def test_planted_spaces_get_their_shares(options):
    names, order, run, spaces, beta = simulated(stimuli=150)
    fit = scores(spaces, beta, folds_of(names, order, run), **options)
    np.testing.assert_allclose(fit.product_measure.sum(0), fit.r2, atol=1e-5)
    assert fit.score.mean() > 0.75
    relative = fit.product_measure.mean(1) / fit.r2.mean()
    expected = np.array([0.7, 0.3, 0.0])
    if options.get("method") == "stacking":
        # The best convex mix of orthogonal predictions weights them by their variances
        expected = expected * (2 * expected - expected**2)
        expected /= expected.sum()
    np.testing.assert_allclose(relative, expected, atol=0.12)
    unique = fit.unique.mean(1) / fit.r2.mean()
    assert unique[0] > 0.5
    assert unique[0] > unique[1] > unique[2] + 0.05
    assert abs(unique[2]) < 0.1
    assert (fit.weight.argmin(0) == 2).mean() > 0.8
    assert (fit.space_score.argmax(0) == 0).mean() > 0.8
    assert np.isfinite(fit.alpha).all()


@pytest.mark.parametrize(
    "options", [{"candidates": 12}, {"candidates": 6, "gradient_steps": 3}, {"method": "stacking"}]
)
def test_shuffled_responses_score_zero(options):
    names, order, run, spaces, beta = simulated(voxels=150, stimuli=45)
    rng = np.random.default_rng(1)
    noise = rng.standard_normal(beta.shape)
    fit = scores(spaces, noise, folds_of(names, order, run), unique=False, **options)
    low, high = binom.interval(0.99, fit.score.size, 0.5)
    assert low <= int((fit.score > 0).sum()) <= high
    assert abs(fit.score.mean()) < 3 * fit.score.std() / np.sqrt(fit.score.size)
    assert np.isnan(fit.unique).all()


@pytest.mark.parametrize(
    "options", [{"candidates": 12, "gradient_steps": 2}, {"method": "stacking"}]
)
def test_test_samples_change_no_choice(options):
    """Responses of a fold's test samples, and features of its test stimuli, choose nothing."""
    names, order, run, spaces, beta = simulated(voxels=12)
    cv = folds_of(names, order, run)
    one = type(cv)(cv.stimuli, cv.stimulus, cv.groups, cv.group, cv.folds[:1], cv.text)
    before = scores(spaces, beta, one, **options)
    changed = beta.copy()
    tested = cv.folds[0].test_trials
    changed[tested] = changed[tested] * -3
    others = np.flatnonzero(run == run[tested[0]])
    shift = changed[others].mean(0) - beta[others].mean(0)
    changed[others] -= shift  # centring within the run is no news to the training runs
    moved = [space.copy() for space in spaces]
    for space in moved:
        space[np.unique(cv.stimulus[tested])] += 5
    after = scores(moved, changed, one, **options)
    np.testing.assert_array_equal(before.weight, after.weight)
    np.testing.assert_array_equal(before.alpha, after.alpha)
    assert (np.abs(before.score - after.score) > 0.01).any()


def test_voxels_without_values_and_batches():
    names, order, run, spaces, beta = simulated(voxels=9)
    beta[:, 3], beta[0, 5] = 1.0, np.nan
    cv = folds_of(names, order, run)
    whole = scores(spaces, beta, cv, candidates=8)
    assert np.isnan(whole.score[[3, 5]]).all()
    assert np.isfinite(np.delete(whole.score, [3, 5])).all()
    parts = scores(spaces, beta, cv, candidates=8, voxel_batch=4)
    np.testing.assert_allclose(whole.score, parts.score, atol=1e-4)


def test_layers_of_a_space_count_alike():
    rng = np.random.default_rng(2)
    layers = [torch.from_numpy(rng.standard_normal((50, size)) * size) for size in (5, 400)]
    moments = scaled_space(layers, torch.ones(50), torch.arange(50))
    lengths = [
        ((layer - middle) * scale).square().sum(1).mean()
        for layer, (middle, scale) in zip(layers, moments, strict=True)
    ]
    torch.testing.assert_close(torch.stack(lengths), torch.full((2,), 0.5).double())


# --- from stores to a store ------------------------------------------------------------------


@pytest.fixture
def stores(tmp_path):
    names, order, run, spaces, beta = simulated(voxels=8, stimuli=40)
    n = len(order)
    ijk = np.stack(np.unravel_index(np.arange(8), (2, 2, 2)), 1).astype(np.int32)
    text = np.full(n, "", dtype=object)
    betas = xr.Dataset(
        {
            "beta": (("trial", "voxel"), beta.astype(np.float32)),
            "beta_se": ("trial", np.ones(n)),
            **{
                key: ("voxel", np.full(8, value, np.float32))
                for key, value in {
                    "r2": 0.1,
                    "z_stimulus": 1.0,
                    "noise_ceiling": 0.5,
                    "ncsnr": 2.0,
                    "tsnr": 50.0,
                }.items()
            },
            "hrf_index": ("voxel", np.full(8, -1, np.int16)),
            "residual": (("time", "voxel"), np.zeros((4, 8), np.float32)),
            "design": (("volume", "regressor"), np.zeros((4, 1), np.float32)),
        },
        coords={
            "regressor": np.array(["one"], dtype=object),
            "frame_time": ("volume", np.arange(4.0)),
            "stimulus": ("trial", np.array([names[i] for i in order], dtype=object)),
            "condition": ("trial", text),
            "session": ("trial", text),
            "run": ("trial", run.astype(object)),
            "onset": ("trial", np.arange(n) * 1.0),
            "duration": ("trial", np.ones(n)),
            "time_run": ("time", np.array(["0"] * 4, dtype=object)),
            **{axis: ("voxel", ijk[:, index]) for index, axis in enumerate("ijk")},
        },
        attrs={
            "affine": np.eye(4).tolist(),
            "shape": [2, 2, 2],
            "space": "T1w",
            "TR": 2.0,
            "estimator": "lsa",
            "subject": "01",
            "task": "see",
        },
    )
    store.write(betas, tmp_path / "betas.zarr", spec="betas")
    models = {"net": {"early": spaces[0], "late": spaces[1]}, "words": {"words": spaces[2]}}
    for model, layers in models.items():
        groups = {
            layer: xr.Dataset(
                {"activation": (("stimulus", "unit"), values)},
                coords={"stimulus": np.array(names, dtype=object)},
                attrs={"model": model, "layer": layer, "weights": "none", "preprocessing": "none"},
            )
            for layer, values in layers.items()
        }
        store.write(groups, tmp_path / f"{model}.zarr", spec="features")
    return tmp_path


def run_joint(folder, spaces, **options):
    options = {"candidates": 10, "cross_validation": CV, "alphas": ALPHAS} | options
    return fit_joint(
        responses=folder / "betas.zarr",
        features={name: folder / f"{source.split('/')[0]}.zarr" for name, source in spaces.items()},
        spaces=spaces,
        out=folder / "joint.zarr",
        maps=folder / "maps",
        name="all",
        device="cpu",
        **options,
    )


@pytest.mark.parametrize("method", ["banded", "stacking"])
def test_store_and_maps(stores, method):
    spaces = {"early": "net/early", "late": "net/late", "words": "words"}
    manifest = run_joint(stores, spaces, method=method)
    assert json.loads(manifest.read_text())["spec"] == "encoding_joint"
    made = store.open(stores / "joint.zarr", "encoding_joint")
    assert list(made["space"].values) == list(spaces)
    assert list(made["source"].values) == list(spaces.values())
    np.testing.assert_allclose(made["product_measure"].sum("space"), made["r2"], atol=1e-5)
    np.testing.assert_allclose(made["noise_ceiling"], np.sqrt(0.8), rtol=1e-6)
    np.testing.assert_allclose(made["score_normalised"], made["score"] / np.sqrt(0.8), rtol=1e-5)
    weight = made["weight"].values
    if method == "stacking":
        np.testing.assert_allclose(weight.sum(0), 1, atol=1e-5)
        assert made["space_alpha"].shape == (3, 8)
    else:
        assert (weight <= 0).all()
        assert made["alpha"].shape == (8,)
    stem = stores / "maps" / "sub-01_task-see_joint-all_space-T1w_"
    image = nibabel.load(f"{stem}stat-r_statmap.nii.gz").get_fdata()
    np.testing.assert_allclose(image.ravel(), made["score"], rtol=1e-5)
    for name in spaces:
        nibabel.load(f"{stem}desc-{name}_stat-r2share_statmap.nii.gz")
    levels = json.loads(Path(f"{stem}desc-largestshare_dseg.json").read_text())["Levels"]
    assert levels == {"0": "n/a", "1": "early", "2": "late", "3": "words"}
    most = nibabel.load(f"{stem}desc-largestshare_dseg.nii.gz").get_fdata().ravel()
    np.testing.assert_array_equal(most, made["product_measure"].values.argmax(0) + 1)


def test_a_whole_model_is_a_space_and_unique_can_be_left_out(stores):
    run_joint(stores, {"net": "net", "words": "words"}, unique=False)
    made = store.open(stores / "joint.zarr", "encoding_joint")
    assert "unique" not in made
    assert made["score"].values.mean() > 0.5


def test_voxels_of_regions(stores):
    spaces = {"net": "net", "words": "words"}
    run_joint(stores, spaces)
    whole = store.open(stores / "joint.zarr", "encoding_joint").load()
    assert whole.attrs["n_voxels_left_out"] == 0
    labels = np.zeros((2, 2, 2), np.int16)
    labels[1, 0] = 3
    image, table = stores / "dseg.nii.gz", stores / "dseg.tsv"
    nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), image)
    table.write_text("index\tname\n3\tV1\n")
    run_joint(stores, spaces, voxels="regions", regions=image, region_labels=table)
    made = store.open(stores / "joint.zarr", "encoding_joint").load()
    inside = labels.ravel() == 3
    for key in ("score", "product_measure", "unique", "alpha"):
        np.testing.assert_allclose(
            made[key].values[..., inside], whole[key].values[..., inside], atol=1e-3, rtol=1e-3
        )
        assert np.isnan(made[key].values[..., ~inside]).all()
    np.testing.assert_array_equal(made["k"], whole["k"])
    assert made.attrs["n_voxels_left_out"] == 6
    stem = stores / "maps" / "sub-01_task-see_joint-all_space-T1w_"
    most = nibabel.load(f"{stem}desc-largestshare_dseg.nii.gz").get_fdata()
    np.testing.assert_array_equal(most > 0, labels > 0)


def test_bad_choices_are_named(stores):
    with pytest.raises(InputError, match=r"net/deep.*has the layers early, late"):
        run_joint(stores, {"net": "net/deep", "words": "words"})
    with pytest.raises(InputError, match="at least 2"):
        run_joint(stores, {"net": "net"})
    with pytest.raises(InputError, match="write one of banded, stacking"):
        run_joint(stores, {"net": "net", "words": "words"}, method="bagging")


# --- before any job --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spaces", "text"),
    [
        ({"a": "net/conv1", "b": "gabr"}, "b is 'gabr'.*did you mean 'gabor'"),
        ({"a": "net/conv9", "b": "gabor"}, "a is 'net/conv9'.*has conv1, conv2: did you mean"),
        ({"a": "gabor", "b": "gabor"}, "b is 'gabor', as is a: remove one"),
        ({"a": "gabor"}, r"encoding\.joint\.all\.spaces"),
    ],
)
def test_spaces_are_checked_before_any_job(tmp_path, spaces, text):
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()
    models = {
        "net": {"architecture": "convnet", "layers": ["conv1", "conv2"]},
        "gabor": {"architecture": "gabor"},
    }
    given = {
        "study": "s",
        "input": {"stimuli": str(tmp_path)},
        "features": {"models": models},
        "encoding": {"joint": {"all": {"spaces": {"one": "net", "two": "gabor"}}}},
    }
    joint = load_study(given).config["encoding"]["joint"]["all"]
    assert (joint["method"], joint["candidates"], joint["unique"]) == ("banded", 100, True)
    assert joint["voxels"] == "all"
    given["encoding"]["joint"]["all"]["voxels"] = "regions"
    with pytest.raises(InputError, match=r"joint\.all\.voxels is regions, and there are none"):
        load_study(given)
    given["encoding"] = {"joint": {"all": {"spaces": spaces}}}
    with pytest.raises(InputError, match=text):
        load_study(given)
