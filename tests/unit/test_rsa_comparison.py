"""Comparison, ceilings, bootstraps and p-values against rsatoolbox, closed forms and their null."""

import numpy as np
import pytest
from rsatoolbox.inference import boot_noise_ceiling
from rsatoolbox.rdm import RDMs, compare
from rsatoolbox.rdm.compare import _tau_a
from rsatoolbox.util.inference_util import _dual_bootstrap
from scipy import stats

from isocortex.errors import InputError
from isocortex.rsa import (
    COMPARISONS,
    bootstrap_counts,
    bootstrap_scores,
    correlate,
    dual_bootstrap_variance,
    embed,
    noise_ceiling,
    pair_weights,
    resolve_bootstrap,
    score_statistics,
)

PEER = {
    "pearson": "corr",
    "spearman": "spearman",
    "corr_cov": "corr_cov",
    "rho_a": "rho-a",
    "cosine": "cosine",
    "cosine_cov": "cosine_cov",
    "tau_a": "tau-a",
    "tau_b": "tau-b",
    "bures": "bures",
    "riemann": "neg_riem_dist",
}
VECTORS = [name for name in COMPARISONS if name not in ("bures", "riemann")]
"""Those that rsatoolbox defines where pairs are missing."""
N = 11
PAIRS = N * (N - 1) // 2


def _data(kind):
    """Two sets of RDMs: plain, with ties, or with pairs missing."""
    rng = np.random.default_rng(10)
    a, b = rng.random((3, PAIRS)), rng.random((4, PAIRS))
    if kind == "tied":
        a, b = np.round(a, 1), np.round(b, 1)
    if kind == "missing":
        a[:, [4, 20]] = np.nan
        b[:, [4, 20]] = np.nan
    return a, b


def _squared(rng, n, n_stimuli=N, channels=30):
    """RDMs that are squared distances, of patterns with more channels than stimuli."""
    i, j = np.triu_indices(n_stimuli, 1)
    patterns = rng.standard_normal((n, n_stimuli, channels))
    return np.square(patterns[:, i] - patterns[:, j]).mean(axis=2)


@pytest.mark.parametrize("kind", ["plain", "tied", "missing"])
@pytest.mark.parametrize("comparison", VECTORS)
def test_scores_equal_rsatoolbox(comparison, kind):
    a, b = _data(kind)
    ours = correlate(a, b, comparison=comparison)
    np.testing.assert_allclose(ours, compare(RDMs(a), RDMs(b), PEER[comparison]), atol=1e-8)


@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_kernels_equal_rsatoolbox(scale):
    rng = np.random.default_rng(20)
    a, b = _squared(rng, 3) * scale, _squared(rng, 4)
    for comparison, x, y in (
        ("bures", a, b),
        ("riemann", a, b),
        ("bures", *_data("plain")),  # some eigenvalues are negative
    ):
        peer = compare(RDMs(x), RDMs(y), PEER[comparison])
        np.testing.assert_allclose(correlate(x, y, comparison=comparison), peer, atol=1e-8)


def test_riemannian_distance_is_the_least_over_scale_and_noise():
    """Where noise helps: the second RDM is the first one's plus noise, and another scale."""
    rng = np.random.default_rng(21)
    i, j = np.triu_indices(N, 1)
    patterns = rng.standard_normal((N, 30)) * np.linspace(0.2, 2.0, 30)
    plain = np.square(patterns[i] - patterns[j]).mean(axis=1)
    noisy = 3.0 * (plain + 2 * 0.7)
    assert correlate(plain[None], noisy[None], comparison="riemann")[0, 0] == pytest.approx(0.0)
    assert correlate(noisy[None], plain[None], comparison="riemann")[0, 0] < -0.1


def test_kernels_of_incomplete_rdms():
    """A stimulus without any pair is left out; with one pair missing there is no kernel."""
    rng = np.random.default_rng(22)
    a, b = _squared(rng, 2), _squared(rng, 3)
    i, j = np.triu_indices(N, 1)
    gone = (i == 4) | (j == 4)
    for comparison in ("bures", "riemann"):
        wanted = correlate(a[:, ~gone], b[:, ~gone], comparison=comparison)
        holed = a.copy()
        holed[1, gone] = np.nan
        np.testing.assert_allclose(correlate(holed, b, comparison=comparison), wanted)
        holed[0, 0] = np.nan
        assert np.isnan(correlate(holed, b, comparison=comparison)).all()
    # Patterns of fewer channels than stimuli have no Riemannian distance.
    flat = _squared(rng, 1, channels=5)
    assert np.isnan(correlate(a, flat, comparison="riemann")).all()


def test_missing_pairs_of_one_rdm_are_left_out_of_all():
    a, b = _data("plain")
    with_gap = a.copy()
    with_gap[0, 7] = np.nan
    keep = np.arange(PAIRS) != 7
    wanted = np.corrcoef(np.r_[a[:, keep], b[:, keep]])[:3, 3:]
    np.testing.assert_allclose(correlate(with_gap, b), wanted, atol=1e-12)


def test_constant_rdm_has_no_score():
    a, b = _data("plain")
    a[1] = 0.3
    for comparison in ("pearson", "spearman", "corr_cov", "tau_b"):
        scores = correlate(a, b, comparison=comparison)
        assert np.isnan(scores[1]).all()
        assert np.isfinite(scores[[0, 2]]).all()
    for comparison in ("rho_a", "tau_a"):
        np.testing.assert_array_equal(correlate(a, b, comparison=comparison)[1], 0.0)
    a[1] = 0.0
    for comparison in ("cosine", "cosine_cov"):
        assert np.isnan(correlate(a, b, comparison=comparison)[1]).all()


def test_an_unknown_comparison_is_refused():
    a, b = _data("plain")
    with pytest.raises(ValueError, match="'cosin': choose one of pearson"):
        correlate(a, b, comparison="cosin")
    with pytest.raises(ValueError, match="'tau_a': choose one of pearson"):
        embed(a, comparison="tau_a")


@pytest.mark.parametrize("kind", ["plain", "tied"])
@pytest.mark.parametrize("n_pairs", [3, 45, 1891, 60_000])
def test_kendall_counts_are_exact(n_pairs, kind):
    """Against scipy, in small, usual and large RDMs, where another way of counting is taken."""
    rng = np.random.default_rng(23)
    a, b = rng.random((2, n_pairs)), rng.random((2, n_pairs))
    if kind == "tied":
        a, b = np.round(a, 1), np.stack([b[0] > 0.7, np.round(b[1], 3)]).astype(float)
    for comparison, variant in (("tau_b", "b"), ("tau_a", "a")):
        ours = correlate(a, b, comparison=comparison)
        for x, y in np.ndindex(ours.shape):
            if variant == "b":
                wanted = stats.kendalltau(a[x], b[y]).statistic
            else:
                wanted = _tau_a(a[x], b[y])
            np.testing.assert_allclose(ours[x, y], wanted, atol=1e-12, equal_nan=True)


def test_whitened_correlation_of_distances_is_linear_cka():
    """Of squared Euclidean distances corr_cov's double-centred part is the kernels' (Kornblith)."""
    rng = np.random.default_rng(11)
    x, y = rng.standard_normal((2, N, 40))
    i, j = np.triu_indices(N, 1)
    dx = ((x[i] - x[j]) ** 2).sum(axis=1)
    dy = ((y[i] - y[j]) ** 2).sum(axis=1)
    centre = np.eye(N) - 1.0 / N
    # Taking off an RDM's mean takes a multiple of the centring matrix off its kernel.
    kernels = []
    for d, features in ((dx, x), (dy, y)):
        kernel = centre @ features @ features.T @ centre
        kernels.append(kernel - d.mean() / 2 * centre)
    wanted = np.sum(kernels[0] * kernels[1]) / np.prod([np.linalg.norm(k) for k in kernels])
    assert correlate(dx[None], dy[None], comparison="corr_cov")[0, 0] == pytest.approx(wanted)


@pytest.mark.filterwarnings("ignore:Noise ceiling for tau")
@pytest.mark.parametrize("kind", ["plain", "tied", "missing"])
@pytest.mark.parametrize("comparison", VECTORS)
def test_noise_ceilings_equal_rsatoolbox(comparison, kind):
    rng = np.random.default_rng(12)
    vectors = _data(kind)[1] + (0 if kind == "tied" else 0.5 * rng.random(PAIRS))
    peer = boot_noise_ceiling(RDMs(vectors), method=PEER[comparison])
    np.testing.assert_allclose(noise_ceiling(vectors, comparison=comparison), peer, atol=1e-8)


def test_one_subject_has_no_ceiling():
    assert np.isnan(noise_ceiling(np.random.default_rng(0).random((1, PAIRS)))).all()


@pytest.mark.parametrize("kind", ["plain", "tied", "missing"])
@pytest.mark.parametrize("comparison", VECTORS)
def test_weighted_bootstrap_equals_repeated_rows(comparison, kind):
    """The proof: weights c_i c_j give the scores of RDMs with rows and columns repeated."""
    a, b = _data(kind)
    counts = bootstrap_counts(N, 15, rng=np.random.default_rng(13))
    ours = np.concatenate([s for _, s in bootstrap_scores(a, b, counts, comparison=comparison)])
    for row, scores in zip(counts, ours):
        drawn = np.repeat(np.arange(N), row)
        x, y = (RDMs(v).subsample_pattern("index", drawn) for v in (a, b))
        np.testing.assert_allclose(scores, compare(x, y, PEER[comparison]), atol=1e-8)


@pytest.mark.parametrize(
    ("over", "n_subjects", "n_stimuli", "wanted"),
    [
        ("auto", 3, 60, "both"),
        ("auto", 3, 12, "subjects"),
        ("auto", 1, 12, "stimuli"),
        ("both", 1, 60, "stimuli"),
        ("subjects", 1, 8, "none"),
        ("subjects", 5, 8, "subjects"),
        ("both", 5, 10, "both"),
    ],
)
def test_what_is_resampled(over, n_subjects, n_stimuli, wanted):
    assert resolve_bootstrap(over, n_subjects=n_subjects, n_stimuli=n_stimuli) == wanted


def test_few_stimuli_are_not_resampled():
    with pytest.raises(InputError, match=r"8 stimuli, at least 10 are needed"):
        resolve_bootstrap("both", n_subjects=5, n_stimuli=8)
    rng = np.random.default_rng(0)
    brain, models = rng.random((1, 2, 28)), rng.random((3, 28))
    found = score_statistics(brain, models, comparison="pearson", over="none", samples=9, seed=0)
    assert np.isfinite(found["mean"]).all()
    for key in ("p", "interval_low", "interval_high"):
        assert np.isnan(found[key]).all()


@pytest.mark.parametrize("comparison", COMPARISONS)
def test_every_stimulus_once_gives_the_plain_score(comparison):
    for kind in ("plain", "missing"):
        a, b = _data(kind)
        if comparison in ("bures", "riemann"):
            a, b = _squared(np.random.default_rng(1), 7).reshape(7, -1)[[[0, 1, 2], [3, 4, 5]]]
        _, scores = next(bootstrap_scores(a, b, np.ones((1, N), int), comparison=comparison))
        wanted = correlate(a, b, comparison=comparison)
        np.testing.assert_allclose(scores[0], wanted, atol=1e-12)


def test_a_stimulus_that_fills_half_of_a_sample():
    """There the closed form of the whitening's linear system has no solution, the system has."""
    a, b = np.random.default_rng(18).random((2, 2, 28))
    counts = np.array([[5, 1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1]])
    _, scores = next(bootstrap_scores(a, b, counts, comparison="corr_cov"))
    x, y = (RDMs(v).subsample_pattern("index", np.repeat(np.arange(8), counts[0])) for v in (a, b))
    np.testing.assert_allclose(scores[0], compare(x, y, "corr_cov"), atol=1e-8)


def test_samples_of_three_stimuli_have_no_score():
    a, b = _data("plain")
    counts = np.zeros((2, N), int)
    counts[0, :3] = [4, 4, 3]
    counts[1, :4] = [3, 3, 3, 2]
    _, scores = next(bootstrap_scores(a, b, counts))
    assert np.isnan(scores[0]).all()
    assert np.isfinite(scores[1]).all()


def test_counts_and_weights():
    counts = bootstrap_counts(6, 50, rng=np.random.default_rng(3))
    drawn = np.random.default_rng(3).integers(0, 6, size=(50, 6))
    np.testing.assert_array_equal(counts[7], np.bincount(drawn[7], minlength=6))
    assert (counts.sum(axis=1) == 6).all()
    copies = counts * (counts - 1) / 2
    np.testing.assert_array_equal(pair_weights(counts).sum(axis=1), 15 - copies.sum(axis=1))


def test_dual_bootstrap_variance_equals_rsatoolbox():
    variances = np.random.default_rng(14).random((3, 40))
    variances[0] *= 2
    peer = _dual_bootstrap(variances, n_rdm=7, n_pattern=30)
    ours = dual_bootstrap_variance(*variances, n_subjects=7, n_stimuli=30)
    np.testing.assert_allclose(ours, peer, atol=1e-12)


def _binomial_interval(n, level=0.05):
    return stats.binom.ppf([0.005, 0.995], n, level) / n


def _null_study(rng, *, n_subjects, n_stimuli, shared):
    """RDMs of noise, with a part that subjects share (``both``) or none, and one random model."""
    pairs = np.triu_indices(n_stimuli, 1)

    def rdm(patterns):
        return ((patterns[pairs[0]] - patterns[pairs[1]]) ** 2).sum(axis=1)

    common = shared * rng.standard_normal((n_stimuli, 30))
    brain = [rdm(common + rng.standard_normal((n_stimuli, 30))) for _ in range(n_subjects)]
    return np.array(brain), rdm(rng.standard_normal((n_stimuli, 30)))[None]


@pytest.mark.parametrize(
    ("over", "variance", "studies"),
    [("subjects", "dual", 300), ("both", "dual", 120), ("both", "debiased", 200)],
)
def test_false_positive_rate(over, variance, studies):
    """P(p < .05) under the null lies in its binomial 99% interval (dual: at most its upper end).

    ``subjects``: subjects are drawn anew and share nothing, the stimuli are fixed. ``both``: they
    share a random geometry, which the bootstrap of subjects alone would take for an effect. With
    8 subjects rsatoolbox's dual bootstrap is conservative, see test_rsa_calibration.py.
    """
    rng = np.random.default_rng(16)
    hits = 0
    for k in range(studies):
        brain, model = _null_study(
            rng, n_subjects=8, n_stimuli=20, shared=1.0 if over == "both" else 0.0
        )
        result = score_statistics(
            brain[:, None],
            model,
            comparison="pearson",
            over=over,
            variance=variance,
            samples=150,
            seed=k,
        )
        hits += result["p"][0, 0] < 0.05
    low, high = _binomial_interval(studies)
    assert hits / studies <= high
    if (over, variance) != ("both", "dual"):
        assert hits / studies >= low


@pytest.mark.parametrize("variance", ["dual", "debiased"])
def test_power_at_one_effect_size(variance):
    rng = np.random.default_rng(17)
    found = 0
    for k in range(40):
        brain, model = _null_study(rng, n_subjects=8, n_stimuli=20, shared=0.0)
        brain = brain + 0.5 * model
        result = score_statistics(
            brain[:, None],
            model,
            comparison="pearson",
            over="both",
            variance=variance,
            samples=200,
            seed=k,
        )
        found += result["p"][0, 0] < 0.05
    assert found / 40 > 0.8
