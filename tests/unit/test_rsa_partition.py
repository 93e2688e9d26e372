"""Shares of variance and partial correlations against least squares and closed forms."""

import runpy
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats
from scipy.stats import rankdata

from isocortex import store
from isocortex.errors import InputError
from isocortex.rsa import correlate
from isocortex.rsa.partition import (
    choose_models,
    commonality,
    partition_correlations,
    partition_models,
    partition_statistics,
    subsets,
)
from isocortex.rsa.permutation import draw_orders
from isocortex.rsa.rdms import ModelRDMs
from tests.unit.rdm_study_files import rdm_of, write_rdms

N = 14
PAIRS = N * (N - 1) // 2
MEMBERS = [[0], [1, 2], [3], [4]]


def _data(seed=0, subjects=3):
    rng = np.random.default_rng(seed)
    models = rng.random((5, PAIRS)) + 0.5 * rng.random(PAIRS)
    brain = rng.random((subjects, PAIRS)) + 0.4 * models[0] + 0.3 * models[3]
    return models, brain


def _r2(columns, y):
    """Share of variance by least squares with an intercept."""
    x = np.column_stack([np.ones(len(y)), *columns])
    residual = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
    return 1 - residual.var() / y.var()


def _residual(columns, y):
    x = np.column_stack([np.ones(len(y)), *columns])
    return y - x @ np.linalg.lstsq(x, y, rcond=None)[0]


@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("comparison", ["pearson", "spearman"])
def test_parts_equal_differences_of_least_squares(comparison, n):
    models, brain = _data()
    members = MEMBERS[:n]
    used = [row for rows in members for row in rows]
    models = models[used]
    found = partition_correlations(
        correlate(models, models, comparison=comparison),
        correlate(models, brain, comparison=comparison),
        members,
    )
    if comparison == "spearman":
        models, brain = rankdata(models, axis=1), rankdata(brain, axis=1)
    for s, y in enumerate(brain):
        r2 = {
            part: _r2([models[row] for k in part for row in members[k]], y) for part in subsets(n)
        }
        assert found["total"][s] == pytest.approx(r2[tuple(range(n))], abs=1e-9)
        # Inclusion and exclusion, written the other way round: what a set of models explains is
        # the sum of all parts that one of them is in.
        parts = dict(zip(subsets(n), found["variance"][:, s]))
        for chosen, value in r2.items():
            total = sum(v for part, v in parts.items() if set(part) & set(chosen))
            assert total == pytest.approx(value, abs=1e-9)
        for k in range(n):
            others = [models[row] for m in range(n) if m != k for row in members[m]]
            without = _r2(others, y)
            added = r2[tuple(range(n))] - without
            assert parts[(k,)] == pytest.approx(added, abs=1e-9)
            if len(members[k]) == 1:
                own = models[members[k][0]]
                partial = stats.pearsonr(_residual(others, own), _residual(others, y))[0]
                # The inverse of the correlation matrix gives the same (pingouin's way).
                inverse = np.linalg.inv(np.corrcoef(np.array([y, own, *others])))
                closed = -inverse[0, 1] / np.sqrt(inverse[0, 0] * inverse[1, 1])
                assert partial == pytest.approx(closed, abs=1e-9)
                assert found["partial"][k, s] == pytest.approx(closed, abs=1e-9)
                semi = stats.pearsonr(_residual(others, own), y)[0]
                assert found["semipartial"][k, s] == pytest.approx(semi, abs=1e-9)
            else:
                assert found["partial"][k, s] == pytest.approx(np.sqrt(added / (1 - without)))


def test_two_models_in_closed_form():
    r2 = {(0,): np.array(0.5), (1,): np.array(0.4), (0, 1): np.array(0.6)}
    np.testing.assert_allclose(commonality(r2, 2), [0.2, 0.1, 0.3])
    assert subsets(3) == [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]


def test_two_equal_models_share_everything():
    models, brain = _data()
    twice = models[[0, 0]]
    found = partition_correlations(correlate(twice, twice), correlate(twice, brain), [[0], [1]])
    alone = correlate(models[:1], brain)[0] ** 2
    np.testing.assert_allclose(found["variance"], [0 * alone, 0 * alone, alone], atol=1e-6)


def _statistics(models, brain, members, **options):
    given = {
        "comparison": "pearson",
        "over": "subjects",
        "samples": 200,
        "permutations": 99,
        "seed": 0,
    }
    return partition_statistics(brain, models, members, **(given | options))


def test_bootstrap_equals_least_squares_on_repeated_rows():
    """The interval over stimuli is that of shares computed anew on each sample's pairs."""
    models, brain = _data()
    found = _statistics(models[:2], brain[:, None], [[0], [1]], over="stimuli", samples=40)
    rng = np.random.default_rng(0)
    rng.integers(0, 3, size=(40, 3))
    drawn = rng.integers(0, N, size=(40, N))
    lookup = np.zeros((N, N), int)
    lookup[np.triu_indices(N, 1)] = np.arange(PAIRS)
    lookup += lookup.T
    shares = []
    for ids in drawn:
        i, j = np.triu_indices(N, 1)
        i, j = ids[i], ids[j]
        pairs = lookup[i, j][i != j]
        a, b = models[0, pairs], models[1, pairs]
        rows = [
            (_r2([a, b], y) - _r2([b], y), _r2([a, b], y) - _r2([a], y)) for y in brain[:, pairs]
        ]
        shares.append(np.mean(rows, axis=0))
    error = np.std(shares, axis=0, ddof=1) * np.sqrt(N / (N - 1))
    half = stats.t.ppf(0.975, N - 1) * error
    np.testing.assert_allclose(
        found["interval_high"][:2, 0] - found["mean"][:2, 0], half, rtol=1e-6
    )


def test_permutation_of_one_model_leaves_the_others():
    """p-values of one model's part by hand: what is left of its RDM, re-ordered."""
    models, brain = _data(seed=4)
    found = _statistics(models[[0, 3]], brain[:, None], [[0], [1]], permutations=60)
    orders = draw_orders(N, 60, seed=0)
    left = np.zeros((N, N))
    left[np.triu_indices(N, 1)] = _residual([models[3]], models[0])
    left = left + left.T
    means = []
    for order in orders:
        own = left[np.ix_(order, order)][np.triu_indices(N, 1)]
        own = _residual([models[3]], own)
        r = [np.corrcoef(own, _residual([models[3]], y))[0, 1] for y in brain]
        means.append(np.mean(r))
    wanted = np.mean(np.array(means) >= means[0] - 1e-12)
    assert found["partial_p_permutation"][0, 0] == pytest.approx(wanted)
    assert found["p_permutation"][0, 0] == pytest.approx(wanted)


def test_subjects_without_a_region_pairs_without_values_and_one_subject():
    models, brain = _data(subjects=5)
    brain = np.stack([brain, brain[::-1]], axis=1).copy()
    brain[2, 0] = np.nan
    brain[:, 1, [2, 30]] = np.nan
    found = _statistics(models[:3], brain, [[0], [1, 2]], over="both", comparison="spearman")
    assert np.isnan(found["variance"][:, 0, 2]).all()
    np.testing.assert_allclose(found["variance"].sum(axis=0), found["total"])
    gaps = np.delete(np.arange(PAIRS), [2, 30])
    wanted = _r2(rankdata(models[:3, gaps], axis=1), rankdata(brain[0, 1, gaps]))
    assert found["total"][1, 0] == pytest.approx(wanted)
    assert np.isfinite(found["p"][[0, 2]]).all()
    assert np.isnan(found["p"][1]).all(), "a model of two layers has no subject test"
    assert np.isfinite(found["p_permutation"]).all()
    one = _statistics(models[:3], brain[:1, :1], [[0], [1, 2]], over="stimuli")
    assert np.isnan(one["p"]).all()
    assert np.isfinite(one["interval_low"]).all()


def test_any_number_of_threads_gives_the_same():
    models, brain = _data()
    runs = [
        _statistics(models, brain[:, None], MEMBERS, over="both", threads=threads)
        for threads in (1, 2)
    ]
    for key, value in runs[0].items():
        np.testing.assert_array_equal(value, runs[1][key])


def test_permutations_of_many_layers_stay_in_blocks():
    rng = np.random.default_rng(5)
    models, brain = rng.random((40, 1770)), rng.random((2, 1, 1770))
    tracemalloc.start()
    members = [list(range(20)), list(range(20, 40))]
    _statistics(models, brain, members, over="subjects", samples=10, permutations=100)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * 100 * models.nbytes


def test_models_and_layers_by_name():
    models = ModelRDMs(
        np.zeros((3, 6)), ("net/a", "net/b", "one/x"), ("net", "net", "one"), ("a", "b", "x"), ()
    )
    assert choose_models(models, ["net", "one/x"]) == [[0, 1], [2]]
    assert choose_models(models, ["net/b", "net/a", "one"]) == [[1], [0], [2]]
    with pytest.raises(InputError, match=r"net/b is in two of net, net/b: name it once"):
        choose_models(models, ["net", "net/b"])
    with pytest.raises(InputError, match=r"there is no 'net/c'"):
        choose_models(models, ["net/c", "one"])
    with pytest.raises(InputError, match=r"names 1: name 2 to 4"):
        choose_models(models, ["net"])


def _run(tmp_path, **options):
    """Run the rule's script on stores; return the store."""
    given = write_rdms(tmp_path)
    chosen = {
        "models": ["net/l0", "net/l1", "net/l2"],
        "comparison": "pearson",
        "bootstrap": {"samples": 100},
        "permutations": 99,
        "interval": 0.9,
    }
    job = SimpleNamespace(
        input=SimpleNamespace(rdms=given["rdms"], model_rdms=given["model_rdms"]),
        output=SimpleNamespace(store=str(tmp_path / "partition.zarr")),
        params=SimpleNamespace(options=chosen | options, seed=1, code="code"),
        wildcards=SimpleNamespace(task="all", measure="given"),
        log=[str(tmp_path / "log.txt")],
        threads=2,
    )
    script = Path(__file__).parents[2] / "workflow" / "partition_models.py"
    runpy.run_path(str(script), init_globals={"snakemake": job}, run_name="__main__")
    return store.open(tmp_path / "partition.zarr", "partition").load(), given


def test_store(tmp_path):
    found, given = _run(tmp_path)
    assert list(found["part"].values) == [
        "net/l0",
        "net/l1",
        "net/l2",
        "net/l0+net/l1",
        "net/l0+net/l2",
        "net/l1+net/l2",
        "net/l0+net/l1+net/l2",
    ]
    assert found.attrs["bootstrap"] == "both"
    assert found.attrs["interval_level"] == 0.9
    np.testing.assert_allclose(found["variance"].sum("part"), found["total"])
    early, late = found.sel(region="early"), found.sel(region="late")
    assert float(early["p_fwe"].sel(part="net/l0")) < 0.05
    assert float(early["p_fwe"].sel(part="net/l2")) > 0.05
    assert float(late["partial_p_permutation"].sel(model="net/l2")) == 0.01
    assert (found["interval_low"] < found["mean"]).all()
    brain = np.array([store.open(p, "rdms")["dissimilarity"].values for p in given["rdms"]])
    models = store.open(given["model_rdms"][0], "model_rdms")["dissimilarity"].values
    wanted = _r2(models, brain[3, 0])
    assert float(early["total"].sel(subject="03")) == pytest.approx(wanted, abs=1e-9)


def test_store_of_whole_models_says_what_is_not_tested(tmp_path):
    with pytest.raises(SystemExit):
        _run(tmp_path / "a", models=["net", "net/l0"])
    assert "net/l0 is in two of net, net/l0" in (tmp_path / "a" / "log.txt").read_text()
    given = write_rdms(tmp_path / "b", constant=True)
    with pytest.raises(InputError, match="the RDM of net/l1 is constant"):
        partition_models(**given, models=["net/l0", "net/l1"])


def _study(rng, *, shared=0.7, own=0.0, subjects=8, n=12):
    """Model a is like model b; the brain has ``shared`` of b and ``own`` of what only a has."""
    common, only = rng.standard_normal((2, n, 20))
    a, b = rdm_of(np.c_[common, only]), rdm_of(common)
    noise = np.array([rdm_of(rng.standard_normal((n, 20))) for _ in range(subjects)])
    return np.array([a, b]), (shared * b + own * rdm_of(only) + noise)[:, None]


def _rate_within(hits, studies, level=0.05):
    low, high = stats.binom.ppf([0.005, 0.995], studies, level)
    return low <= hits <= high


def _rates(keys, rng, studies, **effects):
    """Share of simulated studies in which each p-value, (array, row), is below .05."""
    hits = dict.fromkeys(keys, 0)
    for k in range(studies):
        found = _statistics(*_study(rng, **effects), [[0], [1]], samples=100, seed=k)
        for key, row in keys:
            hits[key, row] += found[key][row, 0] < 0.05
    return hits


def test_false_positive_rate_and_power_of_one_models_part():
    """b explains the brain and a is correlated with it; a adds nothing: P(p < .05) is .05."""
    keys = [("p", 0), ("partial_p", 0), ("p_permutation", 0)]
    hits = _rates(keys, np.random.default_rng(5), 400)
    assert all(_rate_within(count, 400) for count in hits.values()), hits
    power = _rates(keys, np.random.default_rng(6), 50, own=0.3)
    assert min(power.values()) > 40, power


def test_false_positive_rate_and_power_of_a_shared_part():
    """The brain has nothing of models that have much of one another."""
    keys = [("p", 2), ("p_permutation", 2)]
    hits = _rates(keys, np.random.default_rng(7), 400, shared=0.0)
    assert all(_rate_within(count, 400) for count in hits.values()), hits
    power = _rates(keys, np.random.default_rng(8), 50, shared=0.7)
    assert min(power.values()) > 40, power
