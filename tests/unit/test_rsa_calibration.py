"""Rates of false positives and coverage of what generalises to new subjects and new stimuli.

Studies are drawn anew, stimuli, subjects, geometry and noise, and each is tested as the workflow
does. A rate is held to the 99 % interval of a binomial of the nominal one.
"""

import functools

import numpy as np
import pytest
from scipy import stats

from isocortex.rsa import (
    bootstrap_counts,
    bootstrap_scores,
    correlate,
    debiased_variance,
    dual_bootstrap_variance,
    left_out_counts,
    score_statistics,
)

CHANNELS = 30
SAMPLES = 150


def _rdm(patterns):
    i, j = np.triu_indices(patterns.shape[-2], 1)
    return np.square(patterns[..., i, :] - patterns[..., j, :]).mean(axis=-1)


def _study(rng, kind, n_subjects, n_stimuli):
    """Subjects' RDMs and a model's.

    ``shared``: the subjects share a geometry that has nothing to do with the model. ``noise``: they
    share none. ``effect``: the model has part of it, each subject a part of its own.
    """
    shape = (n_subjects, n_stimuli, CHANNELS)
    common, other = rng.standard_normal((2, n_stimuli, CHANNELS))
    noise = rng.standard_normal(shape)
    if kind == "noise":
        return _rdm(noise), _rdm(other)[None]
    if kind == "shared":
        return _rdm(common + 0.7 * noise), _rdm(other)[None]
    common = common * np.linspace(0.2, 2.0, CHANNELS)
    own = 1 + 0.3 * rng.standard_normal((n_subjects, 1, CHANNELS))
    return _rdm(common * own + 1.5 * noise), _rdm(common + other)[None]


@functools.cache
def _studies(kind, n_subjects, n_stimuli, comparison, studies):
    """Mean scores of many studies, and variances with degrees of freedom by both estimators."""
    rng = np.random.default_rng(40)
    mean, dual, debiased = np.empty(studies), np.empty((studies, 2)), np.empty((studies, 2))
    size = {"n_subjects": n_subjects, "n_stimuli": n_stimuli}
    for k in range(studies):
        brain, model = _study(rng, kind, n_subjects, n_stimuli)
        by_subject = bootstrap_counts(n_subjects, SAMPLES, rng=rng)
        by_stimulus = bootstrap_counts(n_stimuli, SAMPLES, rng=rng)
        counts = np.concatenate([by_stimulus, left_out_counts(n_stimuli)])
        drawn = [s[:, 0] for _, s in bootstrap_scores(model, brain, counts, comparison=comparison)]
        drawn, left_out = np.split(np.concatenate(drawn), [SAMPLES])
        score = correlate(model, brain, comparison=comparison)[0]
        mean[k] = score.mean()
        variances = [
            (values * by_subject / n_subjects).sum(axis=1).var(ddof=1) for values in (drawn, score)
        ]
        variances.append(drawn.mean(axis=1).var(ddof=1))
        dual[k] = dual_bootstrap_variance(*variances, **size), min(n_subjects, n_stimuli) - 1
        debiased[k] = debiased_variance(*variances, left_out, **size)
    return mean, dual.T, debiased.T


def _interval(n, rate):
    return stats.binom.ppf([0.005, 0.995], n, rate) / n


def _false_positives(mean, variance, freedom):
    return float((stats.t.sf(mean / np.sqrt(variance), freedom) < 0.05).mean())


def _coverage(mean, variance, freedom, truth):
    return float((np.abs(mean - truth) < stats.t.ppf(0.975, freedom) * np.sqrt(variance)).mean())


@pytest.mark.parametrize("kind", ["shared", "noise"])
def test_the_dual_bootstrap_is_calibrated_with_enough_of_both(kind):
    """20 subjects, 60 stimuli, Pearson: P(p < .05) is .05."""
    mean, dual, _ = _studies(kind, 20, 60, "pearson", 200)
    low, high = _interval(200, 0.05)
    assert low <= _false_positives(mean, *dual) <= high


@pytest.mark.parametrize("comparison", ["pearson", "corr_cov"])
@pytest.mark.parametrize("kind", ["shared", "noise"])
def test_with_few_subjects_the_dual_bootstrap_is_conservative(kind, comparison):
    """8 subjects, 20 stimuli: its variance is too large, above all for a whitened score of 0.

    The debiased variance brings the rate back.
    """
    studies = 400
    mean, dual, debiased = _studies(kind, 8, 20, comparison, studies)
    low, high = _interval(studies, 0.05)
    conservative = _false_positives(mean, *dual)
    assert conservative < low
    assert low <= _false_positives(mean, *debiased) <= high
    ratio = dual[0].mean() / mean.var()
    assert 2.0 < ratio < 3.5 if comparison == "corr_cov" else 1.1 < ratio < 2.0
    assert debiased[0].mean() / mean.var() < ratio


@functools.cache
def _truth(comparison):
    """The score that studies without end would have: the mean of large ones."""
    rng = np.random.default_rng(41)
    scores = [
        correlate(model, brain, comparison=comparison).mean()
        for brain, model in (_study(rng, "effect", 20, 300) for _ in range(14))
    ]
    return float(np.mean(scores))


@pytest.mark.parametrize("estimator", ["dual", "debiased"])
def test_whitened_scores_are_covered(estimator):
    """95 % intervals of the whitened correlation, 20 subjects and 60 stimuli, an effect there."""
    mean, *found = _studies("effect", 20, 60, "corr_cov", 200)
    low, high = _interval(200, 0.95)
    covered = _coverage(mean, *found[estimator == "debiased"], _truth("corr_cov"))
    assert low <= covered <= high


def test_coverage_with_few_subjects():
    """8 subjects, 20 stimuli: the dual bootstrap covers more than it says, never less."""
    mean, dual, debiased = _studies("effect", 8, 20, "corr_cov", 400)
    low, high = _interval(400, 0.95)
    assert _coverage(mean, *dual, _truth("corr_cov")) > high
    assert low <= _coverage(mean, *debiased, _truth("corr_cov"))


def test_debiased_variance_of_a_mean_over_pairs():
    """Where scores are plain means over pairs, V1 and V2 are known: bootstraps count V2 thrice."""
    rng = np.random.default_rng(42)
    n_subjects, n_stimuli, studies = 6, 25, 300
    i, j = np.triu_indices(n_stimuli, 1)
    counts = bootstrap_counts(n_stimuli, 200, rng=rng)
    samples = np.concatenate([counts, left_out_counts(n_stimuli)])
    weights = samples[:, i] * samples[:, j].astype(float)
    weights /= weights.sum(axis=1, keepdims=True)
    for first, second in ((1.0, 0.0), (0.0, 1.0)):
        found = []
        for _ in range(studies):
            of_stimulus = first * rng.standard_normal(n_stimuli) / 2
            pairs = of_stimulus[i] + of_stimulus[j] + second * rng.standard_normal(len(i))
            values = weights @ np.repeat(pairs[:, None], n_subjects, axis=1)
            drawn, left_out = np.split(values, [200])
            of_drawn = drawn.mean(axis=1).var(ddof=1)
            # Subjects are all alike: theirs is no variance, and both is that of the stimuli.
            variance, _ = debiased_variance(
                of_drawn, 0.0, of_drawn, left_out, n_subjects=n_subjects, n_stimuli=n_stimuli
            )
            found.append((of_drawn, variance))
        of_drawn, variance = np.mean(found, axis=0)
        truth = first**2 / n_stimuli + second**2 / len(i)
        if second:
            assert of_drawn > 2.3 * truth
        assert variance == pytest.approx(truth, rel=0.35)


def test_the_workflow_uses_the_debiased_variance_where_asked_to():
    """Scores and differences of fixed predictors; with a region that a subject lacks."""
    rng = np.random.default_rng(43)
    n_subjects, n_stimuli, samples = 6, 14, 60
    first, model = _study(rng, "effect", n_subjects, n_stimuli)
    second, other = _study(rng, "shared", n_subjects, n_stimuli)
    brain = np.stack([first, second], axis=1)
    brain[2, 1] = np.nan
    models = np.concatenate([model, other])
    options = {"comparison": "corr_cov", "over": "both", "samples": samples, "seed": 3}
    dual = score_statistics(brain, models, **options)
    found = score_statistics(brain, models, **options, variance="debiased")
    rng = np.random.default_rng(3)
    by_subject = bootstrap_counts(n_subjects, samples, rng=rng)
    counts = np.concatenate(
        [bootstrap_counts(n_stimuli, samples, rng=rng), left_out_counts(n_stimuli)]
    )
    for region, who in ((0, np.arange(6)), (1, np.array([0, 1, 3, 4, 5]))):
        rows, share = brain[who, region], by_subject[:, who]
        share = share / share.sum(axis=1, keepdims=True)
        drawn = [s for _, s in bootstrap_scores(models, rows, counts, comparison="corr_cov")]
        plain = correlate(models, rows, comparison="corr_cov")
        for contrast in ([1.0, 0.0], [0.0, 1.0], [1.0, -1.0]):
            values, left_out = np.split(np.concatenate(drawn).swapaxes(1, 2) @ contrast, [samples])
            score = contrast @ plain
            variance, freedom = debiased_variance(
                (values * share).sum(axis=1).var(ddof=1),
                (share @ score).var(ddof=1),
                values.mean(axis=1).var(ddof=1),
                left_out,
                n_subjects=len(who),
                n_stimuli=n_stimuli,
            )
            t = score.mean() / np.sqrt(variance)
            if -1.0 in contrast:
                wanted = 2 * stats.t.sf(abs(t), freedom)
                assert found["difference_p"][0, 1, region] == pytest.approx(wanted)
                assert found["difference_p"][1, 0, region] == pytest.approx(wanted)
            else:
                k = contrast.index(1.0)
                assert found["p"][k, region] == pytest.approx(stats.t.sf(t, freedom))
                half = stats.t.ppf(0.975, freedom) * np.sqrt(variance)
                assert found["interval_high"][k, region] == pytest.approx(score.mean() + half)
    for key in ("score", "p_ceiling", "ceiling_low_low"):
        np.testing.assert_array_equal(found[key], dual[key])
    assert (found["p"] != dual["p"]).all()
