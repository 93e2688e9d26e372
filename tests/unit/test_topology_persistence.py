"""Persistent homology of RDMs: against closed forms, ranks of boundaries, and under the null."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import xarray as xr
from scipy.cluster.hierarchy import linkage
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching
from scipy.spatial.distance import pdist, squareform
from scipy.stats import binom

from isocortex import store
from isocortex.errors import InputError
from isocortex.topology import (
    PersistenceOptions,
    betti_curve,
    diagram_distance,
    draw_permutations,
    filtration_values,
    gram,
    leave_one_out_distances,
    persistence_dataset,
    persistence_diagrams,
    summarise_bars,
    summarise_persistence,
)
from isocortex.topology.persistence import (
    _mean_over_subjects,
    bootstrap_centroid_distances,
    inner_products,
)

from .rdm_sets import brain_of, write_rdms


def circle(n: int, radius: float = 1.0, at: float = 0.0) -> np.ndarray:
    angle = 2 * np.pi * np.arange(n) / n
    return np.stack([at + radius * np.cos(angle), radius * np.sin(angle)], axis=1)


@pytest.mark.parametrize("n", [12, 40, 60])
def test_points_on_a_circle_have_one_loop(n):
    """Adamaszek & Adams (2017): it closes where a triangle of its points goes around."""
    h0, h1 = persistence_diagrams(pdist(circle(n)))
    step = 2 * np.sin(np.pi / n)
    np.testing.assert_allclose(h0, np.tile([0, step], (n - 1, 1)), atol=1e-12)
    end = 2 * np.sin(np.pi * np.ceil(n / 3) / n)
    np.testing.assert_allclose(h1, [[step, end]], atol=1e-12)
    thresholds = np.array([0.0, step / 2, 1.01 * step, 1.5, 1.01 * end])
    np.testing.assert_array_equal(betti_curve(h0, thresholds, dimension=0), [n, n, 1, 1, 1])
    np.testing.assert_array_equal(betti_curve(h1, thresholds, dimension=1), [0, 0, 1, 1, 0])


def test_two_circles_are_two_components_and_two_loops():
    points = np.concatenate([circle(24), circle(24, radius=0.7, at=5.0)])
    h0, h1 = persistence_diagrams(pdist(points))
    gap = pdist(points).reshape(-1)[squareform(np.arange(1128))[:24, 24:]].min()
    assert h0[-1, 1] == pytest.approx(gap, abs=1e-12)
    assert len(h1) == 2
    at = np.array([0.5])
    assert betti_curve(h0, at, dimension=0) == 2
    assert betti_curve(h1, at, dimension=1) == 2


def test_bars_of_components_are_those_of_single_linkage():
    rng = np.random.default_rng(0)
    for n in (4, 9, 30, 62):
        values = pdist(rng.normal(size=(n, 3)))
        values[rng.integers(len(values), size=3)] = 0.0  # stimuli that are the same
        merges = linkage(values, "single")[:, 2]
        h0, _ = persistence_diagrams(values)
        np.testing.assert_allclose(h0[:, 1], np.sort(merges[merges > 0]), atol=1e-12)
        assert (h0[:, 0] == 0).all()


def betti_by_ranks(square: np.ndarray, threshold: float) -> tuple[int, int]:
    """Betti numbers of the Rips complex from the ranks of its boundary matrices."""
    n = len(square)
    joined = square <= threshold
    edges = [(i, j) for i in range(n) for j in range(i + 1, n) if joined[i, j]]
    triangles = [
        (i, j, k) for i, j in edges for k in range(j + 1, n) if joined[i, k] and joined[j, k]
    ]
    first = np.zeros((n, len(edges)))
    for column, (i, j) in enumerate(edges):
        first[i, column], first[j, column] = -1, 1
    second = np.zeros((len(edges), len(triangles)))
    place = {edge: row for row, edge in enumerate(edges)}
    for column, (i, j, k) in enumerate(triangles):
        second[place[j, k], column] = second[place[i, j], column] = 1
        second[place[i, k], column] = -1
    rank = [np.linalg.matrix_rank(m) if m.size else 0 for m in (first, second)]
    return n - rank[0], len(edges) - rank[0] - rank[1]


@pytest.mark.parametrize("kind", ["points", "no metric", "tied"])
def test_betti_curves_count_components_and_loops(kind):
    rng = np.random.default_rng(1)
    n = 14
    values = pdist(rng.normal(size=(n, 5)))
    if kind == "no metric":
        values = rng.permutation(values)
    if kind == "tied":
        values = np.ceil(4 * values)
    values = filtration_values(values, filtration="rank")
    thresholds = np.linspace(0, 1, 23)
    h0, h1 = persistence_diagrams(values)
    expected = [betti_by_ranks(squareform(values), t) for t in thresholds]
    found = [betti_curve(h, thresholds, dimension=d) for d, h in enumerate((h0, h1))]
    if kind == "tied":  # the closest pairs are joined at 0, which the distance matrix keeps
        assert (values == 0).sum() > 1
    np.testing.assert_array_equal(np.array(found).T, expected)
    assert max(found[1]) > 0


def test_a_change_moves_diagrams_no_farther_than_itself():
    """The stability theorem: bottleneck distance at most the largest change of an entry."""
    rng = np.random.default_rng(2)
    for size in (1e-6, 0.01, 0.1, 0.5):
        for _ in range(5):
            a = pdist(rng.normal(size=(25, 4)))
            b = np.abs(a + size * rng.uniform(-1, 1, size=a.shape))
            change = np.abs(a - b).max()
            for one, other in zip(persistence_diagrams(a), persistence_diagrams(b)):
                distance = diagram_distance(one, other, distance="bottleneck")
                assert distance <= change * (1 + 1e-9)
                assert distance > 0


def matching_costs(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Costs of matching bars with each other or with nothing, shape (a + b, b + a)."""
    across = np.abs(a[:, None] - b[None]).max(axis=-1)
    half_a, half_b = (np.diff(bars, axis=1)[:, 0] / 2 for bars in (a, b))
    top = np.concatenate([across, np.tile(half_a[:, None], (1, len(a)))], axis=1)
    bottom = np.concatenate([np.tile(half_b, (len(b), 1)), np.zeros((len(b), len(a)))], axis=1)
    return np.concatenate([top, bottom])


def test_distances_are_those_of_the_best_matching():
    rng = np.random.default_rng(3)
    for _ in range(10):
        found = [
            persistence_diagrams(rng.permutation(pdist(rng.normal(size=(n, 3))))) for n in (9, 12)
        ]
        for a, b in zip(*found):
            costs = matching_costs(a, b)
            rows, columns = linear_sum_assignment(costs)
            wasserstein = diagram_distance(a, b, distance="wasserstein")
            assert wasserstein == pytest.approx(costs[rows, columns].sum(), rel=1e-5)
            for level in np.unique(costs):
                graph = csr_array(costs <= level)
                if (maximum_bipartite_matching(graph) >= 0).all():
                    break
            assert diagram_distance(a, b, distance="bottleneck") == pytest.approx(level, rel=1e-9)
    none, one = np.zeros((0, 2)), np.array([[0.2, 0.6]])
    for distance in ("bottleneck", "wasserstein"):
        assert diagram_distance(none, none, distance=distance) == 0
        assert diagram_distance(one, one, distance=distance) == 0
        assert diagram_distance(one, none, distance=distance) == pytest.approx(0.2)
    with pytest.raises(ValueError, match="bottleneck"):
        diagram_distance(none, none, distance="hausdorff")


def test_summaries_of_bars_by_hand():
    bars = np.array([[0.0, 0.5], [0.25, 0.5], [0.5, 0.75]])
    found = summarise_bars(bars)
    assert found["total_persistence"] == 1.0
    assert found["longest"] == 0.5
    assert found["entropy"] == pytest.approx(1.5 * np.log(2))
    assert found["n_bars"] == 3
    assert set(summarise_bars(bars[:0]).values()) == {0.0}


def test_filtrations():
    rng = np.random.default_rng(4)
    rdm = pdist(rng.normal(size=(12, 3)))
    rdm[:3] *= -0.1  # as crossnobis
    before = rdm.copy()
    ranks = filtration_values(rdm, filtration="rank")
    np.testing.assert_array_equal(ranks, filtration_values(np.exp(rdm), filtration="rank"))
    assert (ranks.min(), ranks.max()) == (0, 1)
    scaled = filtration_values(rdm, filtration="maximum")
    np.testing.assert_allclose(scaled, filtration_values(7 * rdm, filtration="maximum"))
    np.testing.assert_allclose(scaled, np.maximum(rdm, 0) / rdm.max())
    np.testing.assert_array_equal(rdm, before)
    for bad, message in ((np.full(6, 0.5), "equal"), (np.array([1, np.nan, 2]), "NaN")):
        with pytest.raises(ValueError, match=message):
            filtration_values(bad, filtration="maximum")
    with pytest.raises(ValueError, match="above 0"):
        filtration_values(-np.arange(6.0), filtration="maximum")


# Regions of several subjects.

FAST = {"permutations": 199, "bootstrap_samples": 200, "thresholds": 11}


def shapes(rng, *, subjects: int, stimuli: int = 18, noise: float = 0.1) -> np.ndarray:
    """A ring, three clusters and two rings, the stimuli in another order in each subject."""
    clusters = np.repeat(np.array([[0, 0], [3, 0], [0, 3]]), stimuli // 3, axis=0)
    rings = np.concatenate([circle(stimuli // 2), circle(stimuli // 2, at=4.0)])
    rdms = []
    for _ in range(subjects):
        rdms.append(
            [
                pdist(rng.permutation(points) + noise * rng.normal(size=points.shape))
                for points in (circle(stimuli), clusters, rings)
            ]
        )
    return np.array(rdms)


@pytest.mark.parametrize("distance", ["wasserstein", "bottleneck"])
def test_regions_of_different_shape_are_identified(distance):
    """Though no stimulus means the same in two subjects: only the topology is shared."""
    rng = np.random.default_rng(5)
    brain = brain_of(shapes(rng, subjects=5, noise=0.2))
    found = persistence_dataset(brain, PersistenceOptions(distance=distance, **FAST))
    store.check(found, "persistence")
    assert found.attrs["chance"] == pytest.approx(1 / 3)
    assert (found["accuracy"] > 0.75).all()
    assert (found["p_corrected"] < 0.05).all()
    assert (found["ratio"] < 0.8).all()
    assert found["longest"].mean("subject").sel(dimension="H1").argmax() == 0  # the ring
    assert found["longest"].mean("subject").sel(dimension="H0").argmin() == 0


def test_power_of_the_identification():
    rng = np.random.default_rng(14)
    options = PersistenceOptions(**{**FAST, "permutations": 99, "bootstrap_samples": 100})
    trials = [
        persistence_dataset(brain_of(shapes(rng, subjects=6, stimuli=24, noise=0.3)), options)
        for _ in range(20)
    ]
    hits = np.mean([found["p_corrected"].values <= 0.05 for found in trials], axis=0)
    assert (hits > 0.8).all()


def nearest_centroid(apart: np.ndarray, subject: int, others: list[int]) -> np.ndarray:
    """Which centroid of the others' regions is nearest to each region, written out."""
    squares = apart**2
    found = []
    for region in range(apart.shape[1]):
        to = [
            np.mean([squares[subject, region, t, q] for t in others])
            - np.mean([squares[t, q, u, q] for t in others for u in others]) / 2
            for q in range(apart.shape[1])
        ]
        found.append(int(np.argmin(to)))
    return np.array(found)


def test_centroids_of_distances_are_those_of_vectors():
    rng = np.random.default_rng(13)
    x = rng.normal(size=(5, 3, 7))
    flat = x.reshape(15, 7)
    apart = squareform(pdist(flat)).reshape(5, 3, 5, 3)
    expected = leave_one_out_distances(gram(x)) * (x - x.mean(axis=(0, 1))).var()
    np.testing.assert_allclose(leave_one_out_distances(inner_products(apart)), expected)
    counts = np.array([[1, 1, 1, 1, 1], [2, 0, 1, 1, 1]])
    found = bootstrap_centroid_distances(apart, counts)
    np.testing.assert_allclose(found[0], expected)
    centroid = x[[0, 0, 3, 4]].mean(axis=0)  # subject 2 left out
    np.testing.assert_allclose(found[1, 2], ((x[2][:, None] - centroid) ** 2).sum(axis=-1))
    centroid = x[[2, 3, 4]].mean(axis=0)  # both copies of subject 0 left out
    np.testing.assert_allclose(found[1, 0], ((x[0][:, None] - centroid) ** 2).sum(axis=-1))


def test_a_set_of_regions_by_hand():
    rng = np.random.default_rng(6)
    x = shapes(rng, subjects=4, stimuli=12, noise=0.3)
    options = PersistenceOptions(**FAST)
    found = persistence_dataset(brain_of(x), options, threads=2)
    values = filtration_values(x, filtration="rank")
    diagrams = [[persistence_diagrams(row) for row in subject] for subject in values]
    thresholds = np.linspace(0, 1, 11)
    np.testing.assert_array_equal(found["threshold"], thresholds)
    truth = np.arange(3)
    for d in range(2):
        apart = np.array(
            [
                [
                    [[diagram_distance(a[d], b[d]) for b in other] for other in diagrams]
                    for a in subject
                ]
                for subject in diagrams
            ]
        )
        cell = found.isel(dimension=d)
        for s in range(4):
            np.testing.assert_allclose(cell["distance_subject"][..., s], apart[s, :, s], atol=1e-12)
            for r in range(3):
                curve = betti_curve(diagrams[s][r][d], thresholds, dimension=d)
                np.testing.assert_array_equal(cell["betti"][:, r, s], curve)
                for key, value in summarise_bars(diagrams[s][r][d]).items():
                    assert float(cell[key][r, s]) == pytest.approx(value)
        across = np.mean([apart[s, :, t] for s in range(4) for t in range(4) if s != t], axis=0)
        np.testing.assert_allclose(cell["distance_across"], across, atol=1e-12)
        ratio = across[truth, truth].mean() / across[~np.eye(3, dtype=bool)].mean()
        assert float(cell["ratio"]) == pytest.approx(ratio)
        predicted = np.array(
            [nearest_centroid(apart, s, [t for t in range(4) if t != s]) for s in range(4)]
        )
        np.testing.assert_allclose(cell["accuracy_subject"], (predicted == truth).mean(axis=1))
        for r in range(3):
            counts = np.bincount(predicted[:, r], minlength=3)
            np.testing.assert_array_equal(cell["confusion"][r], counts)
        null = []
        for order in draw_permutations(199, subjects=4, regions=3, seed=0):
            moved = np.array(
                [[apart[s][order[s]][:, t][:, order[t]] for t in range(4)] for s in range(4)]
            ).transpose(0, 2, 1, 3)
            null.append(
                np.mean(
                    [
                        nearest_centroid(moved, s, [t for t in range(4) if t != s]) == truth
                        for s in range(4)
                    ]
                )
            )
        p = (1 + (np.array(null) >= float(cell["accuracy"]) - 1e-9).sum()) / 200
        assert float(cell["p"]) == pytest.approx(p)
        # A bootstrap sample written out: subjects repeated, copies of the one left out are too.
        sample = np.array([1, 1, 2, 3])
        counts = np.bincount(sample, minlength=4)[None]
        weighted = bootstrap_centroid_distances(apart, counts)[0].argmin(axis=-1)
        for s in sample:
            others = [t for t in sample if t != s]
            np.testing.assert_array_equal(weighted[s], nearest_centroid(apart, s, others))
    total = found["total_persistence"]
    for a in range(3):
        for b in range(3):
            expected = (total[:, a] - total[:, b]).mean("subject")
            np.testing.assert_allclose(found["difference"][:, a, b], expected, atol=1e-12)
    assert (found["difference_low"] <= found["difference"] + 1e-12).all()
    assert (found["difference_high"] >= found["difference"] - 1e-12).all()


def within_binomial_99(hits: int, trials: int, rate: float = 0.05) -> bool:
    return binom.ppf(0.005, trials, rate) <= hits <= binom.ppf(0.995, trials, rate)


def test_false_positives_of_the_identification():
    """Regions of one shape; subjects differ in noise, which all their regions share."""
    rng = np.random.default_rng(7)
    trials, corrected, single = 200, 0, 0
    options = PersistenceOptions(**{**FAST, "permutations": 99, "bootstrap_samples": 100})
    for _ in range(trials):
        x = np.array(
            [
                [pdist(circle(10) + noise * rng.normal(size=(10, 2))) for _ in range(4)]
                for noise in rng.uniform(0.2, 1.0, size=4)
            ]
        )
        found = persistence_dataset(brain_of(x), options)
        corrected += float(found["p_corrected"].min()) <= 0.05
        single += float(found["p"][1]) <= 0.05
    # Accuracies are shares of 16 regions, so that the level is not quite used up.
    assert within_binomial_99(single, trials)
    assert within_binomial_99(corrected, trials)


def test_intervals_over_subjects_cover():
    rng = np.random.default_rng(8)
    options = PersistenceOptions(bootstrap_samples=500)
    values = rng.normal(size=(600, 12))
    values[:300, 0] = np.nan  # in half of the trials a subject lacks the region
    mean, low, high = _mean_over_subjects(values, options)
    np.testing.assert_allclose(mean, np.nanmean(values, axis=1))
    for part in (slice(300), slice(300, 600)):
        covered = ((low[part] <= 0) & (high[part] >= 0)).mean()
        assert 0.9 < covered < 0.98
    # Two subjects give none.
    _, low, high = _mean_over_subjects(values[:, :2], options)
    assert np.isnan(low).all()
    assert np.isnan(high).all()


def test_what_cannot_be_used_is_said():
    rng = np.random.default_rng(9)
    x = shapes(rng, subjects=3, stimuli=12)
    x[1, 2, 5] = np.nan
    found = persistence_dataset(brain_of(x), PersistenceOptions(**FAST))
    assert "NaN" in found.attrs["left_out"]["region2 of sub-02"]
    assert found.attrs["chance"] == 0.5
    lacking = found.sel(region="region2", subject="02")
    for name in ("betti", "longest", "total_persistence"):
        assert np.isnan(lacking[name]).all()
    assert np.isfinite(found["distance"]).all()
    assert np.isnan(found["distance_low"].sel(region="region2", other="region0")).all()
    assert np.isfinite(found["distance_low"].sel(region="region0", other="region1")).all()
    assert (found["confusion"].sel(region="region2") == 0).all()
    assert np.isfinite(found["accuracy"]).all()

    alone = persistence_dataset(brain_of(x[:1]), PersistenceOptions(**FAST))
    assert "at least 2 subjects" in alone.attrs["flag"]
    json.dumps(alone.attrs, allow_nan=False)  # as stores keep them
    assert any("at least 3 subjects" in line for line in alone.attrs["flags"])
    assert np.isnan(alone["accuracy"]).all()
    assert np.isfinite(alone["distance"]).all()
    pair = persistence_dataset(brain_of(x[[0, 2], :2]), PersistenceOptions(**FAST))
    assert np.isfinite(pair["p"]).all()
    assert np.isnan(pair["accuracy_low"]).all()
    assert "Intervals" not in pair.attrs["methods"]
    one = persistence_dataset(brain_of(x[:, :1]), PersistenceOptions(**FAST))
    assert "at least 2 regions" in one.attrs["flag"]

    x[0, 0] = -np.abs(x[0, 0])
    below = persistence_dataset(brain_of(x), PersistenceOptions(filtration="maximum", **FAST))
    assert "no dissimilarity above 0" in below.attrs["left_out"]["region0 of sub-01"]
    with pytest.raises(InputError, match="filtration to rank"):
        persistence_dataset(brain_of(-np.abs(x[:, :2])), PersistenceOptions(filtration="maximum"))
    x[:] = np.nan
    with pytest.raises(InputError, match="no subject has a usable RDM"):
        persistence_dataset(brain_of(x), PersistenceOptions(**FAST))
    for bad, message in (
        ({"filtration": "raw"}, "rank, maximum"),
        ({"distance": "hausdorff"}, "trsa.persistence"),
        ({"thresholds": 1}, "at least 2"),
        ({"interval": 1.5}, "between 0 and 1"),
    ):
        with pytest.raises(InputError, match=message):
            PersistenceOptions(**bad)


def test_every_option_counts_and_threads_do_not():
    rng = np.random.default_rng(10)
    x = shapes(rng, subjects=4, stimuli=12, noise=0.6)

    def run(threads=1, **change):
        options = PersistenceOptions(**{**FAST, **change})
        return persistence_dataset(brain_of(x), options, threads=threads).drop_attrs()

    reference = run()
    xr.testing.assert_identical(reference, run(threads=2))
    for change in (
        {"filtration": "maximum"},
        {"distance": "bottleneck"},
        {"thresholds": 21},
        {"permutations": 150},
        {"bootstrap_samples": 150},
        {"interval": 0.5},
        {"seed": 1},
    ):
        assert not run(**change).equals(reference), change


def test_defaults_are_those_of_the_schema(root):
    schema = json.loads((root / "workflow/schemas/config/trsa.json").read_text())["properties"]
    own = schema["persistence"]["properties"]
    assert own["run"]["default"] is False
    options = asdict(PersistenceOptions())
    shared = {"permutations", "bootstrap_samples", "interval"}
    assert set(own) - {"run"} | shared | {"seed"} == set(options)
    for key in set(options) - {"seed"}:
        assert options[key] == (schema if key in shared else own)[key]["default"], key


def test_from_stores_to_a_store(tmp_path):
    rng = np.random.default_rng(11)
    brain = brain_of(shapes(rng, subjects=2, stimuli=12))
    paths = write_rdms(tmp_path, brain.dissimilarity)
    out = tmp_path / "persistence.zarr"
    summarise_persistence(rdms=paths, out=out, seed=3, **FAST)
    expected = persistence_dataset(brain, PersistenceOptions(seed=3, **FAST))
    found = store.open(out, "persistence").load()
    for name in expected:
        np.testing.assert_array_equal(found[name].values, expected[name].values)
    assert "GUDHI" in found.attrs["methods"]
