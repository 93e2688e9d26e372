"""Tests of scores: their formulas against rsatoolbox and by hand, their stores, their flags."""

import re
import tracemalloc

import numpy as np
import pytest
from rsatoolbox.util.inference_util import all_tests, extract_variances

from isocortex import store
from isocortex.errors import InputError
from isocortex.rsa import (
    compare,
    compare_rdms,
    correlate,
    noise_ceiling,
    score_statistics,
)
from isocortex.rsa.crossvalidation import mean_over_samples, mean_over_subjects
from isocortex.rsa.hypotheses import combine_variances, contrast_variances, p_above, p_different
from isocortex.rsa.models import list_predictors
from isocortex.rsa.permutation import draw_orders, permutation_p, permute_means
from isocortex.rsa.rdms import ModelRDMs
from isocortex.rsa.transforms import parse_transform
from isocortex.study import COMPARISONS, check_comparison
from tests.unit.rdm_study_files import random_rdms, write_rdms

KINDS = ("both", "subjects", "stimuli")


def test_tests_equal_rsatoolbox():
    """The same bootstrap samples: the same variances of scores, differences and gaps, same p."""
    rng = np.random.default_rng(1)
    mixing = rng.random((5, 5))
    drawn = {kind: rng.standard_normal((300, 5)) @ mixing * (1 + k) for k, kind in enumerate(KINDS)}
    drawn["both"] *= 3
    covariances = np.array([np.cov(drawn[kind].T) for kind in KINDS])
    scores, differences, gaps = extract_variances(covariances, True, n_rdm=9, n_pattern=30)
    parts = {kind: contrast_variances(drawn[kind][:, None, :, None]) for kind in KINDS}
    options = {"over": "both", "n_subjects": np.array([9]), "n_stimuli": 30}
    ours, freedom = combine_variances({k: v[0] for k, v in parts.items()}, **options)
    pairs, _ = combine_variances({k: v[1] for k, v in parts.items()}, **options)
    np.testing.assert_allclose(ours[:3, 0], scores, rtol=1e-10)
    np.testing.assert_allclose(pairs[np.triu_indices(3, 1)][:, 0], differences, rtol=1e-10)
    np.testing.assert_allclose(pairs[:3, 3:, 0], gaps, rtol=1e-10)
    assert freedom == 8

    mean = np.array([0.5, 1.0, -0.3])
    ceiling = np.array([1.2, 1.5])
    p_pairs, p_zero, p_ceiling = all_tests(
        mean[None], ceiling[:, None], "t-test", scores, differences, gaps, dof=8
    )
    np.testing.assert_allclose(p_above(mean, ours[:3, 0], freedom), p_zero, atol=1e-12)
    found = p_different(mean[:, None] - mean, pairs[:3, :3, 0], freedom)
    off = ~np.eye(3, dtype=bool)
    np.testing.assert_allclose(found[off], p_pairs[off], atol=1e-12)
    np.testing.assert_allclose(
        p_different(mean - ceiling[0], pairs[:3, 3, 0], freedom), p_ceiling, atol=1e-12
    )


def test_variances_where_samples_lack_values_and_of_two_cuts():
    rng = np.random.default_rng(2)
    drawn = rng.standard_normal((200, 2, 3, 2)) + rng.standard_normal((200, 1, 3, 2))
    drawn[rng.random(drawn.shape) < 0.1] = np.nan
    values, differences = contrast_variances(drawn, cuts=10)
    for r in range(2):
        for a in range(3):
            for b in range(3):
                pair = drawn[:, :, a, r] - (drawn[:, :, b, r] if a != b else 0.0)
                pair = pair[np.isfinite(pair).all(axis=1)]
                c = np.cov(pair.T)
                wanted = c[0, 1] + (0.5 * (c[0, 0] + c[1, 1]) - c[0, 1]) / 10
                found = differences[a, b, r] if a != b else values[a, r]
                assert found == pytest.approx(wanted, rel=1e-9)


def test_permutations_by_hand():
    rng = np.random.default_rng(3)
    models, brain = random_rdms(rng, 2, stimuli=9), random_rdms(rng, 4, 3, stimuli=9)
    brain[1, 0] = np.nan
    brain[:, 2, [3, 9]] = np.nan
    orders = draw_orders(9, 20, seed=5)
    np.testing.assert_array_equal(orders[0], np.arange(9))
    assert orders.shape == (21, 9)
    i, j = np.triu_indices(9, 1)
    for comparison in ("pearson", "spearman", "corr_cov", "rho_a", "cosine", "tau_a"):
        ours = permute_means(models, brain, orders, comparison=comparison, threads=2)
        for order, means in zip(orders[:4], ours):
            square = np.zeros((2, 9, 9))
            square[:, i, j] = square[:, j, i] = models
            moved = square[:, order][:, :, order][:, i, j]
            for r in range(3):
                rows = brain[[0, 2, 3], r] if r == 0 else brain[:, r]
                wanted = correlate(moved, rows, comparison=comparison).mean(axis=1)
                np.testing.assert_allclose(means[:, r], wanted, atol=1e-10)


def test_few_stimuli_take_every_order():
    assert draw_orders(4, 1000, seed=0).shape == (24, 4)
    assert draw_orders(4, 23, seed=0).shape == (24, 4)
    assert len(draw_orders(4, 22, seed=0)) == 23
    means = np.array([[3.0, 1.0], [1.0, 2.0], [3.0, 0.0], [0.0, np.nan]])[:, :, None]
    p, p_fwe = permutation_p(means)
    assert p[0, 0] == 0.5
    assert np.isnan(p[1, 0])
    assert p_fwe[0, 0] == 0.5


def test_store_holds_all_tests(tmp_path):
    given = write_rdms(tmp_path)
    compare_rdms(
        **given,
        comparisons=["pearson", "spearman:rgtm(0.2, 0.8)"],
        model_kinds=["fixed", "weighted"],
        bootstrap={"samples": 100},
        permutations=99,
        interval=0.9,
        seed=1,
    )
    found = store.open(given["out"], "scores").load()
    assert list(found["comparison"].values) == ["pearson", "spearman:rgtm(0.20,0.80)"]
    assert list(found["predictor"].values) == ["net/l0", "net/l1", "net/l2", "net/weighted"]
    assert list(found["other"].values) == list(found["predictor"].values)
    assert list(found["kind"].values) == ["fixed"] * 3 + ["weighted"]
    early = found.sel(region="early")
    assert (early["best_predictor"] != "net/l1").all()
    cell = early.sel(comparison="pearson")
    assert float(cell["p_permutation"].sel(predictor="net/l0")) == 0.01
    assert float(cell["difference_p_fwe"].sel(predictor="net/l0", other="net/l1")) < 0.05
    np.testing.assert_allclose(
        found["difference"], -found["difference"].values.swapaxes(1, 2), atol=1e-12
    )
    for key in ("difference_p", "difference_p_fdr", "difference_p_fwe"):
        values = found[key].values
        assert np.isnan(values[:, np.arange(4), np.arange(4)]).all()
        off = values[:, ~np.eye(4, dtype=bool)]
        assert ((off >= 0) & (off <= 1)).all()
    for key in ("p", "p_fdr", "p_fwe", "p_permutation", "p_permutation_fwe", "p_ceiling"):
        assert np.isfinite(found[key]).all(), key
    assert (found["p_fwe"] >= found["p_fdr"]).all()
    for end in ("low", "high"):
        middle = found[f"ceiling_{end}"]
        assert (found[f"ceiling_{end}_low"] < middle).all()
        assert (found[f"ceiling_{end}_high"] > middle).all()
    assert (found["ceiling_cv_low"] < found["ceiling_cv_high"]).all()
    assert found.attrs["interval_level"] == 0.9
    weights = found["weight"].sel(comparison="pearson", predictor="net/weighted")
    assert list(found["source"].values) == ["net/l0", "net/l1", "net/l2"]
    assert list(weights.argmax("source").values) == [0, 2]
    np.testing.assert_allclose((weights**2).sum("source"), 1.0)
    assert np.isnan(found["weight"].sel(predictor="net/l0")).all()
    assert found.attrs["n_permutations"] == 100
    # The transform is of both RDMs, before the comparison.
    transform = parse_transform("rgtm(0.2,0.8)")
    brain = np.array([store.open(p, "rdms")["dissimilarity"].values for p in given["rdms"]])
    models = store.open(given["model_rdms"][0], "model_rdms")["dissimilarity"].values
    seen, layers = transform.apply(brain), transform.apply(models)
    wanted = correlate(layers, seen[:, 1], comparison="spearman")
    got = found["score"].sel(comparison="spearman:rgtm(0.20,0.80)", region="late").values[:3]
    np.testing.assert_allclose(got, wanted, atol=1e-12)
    np.testing.assert_allclose(
        found["ceiling_low"].values[1, 1], noise_ceiling(seen[:, 1], comparison="spearman")[0]
    )


def test_a_constant_layer_is_named_and_the_others_are_scored(tmp_path):
    given = write_rdms(tmp_path, constant=True)
    compare_rdms(
        **given,
        comparisons=["pearson", "rho_a"],
        model_kinds=["fixed", "weighted", "selected", "interpolated"],
        bootstrap={"samples": 100},
        permutations=20,
    )
    found = store.open(given["out"], "scores").load()
    assert any(
        flag.startswith("the RDM of net/l1 is constant or not finite: no scores by pearson")
        for flag in found.attrs["flags"]
    )
    lost = found.sel(predictor="net/l1")
    for key in ("score", "mean", "p", "p_fdr", "p_fwe", "p_permutation", "p_ceiling"):
        assert np.isnan(lost[key]).all(), key
        rest = found[key].drop_sel(predictor="net/l1")
        assert np.isfinite(rest).all(), key
    assert (found["best_predictor"] != "net/l1").all()


def test_scores_that_are_not_0_by_chance_have_no_p_value_against_0(tmp_path):
    """Cosines of positive RDMs, and kernels: unrelated RDMs score far above (or below) 0."""
    rng = np.random.default_rng(10)
    models, brain = (random_rdms(rng, k, stimuli=12) + 8.0 for k in (2, 5))
    brain = np.stack([brain, brain - 8.0], axis=1)
    options = {"over": "subjects", "samples": 50, "seed": 0, "permutations": 19}
    found = score_statistics(brain, models, comparison="cosine", **options)
    assert (found["mean"][:, 0] > 0.3).all()
    assert np.isnan(found["p"][:, 0]).all()
    # With negative values, as cross-validated dissimilarities have, 0 is chance.
    assert np.isfinite(found["p"][:, 1]).all()
    assert (found["p_permutation"] > 0.05).any()
    for comparison in ("bures", "riemann"):
        found = score_statistics(brain[:3, :1], models, comparison=comparison, **options)
        assert np.isnan(found["p"]).all()
        assert np.isfinite(found["p_permutation"]).all()
    _, flags = _flags(tmp_path, {"comparisons": ["bures"], "permutations": 0}, stimuli=8)
    assert "bures of unrelated RDMs is not 0: no p-value against 0; permutations test it" in flags


def _flags(tmp_path, options=None, **study):
    given = write_rdms(tmp_path, **study)
    compare_rdms(
        **given, **({"comparisons": ["pearson"], "bootstrap": {"samples": 100}} | (options or {}))
    )
    found = store.open(given["out"], "scores").load()
    return found, found.attrs["flags"]


def test_few_subjects_and_stimuli_are_flagged_with_the_number_needed(tmp_path):
    kinds = {"model_kinds": ["fixed", "weighted"], "permutations": 1000}
    found, flags = _flags(tmp_path / "a", kinds, subjects=1)
    assert "one subject: no noise ceiling and no p-value; at least 2 are needed" in flags
    assert "one subject: no fitted models; at least 2 subjects are needed" in flags
    for key in ("p", "p_ceiling", "difference_p", "ceiling_low", "ceiling_cv_low"):
        assert np.isnan(found[key]).all(), key
    assert np.isfinite(found["p_permutation"].values[:, :3]).all()
    assert np.isfinite(found["interval_low"].values[:, :3]).all()
    found, flags = _flags(tmp_path / "b", kinds, stimuli=5)
    assert (
        "5 stimuli: permutation p-values come from 120 orders; at least 8 stimuli are needed for "
        "small ones" in flags
    )
    assert (
        "5 stimuli: no cross-validated noise ceilings and no fitted models; at least 8 are needed"
        in flags
    )
    assert found.attrs["n_permutations"] == 120
    assert np.isfinite(found["p"].values[:, :3]).all()
    assert np.isnan(found["p"].values[:, 3]).all()
    few = kinds | {"bootstrap": {"samples": 100, "over": "both"}}
    found, flags = _flags(tmp_path / "c", few, stimuli=12)
    assert (
        "12 stimuli: no intervals and p-values of fitted models over stimuli; at least 16 are "
        "needed" in flags
    )
    assert np.isfinite(found["mean"]).all()
    assert np.isnan(found["p"].values[:, 3]).all()


def test_rdms_without_a_score_are_counted(tmp_path):
    """The noise of these RDMs makes them no squared distances: they have no Riemannian one."""
    found, flags = _flags(tmp_path / "a", {"comparisons": ["riemann", "pearson"]}, subjects=3)
    without = int(np.isnan(found["score"].sel(comparison="riemann")).all("predictor").sum())
    assert without > 0
    assert [flag for flag in flags if "no score, " in flag] == [
        f"riemann: {without} of 6 RDMs have no score, the first that of subject 00 region early: "
        "their kernels are not positive definite, as with fewer channels than stimuli"
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"comparisons": ["pearson:rgtm(0.8,0.2)"]}, "quantiles in 0 to 1"),
        (
            {"comparisons": ["pearson:rgdm(k_nearest,50)"]},
            "rsa.comparisons has rgdm(k_nearest,50), and the RDMs have 20 stimuli: use at most 19",
        ),
        ({"comparisons": ["tau"]}, "rsa.comparisons: 'tau' is not one of"),
        ({"model_kinds": ["best"]}, "rsa.model_kinds: 'best' is not one of fixed"),
    ],
)
def test_unknown_options_are_refused(tmp_path, options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        _flags(tmp_path, options)


def test_config_knows_every_comparison_and_transform():
    assert compare.COMPARISONS == COMPARISONS
    texts = """rank unit sigmoid sigmoid(10,0.5) sigmoid(0,1) sigmoid(3) sigmoid(nan,1) rgtm
        rgtm(0.2,0.8) rgtm(.8,.2) rgtm(0.2) rgtm(0.2;0.8) adjacency(0.5) adjacency(1.5)
        rgdm(0,0.8) rgdm(twostep,0,0.8) rgdm(k_nearest,5) rgdm(k_nearest,0) rgdm(k_nearest,2.5)
        rgdm(p_nearest,0) rgdm(p_shortest,0.05) rgdm rank(1) foo foo(1) rgtm(0.2,0.8))
        rgdm(twostep,p_shortest,0.1) rgdm(p_shortest,twostep,0.1)"""

    def refused(function, text):
        try:
            function(text)
        except InputError:
            return True
        return False

    for text in [*texts.split(), ""]:
        wanted = refused(parse_transform, text)
        assert refused(check_comparison, f"pearson:{text}") == wanted, text
    with pytest.raises(InputError, match="did you mean 'pearson'"):
        check_comparison("pearso")


def test_means_over_samples_are_those_of_repeated_subjects():
    rng = np.random.default_rng(10)
    scores = rng.standard_normal((3, 2, 5))
    scores[0, 1, :4], scores[2, 0] = np.nan, np.nan
    counts = rng.integers(0, 3, (40, 5))
    wanted = mean_over_subjects(scores[None], counts[:, None, None])
    np.testing.assert_allclose(mean_over_samples(scores, counts), wanted, rtol=1e-12)
    assert np.isnan(wanted[counts[:, 4] == 0, 0, 1]).all()


def test_subjects_are_resampled_without_a_copy_of_the_scores_a_sample():
    rng = np.random.default_rng(11)
    brain, models = random_rdms(rng, 20, 10, stimuli=5), random_rdms(rng, 20, stimuli=5)
    tracemalloc.start()
    score_statistics(brain, models, comparison="pearson", over="subjects", samples=500, seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * brain.shape[0] * 500 * len(models) * brain.shape[1]


def test_same_numbers_on_any_threads():
    rng = np.random.default_rng(9)
    rows = random_rdms(rng, 3, stimuli=16)
    labels = tuple(f"net/{k}" for k in range(3))
    models = ModelRDMs(rows, labels, ("net",) * 3, tuple("012"), tuple("abcdefghijklmnop"))
    brain = random_rdms(rng, 4, 2, stimuli=16)
    runs = [
        score_statistics(
            brain,
            rows,
            comparison="spearman",
            over="both",
            samples=30,
            seed=2,
            predictors=list_predictors(models, ("fixed", "selected")),
            permutations=30,
            threads=threads,
        )
        for threads in (1, 2)
    ]
    for key, value in runs[0].items():
        np.testing.assert_array_equal(value, runs[1][key], err_msg=key)
