"""Responses and designs: blocks as in the store, joined by id, one noise ceiling."""

import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score

from isocortex import store
from isocortex.encoding import design, scores
from isocortex.encoding.folds import cross_validation_folds
from isocortex.errors import InputError

from .test_encoding import CV, write_betas, write_features


@pytest.fixture
def stores(tmp_path):
    rng = np.random.default_rng(0)
    names = [f"s{n:02d}" for n in range(12)]
    stimuli = [names[n] for _ in range(3) for n in rng.permutation(12)]
    stimuli[4], stimuli[20] = "", "n/a"
    runs = np.repeat(["1", "2", "3"], 12)
    responses = rng.standard_normal((36, 50)).astype(np.float32)
    ncsnr = rng.uniform(0, 2, 50)
    ncsnr[3] = np.nan
    betas = write_betas(tmp_path / "b.zarr", responses, stimuli, runs, ncsnr=ncsnr)
    layers = {"a": rng.standard_normal((12, 2, 3, 3)), "b": rng.standard_normal((12, 5))}
    features = write_features(
        tmp_path / "f.zarr", {key: value[::-1] for key, value in layers.items()}, names[::-1]
    )
    return betas, features, responses, np.array(stimuli), names, layers, ncsnr


def test_responses_are_the_stores(stores, monkeypatch):
    betas, _, responses, stimuli, *_, ncsnr = stores
    opened = design.open_responses(betas)
    used = np.flatnonzero((stimuli != "") & (stimuli != "n/a"))
    np.testing.assert_array_equal(opened.used, used)
    assert (opened.kind, opened.n_samples, opened.n_voxels) == ("trials", 36, 50)
    np.testing.assert_array_equal(opened.read(7, 31), responses[used, 7:31])
    np.testing.assert_array_equal(opened.samples["stimulus"], stimuli[used])
    # The correlation whose square is the single-trial share of variance
    np.testing.assert_allclose(opened.ceiling**2, ncsnr**2 / (1 + ncsnr**2), rtol=1e-6)


def test_blocks_cross_shards_and_read_each_once():
    import dask.array
    import xarray as xr

    read = []

    def load(block_info=None):
        (low, high) = block_info[None]["array-location"][1]
        read.append(low)
        return np.arange(low, high)[None] + 1000 * np.arange(6)[:, None]

    lazy = dask.array.map_blocks(load, chunks=((6,), (10, 10, 7)), dtype=np.float32)
    blocks = design._Blocks(xr.DataArray(lazy, dims=("trial", "voxel")))
    blocks.edges = np.array([0, 10, 20, 27])
    read.clear()
    rows = np.array([0, 2, 5])
    got = [blocks(first, min(first + 4, 27), rows) for first in range(0, 27, 4)]
    expected = np.arange(27)[None] + 1000 * rows[:, None]
    np.testing.assert_array_equal(np.concatenate(got, axis=1), expected)
    assert read == [0, 10, 20]
    np.testing.assert_array_equal(blocks(3, 25, rows), expected[:, 3:25])


def test_features_are_joined_by_id(stores):
    betas, features, *_, names, layers, _ = stores
    made = design.design_of(design.open_responses(betas), features, cross_validation=CV)
    assert made.layers == ("a", "b")
    assert list(made.cv.stimuli) == names
    np.testing.assert_array_equal(made.load_maps("a"), layers["a"].astype(np.float32))
    np.testing.assert_array_equal(made.load("a"), layers["a"].astype(np.float32).reshape(12, -1))
    one = design.design_of(
        design.open_responses(betas), features, cross_validation=CV, layers=["b"]
    )
    assert one.layers == ("b",)
    with pytest.raises(InputError, match="no group 'c'"):
        design.design_of(design.open_responses(betas), features, cross_validation=CV, layers=["c"])


def test_another_store_is_refused(stores):
    with pytest.raises(InputError, match="'features' store: encoding predicts betas or timeseries"):
        design.open_responses(stores[1])
    assert store.spec_of(stores[1]) == "features"


def test_centring_stays_within_groups():
    rng = np.random.default_rng(1)
    stimuli = [f"s{n}" for n in range(20)] * 2
    cv = cross_validation_folds(stimuli, ["1"] * 20 + ["2"] * 20)
    values = rng.standard_normal((40, 5)) + 3
    values[2, 1], values[30, 3] = np.nan, np.inf
    got, usable = design.centre(values, cv)
    np.testing.assert_array_equal(usable, [True, False, True, False, True])
    for rows in (slice(0, 20), slice(20, 40)):
        with np.errstate(invalid="ignore"):
            expected = values[rows] - values[rows].mean(0)
        np.testing.assert_allclose(got[rows][:, usable], expected[:, usable], atol=1e-12)
    np.testing.assert_array_equal(got[:, ~usable], 0)
    changed = values.copy()
    changed[20:] *= 7  # what one group holds is nothing to the other
    np.testing.assert_array_equal(design.centre(changed, cv)[0][:20], got[:20])


def test_scores_equal_scikit_learn_and_numpy():
    rng = np.random.default_rng(2)
    target = rng.standard_normal((30, 6)) + 2
    prediction = target * 0.5 + rng.standard_normal((30, 6)) + 1
    p, t = torch.from_numpy(prediction), torch.from_numpy(target)
    expected = r2_score(target, prediction, multioutput="raw_values")
    np.testing.assert_allclose(scores.r2(p, t), expected, rtol=1e-12)
    expected = [np.corrcoef(prediction[:, n], target[:, n])[0, 1] for n in range(6)]
    np.testing.assert_allclose(scores.pearson(p, t), expected, rtol=1e-12)
    flat = torch.full((30, 1), 4.0)
    assert torch.isnan(scores.r2(flat + 1, flat)).all()
    assert torch.isnan(scores.pearson(t[:, :1], flat)).all()
    assert (scores.pearson(flat, t[:, :1]) == 0).all()
    assert scores.r2(t.mean(0).expand_as(t), t).abs().max() < 1e-12


def test_normalised_scores_reach_one_at_the_ceiling():
    """The best prediction of planted signal: r over the ceiling and r2 over its square are 1."""
    rng = np.random.default_rng(3)
    signal = rng.standard_normal((20000, 1))
    ncsnr = np.array([0.3, 1.0, 3.0])
    noisy = torch.from_numpy(signal * ncsnr + rng.standard_normal((20000, 3)))
    best = torch.from_numpy(signal * ncsnr)
    ceiling = scores.ceiling_correlation(ncsnr)
    r = scores.pearson(best, noisy).numpy()
    np.testing.assert_allclose(scores.normalise(r, ceiling), 1, atol=0.03)
    explained = scores.r2(best, noisy).numpy()
    np.testing.assert_allclose(scores.normalise(explained, ceiling, power=2), 1, atol=0.06)
    cut = scores.normalise(r, np.array([0.3, np.nan, 1.0]), min_ceiling=0.1)
    np.testing.assert_array_equal(np.isfinite(cut), [False, False, True])
