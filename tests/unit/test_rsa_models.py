"""Weighted, selected and interpolated models and their cross-validation against rsatoolbox."""

import numpy as np
import pytest
from rsatoolbox.inference import crossval, cv_noise_ceiling
from rsatoolbox.model import ModelFixed, ModelInterpolate, ModelSelect, ModelWeighted
from rsatoolbox.model.fitter import (
    fit_interpolate,
    fit_mock,
    fit_optimize_positive,
    fit_regress_nn,
    fit_select,
)
from rsatoolbox.rdm import RDMs, compare
from scipy.optimize import nnls

from isocortex.rsa import COMPARISONS, bootstrap_counts, correlate
from isocortex.rsa.crossvalidation import (
    Folds,
    bootstrap_crossvalidation,
    crossvalidate,
    draw_folds,
    held_out_scores,
    mean_over_subjects,
    stimulus_folds,
    subject_folds,
)
from isocortex.rsa.models import KINDS, LEAST_SQUARES, fit_layers, list_predictors, solve
from isocortex.rsa.rdms import ModelRDMs

PEER = {
    "pearson": "corr",
    "spearman": "spearman",
    "corr_cov": "corr_cov",
    "rho_a": "rho-a",
    "cosine": "cosine",
    "cosine_cov": "cosine_cov",
    "tau_a": "tau-a",
    "tau_b": "tau-b",
}
SHARED = [name for name in COMPARISONS if name in PEER]
N, SUBJECTS = 18, 6
PAIRS = N * (N - 1) // 2
STIMULI = tuple(f"s{k:02d}" for k in range(N))


def _models(n_layers=4):
    names = [f"net/l{k}" for k in range(n_layers)] + ["one/x"]
    rows = np.random.default_rng(1).random((n_layers + 1, PAIRS))
    models = [name.split("/")[0] for name in names]
    layers = [name.split("/")[1] for name in names]
    return ModelRDMs(rows, tuple(names), tuple(models), tuple(layers), STIMULI)


def _brain(models, seed=2):
    rng = np.random.default_rng(seed)
    return rng.random((SUBJECTS, PAIRS)) + 0.4 * models[2] + 0.3 * models[3]


def test_nonnegative_weights_equal_scipy():
    rng = np.random.default_rng(3)
    for k in (1, 2, 5, 11):
        x = rng.standard_normal((200, 30, k)) + rng.standard_normal((200, 30, 1))
        y = rng.standard_normal((200, 30)) + 0.3 * x.mean(axis=2)
        gram, target = x.swapaxes(1, 2) @ x, np.einsum("nij,ni->nj", x, y)
        ours = solve(gram, target, kind="weighted")
        wanted = np.array([nnls(a, b)[0] for a, b in zip(x, y)])
        some = wanted.any(axis=1)
        wanted = wanted[some] / np.linalg.norm(wanted[some], axis=1, keepdims=True)
        np.testing.assert_allclose(ours[some], wanted, atol=1e-8)
        # Where every layer disagrees, the one that does so least.
        norm = np.sqrt(np.einsum("nii->ni", gram))
        least = np.argmax(target / norm, axis=1)
        np.testing.assert_array_equal(ours[~some].argmax(axis=1), least[~some])


def test_two_equal_layers_and_one_without_spread():
    rows = _models().dissimilarity[:4].copy()
    brain = _brain(rows)
    rows[1] = rows[2]
    rows[0] = 0.7
    for kind in KINDS[1:]:
        weights = fit_layers(rows, brain, kind=kind)
        assert np.isfinite(weights).all()
        assert weights[0] == 0
        assert weights[1:].sum() > 0


@pytest.mark.parametrize("comparison", [c for c in LEAST_SQUARES if c in COMPARISONS])
def test_weights_equal_rsatoolbox(comparison):
    rows = _models().dissimilarity[:4]
    brain = _brain(rows)
    peer = PEER[comparison]
    ours = {kind: fit_layers(rows, brain, kind=kind, comparison=comparison) for kind in KINDS[1:]}
    theirs = fit_regress_nn(ModelWeighted("m", RDMs(rows)), RDMs(brain), method=peer)
    np.testing.assert_allclose(ours["weighted"], theirs, atol=1e-8)
    np.random.seed(0)  # noqa: NPY002 (the peer draws from it)
    searched = fit_optimize_positive(ModelWeighted("m", RDMs(rows)), RDMs(brain), method=peer)
    np.testing.assert_allclose(ours["weighted"], searched, atol=2e-3)
    theirs = fit_interpolate(ModelInterpolate("m", RDMs(rows)), RDMs(brain), method=peer)
    np.testing.assert_allclose(ours["interpolated"], theirs, atol=1e-5)
    chosen = fit_select(ModelSelect("m", RDMs(rows)), RDMs(brain), method=peer)
    np.testing.assert_array_equal(ours["selected"], np.eye(4)[chosen])
    # The weights are the best: no other sum of the layers scores higher.
    rng = np.random.default_rng(0)
    others = np.concatenate([rng.random((500, 4)), np.eye(4)])
    scores = correlate(
        np.concatenate([ours["weighted"][None], others]) @ rows, brain, comparison=comparison
    ).mean(axis=1)
    assert (scores[0] >= scores[1:]).all()


def test_predictors_of_models():
    models = _models()
    every = list_predictors(models, KINDS)
    assert every.labels[:5] == models.predictors
    assert every.labels[5:] == ("net/weighted", "net/selected", "net/interpolated")
    assert [every.kinds[k] for k in every.fitted] == ["weighted", "selected", "interpolated"]
    assert every.rows[5] == (0, 1, 2, 3)
    only = list_predictors(models, ["weighted"])
    assert only.labels == ("one/x", "net/weighted"), "a model of one layer is fixed"
    with pytest.raises(ValueError, match="best"):
        list_predictors(models, ["best"])


@pytest.mark.parametrize("comparison", SHARED)
def test_held_out_scores_equal_rsatoolbox(comparison):
    """The same folds: the same fits, scores and noise ceilings, over 2 x 3 test sets."""
    models = _models()
    rows, brain = models.dissimilarity, _brain(models.dissimilarity)
    rng = np.random.default_rng(4)
    stimuli = draw_folds(np.ones(N, int), 2, rng=rng)
    subjects = draw_folds(np.ones(SUBJECTS, int), 3, rng=rng)
    ours = held_out_scores(
        rows,
        brain[:, None],
        list_predictors(models, KINDS),
        Folds(stimuli, subjects[None]),
        comparison=comparison,
    )
    data = RDMs(brain)
    train, test, ceiling = [], [], []
    for g in range(3):
        seen, held = (
            data.subset("index", np.flatnonzero(m)) for m in (subjects != g, subjects == g)
        )
        for f in range(2):
            inside, outside = np.flatnonzero(stimuli == f), np.flatnonzero(stimuli != f)
            train.append((seen.subset_pattern("index", outside), outside))
            test.append((held.subset_pattern("index", inside), inside))
            ceiling.append((seen.subset_pattern("index", inside), inside))

    metric = PEER[comparison if comparison in LEAST_SQUARES else "pearson"]

    def weigh(model, data, method=None, **rest):
        return fit_regress_nn(model, data, method=metric, **rest)

    def interpolate(model, data, method=None, **rest):
        return fit_interpolate(model, data, method=metric, **rest)

    peers = [ModelFixed(str(k), RDMs(rows[k : k + 1])) for k in range(5)]
    peers += [cls(cls.__name__, RDMs(rows[:4])) for cls in (ModelWeighted, ModelSelect)]
    peers.append(ModelInterpolate("i", RDMs(rows[:4])))
    for peer in peers:
        peer.rdm_obj.pattern_descriptors["index"] = np.arange(N)
    fitters = [fit_mock] * 5 + [weigh, fit_select, interpolate]
    method = PEER[comparison]
    theirs = crossval(
        peers, data, train, test, method=method, fitter=fitters, calc_noise_ceil=False
    )
    theirs = np.r_[
        theirs.evaluations[0].mean(axis=1), cv_noise_ceiling(data, ceiling, test, method=method)
    ]
    np.testing.assert_allclose(ours[0, :, 0].mean(axis=1), theirs, atol=1e-6)


@pytest.mark.parametrize("comparison", ["pearson", "corr_cov", "spearman"])
def test_held_out_scores_of_a_sample_are_those_of_repeated_rows(comparison):
    """Counts give what repeating subjects and stimuli gives, pairs of copies left out."""
    models = _models()
    brain = _brain(models.dissimilarity)
    rng = np.random.default_rng(5)
    counts, who = bootstrap_counts(N, 1, rng=rng)[0], bootstrap_counts(SUBJECTS, 1, rng=rng)[0]
    stimuli, subjects = draw_folds(counts, 2, rng=rng), draw_folds(who, 2, rng=rng)
    predictors = list_predictors(models, ["weighted", "selected"])
    ours = held_out_scores(
        models.dissimilarity,
        brain[:, None],
        predictors,
        Folds(stimuli, subjects[None]),
        comparison=comparison,
        stimulus_counts=counts,
        subject_counts=who[None],
    )[0]
    drawn, people = np.repeat(np.arange(N), counts), np.repeat(np.arange(SUBJECTS), who)

    def subset(rows, wanted):
        return RDMs(rows).subsample_pattern("index", drawn[wanted]).get_vectors()

    wanted = []
    for f in range(2):
        test, rest = stimuli[drawn] == f, stimuli[drawn] != f
        for person in people:
            others = people[subjects[people] != subjects[person]]
            layers, seen = subset(models.dissimilarity[:4], rest), subset(brain[others], rest)
            held = subset(brain[[person]], test)
            for k, kind in enumerate(("weighted", "selected")):
                weights = fit_layers(layers, seen, kind=kind, comparison=comparison)
                made = (weights @ subset(models.dissimilarity[:4], test))[None]
                peer = compare(RDMs(made), RDMs(held), PEER[comparison])[0, 0]
                wanted.append((k, peer))
    for k in range(2):
        mean = np.mean([score for which, score in wanted if which == k])
        found = mean_over_subjects(ours[1 + k], who)[0]
        assert found == pytest.approx(mean, abs=1e-8)


def test_nothing_of_the_test_fold_is_in_the_fit():
    """Other values of held-out subjects, stimuli and of pairs across folds: the same weights."""
    models = _models()
    predictors = list_predictors(models, ["weighted"])
    brain = _brain(models.dissimilarity)[:, None]
    stimuli, subjects = np.arange(N) % 2, np.arange(SUBJECTS) % 2
    folds = Folds(stimuli, subjects[None])
    i, j = np.triu_indices(N, 1)
    test_pairs = (stimuli[i] == 0) & (stimuli[j] == 0)
    fit_pairs = (stimuli[i] == 1) & (stimuli[j] == 1)
    # The score of subject 0 on fold 0 changes with the fit of subjects 1, 3, 5 on fold 1 only.
    weights = fit_layers(
        models.dissimilarity[:4][:, fit_pairs], brain[1::2, 0][:, fit_pairs], kind="weighted"
    )
    made = weights @ models.dissimilarity[:4]
    wanted = np.corrcoef(made[test_pairs], brain[0, 0, test_pairs])[0, 1]
    blind = brain.copy()
    blind[:, 0, ~(fit_pairs | test_pairs)] = 7.0 + np.arange((~(fit_pairs | test_pairs)).sum())
    blind[1::2, 0, test_pairs] += np.arange(test_pairs.sum()) ** 2
    blind[2::2] += np.arange(PAIRS)
    blind[0, 0, fit_pairs] *= -1
    first = held_out_scores(models.dissimilarity, blind, predictors, folds, comparison="pearson")
    second = np.corrcoef(
        (
            fit_layers(
                models.dissimilarity[:4][:, test_pairs],
                blind[1::2, 0][:, test_pairs],
                kind="weighted",
            )
            @ models.dissimilarity[:4]
        )[fit_pairs],
        blind[0, 0, fit_pairs],
    )[0, 1]
    assert first[0, 1, 0, 0] == pytest.approx((wanted + second) / 2, abs=1e-8)


def test_folds():
    rng = np.random.default_rng(6)
    counts = np.array([2, 0, 1, 1, 3, 0, 1, 1])
    folds = draw_folds(counts, 2, rng=rng)
    np.testing.assert_array_equal(folds == -1, counts == 0)
    assert sorted(np.bincount(folds[folds >= 0])) == [3, 3]
    assert [stimulus_folds(n) for n in (8, 20, 30, 62, 200)] == [2, 2, 3, 5, 5]
    assert [subject_folds(n) for n in (2, 9, 12, 24, 40)] == [2, 2, 3, 4, 5]


def test_a_subject_without_a_region_and_pairs_without_values():
    models = _models()
    brain = np.stack([_brain(models.dissimilarity, seed=k) for k in (2, 3)], axis=1)
    brain[1, 0] = np.nan
    brain[:, 1, [3, 40]] = np.nan
    predictors = list_predictors(models, KINDS)
    both = crossvalidate(
        models.dissimilarity, brain[:, :1], predictors, comparison="pearson", seed=0, repeats=2
    )
    assert np.isnan(both[:, 0, 1]).all()
    assert np.isfinite(np.delete(both[:, 0], 1, axis=1)).all()
    gaps = crossvalidate(
        models.dissimilarity, brain[:, 1:], predictors, comparison="corr_cov", seed=0, repeats=2
    )
    assert np.isfinite(gaps).all()


def test_bootstrap_is_the_same_in_any_blocks_and_threads():
    models = _models()
    brain = _brain(models.dissimilarity)[:, None]
    rng = np.random.default_rng(7)
    draws = {
        "by_subject": bootstrap_counts(SUBJECTS, 25, rng=rng),
        "by_stimulus": bootstrap_counts(N, 25, rng=rng),
    }
    predictors = list_predictors(models, ["weighted"])
    runs = [
        bootstrap_crossvalidation(
            models.dissimilarity,
            brain,
            predictors,
            over="both",
            comparison="pearson",
            seed=1,
            threads=threads,
            **draws,
        )
        for threads in (1, 2)
    ]
    assert set(runs[0]) == {"subjects", "stimuli", "both"}
    for key, value in runs[0].items():
        assert value.shape == (25, 2, 4, 1)
        np.testing.assert_array_equal(value, runs[1][key])
        assert np.isfinite(value).mean() > 0.8
