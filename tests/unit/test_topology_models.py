"""Brain and model statistics compared: against scipy and resampled RDMs, and under the null."""

import numpy as np
import pytest
import xarray as xr
from scipy.spatial.distance import pdist
from scipy.stats import binom, pearsonr, spearmanr, ttest_1samp

from isocortex import store
from isocortex.errors import InputError
from isocortex.rsa.compare import correlate
from isocortex.rsa.rdms import to_matrices, to_vectors
from isocortex.topology import (
    TopologyOptions,
    bootstrap_means,
    compare_topology,
    correlations,
    draw_bootstrap,
    infer,
    rank_rdm,
    topology_dataset,
)

from .rdm_sets import brain_of, stimuli_of, write_model_rdms, write_rdms

FAST = {"grid_step": 0.5, "bootstrap_samples": 200}


def planted(rng, *, subjects: int, stimuli: int, noise: float):
    """Three layers, and two regions that are made of layers 2 and 0."""
    layers = rng.normal(size=(3, stimuli, 4))
    brain = np.array(
        [
            [pdist(layers[k] + noise * rng.normal(size=layers[k].shape)) for k in (2, 0)]
            for _ in range(subjects)
        ]
    )
    return brain, np.array([pdist(layer) for layer in layers])


def dataset(brain, models, stimuli, **options) -> xr.Dataset:
    names = [f"layer{k}" for k in range(len(models))]
    return topology_dataset(
        brain_of(brain),
        models,
        TopologyOptions(**{**FAST, **options}),
        predictors=[f"net/{n}" for n in names],
        models=["net"] * len(models),
        layers=names,
    )


def test_correlations_equal_scipy():
    rng = np.random.default_rng(0)
    brain, models = planted(rng, subjects=3, stimuli=12, noise=1.0)
    got = correlations(brain, models)
    assert got.shape == (3, 2, 3)
    for p in range(3):
        for r in range(2):
            for s in range(3):
                assert got[p, r, s] == pytest.approx(pearsonr(models[p], brain[s, r])[0], abs=1e-12)


def test_rank_statistic_gives_spearman_and_raw_gives_pearson():
    rng = np.random.default_rng(1)
    brain, models = planted(rng, subjects=3, stimuli=12, noise=1.0)
    scores = dataset(brain, models, 12)["score_subject"].isel(predictor=1, region=0, subject=2)
    pair = models[1], brain[2, 0]
    expected = {
        "rdm": pearsonr(*pair)[0],
        "unit_rdm": pearsonr(*pair)[0],
        "rank_rdm": spearmanr(*pair)[0],
        "rgtm(0.00,1.00)": spearmanr(*pair)[0],
    }
    for name, value in expected.items():
        assert float(scores.sel(statistic=name)) == pytest.approx(value, abs=1e-10)


def test_bootstrap_equals_resampled_rdms_made_anew():
    rng = np.random.default_rng(2)
    brain, models = planted(rng, subjects=4, stimuli=10, noise=1.0)
    brain[1, 0] = np.nan
    draws = draw_bootstrap(30, subjects=4, stimuli=10, resample="both", seed=0, least_subjects=1)
    by_stimuli, by_both = bootstrap_means(brain, models, draws)
    for b, (subjects, stimuli) in enumerate(zip(draws.subjects, draws.stimuli)):
        if (stimuli > 0).sum() < 4:
            continue
        drawn = np.repeat(np.arange(10), stimuli)
        apart = to_vectors((drawn[:, None] != drawn[None]).astype(float)) > 0

        def again(x, drawn=drawn, apart=apart):
            return to_vectors(to_matrices(x)[..., drawn, :][..., drawn])[..., apart]

        r = np.array(
            [
                [
                    [pearsonr(again(m), again(x))[0] for x in region]
                    for region in brain.swapaxes(0, 1)
                ]
                for m in models
            ]
        )
        np.testing.assert_allclose(by_stimuli[b], np.nanmean(r, axis=-1), atol=1e-9)
        copies = r[..., np.repeat(np.arange(4), subjects)]
        if np.isfinite(copies).any(axis=-1).all():
            np.testing.assert_allclose(by_both[b], np.nanmean(copies, axis=-1), atol=1e-9)


def test_subject_inference_is_the_t_test():
    rng = np.random.default_rng(3)
    scores = rng.normal(0.1, 0.2, size=(3, 2, 9))
    empty = np.full((1, 3, 2), np.nan)
    got = infer(scores, empty, empty, n_stimuli=20, resample="subjects", interval=0.9)
    test = ttest_1samp(scores, 0, axis=-1, alternative="greater")
    np.testing.assert_allclose(got["p"], test.pvalue, rtol=1e-10)
    interval = ttest_1samp(scores, 0, axis=-1).confidence_interval(0.9)
    np.testing.assert_allclose(got["interval_low"], interval.low, rtol=1e-10)
    np.testing.assert_allclose(got["interval_high"], interval.high, rtol=1e-10)


def test_planted_layers_are_found_by_every_family():
    rng = np.random.default_rng(4)
    brain, models = planted(rng, subjects=5, stimuli=24, noise=0.7)
    result = dataset(brain, models, 24, grid_step=0.2)
    assert (result["best_predictor"].sel(region="region0") == "net/layer2").all()
    assert (result["best_predictor"].sel(region="region1") == "net/layer0").all()
    right = result.sel(region="region0", predictor="net/layer2", statistic="rank_rdm")
    assert right["p_corrected"] < 0.01
    assert right["interval_low"] < right["score"] < right["interval_high"]
    wrong = result.sel(region="region0", predictor="net/layer1", statistic="rank_rdm")
    assert wrong["p_corrected"] > 0.05


@pytest.mark.parametrize(("resample", "subjects"), [("both", 8), ("subjects", 8), ("both", 1)])
def test_false_positive_rate(resample, subjects):
    """Trap 5: new stimuli in every study, so that only their bootstrap can know what they do.

    The models' representation has nothing to do with the brain's, which subjects share in part.
    """
    rng = np.random.default_rng(5)
    studies, stimuli, hits = 300, 20, 0
    for study in range(studies):
        common = rng.normal(size=(stimuli, 5)) if resample == "both" else np.zeros((stimuli, 5))
        brain = np.array([[pdist(common + rng.normal(size=common.shape))] for _ in range(subjects)])
        model = pdist(rng.normal(size=(stimuli, 5)))[None]
        draws = draw_bootstrap(
            200, subjects=subjects, stimuli=stimuli, resample="both", seed=study, least_subjects=1
        )
        means = bootstrap_means(brain, model, draws)
        p = infer(
            correlations(brain, model), *means, n_stimuli=stimuli, resample=resample, interval=0.95
        )["p"]
        hits += int(p[0, 0] <= 0.05)
    low, high = binom.ppf([0.005, 0.995], studies, 0.05)
    assert hits <= high
    if resample == "subjects":
        assert hits >= low


def test_missing_regions_constant_layers_and_excluded_pairs():
    rng = np.random.default_rng(6)
    brain, models = planted(rng, subjects=4, stimuli=14, noise=0.5)
    brain[2, 1] = np.nan
    models[1] = 0.3
    result = dataset(
        brain,
        models,
        14,
        geodesic_graphs=["p_shortest"],
        disconnected="exclude",
        geodesic_fraction=0.25,
    )
    assert np.isnan(result["score_subject"].sel(region="region1", subject="03")).all()
    assert np.isfinite(result["score"].sel(predictor=["net/layer0", "net/layer2"])).all()
    assert np.isnan(result["score"].sel(predictor="net/layer1")).all()
    assert "sub-03" in result.attrs["left_out"]["region1 of sub-03"]
    kept = result["n_pairs"].to_series()
    assert kept["rank_rdm"] == 91
    assert 3 <= kept["rgdm(p_shortest,0.25)"] <= 91
    with pytest.raises(InputError, match="usable"):
        dataset(np.full_like(brain, np.nan), models, 14)


def test_one_subject_is_compared_over_stimuli_alone():
    rng = np.random.default_rng(8)
    brain, models = planted(rng, subjects=1, stimuli=20, noise=0.5)
    result = dataset(brain, models, 20)
    right = result.sel(statistic="rank_rdm", region="region0", predictor="net/layer2")
    assert right["interval_low"] < right["score"] < right["interval_high"]
    assert right["p"] < 0.01
    none = dataset(brain, models, 20, resample="subjects")
    assert np.isnan(none["p"]).all()
    np.testing.assert_array_equal(none["score"], result["score"])


def test_few_stimuli_are_not_resampled():
    rng = np.random.default_rng(9)
    brain, models = planted(rng, subjects=4, stimuli=8, noise=0.5)
    result = dataset(brain, models, 8)
    scores = result["score_subject"].sel(statistic="rank_rdm")
    test = ttest_1samp(scores, 0, axis=-1, alternative="greater")
    np.testing.assert_allclose(result["p"].sel(statistic="rank_rdm"), test.pvalue, rtol=1e-9)
    assert result.attrs["options"]["resample"] == "subjects"
    with pytest.raises(InputError, match="resample is stimuli"):
        dataset(brain, models, 8, resample="stimuli")


def test_stage_joins_models_by_stimulus_and_repeats_its_bytes(tmp_path):
    rng = np.random.default_rng(7)
    brain, models = planted(rng, subjects=3, stimuli=10, noise=0.4)
    rdms = write_rdms(tmp_path, brain)
    order = rng.permutation(10)
    shuffled = to_vectors(to_matrices(models)[:, order][:, :, order])
    names = stimuli_of(models)
    model = write_model_rdms(tmp_path, shuffled, stimuli=[names[k] for k in order])
    digests = []
    for name, threads in (("one", 1), ("two", 2)):
        out = tmp_path / f"{name}.zarr"
        compare_topology(rdms=rdms, model_rdms=[model], out=out, threads=threads, **FAST)
        digests.append(store.manifest(out)["content"])
    assert digests[0] == digests[1]
    got = store.open(tmp_path / "one.zarr", "topology")
    direct = dataset(brain, models, 10)
    np.testing.assert_allclose(got["score"].values, direct["score"].values, atol=1e-12)
    assert list(got["best_predictor"].sel(statistic="rank_rdm").values) == [
        "net/layer2",
        "net/layer0",
    ]


@pytest.mark.parametrize("comparison", ["spearman", "corr_cov", "rho_a"])
def test_statistics_are_compared_as_asked(comparison):
    rng = np.random.default_rng(30)
    brain, models = planted(rng, subjects=3, stimuli=12, noise=1.0)
    brain[1, 0] = np.nan
    result = dataset(brain, models, 12, comparison=comparison)
    assert result.attrs["comparison"] == comparison
    scores = result["score_subject"]
    expected = correlate(rank_rdm(models), rank_rdm(brain[2]), comparison=comparison)
    np.testing.assert_allclose(scores.sel(statistic="rank_rdm")[..., 2], expected, atol=1e-12)
    assert np.isnan(scores.sel(statistic="rank_rdm")[:, 0, 1]).all()
    assert np.isfinite(result["p"]).all()
    pearson = dataset(brain, models, 12)
    name = "adjacency(0.50)"
    assert (scores.sel(statistic=name) - pearson["score_subject"].sel(statistic=name)).any()


def test_what_too_few_subjects_or_gaps_take_away_is_said():
    rng = np.random.default_rng(31)
    brain, models = planted(rng, subjects=3, stimuli=12, noise=1.0)
    brain[0, 1, 4] = np.nan
    brain[1, 1] = 2.0
    models[2] = 1.0
    flags = dataset(brain, models, 12).attrs["flags"]
    assert [flag.split(":")[0] for flag in flags[:2]] == ["region region1"] * 2
    assert "sub-01 has an RDM with 1 NaN" in flags[0]
    assert "region region1 has 1 usable subjects, at least 2 are needed" in flags[2]
    assert flags[3].startswith("net/layer2 has an RDM with NaN or without spread")
    assert dataset(brain[:, :1], models[:2], 12).attrs["flags"] == []
