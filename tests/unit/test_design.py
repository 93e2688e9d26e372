"""Responses and designs: blocks as in the store, joined by id, one noise ceiling."""

import nibabel
import numpy as np
import pytest
import torch
import xarray as xr
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


def test_blocks_cross_shards_and_read_each_once(monkeypatch):
    import dask.array

    monkeypatch.setattr(design, "RESIDENT_BYTES", 0)
    read = []

    def load(block_info=None):
        (low, high) = block_info[None]["array-location"][1]
        read.append(low)
        return np.arange(low, high)[None] + 1000 * np.arange(6)[:, None]

    lazy = dask.array.map_blocks(load, chunks=((6,), (10, 10, 7)), dtype=np.float32)
    array = xr.DataArray(lazy, dims=("trial", "voxel"))
    blocks = design._Blocks(array)
    read.clear()
    rows = np.array([0, 2, 5])
    got = [blocks(first, min(first + 4, 27), rows) for first in range(0, 27, 4)]
    expected = np.arange(27)[None] + 1000 * rows[:, None]
    np.testing.assert_array_equal(np.concatenate(got, axis=1), expected)
    assert read == [0, 10, 20]
    np.testing.assert_array_equal(blocks(3, 25, rows), expected[:, 3:25])
    # Some voxels, none of which lies in the middle shard
    chosen = np.array([1, 2, 9, 20, 26])
    some = design._Blocks(array, chosen)
    read.clear()
    got = [some(first, min(first + 2, 5), rows) for first in range(0, 5, 2)]
    np.testing.assert_array_equal(np.concatenate(got, axis=1), expected[:, chosen])
    assert read == [0, 20]


def test_voxels_that_are_kept(stores, tmp_path):
    betas, _, responses, *_, ncsnr = stores
    opened = design.open_responses(betas)
    kept = design.choose_voxels(opened, "responsive", min_ceiling=0.2)
    share = np.nan_to_num(ncsnr**2 / (1 + ncsnr**2))
    np.testing.assert_array_equal(kept.voxels, np.flatnonzero(share >= 0.2))
    assert 0 < kept.n_voxels < 50
    np.testing.assert_array_equal(
        kept.read(2, kept.n_voxels), responses[opened.used][:, kept.voxels[2:]]
    )
    np.testing.assert_array_equal(kept.ceiling, opened.ceiling[kept.voxels])
    # Fewer of these still know their places
    twice = kept.only(np.arange(kept.n_voxels) % 2 == 1)
    np.testing.assert_array_equal(twice.voxels, kept.voxels[1::2])
    assert twice.stored is opened
    np.testing.assert_array_equal(
        twice.read(0, twice.n_voxels), responses[opened.used][:, kept.voxels[1::2]]
    )
    assert design.choose_voxels(opened, "all", min_ceiling=0.2) is opened

    labels = np.zeros((50, 2, 2), np.int16)
    labels[10:14, 1, 0], labels[20:30, 1, 0] = 7, 9  # 9 is not in the table
    image, table = tmp_path / "dseg.nii.gz", tmp_path / "dseg.tsv"
    nibabel.save(nibabel.Nifti1Image(labels, np.diag([3.0, 3, 3, 1])), image)
    table.write_text("index\tname\n7\tlate\n8\tempty\n")
    given = {"min_ceiling": 0.2, "regions": image, "region_labels": table}
    inside = design.choose_voxels(opened, "regions", **given)
    np.testing.assert_array_equal(inside.voxels, np.arange(10, 14))
    table.write_text("index\tname\n8\tempty\n")
    for choice, more, message in (
        ("regions", given, "no voxel of subject 01, task objects lies in a region"),
        ("regions", {"min_ceiling": 0.2}, "x.voxels is regions, and there are none"),
        ("responsive", {"min_ceiling": 0.9}, r"reaches encoding.min_ceiling \(0.9\): lower it"),
        ("some", {"min_ceiling": 0.2}, "unknown x.voxels 'some': write one of responsive"),
    ):
        with pytest.raises(InputError, match=message):
            design.choose_voxels(opened, choice, key="x.voxels", **more)


def test_finite_voxels_are_kept_where_no_ceiling_is_known(tmp_path, monkeypatch):
    monkeypatch.setattr(design, "FINITE_BLOCK", 4)
    values = np.random.default_rng(0).standard_normal((6, 9))
    values[1, 2], values[5, 8] = np.nan, np.inf
    stimuli = [f"s{n}" for n in range(6)]
    betas = write_betas(tmp_path / "b.zarr", values, stimuli, ["1"] * 6, ncsnr=np.full(9, np.nan))
    opened = design.open_responses(betas)
    kept = design.choose_voxels(opened, "responsive", min_ceiling=0.2)
    np.testing.assert_array_equal(kept.voxels, [0, 1, 3, 4, 5, 6, 7])
    assert not opened.blocks.values.size  # the look through keeps nothing


def test_results_go_back_to_their_places(stores):
    opened = design.open_responses(stores[0])
    one, two = (opened.only(np.isin(np.arange(50), places)) for places in ([3, 40], [0, 7, 49]))
    result = xr.Dataset(
        {
            "score": ("location", np.arange(5, dtype=np.float32)),
            "preferred": ("location", np.arange(5, dtype=np.int16)),
            "weight": (("location", "layer"), np.arange(10.0).reshape(5, 2)),
            "noise_ceiling": ("location", np.zeros(5, np.float32)),
            "loss": ("epoch", np.ones(3)),
        },
        coords={axis: ("location", np.zeros(5, np.int32)) for axis in "ijk"},
        attrs={"name": "x"},
    )
    got = design.scatter(result, [one, two], dim="location")
    places = np.array([3, 40, 50, 57, 99])
    elsewhere = np.setdiff1d(np.arange(100), places)
    for key in ("score", "preferred", "weight"):
        np.testing.assert_array_equal(got[key].values[places], result[key].values)
        assert got[key].dims == result[key].dims
        assert got[key].dtype == result[key].dtype
    assert np.isnan(got["score"].values[elsewhere]).all()
    assert np.isnan(got["weight"].values[elsewhere]).all()
    assert (got["preferred"].values[elsewhere] == -1).all()
    np.testing.assert_allclose(got["noise_ceiling"], np.tile(opened.ceiling, 2), rtol=1e-6)
    np.testing.assert_array_equal(got["i"], np.tile(opened.coords["i"], 2))
    np.testing.assert_array_equal(got["loss"], 1)
    assert got.attrs == {"name": "x"}


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
