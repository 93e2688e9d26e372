"""Bootstraps of scores and ceilings: weights equal repeated rows and rsatoolbox's own samples."""

from unittest import mock

import numpy as np
import pytest
from rsatoolbox.inference import (
    boot_noise_ceiling,
    eval_bootstrap,
    eval_bootstrap_pattern,
    eval_bootstrap_rdm,
    eval_dual_bootstrap,
)
from rsatoolbox.model import ModelFixed
from rsatoolbox.rdm import RDMs, compare
from rsatoolbox.util.inference_util import extract_variances
from scipy import stats

from isocortex.rsa import (
    COMPARISONS,
    bootstrap_ceiling,
    bootstrap_counts,
    bootstrap_scores,
    correlate,
    dual_bootstrap_variance,
    noise_ceiling,
    pool,
    to_matrices,
)
from isocortex.rsa.ranking import sample_concordance, weighted_concordance, weighted_ranks
from tests.unit.test_rsa_comparison import PEER, VECTORS

N, SUBJECTS = 12, 5
PAIRS = N * (N - 1) // 2
pytestmark = pytest.mark.filterwarnings("ignore:Noise ceiling for tau")


def _squared(rng, n, channels=20):
    i, j = np.triu_indices(N, 1)
    patterns = rng.standard_normal((N, channels))
    patterns = patterns + rng.standard_normal((n, N, channels))
    return np.square(patterns[:, i] - patterns[:, j]).mean(axis=2)


def _data(kind, *, seed=30):
    """Models and subjects that share a part: plain, with ties, or with pairs missing."""
    rng = np.random.default_rng(seed)
    found = _squared(rng, 3 + SUBJECTS)
    if kind == "tied":
        found = np.round(found)
    if kind == "missing":
        found[:, [4, 20, 21]] = np.nan
    return found[:3], found[3:]


def _drawn(samples=8, *, seed=31):
    rng = np.random.default_rng(seed)
    return bootstrap_counts(SUBJECTS, samples, rng=rng), bootstrap_counts(N, samples, rng=rng)


def _repeated(vectors, counts):
    """RDMs with rows and columns repeated as drawn, NaN between copies, as rsatoolbox's RDMs."""
    return RDMs(vectors).subsample_pattern("index", np.repeat(np.arange(N), counts))


@pytest.mark.parametrize("comparison", ["bures", "riemann"])
def test_weighted_kernels_equal_repeated_rows(comparison):
    """Copies are at distance 0. The Riemannian distance sees the different stimuli only."""
    a, b = _data("plain")
    _, counts = _drawn(4)
    counts[3, :5] = 0
    ours = np.concatenate([s for _, s in bootstrap_scores(a, b, counts, comparison=comparison)])
    for row, scores in zip(counts, ours):
        if comparison == "bures":
            x, y = (np.nan_to_num(_repeated(v, row).dissimilarities) for v in (a, b))
        else:
            chosen = np.flatnonzero(row)
            i, j = np.triu_indices(len(chosen), 1)
            x, y = (to_matrices(v)[:, chosen[i], chosen[j]] for v in (a, b))
        np.testing.assert_allclose(scores, compare(RDMs(x), RDMs(y), PEER[comparison]), atol=1e-8)


def test_copies_add_nothing_to_the_riemannian_distance():
    """Where patterns and their noise are repeated, the eigenvalues that are not 0 stay the same."""
    kernels = [v @ v.T / 20 for v in np.random.default_rng(32).standard_normal((2, 6, 20))]

    def logarithms(repeat):
        contrast = np.c_[-np.ones(len(repeat) - 1), np.eye(len(repeat) - 1)] @ repeat
        first, second = (
            contrast @ k @ contrast.T for k in (kernels[0] + 0.4 * np.eye(6), kernels[1])
        )
        relative = np.linalg.eigvals(np.linalg.pinv(second) @ first).real
        return np.log(np.sort(relative)[-5:])

    repeated = np.repeat(np.eye(6), [3, 1, 1, 2, 1, 1], axis=0)
    np.testing.assert_allclose(logarithms(repeated), logarithms(np.eye(6)), atol=1e-10)


@pytest.mark.parametrize("kind", ["plain", "tied", "missing"])
@pytest.mark.parametrize("comparison", VECTORS)
def test_ceilings_of_samples_equal_rsatoolbox(comparison, kind):
    _, brain = _data(kind)
    by_subject, by_stimulus = _drawn()
    ours = bootstrap_ceiling(brain, by_subject, by_stimulus, comparison=comparison)
    for who, what, found in zip(by_subject, by_stimulus, ours):
        sample = _repeated(brain, what).subsample("index", np.repeat(np.arange(SUBJECTS), who))
        peer = boot_noise_ceiling(sample, method=PEER[comparison])
        np.testing.assert_allclose(found, peer, atol=1e-8)


@pytest.mark.parametrize("comparison", COMPARISONS)
def test_ceilings_of_what_is_not_resampled(comparison):
    """All once is the plain ceiling; kinds of samples share their stimuli; subjects alone."""
    _, brain = _data("plain")
    by_subject, by_stimulus = _drawn(3)
    plain = noise_ceiling(brain, comparison=comparison)
    once = bootstrap_ceiling(brain, None, None, comparison=comparison)
    np.testing.assert_allclose(once, [plain], atol=1e-10)
    kinds = np.stack([np.ones_like(by_subject), by_subject])
    both = bootstrap_ceiling(brain, kinds, by_stimulus, comparison=comparison)
    assert both.shape == (2, 3, 2)
    for counts, found in zip((None, by_subject), both):
        alone = bootstrap_ceiling(brain, counts, by_stimulus, comparison=comparison)
        np.testing.assert_allclose(found, alone, atol=1e-12)
    subjects = bootstrap_ceiling(brain, by_subject, None, comparison=comparison)
    same = bootstrap_ceiling(brain, by_subject, np.ones((3, N), int), comparison=comparison)
    np.testing.assert_allclose(subjects, same, atol=1e-12)


@pytest.mark.parametrize("comparison", COMPARISONS)
def test_samples_without_a_ceiling(comparison):
    _, brain = _data("plain")
    by_subject = np.array([[5, 0, 0, 0, 0], [4, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
    by_stimulus = np.ones((3, N), dtype=int)
    by_stimulus[2] = 0
    by_stimulus[2, :3] = 4
    found = bootstrap_ceiling(brain, by_subject, by_stimulus, comparison=comparison)
    assert np.isnan(found[[0, 2]]).all()
    assert np.isfinite(found[1]).all()


@pytest.mark.parametrize("comparison", ["bures", "riemann"])
def test_kernel_ceilings_of_samples(comparison):
    """Plainly: pool the others' RDMs, make the kernels of the stimuli as drawn, compare."""
    _, brain = _data("plain")
    by_subject, by_stimulus = _drawn(2)
    ours = bootstrap_ceiling(brain, by_subject, by_stimulus, comparison=comparison)
    for who, what, found in zip(by_subject, by_stimulus, ours):
        weight = np.triu(np.outer(what, what), 1)[np.triu_indices(N, 1)]
        scaled = brain / (brain @ weight)[:, None] if comparison == "bures" else brain
        low, high = [], []
        for k in np.flatnonzero(who):
            others = who * (np.arange(SUBJECTS) != k)
            for scores, counts in ((low, others), (high, who)):
                pooled = (counts @ scaled / counts.sum())[None]
                samples = bootstrap_scores(pooled, brain[[k]], what[None], comparison=comparison)
                scores.append(next(samples)[1][0, 0, 0])
        np.testing.assert_allclose(found, [np.mean(low), np.mean(high)], atol=1e-12)


@pytest.mark.parametrize("comparison", [name for name in COMPARISONS if name != "bures"])
def test_pooled_rdms_equal_rsatoolbox(comparison):
    from rsatoolbox.util.inference_util import pool_rdm

    for kind in ("plain", "tied", "missing"):
        _, brain = _data(kind)
        peer = pool_rdm(RDMs(brain), method=PEER[comparison]).dissimilarities[0]
        np.testing.assert_allclose(pool(brain, comparison=comparison), peer, atol=1e-12)


def test_the_pooled_rdm_for_bures_weighs_subjects_equally():
    _, brain = _data("plain")
    louder = brain * np.array([1.0, 50.0, 1.0, 1.0, 3.0])[:, None]
    pooled = pool(louder, comparison="bures")
    np.testing.assert_allclose(pooled, pool(brain, comparison="bures"))
    every = correlate(pooled[None], brain, comparison="bures").mean()
    assert every > correlate(louder.mean(axis=0)[None], brain, comparison="bures").mean()


def _given(by_subject, by_stimulus):
    """Stand-ins for rsatoolbox's three draws, which give these samples in turn."""
    rows = iter(range(len(by_subject)))

    def both(rdms, **_):
        row = next(rows)
        who = np.repeat(np.arange(SUBJECTS), by_subject[row])
        what = np.repeat(np.arange(N), by_stimulus[row])
        return rdms.subsample("index", who).subsample_pattern("index", what), who, what

    def subjects(rdms, *_):
        who = np.repeat(np.arange(SUBJECTS), by_subject[next(rows)])
        return rdms.subsample("index", who), who

    def stimuli(rdms, *_):
        what = np.repeat(np.arange(N), by_stimulus[next(rows)])
        return rdms.subsample_pattern("index", what), what

    where = "rsatoolbox.inference.evaluate.bootstrap_sample"
    return (
        mock.patch(where, both),
        mock.patch(f"{where}_rdm", subjects),
        mock.patch(f"{where}_pattern", stimuli),
    )


def _ours(models, brain, by_subject, by_stimulus, comparison):
    """Scores and ceilings of the three bootstraps: (samples, models + 2, both/subjects/stimuli)."""
    drawn = np.concatenate(
        [s for _, s in bootstrap_scores(models, brain, by_stimulus, comparison=comparison)]
    )
    share = by_subject / SUBJECTS
    scores = np.stack(
        [
            np.einsum("bms,bs->bm", drawn, share),
            share @ correlate(models, brain, comparison=comparison).T,
            drawn.mean(axis=2),
        ],
        axis=2,
    )
    kinds = np.stack([by_subject, np.ones_like(by_subject)])
    both, stimuli = bootstrap_ceiling(brain, kinds, by_stimulus, comparison=comparison)
    subjects = bootstrap_ceiling(brain, by_subject, None, comparison=comparison)
    return np.concatenate([scores, np.stack([both, subjects, stimuli], axis=2)], axis=1)


@pytest.mark.parametrize("kind", ["plain", "tied"])
@pytest.mark.parametrize("comparison", VECTORS)
def test_the_dual_bootstrap_equals_rsatoolbox(comparison, kind, capsys):
    """Same samples: same scores, same ceilings, and the same three kinds of variance."""
    models, brain = _data(kind)
    by_subject, by_stimulus = _drawn(6)
    ours = _ours(models, brain, by_subject, by_stimulus, comparison)
    fixed = [ModelFixed(f"m{k}", row) for k, row in enumerate(models)]
    with _given(by_subject, by_stimulus)[0]:
        peer = eval_dual_bootstrap(fixed, RDMs(brain), method=PEER[comparison], N=6)
    np.testing.assert_allclose(ours[:, :3], peer.evaluations[:, :, 0, 0], atol=1e-8)
    np.testing.assert_allclose(
        ours[:, 3:], peer.noise_ceiling[:, :, 0].transpose(1, 0, 2), atol=1e-8
    )
    lower = ours[:, :3] - ours[:, 3:4]
    for values, wanted in ((ours[:, :3], peer.model_var), (lower, peer.noise_ceil_var[:, 0])):
        variance = dual_bootstrap_variance(
            *values.var(axis=0, ddof=1).T, n_subjects=SUBJECTS, n_stimuli=N
        )
        np.testing.assert_allclose(variance, wanted, atol=1e-8)


@pytest.mark.parametrize("comparison", VECTORS)
def test_single_bootstraps_equal_rsatoolbox(comparison, capsys):
    models, brain = _data("plain")
    by_subject, by_stimulus = _drawn(5)
    ours = _ours(models, brain, by_subject, by_stimulus, comparison)
    fixed = [ModelFixed(f"m{k}", row) for k, row in enumerate(models)]
    programs = (eval_bootstrap, eval_bootstrap_rdm, eval_bootstrap_pattern)
    for kind, program in enumerate(programs):
        with _given(by_subject, by_stimulus)[kind]:
            peer = program(fixed, RDMs(brain), method=PEER[comparison], N=5)
        np.testing.assert_allclose(ours[:, :3, kind], peer.evaluations, atol=1e-8)
        np.testing.assert_allclose(ours[:, 3:, kind], peer.noise_ceiling.T, atol=1e-8)


def test_variances_of_differences_equal_rsatoolbox():
    """The dual bootstrap's formula on differences of models, as rsatoolbox takes them."""
    models, brain = _data("plain")
    ours = _ours(models, brain, *_drawn(40), "pearson")
    covariances = np.array([np.cov(ours[:, :, k].T) for k in range(3)])
    _, wanted, _ = extract_variances(covariances, True, SUBJECTS, N)
    i, j = np.triu_indices(3, 1)
    variance = dual_bootstrap_variance(
        *(ours[:, i] - ours[:, j]).var(axis=0, ddof=1).T, n_subjects=SUBJECTS, n_stimuli=N
    )
    np.testing.assert_allclose(variance, wanted, atol=1e-12)


def test_weighted_ranks_are_those_of_copies():
    rng = np.random.default_rng(33)
    values, weights = rng.integers(0, 9, (4, 40)), rng.integers(0, 4, 40)
    ranks = weighted_ranks(values, weights.astype(float))
    for row, found in zip(values, ranks):
        wanted = stats.rankdata(np.repeat(row, weights))
        np.testing.assert_allclose(np.repeat(found, weights), wanted, atol=1e-12)


@pytest.mark.parametrize("kind", ["plain", "tied"])
def test_weighted_concordance_is_that_of_copies(kind):
    rng = np.random.default_rng(34)
    x, y = rng.random((2, 3, 50))
    if kind == "tied":
        x, y = np.round(x, 1), np.round(y * 4)
    weights = rng.integers(0, 4, (2, 50)).astype(float)
    wanted = np.einsum(
        "apq,bpq,sp,sq->sab",
        *(np.sign(v[:, :, None] - v[:, None, :]) for v in (x, y)),
        weights,
        weights,
        optimize=True,
    )
    np.testing.assert_array_equal(sample_concordance(x, y, weights), wanted / 2)
    for row, sample in zip(weights, wanted):
        np.testing.assert_array_equal(weighted_concordance(x, y, row), np.diag(sample) / 2)


def test_blocks_of_samples_give_the_same_scores(monkeypatch):
    models, brain = _data("tied")
    _, counts = _drawn(9)
    for comparison in COMPARISONS:
        whole = bootstrap_ceiling(brain, None, counts, comparison=comparison)
        scores = [s for _, s in bootstrap_scores(models, brain, counts, comparison=comparison)]
        monkeypatch.setattr("isocortex.rsa.sampling._BLOCK_BYTES", 5_000)
        parts = list(bootstrap_scores(models, brain, counts, comparison=comparison))
        again = bootstrap_ceiling(brain, None, counts, comparison=comparison)
        monkeypatch.undo()
        assert len(parts) > len(scores) == 1
        np.testing.assert_allclose(np.concatenate([s for _, s in parts]), scores[0], atol=1e-12)
        np.testing.assert_allclose(again, whole, atol=1e-12)
