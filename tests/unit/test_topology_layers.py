"""Layers identified across seeds: noise, agreement with regions, nulls, the stage's stores."""

import pickle

import numpy as np
import pytest
import xarray as xr
from scipy.spatial.distance import pdist
from scipy.stats import binom

from isocortex import store
from isocortex.errors import InputError
from isocortex.rsa.rdms import pair_labels
from isocortex.topology import (
    SeedRDMs,
    SummarySet,
    TopologyOptions,
    draw_bootstrap,
    draw_permutations,
    identify,
    identify_layers,
    layer_dataset,
    list_statistics,
    load_seeds,
    with_noise,
)
from isocortex.topology.identify import identify_by

FAST = {"grid_step": 0.5, "bootstrap_samples": 100, "permutations": 100}


def network(rng, *, seeds: int, layers: int, stimuli: int, apart: float) -> SeedRDMs:
    """RDMs of layers that are steps of one walk, ``apart`` long, with each seed's own noise."""
    walk = rng.normal(size=(1, stimuli, 6)) + np.cumsum(
        apart * rng.normal(size=(layers, stimuli, 6)), axis=0
    )
    rdms = [[pdist(x + 0.3 * rng.normal(size=x.shape)) for x in walk] for _ in range(seeds)]
    return SeedRDMs(
        np.array(rdms),
        tuple(f"net{k}" for k in range(seeds)),
        tuple(f"conv{k}" for k in range(layers)),
        "correlation",
    )


def test_noise_is_of_the_entries_sd_and_each_rdm_has_its_own():
    rng = np.random.default_rng(0)
    rdms = rng.gamma(2.0, size=(3, 4, 1770)) * np.arange(1, 5)[:, None]
    before = rdms.copy()
    noisy = with_noise(rdms, 0.3, draws=2, seed=1)
    assert noisy.shape == (2, 3, 4, 1770)
    assert np.array_equal(rdms, before)
    added = (noisy - rdms) / rdms.std(axis=-1, keepdims=True)
    # 3 standard errors of an SD, and of a correlation, of 1770 numbers.
    np.testing.assert_allclose(added.std(axis=-1), 0.3, atol=0.3 * 4 / np.sqrt(2 * 1770))
    others = np.corrcoef(added.reshape(24, -1))[np.triu_indices(24, 1)]
    assert np.abs(others).max() < 5 / np.sqrt(1770)
    # Levels differ by their factor alone; without noise nothing changes.
    np.testing.assert_allclose(
        (with_noise(rdms, 0.1, draws=2, seed=1) - rdms) * 3, noisy - rdms, atol=1e-12
    )
    assert np.array_equal(with_noise(rdms, 0.0, draws=1, seed=1)[0], rdms)
    assert not np.array_equal(with_noise(rdms, 0.3, draws=2, seed=2), noisy)
    with pytest.raises(ValueError, match="0 or more"):
        with_noise(rdms, -0.1, draws=1, seed=1)


def test_without_noise_layers_are_identified_as_regions_are():
    rng = np.random.default_rng(1)
    seeds = network(rng, seeds=4, layers=3, stimuli=12, apart=0.6)
    options = TopologyOptions(**FAST)
    result = layer_dataset(seeds, options, network="net", noise=(0, 0.4), draws=2)
    statistics = list_statistics(options)
    expected, _ = identify(seeds.dissimilarity[None], statistics, options)
    for name in ("accuracy", "p", "p_corrected", "gain_low", "sensitivity", "confusion"):
        assert np.array_equal(result[name].values[0], expected[name], equal_nan=True)
    noisy = with_noise(seeds.dissimilarity, 0.4, draws=2, seed=0)
    expected, _ = identify(noisy, statistics, options)
    assert np.array_equal(result["accuracy"].values[1], expected["accuracy"])
    assert result["draws"].values.tolist() == [1, 2]
    # Counts are of seeds and draws, accuracies means of them.
    assert (result["confusion"].sum("predicted").values == np.array([4, 8])[:, None, None]).all()
    diagonal = np.einsum("nsll->ns", result["confusion"].values) / np.array([[12], [24]])
    np.testing.assert_allclose(diagonal, result["accuracy"].values)
    assert result["statistic"].values[-1] == "rgtm(nested)"
    assert set(result["chosen"].values.ravel()) <= {s.name for s in statistics if s.chosen_from}
    assert result.attrs["chance"] == pytest.approx(1 / 3)
    assert "other seeds' layers" in result.attrs["methods"]


def test_identification_falls_with_noise_and_rises_with_what_sets_layers_apart():
    rng = np.random.default_rng(2)
    options = TopologyOptions(
        grid_step=0.5, bootstrap_samples=100, permutations=199, geodesic_graphs=()
    )
    found = []
    for apart in (0.02, 0.1, 0.5):
        seeds = network(rng, seeds=8, layers=5, stimuli=20, apart=apart)
        result = layer_dataset(seeds, options, network="net", noise=(0, 0.5, 2.0), draws=4)
        found.append(result["accuracy"].sel(statistic=["rdm", "rank_rdm", "unit_rdm", "sigmoid"]))
    means = np.array([accuracy.mean("statistic") for accuracy in found])
    assert (np.diff(means[:, 0]) > 0.1).all()
    assert (np.diff(means[1]) < 0).all()
    assert means[2, 0] > 0.95
    assert means[2, 2] < means[2, 0] - 0.1
    assert (result["p"].sel(noise=0.5, statistic=["rank_rdm", "rgtm(nested)"]) < 0.01).all()


def test_false_positive_rate_of_averaged_draws_is_the_nominal_one():
    """Layers that are exchangeable: the null holds with any noise."""
    rng = np.random.default_rng(3)
    options = {"bootstrap_samples": 2, "permutations": 99, "geodesic_graphs": (), "statistics": ()}
    studies, p, corrected = 150, [], []
    for study in range(studies):
        common = rng.normal(size=(8, 3))
        rdms = np.array(
            [[pdist(common + rng.normal(size=common.shape)) for _ in range(5)] for _ in range(5)]
        )
        seeds = SeedRDMs(rdms, tuple("abcde"), tuple("vwxyz"), "correlation")
        chosen = TopologyOptions(**options, seed=study)
        result = layer_dataset(seeds, chosen, network="n", noise=(0.3,), draws=2).isel(noise=0)
        p.append(float(result["p"].sel(statistic="rank_rdm")))
        corrected.append(float(result["p_corrected"].values[:3].min()))
    low, high = binom.ppf([0.005, 0.995], studies, 0.05)
    assert (np.array(corrected) <= 0.05).sum() <= high
    assert low <= (np.array(p) <= 0.05).sum() <= high
    assert abs(np.mean(p) - 0.5) < 0.1


def test_layers_that_a_seed_lacks_and_too_few_seeds_are_said():
    rng = np.random.default_rng(4)
    seeds = network(rng, seeds=3, layers=4, stimuli=12, apart=0.6)
    seeds.dissimilarity[1, 2] = np.nan
    seeds.dissimilarity[2, 0] = 0.5
    result = layer_dataset(seeds, TopologyOptions(**FAST), network="net", noise=(0,))
    assert list(result["layer"].values) == ["conv1", "conv3"]
    assert "net1 has no RDM" in result.attrs["layers_left_out"]["conv2"]
    assert "layer conv0 is left out" in result.attrs["flags"][1]
    assert "of all 3 seeds: net2 has" in result.attrs["flags"][1]
    alone = SeedRDMs(seeds.dissimilarity[:1], seeds.seeds[:1], seeds.layers, "correlation")
    result = layer_dataset(alone, TopologyOptions(**FAST), network="net", noise=(0, 0.1))
    assert result.attrs["flag"] == "needs at least 2 seeds, has 1"
    assert np.isnan(result["accuracy"]).all()
    assert (result["chosen"] == "").all()


def write(path, rdms, layers, model, stimuli, measure="correlation"):
    first, second = pair_labels(stimuli)
    store.write(
        xr.Dataset(
            {"dissimilarity": (("layer", "pair"), rdms)},
            coords={
                "layer": np.array(layers, dtype=object),
                "stimulus_i": ("pair", first),
                "stimulus_j": ("pair", second),
            },
            attrs={"model": model, "measure": measure},
        ),
        path,
        spec="model_rdms",
    )
    return path


def test_stage_joins_seeds_by_layer_and_repeats_its_bytes(tmp_path):
    rng = np.random.default_rng(5)
    seeds = network(rng, seeds=3, layers=3, stimuli=10, apart=0.6)
    names = [f"s{k:03d}" for k in range(10)]
    paths = []
    for k, (name, rdms) in enumerate(zip(seeds.seeds, seeds.dissimilarity)):
        order = np.roll(np.arange(3), k)
        layers = [seeds.layers[i] for i in order]
        paths.append(write(tmp_path / f"{name}.zarr", rdms[order], layers, name, names))
    loaded = load_seeds(paths)
    assert loaded.seeds == seeds.seeds
    assert loaded.layers == seeds.layers
    assert np.array_equal(loaded.dissimilarity, seeds.dissimilarity)
    digests = []
    for threads in (1, 2):
        out = tmp_path / f"{threads}_layers.zarr"
        identify_layers(
            model_rdms=paths, network="net", out=out, noise=[0, 0.2], threads=threads, **FAST
        )
        digests.append(store.manifest(out)["content"])
    assert digests[0] == digests[1]
    result = store.open(tmp_path / "1_layers.zarr", "layer_identification")
    assert result.attrs["network"] == "net"
    assert result["noise"].values.tolist() == [0, 0.2]
    other = write(
        tmp_path / "other.zarr", seeds.dissimilarity[0], seeds.layers, "x", names, "euclidean"
    )
    with pytest.raises(InputError, match="one measure only"):
        load_seeds([*paths, other])
    with pytest.raises(InputError, match="geodesic_neighbours"):
        identify_layers(
            model_rdms=paths,
            network="net",
            out=out,
            geodesic_graphs=["k_nearest"],
            geodesic_neighbours=10,
        )


def test_blocks_of_work_can_go_to_another_process():
    rng = np.random.default_rng(6)
    seeds = network(rng, seeds=3, layers=3, stimuli=10, apart=0.6)
    options = TopologyOptions(**FAST)
    summaries = [SummarySet(seeds.dissimilarity.reshape(9, -1), options).prepare()]
    draws = draw_bootstrap(100, subjects=3, stimuli=10, resample="both", seed=0)
    orders = draw_permutations(100, subjects=3, regions=3, seed=0)
    for statistic in list_statistics(options):
        arguments = ((0, statistic), summaries, (3, 3), draws, orders)
        here = identify_by(*arguments)
        function, there = pickle.loads(pickle.dumps((identify_by, arguments)))
        got = function(*there)
        assert np.array_equal(got.bootstrap, here.bootstrap)
        assert np.array_equal(got.null, here.null)
