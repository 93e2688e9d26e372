"""Region identification: against its definition, on simulated regions, under the null."""

import numpy as np
import pytest
from scipy.spatial.distance import pdist
from scipy.stats import binom

from isocortex import store
from isocortex.errors import InputError
from isocortex.rsa.rdms import to_matrices, to_vectors
from isocortex.topology import (
    TopologyOptions,
    bootstrap_accuracy,
    bootstrap_interval,
    draw_bootstrap,
    draw_permutations,
    gram,
    identification_dataset,
    identify,
    identify_regions,
    leave_one_out_distances,
    list_statistics,
    nested_scores,
    permutation_accuracy,
    permutation_p,
    sensitivity_specificity,
)

from .rdm_sets import brain_of, write_rdms

FAST = {"grid_step": 0.5, "bootstrap_samples": 200, "permutations": 200}


def regions_with_noise(
    rng, *, subjects: int, regions: int, stimuli: int, noise: float, gain: bool = False
) -> np.ndarray:
    """RDMs of points, each region's own, with each subject's noise."""
    points = rng.normal(size=(regions, stimuli, 4))
    rdms = [[pdist(p + noise * rng.normal(size=p.shape)) for p in points] for _ in range(subjects)]
    scale = np.exp(rng.normal(size=(subjects, regions, 1))) if gain else 1.0
    return np.array(rdms) * scale


def naive_predictions(statistic: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Nearest centroid of all copies of the other subjects, as the words say it."""
    n_subjects, n_regions, _ = statistic.shape
    found = np.zeros((n_subjects, n_regions), dtype=int)
    for s in range(n_subjects):
        others = [t for t in range(n_subjects) for _ in range(counts[t]) if t != s]
        centroids = statistic[others].mean(axis=0)
        for r in range(n_regions):
            found[s, r] = np.linalg.norm(centroids - statistic[s, r], axis=1).argmin()
    return found


def test_distances_are_those_to_the_centroids_of_the_others():
    rng = np.random.default_rng(0)
    x = 5 + rng.normal(size=(4, 3, 45))
    got = leave_one_out_distances(gram(x))
    less = x - x.mean(axis=(0, 1))
    x = less / np.sqrt((less**2).mean())
    for s in range(4):
        centroids = np.delete(x, s, axis=0).mean(axis=0)
        direct = ((x[s][:, None] - centroids[None]) ** 2).sum(axis=-1)
        np.testing.assert_allclose(got[s], direct, rtol=1e-10)


@pytest.mark.parametrize("resample", ["both", "subjects", "stimuli"])
def test_bootstrap_equals_resampled_rdms_made_anew(resample):
    rng = np.random.default_rng(1)
    x = regions_with_noise(rng, subjects=5, regions=4, stimuli=12, noise=1.5)
    draws = draw_bootstrap(60, subjects=5, stimuli=12, resample=resample, seed=3)
    got = bootstrap_accuracy(x, draws)
    expected = np.empty_like(got)
    for b, (subjects, stimuli) in enumerate(zip(draws.subjects, draws.stimuli)):
        drawn = np.repeat(np.arange(12), stimuli)
        apart = to_vectors((drawn[:, None] != drawn[None]).astype(float)) > 0
        again = to_vectors(to_matrices(x)[:, :, drawn][:, :, :, drawn])[..., apart]
        expected[b] = (naive_predictions(again, subjects) == np.arange(4)).mean(axis=1)
    assert np.array_equal(got, expected)
    assert len(np.unique(got)) > 3


def test_bootstrap_leaves_given_pairs_out():
    rng = np.random.default_rng(2)
    x = regions_with_noise(rng, subjects=4, regions=3, stimuli=10, noise=1.0)
    pairs = rng.random(45) > 0.4
    draws = draw_bootstrap(40, subjects=4, stimuli=10, resample="subjects", seed=0)
    spoilt = np.where(pairs, x, np.nan)
    got = bootstrap_accuracy(spoilt, draws, pairs=pairs)
    expected = [
        (naive_predictions(x[..., pairs], c) == np.arange(3)).mean(axis=1) for c in draws.subjects
    ]
    assert np.array_equal(got, expected)


def test_draws_have_two_subjects_and_three_stimuli_and_are_whole_subjects():
    """Trap 4: subjects are drawn, with all their regions, and not rows of subjects and regions."""
    draws = draw_bootstrap(500, subjects=3, stimuli=4, resample="both", seed=0)
    assert (draws.subjects.sum(axis=1) == 3).all()
    assert ((draws.subjects > 0).sum(axis=1) >= 2).all()
    assert ((draws.stimuli > 0).sum(axis=1) >= 3).all()
    alone = draw_bootstrap(500, subjects=3, stimuli=4, resample="subjects", seed=0)
    assert np.array_equal(alone.subjects, draws.subjects)
    assert (alone.stimuli == 1).all()


def test_blocks_are_as_large_as_memory_allows_and_change_nothing(monkeypatch):
    rng = np.random.default_rng(15)
    x = regions_with_noise(rng, subjects=4, regions=6, stimuli=12, noise=1.5)
    draws = draw_bootstrap(30, subjects=4, stimuli=12, resample="both", seed=0)
    whole = bootstrap_accuracy(x, draws)
    # Room for 5 of the 21 pairs of regions, and for one sample.
    monkeypatch.setattr("isocortex.topology.identification.BLOCK_ENTRIES", 5 * 66)
    assert np.array_equal(bootstrap_accuracy(x, draws), whole)
    with pytest.raises(ValueError, match="cannot be drawn from 1"):
        draw_bootstrap(10, subjects=1, stimuli=12, resample="both", seed=0)


def test_permutation_equals_regions_shuffled_in_the_data():
    rng = np.random.default_rng(3)
    x = regions_with_noise(rng, subjects=4, regions=3, stimuli=8, noise=1.0)
    orders = draw_permutations(50, subjects=4, regions=3, seed=0)
    accuracy, scores = permutation_accuracy(gram(x), orders, nested=True)
    for b, order in enumerate(orders):
        shuffled = np.take_along_axis(x, order[..., None], axis=1)
        found = naive_predictions(shuffled, np.ones(4, dtype=int))
        assert np.array_equal(accuracy[b], (found == np.arange(3)).mean(axis=1))
        np.testing.assert_allclose(scores[b], nested_scores(gram(shuffled)), atol=1e-5)


def test_nested_scores_never_see_the_subject_left_out():
    """Trap 6: they are the accuracy among the others, whatever the subject itself is."""
    rng = np.random.default_rng(4)
    x = regions_with_noise(rng, subjects=5, regions=3, stimuli=10, noise=1.3)
    scores = nested_scores(gram(x))
    for left in range(5):
        rest = np.delete(x, left, axis=0)
        right = naive_predictions(rest, np.ones(4, dtype=int)) == np.arange(3)
        # The tie-break is at most half a region.
        assert 0 <= scores[left] * 12 - right.sum() <= 0.5
        other = x.copy()
        other[left] = rng.permutation(other[left].ravel()).reshape(other[left].shape)
        assert abs(nested_scores(gram(other))[left] - scores[left]) < 1e-9


def test_sensitivity_and_specificity_equal_counts_one_region_against_the_others():
    rng = np.random.default_rng(12)
    true = np.tile(np.arange(4), 15)
    found = np.where(rng.random(60) < 0.5, true, rng.integers(0, 4, 60))
    confusion = np.zeros((4, 4), dtype=np.int32)
    np.add.at(confusion, (true, found), 1)
    sensitivity, specificity = sensitivity_specificity(confusion)
    for region in range(4):
        is_it, said = true == region, found == region
        assert sensitivity[region] == pytest.approx(said[is_it].mean())
        assert specificity[region] == pytest.approx(1 - said[~is_it].mean())


def test_sets_are_draws_of_one_study_and_are_averaged():
    rng = np.random.default_rng(13)
    sets = np.stack(
        [regions_with_noise(rng, subjects=4, regions=3, stimuli=20, noise=1.5) for _ in range(2)]
    )
    options = TopologyOptions(**FAST)
    statistics = list_statistics(options)
    both, choice = identify(sets, statistics, options, threads=2)
    alone = [identify(sets[k : k + 1], statistics, options) for k in range(2)]
    for name in ("accuracy", "gain", "ratio", "sensitivity", "specificity", "accuracy_subject"):
        expected = np.mean([one[name] for one, _ in alone], axis=0)
        np.testing.assert_allclose(both[name], expected, atol=1e-12)
    assert np.array_equal(both["confusion"], sum(one["confusion"] for one, _ in alone))
    assert np.array_equal(choice, np.concatenate([chosen for _, chosen in alone]))
    # Samples are averaged before their quantiles: narrower than either alone, on the whole.
    width = [(o["accuracy_high"] - o["accuracy_low"]).mean() for o in (both, alone[0][0])]
    assert width[0] < width[1]


def test_two_topologies_are_told_apart():
    """A ring, a line and a spiral of the same stimuli, with subjects' own noise."""
    rng = np.random.default_rng(5)
    angle = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    ring = np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=1)
    line = np.stack([angle / 2, 0 * angle, 0 * angle], axis=1)
    spiral = np.stack([np.cos(2 * angle), np.sin(2 * angle), angle / 3], axis=1)
    x = np.array(
        [
            [pdist(p + 0.35 * rng.normal(size=p.shape)) for p in (ring, line, spiral)]
            for _ in range(6)
        ]
    )
    result = identification_dataset(brain_of(x), TopologyOptions(**{**FAST, "grid_step": 0.25}))
    chosen = result.sel(statistic=["rank_rdm", "rgtm(0.25,0.75)", "rgdm(0.00,0.80)"])
    assert (chosen["accuracy"] >= 0.8).all()
    assert (chosen["p"] < 0.01).all()
    assert (chosen["ratio"] < 1).all()
    assert result["accuracy"].sel(statistic="rgtm(nested)") >= 0.8
    assert result["p"].sel(statistic="rgtm(nested)") < 0.01
    assert result.attrs["chance"] == pytest.approx(1 / 3)
    counts = result["confusion"].sum("predicted")
    assert (counts == 6).all()
    diagonal = np.einsum("srr->s", result["confusion"].values) / 18
    np.testing.assert_allclose(diagonal, result["accuracy"].values)
    np.testing.assert_allclose(
        result["accuracy_subject"].mean("subject").values, result["accuracy"].values
    )
    # As many of every region, so that the mean sensitivity is the accuracy.
    np.testing.assert_allclose(result["sensitivity"].mean("region"), result["accuracy"])
    false = (1 - result["specificity"]).mean("region") * 2
    np.testing.assert_allclose(false, 1 - result["accuracy"], atol=1e-12)
    assert (result["accuracy"].sel(statistic=["adjacency(0.25)", "sigmoid"]) > 0.7).all()


def test_identification_rises_with_signal():
    """The same stimuli and draws of noise, of which less and less is added."""
    found = []
    for noise in (3.0, 1.5, 0.75):
        x = regions_with_noise(
            np.random.default_rng(14), subjects=6, regions=5, stimuli=20, noise=noise
        )
        result = identification_dataset(brain_of(x), TopologyOptions(**FAST))
        found.append(
            result.sel(statistic=["rdm", "rank_rdm", "rgtm(0.00,1.00)", "sigmoid", "rgtm(nested)"])
        )
    accuracy, p = (np.array([result[name] for result in found]) for name in ("accuracy", "p"))
    assert (np.diff(accuracy, axis=0) > 0.1).all()
    assert (p[2] < 0.01).all()
    ratios = np.array([result["ratio"] for result in found])
    assert (np.diff(ratios, axis=0) < 0).all()


def test_gain_differences_are_beaten_by_rank_and_unit_baselines():
    """Trap 7: gain alone lifts an RGTM over the raw RDM, not over the fair baselines."""
    rng = np.random.default_rng(6)
    x = regions_with_noise(rng, subjects=8, regions=5, stimuli=16, noise=1.0, gain=True)
    result = identification_dataset(brain_of(x), TopologyOptions(**FAST))
    accuracy = result["accuracy"].to_series()
    assert accuracy["rank_rdm"] > accuracy["rdm"] + 0.3
    assert accuracy["unit_rdm"] > accuracy["rdm"] + 0.3
    assert accuracy["rgtm(0.00,0.50)"] > accuracy["rdm"]
    gain = result["gain"].to_series()
    assert gain["rank_rdm"] == 0
    assert result["gain_high"].sel(statistic="rdm") < 0


def test_false_positive_rate_is_the_nominal_one():
    """Trap 5: regions that are exchangeable, so that the null holds; single, corrected, nested."""
    rng = np.random.default_rng(7)
    options = TopologyOptions(
        grid_step=0.5, bootstrap_samples=2, permutations=99, geodesic_graphs=()
    )
    studies, p, attainable, corrected, nested = 160, [], [], [], []
    for study in range(studies):
        # What subjects have in common is shared by all regions; nothing is a region's own.
        common = rng.normal(size=(8, 3))
        x = np.array(
            [[pdist(common + rng.normal(size=common.shape)) for _ in range(6)] for _ in range(5)]
        )
        result = identification_dataset(
            brain_of(x), TopologyOptions(**{**vars(options), "seed": study})
        )
        p.append(float(result["p"].sel(statistic="rank_rdm")))
        corrected.append(float(result["p_corrected"].values[:-1].min()))
        nested.append(float(result["p"].sel(statistic="rgtm(nested)")))
        # Accuracies are counts of 30, so that not every level can be attained: which one is?
        orders = draw_permutations(99, subjects=5, regions=6, seed=study)
        null, _ = permutation_accuracy(gram(x), orders, nested=False)
        null = null.mean(axis=1)
        levels = np.array([permutation_p(value, null) for value in np.unique(null)])
        attainable.append(levels[levels <= 0.05].max(initial=0.01))
    for values in (p, corrected, nested):
        assert (np.array(values) <= 0.05).sum() <= binom.ppf(0.995, studies, 0.05)
    low, high = binom.ppf([0.005, 0.995], studies, np.mean(attainable))
    assert low <= (np.array(p) <= 0.05).sum() <= high
    assert abs(np.mean(p) - 0.5) < 0.1


@pytest.mark.parametrize(("subjects", "noise"), [(4, 1.0), (8, 1.5)])
def test_intervals_cover_the_true_accuracy(subjects, noise):
    """New subjects and new stimuli in every study; the truth is the mean over all studies."""
    rng = np.random.default_rng(11)
    found, ends = [], []
    for study in range(80):
        x = regions_with_noise(rng, subjects=subjects, regions=5, stimuli=20, noise=noise)
        draws = draw_bootstrap(100, subjects=subjects, stimuli=20, resample="both", seed=study)
        weights = draws.subjects / draws.subjects.sum(axis=1, keepdims=True)
        samples = (bootstrap_accuracy(x, draws) * weights).sum(axis=1)
        right = leave_one_out_distances(gram(x)).argmin(axis=-1) == np.arange(5)
        found.append(right.mean())
        ends.append(bootstrap_interval(samples, found[-1], interval=0.95, bounds=(0, 1)))
        assert ends[-1][0] <= found[-1] <= ends[-1][1]
    low, high = np.array(ends).T
    truth = np.mean(found)
    covered = ((low <= truth) & (truth <= high)).sum()
    assert covered >= binom.ppf(0.005, 80, 0.95)
    # An interval of everything would cover too.
    assert (high - low).mean() < 0.65


def test_left_out_regions_and_missing_subjects_are_said():
    """Trap 9: gaps and constant RDMs are named with region and subject; one subject is no error."""
    rng = np.random.default_rng(8)
    x = regions_with_noise(rng, subjects=4, regions=4, stimuli=10, noise=0.5)
    x[1, 2, 5] = np.nan
    x[2, 3] = 0.7
    result = identification_dataset(brain_of(x), TopologyOptions(**FAST))
    assert list(result["region"].values) == ["region0", "region1"]
    left = result.attrs["regions_left_out"]
    assert "sub-02" in left["region2"]
    assert "NaN" in left["region2"]
    assert "sub-03" in left["region3"]
    assert "equal" in left["region3"]
    assert np.isfinite(result["accuracy"]).all()
    assert result.attrs["flags"] == [
        f"region {region} is left out of the identification, which needs a usable RDM of all 4 "
        f"subjects: {why}"
        for region, why in left.items()
    ]
    few = identification_dataset(brain_of(x[..., :15]), TopologyOptions(**FAST))
    assert "only subjects are resampled: 6 stimuli, at least 10" in few.attrs["flags"][0]

    alone = identification_dataset(brain_of(x[:1]), TopologyOptions(**FAST))
    assert "at least 2 subjects" in alone.attrs["flag"]
    assert "no identification: it needs at least 2 subjects, has 1" in alone.attrs["flags"]
    assert np.isnan(alone["accuracy"]).all()
    assert (alone["chosen"] == "").all()

    pair = identification_dataset(brain_of(x[[0, 3]][:, :2]), TopologyOptions(**FAST))
    assert pair.attrs["flag"] == ""
    assert np.isfinite(pair["accuracy"].values[:-1]).all()
    assert np.isnan(pair["accuracy"].sel(statistic="rgtm(nested)"))
    assert any("at least 3" in flag and "nested" in flag for flag in pair.attrs["flags"])


def test_of_two_subjects_none_is_resampled():
    """Each sample must hold both: an interval over subjects would have no width at all."""
    rng = np.random.default_rng(20)
    x = regions_with_noise(rng, subjects=2, regions=4, stimuli=12, noise=1.0)
    both = identification_dataset(brain_of(x), TopologyOptions(**FAST))
    assert both.attrs["options"]["resample"] == "stimuli"
    assert "bootstrap samples of stimuli" in both.attrs["methods"]
    stimuli = identification_dataset(brain_of(x), TopologyOptions(**FAST, resample="stimuli"))
    np.testing.assert_array_equal(both["accuracy_low"], stimuli["accuracy_low"])
    subjects = identification_dataset(brain_of(x), TopologyOptions(**FAST, resample="subjects"))
    assert np.isfinite(subjects["accuracy"].values[:-1]).all()
    for name in ("accuracy_low", "accuracy_high", "gain_low", "gain_high"):
        assert np.isnan(subjects[name]).all()
    assert "There are no intervals, which 2 subjects do not give" in subjects.attrs["methods"]
    three = regions_with_noise(rng, subjects=3, regions=4, stimuli=12, noise=1.0)
    enough = identification_dataset(brain_of(three), TopologyOptions(**FAST, resample="subjects"))
    assert np.isfinite(enough["accuracy_low"].values).all()


def test_every_option_is_used():
    rng = np.random.default_rng(9)
    x = regions_with_noise(rng, subjects=4, regions=4, stimuli=12, noise=1.6, gain=True)
    base = {**FAST, "geodesic_graphs": ["twostep", "p_shortest", "k_nearest"], "grid_step": 0.25}
    base["geodesic_fraction"] = 0.2
    reference = identification_dataset(brain_of(x), TopologyOptions(**base))
    for change in (
        {"scale": "raw"},
        {"threshold": "absolute", "scale": "raw"},
        {"pool": "all", "scale": "raw"},
        {"statistics": ["rgtm"]},
        {"sigmoid_slope": 3.0},
        {"sigmoid_centre": 0.2},
        {"geodesic_lower": 0.4},
        {"geodesic_upper": 0.5},
        {"geodesic_fraction": 0.4},
        {"geodesic_neighbours": 2},
        {"disconnected": "exclude"},
        {"resample": "stimuli"},
        {"bootstrap_samples": 150},
        {"permutations": 150},
        {"interval": 0.5},
        {"seed": 1},
    ):
        other = identification_dataset(brain_of(x), TopologyOptions(**{**base, **change}))
        same = (
            other.drop_attrs()
            .drop_vars("statistic")
            .equals(reference.drop_attrs().drop_vars("statistic"))
        )
        assert not same, change


def test_stage_writes_its_store_the_same_bytes_each_time(tmp_path):
    rng = np.random.default_rng(10)
    x = regions_with_noise(rng, subjects=3, regions=3, stimuli=10, noise=0.5)
    paths = write_rdms(tmp_path, x)
    digests = []
    for name, threads in (("a", 1), ("b", 2)):
        out = tmp_path / f"{name}.zarr"
        identify_regions(rdms=paths, out=out, threads=threads, **FAST)
        digests.append(store.manifest(out)["content"])
    assert digests[0] == digests[1]
    got = store.open(tmp_path / "a.zarr", "identification")
    direct = identification_dataset(brain_of(x), TopologyOptions(**FAST))
    np.testing.assert_array_equal(got["accuracy"].values, direct["accuracy"].values)
    assert got.attrs["options"]["grid_step"] == 0.5
    with pytest.raises(InputError, match="geodesic_neighbours"):
        identify_regions(
            rdms=paths,
            out=tmp_path / "c.zarr",
            geodesic_graphs=["k_nearest"],
            geodesic_neighbours=10,
        )
    with pytest.raises(TypeError):
        identify_regions(rdms=paths, out=tmp_path / "c.zarr", thresholds="quantile")
    identify_regions(rdms=paths[:1], out=tmp_path / "one.zarr", **FAST)
    one = store.open(tmp_path / "one.zarr", "identification")
    assert "at least 2 subjects" in one.attrs["flag"]
