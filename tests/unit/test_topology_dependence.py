"""AGTDM: against distance correlation written out, under the null, and where others fail."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import xarray as xr
from scipy.spatial.distance import pdist, squareform
from scipy.stats import binom

from isocortex import store
from isocortex.errors import InputError
from isocortex.topology import (
    DependenceOptions,
    agtdm,
    dependence_dataset,
    measure_dependence,
    rgtm,
)
from isocortex.topology.dependence import (
    dependence_maps,
    draw_orders,
    prepare_ramps,
    threshold_pairs,
)

from .rdm_sets import brain_of, models_of, write_model_rdms, write_rdms


def plain_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Szekely, Rizzo & Bakirov (2007), theorem 1: sums of distances, nothing is centred."""

    def covariance(a, b):
        n = len(a)
        first = (a * b).mean()
        second = a.mean() * b.mean()
        third = sum(a[k].sum() * b[k].sum() for k in range(n)) / n**3
        return first + second - 2 * third

    squares = covariance(a, a) * covariance(b, b)
    return np.sqrt(max(0.0, covariance(a, b)) / np.sqrt(squares)) if squares > 1e-20 else 0.0


def corrected_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Huo & Szekely (2016), theorem 1: the unbiased covariance, nothing is centred."""

    def covariance(a, b):
        n = len(a)
        rows = (a.sum(axis=0) * b.sum(axis=0)).sum()
        return (
            (a * b).sum() / (n * (n - 3))
            - 2 * rows / (n * (n - 2) * (n - 3))
            + a.sum() * b.sum() / (n * (n - 1) * (n - 2) * (n - 3))
        )

    squares = covariance(a, a) * covariance(b, b)
    return covariance(a, b) / np.sqrt(squares) if squares > 1e-20 else 0.0


def plain_maps(x, y, levels, scale, corrected=True):
    """Every pair of transforms by itself."""
    correlation = corrected_correlation if corrected else plain_correlation
    out = []
    for low, high in threshold_pairs(levels):
        a = squareform(rgtm(x, low, high, scale=scale, threshold="quantile", pool="rdm"))
        row = []
        for low_y, high_y in threshold_pairs(levels):
            b = squareform(rgtm(y, low_y, high_y, scale=scale, threshold="quantile", pool="rdm"))
            row.append(correlation(a, b))
        out.append(row)
    return np.array(out)


@pytest.mark.parametrize("scale", ["raw", "rank"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("corrected", [False, True])
def test_all_correlations_are_those_of_the_transforms_one_by_one(scale, tied, corrected):
    rng = np.random.default_rng(0)
    n = 14
    x = pdist(rng.normal(size=(n, 3)))
    y = pdist(rng.normal(size=(n, 2)))
    if tied:
        x, y = np.ceil(2 * x), np.ceil(2 * y)
    orders = np.array([np.arange(n), rng.permutation(n)])
    options = {"levels": 8, "scale": scale, "bias_corrected": corrected}
    found = dependence_maps(
        prepare_ramps(x[None], **options), prepare_ramps(y[None], **options), orders
    )
    for k, order in enumerate(orders):
        moved = squareform(squareform(y)[np.ix_(order, order)])
        expected = plain_maps(x, moved, 8, scale, corrected)
        np.testing.assert_allclose(found[0, k, 0], expected, rtol=0, atol=1e-10)
    if not tied and scale == "raw":
        # Rotated data have the same distances, and x is as dependent on x as can be.
        same = agtdm(x, 3 * x, permutations=19, bias_corrected=corrected)
        assert same.value == pytest.approx(1, abs=1e-12)


def test_without_thresholds_it_is_the_distance_correlation():
    rng = np.random.default_rng(1)
    n = 25
    x = rng.normal(size=n)
    y = x**2 + 0.3 * rng.normal(size=n)
    a, b = pdist(x[:, None]), pdist(y[:, None])
    found = agtdm(a, b, levels=2, permutations=19)
    # U-centring takes out what a transform of quantiles 0 and 1 shifts the distances by.
    expected = corrected_correlation(squareform(a), squareform(b))
    assert found.value == pytest.approx(expected, abs=1e-12)
    assert found.distance_correlation == found.value
    assert (found.lower_x, found.upper_x, found.lower_y, found.upper_y) == (0, 1, 0, 1)
    plain = agtdm(a - a.min(), b - b.min(), levels=2, permutations=19, bias_corrected=False)
    expected = plain_correlation(squareform(a - a.min()), squareform(b - b.min()))
    assert plain.value == pytest.approx(expected, abs=1e-12)


def test_bias_correction_lets_the_thresholds_adapt():
    """Of unrelated data, plain correlations are largest at one pair always; corrected vary."""
    rng = np.random.default_rng(12)
    chosen, value = {True: set(), False: set()}, {True: [], False: []}
    for _ in range(40):
        x, y = pdist(rng.normal(size=(30, 3))), pdist(rng.normal(size=(30, 3)))
        for corrected in (True, False):
            found = agtdm(x, y, permutations=1, bias_corrected=corrected)
            chosen[corrected].add((found.lower_x, found.upper_x, found.lower_y, found.upper_y))
            value[corrected].append(found.distance_correlation)
    assert len(chosen[False]) <= 3
    assert len(chosen[True]) > 20
    assert np.mean(value[False]) > 0.4
    assert abs(np.mean(value[True])) < 4 * np.std(value[True]) / np.sqrt(40)


def test_the_permutations_maximise_anew():
    rng = np.random.default_rng(2)
    x, y = pdist(rng.normal(size=(12, 2))), pdist(rng.normal(size=(12, 2)))
    found = agtdm(x, y, levels=5, permutations=20, seed=3)
    for order, largest in zip(draw_orders(20, 12, seed=3), found.null):
        moved = squareform(squareform(y)[np.ix_(order, order)])
        assert largest == pytest.approx(plain_maps(x, moved, 5, "raw").max(), abs=1e-10)
    own = plain_maps(x, y, 5, "raw")
    assert found.value == pytest.approx(own.max(), abs=1e-10)
    place = np.unravel_index(own.argmax(), own.shape)
    pairs = threshold_pairs(5)
    assert (found.lower_x, found.upper_x) == tuple(pairs[place[0]])
    assert (found.lower_y, found.upper_y) == tuple(pairs[place[1]])
    assert found.p == (1 + (found.null >= found.value).sum()) / 21
    again = agtdm(x, y, levels=5, permutations=20, seed=3)
    np.testing.assert_array_equal(again.null, found.null)


def test_inputs_that_are_no_distances_are_refused():
    x = pdist(np.random.default_rng(3).normal(size=(8, 2)))
    for bad, message in (
        (x[:10], "one length"),
        (np.zeros_like(x), "equal"),
        (np.where(x == x[3], np.nan, x), "NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            agtdm(x, bad)


def within_binomial_99(hits: int, trials: int, rate: float = 0.05) -> bool:
    return binom.ppf(0.005, trials, rate) <= hits <= binom.ppf(0.995, trials, rate)


def test_false_positives_have_their_rate_only_where_the_choice_is_repeated():
    rng = np.random.default_rng(4)
    trials, p, fixed = 500, [], []
    for trial in range(trials):
        # Data with structure, so that distances are far from independent of each other; in
        # different orders, as both are made one after the other.
        labels = rng.permutation(np.repeat(np.arange(4), 5))
        x = pdist(rng.normal(size=(4, 2))[labels] + 0.5 * rng.normal(size=(20, 2)))
        y = pdist(np.cumsum(rng.normal(size=(20, 1)), axis=0))
        found = agtdm(x, y, permutations=99, seed=trial)
        p.append(found.p)
        # The threshold pair kept from the data: the null lacks the choice.
        options = {"levels": 8, "scale": "raw"}
        maps = dependence_maps(
            prepare_ramps(x[None], **options),
            prepare_ramps(y[None], **options),
            np.concatenate([np.arange(20)[None], draw_orders(99, 20, seed=trial)]),
        )[0, :, 0].reshape(100, -1)
        kept = maps[:, maps[0].argmax()]
        fixed.append((kept >= kept[0] - 1e-9).mean())
    print("FPR", (np.array(p) <= 0.05).mean(), (np.array(fixed) <= 0.05).mean())
    assert within_binomial_99((np.array(p) <= 0.05).sum(), trials)
    assert (np.array(fixed) <= 0.05).mean() > 0.3


def test_a_dependence_that_correlations_miss_is_found():
    rng = np.random.default_rng(5)
    trials, hits = 60, np.zeros(3)
    for trial in range(trials):
        place = rng.uniform(size=40)
        wave = np.sin(6 * np.pi * place) + 0.2 * rng.normal(size=40)
        x, y = pdist(place[:, None]), pdist(wave[:, None])
        found = agtdm(x, y, permutations=99, seed=trial)
        whole = agtdm(x, y, levels=2, permutations=99, seed=trial)
        square, order = squareform(y), draw_orders(99, 40, seed=trial)
        r = [np.corrcoef(x, squareform(square[np.ix_(o, o)]))[0, 1] for o in order]
        mantel = (1 + (np.array(r) >= np.corrcoef(x, y)[0, 1]).sum()) / 100
        hits += np.array([found.p, whole.p, mantel]) <= 0.05
    adaptive, plain, pearson = hits / trials
    print("POWER", hits / trials)
    assert adaptive > 0.8
    assert plain < adaptive - 0.2
    assert pearson < adaptive - 0.4


# Regions against model layers.


def simulated(rng, *, subjects, stimuli, noise, related):
    """Regions whose RDMs the subjects share; layer 1 is wave-like in region 0's dimension."""
    place = rng.uniform(size=stimuli)
    other = rng.normal(size=(stimuli, 3))
    brain = np.array(
        [
            [
                pdist(place[:, None] + noise * rng.normal(size=(stimuli, 1))),
                pdist(other + noise * rng.normal(size=other.shape)),
            ]
            for _ in range(subjects)
        ]
    )
    source = place if related else rng.uniform(size=stimuli)
    layers = np.array(
        [
            pdist(rng.normal(size=(stimuli, 2))),
            pdist(np.sin(4 * np.pi * source)[:, None]),
            pdist(rng.normal(size=(stimuli, 9))),
        ]
    )
    return brain, layers


def test_regions_and_layers_by_hand():
    rng = np.random.default_rng(6)
    brain, layers = simulated(rng, subjects=3, stimuli=12, noise=0.1, related=True)
    brain[1, 0] = np.nan  # sub-02 lacks the region
    options = DependenceOptions(levels=4, permutations=15, seed=5)
    found = dependence_dataset(brain_of(brain), models_of(layers), options, threads=2)
    store.check(found, "dependence")
    assert "has no RDM" in found.attrs["left_out"]["region0 of sub-02"]
    orders = np.concatenate([np.arange(12)[None], draw_orders(15, 12, seed=5)])
    pairs = threshold_pairs(4)
    group = np.empty((16, 3, 2))
    for k, layer in enumerate(layers):
        for sample, order in enumerate(orders):
            moved = squareform(squareform(layer)[np.ix_(order, order)])
            for r, subjects in ((0, [0, 2]), (1, [0, 1, 2])):
                maps = np.array([plain_maps(brain[s, r], moved, 4, "rank") for s in subjects])
                group[sample, k, r] = maps.mean(axis=0).max()
                if sample:
                    continue
                mean = maps.mean(axis=0)
                place = np.unravel_index(mean.argmax(), mean.shape)
                cell = found.isel(predictor=k, region=r)
                np.testing.assert_allclose(
                    cell["agtdm"].values[subjects], maps[:, place[0], place[1]], atol=1e-10
                )
                np.testing.assert_allclose(
                    cell["agtdm_subject"].values[subjects], maps.max(axis=(1, 2)), atol=1e-10
                )
                assert (cell["lower_brain"], cell["upper_brain"]) == tuple(pairs[place[0]])
                assert (cell["lower_model"], cell["upper_model"]) == tuple(pairs[place[1]])
                assert float(cell["distance_correlation"]) == pytest.approx(mean[2, 2], abs=1e-10)
    np.testing.assert_allclose(found["mean"], group[0], atol=1e-10)
    np.testing.assert_allclose(found["mean"], found["agtdm"].mean("subject"), atol=1e-10)
    np.testing.assert_allclose(found["null_mean"], group[1:].mean(axis=0), atol=1e-10)
    p = (group >= group[0] - 1e-9).mean(axis=0)
    np.testing.assert_allclose(found["p"], p, atol=1e-12)
    z = (group - group.mean(axis=0)) / group.std(axis=0)
    largest = z[1:].max(axis=(1, 2))
    corrected = (1 + (largest[:, None, None] >= z[0] - 1e-9).sum(axis=0)) / 16
    np.testing.assert_allclose(found["p_corrected"], corrected, atol=1e-12)
    assert (found["p_corrected"] >= found["p"] - 1e-12).all()
    assert np.isnan(found["agtdm"].sel(region="region0", subject="02")).all()
    assert np.isnan(found["p_subject"].sel(region="region0", subject="02")).all()
    assert np.isfinite(found["p_subject"].sel(region="region1")).all()


def test_false_positives_of_regions_and_layers():
    rng = np.random.default_rng(7)
    trials, single, family, subject = 300, 0, 0, 0
    for trial in range(trials):
        brain, layers = simulated(rng, subjects=3, stimuli=16, noise=0.2, related=False)
        options = DependenceOptions(levels=5, permutations=99, seed=trial)
        found = dependence_dataset(brain_of(brain), models_of(layers), options)
        single += float(found["p"][1, 0]) <= 0.05
        subject += float(found["p_subject"][1, 1, 0]) <= 0.05
        family += float(found["p_corrected"].min()) <= 0.05
    print("FPR2", single, subject, family)
    assert within_binomial_99(single, trials)
    assert within_binomial_99(subject, trials)
    assert within_binomial_99(family, trials)


def test_a_wave_like_layer_is_found_in_its_region():
    rng = np.random.default_rng(8)
    trials, hits, plain, wrong = 30, 0, 0, 0
    for trial in range(trials):
        brain, layers = simulated(rng, subjects=6, stimuli=40, noise=0.05, related=True)
        options = DependenceOptions(permutations=99, seed=trial)
        found = dependence_dataset(brain_of(brain), models_of(layers), options)
        significant = found["p_corrected"].values <= 0.05
        hits += significant[1, 0]
        plain += float(found["p_distance_correlation"][1, 0]) <= 0.05
        significant[1, 0] = False
        wrong += significant.any()
    print("POWER2", hits, plain, wrong)
    assert hits / trials > 0.8
    assert plain < hits
    assert wrong <= binom.ppf(0.995, trials, 0.05)


def test_what_cannot_be_tested_is_said():
    rng = np.random.default_rng(9)
    brain, layers = simulated(rng, subjects=2, stimuli=6, noise=0.1, related=True)
    brain[:, 1] = 0.5
    layers[0, 2] = np.nan
    options = DependenceOptions(permutations=30)
    found = dependence_dataset(brain_of(brain), models_of(layers), options)
    said = " ".join(found.attrs["flags"])
    for words in ("region1: sub-02 has", "net/layer0 has an RDM with NaN", "6 stimuli"):
        assert words in said
    for name in ("mean", "p", "p_corrected", "lower_model", "p_distance_correlation"):
        assert np.isnan(found[name].values[0]).all()
        assert np.isnan(found[name].values[:, 1]).all()
        assert np.isfinite(found[name].values[1:, 0]).all()
    none = dependence_dataset(brain_of(brain), models_of(layers[:1]), options)
    assert np.isnan(none["p"]).all()
    brain[:] = np.nan
    with pytest.raises(InputError, match="no subject has a usable RDM"):
        dependence_dataset(brain_of(brain), models_of(layers), options)
    for bad, message in (
        ({"levels": 1}, "trsa.dependence"),
        ({"scale": "ordinal"}, "rank, raw"),
        ({"permutations": 0}, "permutations"),
    ):
        with pytest.raises(InputError, match=message):
            DependenceOptions(**bad)


def test_every_option_counts_and_threads_do_not():
    rng = np.random.default_rng(10)
    brain, layers = simulated(rng, subjects=3, stimuli=12, noise=0.2, related=True)
    base = {"levels": 4, "scale": "rank", "permutations": 150, "seed": 0}

    def run(threads=1, **change):
        options = DependenceOptions(**{**base, **change})
        found = dependence_dataset(brain_of(brain), models_of(layers), options, threads=threads)
        return found.drop_attrs()

    reference = run()
    xr.testing.assert_identical(reference, run(threads=2))
    for change in (
        {"levels": 5},
        {"bias_corrected": False},
        {"scale": "raw"},
        {"permutations": 200},
        {"seed": 1},
    ):
        assert not run(**change).equals(reference), change


def test_defaults_are_those_of_the_schema(root):
    schema = json.loads((root / "workflow/schemas/config/trsa.json").read_text())["properties"]
    own = schema["dependence"]["properties"]
    assert own["run"]["default"] is False
    options = asdict(DependenceOptions())
    for key in ("levels", "bias_corrected"):
        assert options[key] == own[key]["default"]
    for key in ("scale", "permutations"):
        assert options[key] == schema[key]["default"]
    assert set(own) - {"run"} | {"scale", "permutations", "seed"} == set(options)


def test_from_stores_to_a_store(tmp_path):
    rng = np.random.default_rng(11)
    brain, layers = simulated(rng, subjects=2, stimuli=10, noise=0.2, related=True)
    paths, model = write_rdms(tmp_path, brain), write_model_rdms(tmp_path, layers)
    out = tmp_path / "dependence.zarr"
    options = {"levels": 4, "permutations": 30, "scale": "rank"}
    measure_dependence(rdms=paths, model_rdms=[model], out=out, seed=2, **options)
    expected = dependence_dataset(
        brain_of(brain), models_of(layers), DependenceOptions(seed=2, **options)
    )
    found = store.open(out, "dependence").load()
    for name in expected:
        np.testing.assert_array_equal(found[name].values, expected[name].values)
    assert "maximised again" in found.attrs["methods"]
