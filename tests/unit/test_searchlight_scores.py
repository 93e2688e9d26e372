"""Neighbourhoods, their RDMs by every measure and their scores, against rsatoolbox and the plain
definitions."""

import numpy as np
import psutil
import pytest
from rsatoolbox.rdm import RDMs, compare
from rsatoolbox.util.searchlight import get_searchlight_RDMs, get_volume_searchlight
from scipy.stats import spearmanr

from isocortex import parallel
from isocortex.rsa import (
    correlate,
    correlation_distance,
    cosine_distance,
    covariance,
    crossnobis_distance,
    crossvalidation_design,
    euclidean_distance,
    mahalanobis_distance,
    parse_transform,
    poisson_cv_distance,
    poisson_distance,
    whiten,
)
from isocortex.searchlight import Models, Patterns, score_block, sphere_offsets, spheres

N = 9
LABELS = [f"s{k:02d}" for k in range(N)]


def table(patterns, *, kind=np.float64):
    """Rows of voxels and the one that stands for missing ones: patterns are (..., n_voxels)."""
    rows = np.zeros((patterns.shape[-1] + 1, patterns[..., 0].size), dtype=kind)
    rows[:-1] = patterns.reshape(-1, patterns.shape[-1]).T
    return rows


def test_spheres_are_in_millimetres_and_stop_at_the_mask():
    affine = np.diag([2.0, 4.0, 3.0, 1.0])
    offsets = sphere_offsets(4.0, affine)
    distance = np.linalg.norm(offsets * [2, 4, 3], axis=1)
    assert distance.max() == 4.0
    grid = np.stack(np.meshgrid(*[np.arange(-3, 4)] * 3), axis=-1).reshape(-1, 3)
    assert len(offsets) == (np.linalg.norm(grid * [2, 4, 3], axis=1) <= 4).sum()
    voxels = np.array([[0, 0, 0], [1, 0, 0], [2, 0, 0], [0, 1, 0]])
    centres = np.array([[0, 0, 0], [4, 1, 0]])
    around = spheres(voxels, (5, 2, 1), radius=4.0, affine=affine, centres=centres)
    members, sizes = around.members(slice(0, 2))
    assert sizes.tolist() == [4, 0]
    assert sorted(members[0][members[0] < 4]) == [0, 1, 2, 3]
    assert around.full == len(offsets)


def test_an_oblique_affine_has_the_same_spheres():
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([3.0, 3.0, 3.0])
    straight = sphere_offsets(7.0, np.diag([3.0, 3.0, 3.0, 1.0]))
    np.testing.assert_array_equal(sphere_offsets(7.0, affine), straight)


@pytest.mark.parametrize("comparison", ["pearson", "spearman", "cosine"])
def test_scores_equal_rsatoolbox(comparison):
    """Radius 2.3 voxels: no voxel lies at just that distance, where conventions differ."""
    rng = np.random.default_rng(1)
    shape = (7, 6, 5)
    mask = rng.random(shape) < 0.9
    labels = np.array(LABELS)
    data = rng.standard_normal((N, mask.size))
    centres, members = get_volume_searchlight(
        mask, radius=2.3, threshold=0.3, truncate_at_boundary=True
    )
    peer = get_searchlight_RDMs(data, centres, members, labels, verbose=False)
    models = rng.random((3, N * (N - 1) // 2))
    names = {"pearson": "corr", "spearman": "spearman", "cosine": "cosine"}
    wanted = compare(RDMs(models), peer, names[comparison])

    at = np.stack(np.unravel_index(centres, shape), axis=1)
    voxels = np.argwhere(mask)
    around = spheres(voxels, shape, radius=2.3, affine=np.eye(4), centres=at)
    patterns = Patterns(table(data[:, mask.ravel()], kind=np.float32), tuple(LABELS))
    ours, sizes = score_block(slice(0, len(at)), around, patterns, Models(models, comparison))
    assert sizes.tolist() == [len(m) for m in members]
    np.testing.assert_allclose(ours, wanted, atol=2e-4 if comparison == "spearman" else 2e-5)
    # Spearman in float32 may swap ranks of near ties; in the median it is as exact.
    assert np.median(np.abs(ours - wanted)) < 2e-6


@pytest.fixture(scope="module")
def case():
    """Trials of 3 runs, neighbourhoods of several sizes, and what each centre must be alone."""
    rng = np.random.default_rng(2)
    runs, n_voxels = 3, 40
    labels, run_of = LABELS * runs, np.repeat(["1", "2", "3"], N)
    trials = rng.gamma(2.0, 2.0, (N * runs, n_voxels))
    residuals = rng.standard_normal((60, n_voxels)) @ (
        np.eye(n_voxels) + 0.1 * rng.standard_normal((n_voxels, n_voxels))
    )
    sizes = np.array([12, 30, 7, 30], dtype=np.int32)
    members = np.full((len(sizes), 30), n_voxels, dtype=np.int32)
    for row, size in zip(members, sizes):
        row[rng.choice(30, size, replace=False)] = rng.choice(n_voxels, size, replace=False)
    return labels, run_of, trials, residuals, members, sizes


def plain_rdm(measure, trials, labels, runs, residuals):
    means = np.array([trials[[label == name for label in labels]].mean(axis=0) for name in LABELS])
    noise = covariance(residuals, method="shrinkage_diag", degrees_of_freedom=50)
    return {
        "correlation": lambda: correlation_distance(means),
        "cosine": lambda: cosine_distance(means),
        "euclidean": lambda: euclidean_distance(means),
        "poisson": lambda: poisson_distance(means),
        "mahalanobis": lambda: mahalanobis_distance(means, noise),
        "crossnobis": lambda: crossnobis_distance(whiten(trials, noise), labels, runs)[0],
        "poissoncv": lambda: poisson_cv_distance(trials, labels, runs)[0],
    }[measure]()


@pytest.mark.parametrize("unbalanced", [False, True])
@pytest.mark.parametrize(
    "measure",
    [
        "correlation",
        "cosine",
        "euclidean",
        "poisson",
        "mahalanobis",
        "crossnobis",
        "poissoncv",
    ],
)
def test_every_measure_is_the_region_s(case, measure, unbalanced):
    """A neighbourhood's RDM is that of its voxels alone, whatever the others' sizes."""
    labels, runs, trials, residuals, members, sizes = case
    if unbalanced:
        keep = np.arange(len(labels)) != 4
        labels, runs, trials = [labels[k] for k in np.flatnonzero(keep)], runs[keep], trials[keep]
    design = crossvalidation_design(labels, runs)
    crossvalidated = measure in ("crossnobis", "poissoncv")
    if crossvalidated:
        means = design.run_means(trials, centre=measure == "crossnobis").transpose(1, 0, 2)
    else:
        means = np.array(
            [trials[[label == name for label in labels]].mean(axis=0) for name in LABELS]
        )
    whitened = measure in ("mahalanobis", "crossnobis")
    patterns = Patterns(
        table(means),
        tuple(LABELS),
        measure,
        design=design if crossvalidated else None,
        residuals=np.vstack([residuals.T, np.zeros(len(residuals))]) if whitened else None,
        degrees_of_freedom=50,
    )
    found = patterns.rdms(members, sizes)
    for rdm, row in zip(found, members):
        inside = row[row < trials.shape[1]]
        wanted = plain_rdm(measure, trials[:, inside], labels, runs, residuals[:, inside])
        np.testing.assert_allclose(rdm, wanted, rtol=1e-9, atol=1e-10)


def test_a_covariance_that_cannot_be_inverted_is_no_rdm(case):
    _, _, trials, residuals, members, sizes = case
    few = residuals[:20]
    patterns = Patterns(
        table(trials[:N]),
        tuple(LABELS),
        "mahalanobis",
        residuals=np.vstack([few.T, np.zeros(len(few))]),
        shrinkage="full",
    )
    found = np.isfinite(patterns.rdms(members, sizes))
    assert found.all(axis=1).tolist() == [size < 20 for size in sizes]
    assert found.any(axis=1).tolist() == [size < 20 for size in sizes]


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_constant_patterns_have_no_score_and_large_means_do_no_harm(offset):
    rng = np.random.default_rng(2)
    means = rng.standard_normal((6, 9))
    # The sphere's own mean, far from that of all voxels: products alone would lose what varies.
    means[:, 3:] += offset
    means[2, :4] = 1.5
    members = np.array([[0, 1, 2, 3], [4, 5, 6, 7]], dtype=np.int32)
    patterns = Patterns(table(means, kind=np.float32), tuple("abcdef"))
    rdms = patterns.rdms(members, np.array([4, 4], dtype=np.int32))
    assert np.isnan(rdms[0]).all()
    wanted = correlation_distance(means[:, 4:8].astype(np.float32).astype(float))
    np.testing.assert_allclose(rdms[1], wanted, atol=1e-2 if offset else 1e-6)
    scores = Models(rng.random((2, 15))).scores(rdms)
    assert np.isnan(scores[0]).all()
    assert np.isfinite(scores[1]).all()


@pytest.mark.parametrize(
    "comparison", ["pearson", "spearman", "cosine", "corr_cov", "rho_a", "tau_a"]
)
@pytest.mark.parametrize("transform", [None, "rgtm(0.2,0.8)", "rank"])
def test_scores_are_those_of_whole_rdms(comparison, transform):
    """Also where ties are many, as an RGTM makes them."""
    rng = np.random.default_rng(3)
    rdms, models = rng.random((6, 36)), rng.random((3, 36))
    rdms[2] = np.round(rdms[2] * 4)
    rdms[5] = np.nan
    change = parse_transform(transform) if transform else None
    ours = Models(models, comparison, change).scores(rdms.copy())
    apply = change.apply if change else lambda x: x
    wanted = correlate(apply(rdms[:5]), apply(models), comparison=comparison)
    np.testing.assert_allclose(ours[:5], wanted, atol=1e-6)
    assert np.isnan(ours[5]).all()


def test_ranks_of_ties_zeros_of_either_sign_and_flat_rdms():
    rng = np.random.default_rng(4)
    rdms = rng.integers(-3, 4, (50, 45)).astype(np.float32)
    rdms[rdms == 0] *= rng.choice([-1.0, 1.0], (rdms == 0).sum())
    rdms[7] = 2.0
    models = rng.random((2, 45))
    ours = Models(models, "spearman").scores(rdms.copy())
    assert np.isnan(ours[7]).all()
    for k in np.delete(np.arange(50), 7):
        wanted = [spearmanr(model, rdms[k]).statistic for model in models]
        np.testing.assert_allclose(ours[k], wanted, atol=1e-6)


def test_pairs_that_no_neighbourhood_has_are_left_out():
    rng = np.random.default_rng(5)
    rdms, models = rng.random((4, 36)), rng.random((2, 36))
    rdms[:, [3, 8]] = np.nan
    kept = np.delete(np.arange(36), [3, 8])
    for comparison in ("pearson", "spearman"):
        ours = Models(models, comparison).scores(rdms.copy())
        wanted = correlate(rdms[:, kept], models[:, kept], comparison=comparison)
        np.testing.assert_allclose(ours, wanted, atol=1e-6)


def test_small_and_thin_neighbourhoods_have_no_score():
    rng = np.random.default_rng(6)
    voxels = np.argwhere(np.ones((9, 9, 9), dtype=bool))
    around = spheres(voxels, (9, 9, 9), radius=2.0, affine=np.eye(4), centres=voxels)
    patterns = Patterns(table(rng.standard_normal((N, len(voxels)))), tuple(LABELS))
    models = Models(rng.random((1, 36)))
    everything = slice(0, len(voxels))
    for options, smallest in (((20, 0.0), 20), ((1, 0.9), 0.9 * around.full)):
        scores, sizes = score_block(everything, around, patterns, models, *options)
        np.testing.assert_array_equal(np.isfinite(scores[0]), sizes >= smallest)
        assert 0 < np.isfinite(scores[0]).sum() < len(voxels)


def test_memory_does_not_grow_with_the_centres():
    """RDMs of these centres would take 1.3 GB; a tenth of that bounds what is taken."""
    rng = np.random.default_rng(7)
    shape, n = (30, 30, 20), 96
    voxels = np.argwhere(np.ones(shape, dtype=bool))
    rows = np.zeros((len(voxels) + 1, n), dtype=np.float32)
    rows[:-1] = rng.standard_normal((len(voxels), n), dtype=np.float32)
    patterns = Patterns(rows, tuple(str(k) for k in range(n)))
    around = spheres(voxels, shape, radius=2.0, affine=np.eye(4), centres=voxels)
    models = Models(rng.random((2, n * (n - 1) // 2)), "spearman")
    process = psutil.Process()
    before, most = process.memory_info().rss, 0
    blocks = [slice(start, start + 500) for start in range(0, len(voxels), 500)]
    for scores, _ in parallel.map_blocks(score_block, blocks, around, patterns, models, threads=2):
        assert np.isfinite(scores).all()
        most = max(most, process.memory_info().rss)
    assert most - before < 130 << 20
