"""False-positive rates and power of the tests of scores, on simulated studies."""

import numpy as np
import pytest
from scipy import stats

from isocortex.rsa import score_statistics
from isocortex.rsa.models import list_predictors
from isocortex.rsa.permutation import draw_orders, permutation_p, permute_means
from isocortex.rsa.rdms import ModelRDMs
from tests.unit.rdm_study_files import random_rdms, rdm_of


def _p_of(studies, keys, simulate, **options):
    """p-values of simulated studies, one list a key (array, index)."""
    found = {key: [] for key in keys}
    for k in range(studies):
        brain, models, *predictors = simulate()
        result = score_statistics(
            brain[:, None],
            models,
            seed=k,
            predictors=predictors[0] if predictors else None,
            **({"comparison": "pearson", "over": "subjects", "samples": 150} | options),
        )
        for key in keys:
            found[key].append((result[key[0]][key[1]], result))
    return found


def _share(entries):
    return np.mean([p[0] < 0.05 for p, _ in entries])


def _binomial(studies):
    return stats.binom.ppf([0.005, 0.995], studies, 0.05) / studies


def _two_models(rng, lean=0.0, n=8, stimuli=20):
    """Each subject leans to one of two models, all of them to the first by ``lean``."""
    a, b = random_rdms(rng, 2, stimuli=stimuli)
    leaning = lean + 0.5 * rng.standard_normal((n, 1))
    noise = 2 * random_rdms(rng, n, stimuli=stimuli)
    return a * (1 + leaning) + b * (1 - leaning) + noise, np.array([a, b])


def test_false_positive_rate_and_power_of_a_difference():
    rng = np.random.default_rng(4)
    keys = [("difference_p", (0, 1))]
    low, high = _binomial(400)
    assert low <= _share(_p_of(400, keys, lambda: _two_models(rng))[keys[0]]) <= high
    power = _p_of(40, keys, lambda: _two_models(rng, lean=0.7))[keys[0]]
    assert _share(power) > 0.8


def test_difference_that_generalises_to_other_stimuli():
    """Two models of equal merit, new stimuli in every study: at most .05 (it is conservative)."""
    rng = np.random.default_rng(5)

    def equal(more=0):
        a, b = rng.standard_normal((2, 20, 20))
        both = np.concatenate([a, b[:, more:]], axis=1)
        noise = rng.standard_normal((8, *both.shape))
        return np.array([rdm_of(both + e) for e in noise]), np.array([rdm_of(a), rdm_of(b)])

    keys = [("difference_p", (0, 1))]
    options = {"over": "both", "samples": 100}
    assert _share(_p_of(150, keys, equal, **options)[keys[0]]) <= _binomial(150)[1]
    power = _p_of(30, keys, lambda: equal(more=19), **options)[keys[0]]
    assert _share(power) > 0.8


@pytest.mark.parametrize("over", ["subjects", "both"])
def test_the_true_model_is_not_below_the_ceiling(over):
    """Conservative: the true model scores above the lower ceiling, which noise pulls down."""
    rng = np.random.default_rng(6)

    def study(missed=0.0):
        truth, rest = random_rdms(rng, 2, stimuli=20)
        noise = 1.5 * random_rdms(rng, 8, stimuli=20)
        return truth + missed * rest + noise, truth[None]

    key = ("p_ceiling", 0)
    options = {"over": over, "samples": 100}

    def below(entries):
        hits = [p[0] < 0.05 and r["mean"][0, 0] < r["ceiling_low"][0] for p, r in entries]
        return np.mean(hits)

    studies = 150 if over == "subjects" else 80
    assert below(_p_of(studies, [key], study, **options)[key]) <= _binomial(studies)[1]
    assert below(_p_of(30, [key], lambda: study(missed=1.5), **options)[key]) > 0.8


def test_false_positive_rate_and_power_of_permutations():
    rng = np.random.default_rng(7)

    def study(effect=0.0):
        models = random_rdms(rng, 3, stimuli=12)
        brain = random_rdms(rng, 3, stimuli=12)
        # Subjects share a geometry, as they do: a test over subjects alone would reject.
        return brain + 2 * random_rdms(rng, stimuli=12) + effect * models[0], models

    def tested(seed, effect=0.0):
        brain, models = study(effect)
        orders = draw_orders(12, 99, seed=seed)
        return permutation_p(permute_means(models, brain[:, None], orders, comparison="pearson"))

    found = [tested(k) for k in range(400)]
    low, high = _binomial(400)
    # With 99 permutations p is a multiple of .01: at .05 means up to .05.
    assert low <= np.mean([p[0, 0] <= 0.05 for p, _ in found]) <= high
    assert low <= np.mean([(p_fwe <= 0.05).any() for _, p_fwe in found]) <= high
    power = [tested(k, effect=2.0) for k in range(40)]
    assert np.mean([p_fwe[0, 0] <= 0.05 for _, p_fwe in power]) > 0.8


def test_false_positive_rate_and_power_of_fitted_models():
    """Scores of models that are fitted to noise are 0 on average, and p-values know it."""
    rng = np.random.default_rng(8)
    labels = tuple(f"net/{k}" for k in range(3))

    def study(effect=0.0):
        rows = random_rdms(rng, 3, stimuli=10)
        models = ModelRDMs(rows, labels, ("net",) * 3, ("0", "1", "2"), tuple("abcdefghij"))
        brain = random_rdms(rng, 6, stimuli=10) + effect * (rows[0] + rows[1])
        return brain, rows, list_predictors(models, ("weighted",))

    keys = [("p", 0), ("mean", 0), ("p_permutation", 0)]
    found = _p_of(40, keys, study, samples=40, permutations=19)
    assert _share(found[keys[0]]) <= _binomial(40)[1]
    assert np.mean([p[0] <= 0.05 for p, _ in found[keys[2]]]) <= _binomial(40)[1]
    means = np.array([mean[0] for mean, _ in found[keys[1]]])
    assert abs(means.mean()) < 4 * means.std() / np.sqrt(40)
    power = _p_of(10, keys, lambda: study(1.5), samples=40, permutations=19)
    assert _share(power[keys[0]]) > 0.8
    assert np.mean([p[0] <= 0.05 for p, _ in power[keys[2]]]) > 0.8
