"""Summary statistics against rsatoolbox, networkx, scipy and closed forms, and every known trap."""

from functools import partial

import networkx as nx
import numpy as np
import pytest
from rsatoolbox.rdm import RDMs
from rsatoolbox.rdm.transform import (
    geodesic_transform,
    geotopological_transform,
    minmax_transform,
    rank_transform,
)
from scipy.sparse import csgraph
from scipy.spatial.distance import pdist
from scipy.stats import rankdata

from isocortex.errors import InputError
from isocortex.rsa.rdms import to_matrices, to_vectors
from isocortex.rsa.transforms import parse_transform, ranks, threshold_values
from isocortex.topology import (
    SummarySet,
    TopologyOptions,
    adjacency,
    family,
    list_statistics,
    rank_rdm,
    rgdm,
    rgtm,
    shortest_paths,
    sigmoid_gt,
    threshold_grid,
    unit_rdm,
)

PAPER = {"scale": "rank", "threshold": "quantile", "pool": "rdm"}
TOOLBOX = {"scale": "raw", "threshold": "quantile", "pool": "all"}


@pytest.fixture
def rdms() -> np.ndarray:
    rng = np.random.default_rng(1)
    return np.stack([pdist(rng.normal(size=(12, 3))) for _ in range(5)])


def peer(rdms: np.ndarray) -> RDMs:
    return RDMs(rdms.copy())


def test_rgtm_equals_rsatoolbox(rdms):
    theirs = geotopological_transform(peer(rdms), 0.2, 0.8).get_vectors()
    np.testing.assert_allclose(rgtm(rdms, 0.2, 0.8, **TOOLBOX), theirs, atol=1e-12)


def test_ramp_values_above_a_small_upper_threshold_stay_what_they_are(rdms):
    """rsatoolbox overwrites the ramp in place: with u at .4, everything over .4 becomes 1 there."""
    small = 0.1 * rdms
    ours = rgtm(small, 0.2, 0.8, **TOOLBOX)
    np.testing.assert_allclose(ours, rgtm(rdms, 0.2, 0.8, **TOOLBOX), atol=1e-12)
    theirs = geotopological_transform(peer(small), 0.2, 0.8).get_vectors()
    wrong = np.abs(ours - theirs) > 1e-9
    assert wrong.any()
    assert (theirs[wrong] == 1).all()


def test_rank_and_minmax_equal_rsatoolbox(rdms):
    tied = np.round(rdms, 1)
    theirs = minmax_transform(rank_transform(peer(tied))).get_vectors()
    np.testing.assert_allclose(rank_rdm(tied), theirs, atol=1e-12)


def test_rgtm_of_a_line_by_hand():
    # Ranks of 0..10 scaled to 0..1 are k / 10; thresholds .2 and .8 as quantiles and values agree.
    d = np.arange(10.0)[None] ** 3
    x = np.arange(10) / 9
    by_hand = np.clip((x - 0.2) / 0.6, 0, 1)[None]
    for threshold in ("quantile", "absolute"):
        got = rgtm(d, 0.2, 0.8, scale="rank", threshold=threshold, pool="rdm")
        np.testing.assert_allclose(got, by_hand, atol=1e-12)
    got = rgtm(d, 8.0, 64.0, scale="raw", threshold="absolute", pool="rdm")
    np.testing.assert_allclose(got[0], [0, 0, 0, 19 / 56, 1, 1, 1, 1, 1, 1], atol=1e-12)


def test_rgtm_0_1_is_the_rank_rdm_on_ranks_and_the_minmax_rdm_on_raw(rdms):
    np.testing.assert_allclose(rgtm(rdms, 0, 1, **PAPER), rank_rdm(rdms), atol=1e-12)
    raw = rgtm(rdms, 0, 1, scale="raw", threshold="quantile", pool="rdm")
    np.testing.assert_allclose(raw, minmax_transform(peer(rdms)).get_vectors(), atol=1e-12)
    assert np.abs(raw - rank_rdm(rdms)).max() > 0.05


def test_the_three_estimators_differ(rdms):
    skewed = rdms**3 * np.arange(1, 6)[:, None]
    results = [
        rgtm(skewed, 0.2, 0.6, scale=s, threshold=t, pool=p)
        for s, t, p in (
            ("rank", "quantile", "rdm"),
            ("raw", "quantile", "rdm"),
            ("raw", "quantile", "all"),
            ("raw", "absolute", "rdm"),
        )
    ]
    for a in range(4):
        for b in range(a):
            assert np.abs(results[a] - results[b]).max() > 0.05


def test_unit_rdm_has_norm_1_and_no_gain(rdms):
    np.testing.assert_allclose(np.linalg.norm(unit_rdm(rdms), axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(unit_rdm(rdms * 7.5), unit_rdm(rdms), atol=1e-12)


def test_adjacency_is_the_limit_of_the_rgtm_and_equal_thresholds_divide_nothing(rdms):
    """Trap 9: l = u."""
    limit = rgtm(rdms, 0.3, 0.3 + 1e-9, **PAPER)
    with np.errstate(all="raise"):
        graph = adjacency(rdms, 0.3, **PAPER)
        assert np.array_equal(graph, rgtm(rdms, 0.3, 0.3, **PAPER))
    np.testing.assert_allclose(graph, limit, atol=1e-6)
    assert set(np.unique(graph)) == {0.0, 1.0}
    # .3 of 66 pairs: quantile at position 19.5, so 20 pairs are neighbours.
    assert ((graph == 0).sum(axis=1) == 20).all()


def test_many_ties_between_two_levels_divide_nothing():
    d = np.array([[1.0, 2, 2, 2, 2, 2, 2, 2, 2, 3]])
    with np.errstate(all="raise"):
        got = rgtm(d, 0.3, 0.6, scale="raw", threshold="quantile", pool="rdm")
    assert np.array_equal(got, [[0, 0, 0, 0, 0, 0, 0, 0, 0, 1]])


def test_sigmoid_by_hand():
    d = np.array([[2.0, 3.0, 4.0]])
    expected = 1 / (1 + np.exp([5.0, 0.0, -5.0]))
    np.testing.assert_allclose(sigmoid_gt(d, scale="raw"), expected[None], atol=1e-12)


def test_pooled_quantiles_couple_rdms_and_their_own_do_not(rdms):
    """Trap 3: adding an RDM on another scale changes the others' pooled RGTM."""
    more = np.concatenate([rdms, 100 * rdms[:1]])
    alone, pooled = (
        {"scale": "raw", "threshold": "quantile", "pool": pool} for pool in ("rdm", "all")
    )
    assert np.array_equal(rgtm(rdms, 0.2, 0.8, **alone), rgtm(more, 0.2, 0.8, **alone)[:5])
    assert np.abs(rgtm(rdms, 0.2, 0.8, **pooled) - rgtm(more, 0.2, 0.8, **pooled)[:5]).max() > 0.05


def test_nothing_is_changed_in_place(rdms):
    """Trap 3, too: the caller's RDMs stay."""
    before = rdms.copy()
    for scale in ("rank", "raw"):
        options = {"scale": scale, "threshold": "quantile", "pool": "rdm"}
        rgtm(rdms, 0.2, 0.8, **options)
        for graph in ("twostep", "p_shortest", "p_nearest", "k_nearest"):
            rgdm(rdms, graph=graph, **options)
    rank_rdm(rdms), unit_rdm(rdms), sigmoid_gt(rdms, scale="raw")
    weights = to_matrices(rdms)
    squares = weights.copy()
    shortest_paths(weights)
    assert np.array_equal(rdms, before)
    assert np.array_equal(weights, squares)


def test_bad_rdms_and_options_are_refused(rdms):
    gap = rdms.copy()
    gap[2, 3] = np.nan
    sigmoid = partial(sigmoid_gt, scale="raw")
    for function in (unit_rdm, rank_rdm, sigmoid, lambda d: rgtm(d, 0.2, 0.8, **TOOLBOX)):
        with pytest.raises(ValueError, match="NaN"):
            function(gap)
    for function in (rank_rdm, sigmoid, lambda d: rgtm(d, 0.2, 0.8, **PAPER)):
        with pytest.raises(ValueError, match="equal"):
            function(np.ones((1, 66)))
    with pytest.raises(ValueError, match="zero"):
        unit_rdm(np.zeros((1, 66)))
    with pytest.raises(ValueError, match="swap"):
        rgtm(rdms, 0.8, 0.2, **PAPER)
    with pytest.raises(ValueError, match="scale"):
        rgtm(rdms, 0.2, 0.8, scale="Rank", threshold="quantile", pool="rdm")
    with pytest.raises(ValueError, match="neighbours"):
        rgdm(rdms, graph="k_nearest", neighbours=12, **PAPER)


def networkx_paths(weights: np.ndarray) -> np.ndarray:
    """Exact reference: every finite edge is added by name, zeros too."""
    graph = nx.Graph()
    graph.add_nodes_from(range(len(weights)))
    for i, j in zip(*np.triu_indices(len(weights), 1)):
        if np.isfinite(weights[i, j]):
            graph.add_edge(int(i), int(j), weight=float(weights[i, j]))
    lengths = dict(nx.all_pairs_dijkstra_path_length(graph))
    out = np.full(weights.shape, np.inf)
    for i, row in lengths.items():
        for j, value in row.items():
            out[i, j] = value
    return out


def test_shortest_paths_equal_networkx_and_scipy_with_zero_edges_and_parts():
    rng = np.random.default_rng(2)
    batch = to_matrices(np.maximum(rng.random((8, 91)) - 0.15, 0))
    batch[batch > 0.35] = np.inf
    batch[3, 5, :] = batch[3, :, 5] = np.inf
    ours = shortest_paths(batch)
    assert np.isinf(ours).any()
    for weights, got in zip(batch, ours):
        np.testing.assert_allclose(got, networkx_paths(weights), atol=1e-12)
        explicit = csgraph.csgraph_from_dense(weights, null_value=np.inf)
        theirs = csgraph.floyd_warshall(explicit, directed=False)
        np.testing.assert_allclose(got, theirs, atol=1e-12)
    with pytest.raises(ValueError, match="weights"):
        shortest_paths(-np.ones((3, 3)))


@pytest.mark.parametrize("graph", ["twostep", "p_shortest", "p_nearest", "k_nearest"])
@pytest.mark.parametrize("tied", [False, True])
def test_geodesics_equal_exact_paths_on_graphs_made_edge_by_edge(graph, tied):
    rng = np.random.default_rng(7)
    rdms = np.stack([pdist(rng.normal(size=(16, 3))) for _ in range(4)])
    if tied:
        rdms = np.round(rdms)  # a handful of values, so that most pairs tie, many at the threshold
    options = {"scale": "raw", "threshold": "quantile", "pool": "rdm", "disconnected": "exclude"}
    got = rgdm(rdms, graph=graph, lower=0.1, upper=0.6, fraction=0.2, neighbours=3, **options)
    for d, found in zip(rdms, got):
        matrix = to_matrices(d)
        weights = np.full((16, 16), np.inf)
        for i in range(16):
            others = np.delete(matrix[i], i)
            if graph == "twostep":
                low, high = np.quantile(d, [0.1, 0.6])
                x = np.clip((matrix[i] - low) / (high - low), 0, 1)
                near = x < 1
            else:
                x = matrix[i]
                reach = {
                    "p_shortest": np.quantile(d, 0.2),
                    "p_nearest": np.sort(others)[2],  # a fifth of 15
                    "k_nearest": np.sort(others)[2],
                }[graph]
                near = x <= reach
            for j in np.flatnonzero(near):
                weights[i, j] = weights[j, i] = x[j]
        expected = to_vectors(networkx_paths(weights))
        assert np.array_equal(np.isnan(found), np.isinf(expected))
        joined = np.isfinite(expected)
        np.testing.assert_allclose(found[joined], expected[joined], atol=1e-12)


def test_zero_weight_edges_are_edges():
    """Trap 1: 14 of 66 pairs lie below l = .2; the peers lose those edges."""
    rng = np.random.default_rng(3)
    d = pdist(rng.normal(size=(12, 3)))[None]
    weights = rgtm(d, 0.2, 0.8, **PAPER)
    near = weights == 0
    assert near.sum() == 14
    got = rgdm(d, graph="twostep", lower=0.2, upper=0.8, **PAPER)
    assert (got[near] == 0).all()
    dropped = csgraph.floyd_warshall(to_matrices(np.where(weights < 1, weights, 0))[0])
    assert (to_vectors(dropped)[near[0]] > 0.1).any()  # what a graph library makes of it


def test_geodesic_equals_rsatoolbox_but_for_the_edge_that_it_loses(rdms):
    """RGTM(0,1) on raw, two-step, is rsatoolbox's geodesic; it drops the one zero edge."""
    theirs = geodesic_transform(peer(rdms)).get_vectors()
    weights = rgtm(rdms, 0, 1, scale="raw", threshold="quantile", pool="rdm")
    lossy = np.where((weights == 0) | (weights == 1), np.inf, weights)
    np.testing.assert_allclose(to_vectors(shortest_paths(to_matrices(lossy))), theirs, atol=1e-12)
    ours = rgdm(
        rdms, graph="twostep", lower=0, upper=1, scale="raw", threshold="quantile", pool="rdm"
    )
    assert (ours <= theirs + 1e-12).all()
    assert (ours[weights == 0] == 0).all()
    assert (theirs[weights == 0] > 0).all()


@pytest.mark.parametrize("graph", ["twostep", "p_shortest", "p_nearest", "k_nearest"])
@pytest.mark.parametrize("scale", ["rank", "raw"])
def test_geodesics_do_not_depend_on_the_order_of_the_stimuli(graph, scale):
    """Trap 2, with ties, where the order shows first."""
    rng = np.random.default_rng(4)
    d = np.round(pdist(rng.normal(size=(14, 2))), 1)[None]
    order = rng.permutation(14)
    shuffled = to_vectors(to_matrices(d)[:, order][:, :, order])
    options = {"graph": graph, "neighbours": 3, "fraction": 0.2, "scale": scale}
    options |= {"threshold": "quantile", "pool": "rdm"}
    expected = to_vectors(to_matrices(rgdm(d, **options))[:, order][:, :, order])
    np.testing.assert_allclose(rgdm(shuffled, **options), expected, atol=1e-12)


def test_k_nearest_joins_both_ways_and_p_nearest_counts_the_others():
    # Points 0, 1, 3, 7 on a line: nearest neighbours 0-1, 1-0, 3-1, 7-3; 3 is not near 7's choice.
    points = np.array([[0.0], [1], [3], [7]])
    options = {"scale": "raw", "threshold": "quantile", "pool": "rdm"}
    got = rgdm(pdist(points)[None], graph="k_nearest", neighbours=1, **options)
    np.testing.assert_allclose(got, [[1, 3, 7, 2, 6, 4]], atol=1e-12)
    same = rgdm(pdist(points)[None], graph="p_nearest", fraction=1 / 3, **options)
    np.testing.assert_allclose(same, got, atol=1e-12)


def test_p_shortest_keeps_the_shortest_edges():
    points = np.array([[0.0], [1], [3], [7]])
    options = {"scale": "raw", "threshold": "quantile", "pool": "rdm", "graph": "p_shortest"}
    got = rgdm(pdist(points)[None], fraction=0.4, **options)  # edges of length 1, 2 and 3
    # 7 is apart: largest finite path 3 and the longest edge 3 make 6.
    np.testing.assert_allclose(got, [[1, 3, 6, 2, 6, 6]], atol=1e-12)
    gone = rgdm(pdist(points)[None], fraction=0.4, disconnected="exclude", **options)
    assert np.array_equal(np.isnan(gone), [[0, 0, 1, 0, 1, 1]])


def test_disconnected_pairs_of_a_twostep_graph_are_one_step_of_1_further():
    """Trap 8: two clusters far apart."""
    points = np.array([[0.0], [1], [2.5], [100], [101], [102.6]])
    options = {"lower": 0.1, "upper": 0.4, **PAPER}
    got = rgdm(pdist(points)[None], **options)[0]
    gone = rgdm(pdist(points)[None], disconnected="exclude", **options)[0]
    apart = np.isnan(gone)
    assert apart.sum() == 9
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got[apart], np.nanmax(gone) + 1, atol=1e-12)
    np.testing.assert_allclose(got[~apart], gone[~apart], atol=1e-12)


def test_negative_crossvalidated_dissimilarities_make_no_negative_paths(rdms):
    d = rdms - np.median(rdms)
    got = rgdm(d, graph="k_nearest", neighbours=4, scale="raw", threshold="quantile", pool="rdm")
    assert (got >= 0).all()


def test_zero_edges_chain_up():
    """Why l is 0 by default: from l = log(N) / N on, chains of zero edges join nearly all pairs."""
    rng = np.random.default_rng(5)
    d = pdist(rng.normal(size=(60, 4)))[None]
    shares = [(rgdm(d, lower=low, upper=0.8, **PAPER) == 0).mean() for low in (0.0, 0.02, 0.2)]
    assert shares[0] < 0.001
    assert shares[1] < 0.2
    assert shares[2] > 0.8


def test_grid_and_families():
    assert len(threshold_grid(0.05)) == 210
    assert len(threshold_grid(0.1)) == 55
    assert threshold_grid(0.5) == [(0, 0.5), (0, 1), (0.5, 1)]
    with pytest.raises(ValueError, match="divide"):
        threshold_grid(0.3)
    expected = {
        (0.1, 0.3): "local",
        (0.05, 0.35): "local",
        (0.0, 0.4): "local",
        (0.7, 0.9): "global",
        (0.1, 0.9): "geometry",
        (0.15, 0.95): "geometry",
        (0.0, 1.0): "geometry",
        (0.4, 0.6): "topology",
        (0.45, 0.5): "topology",
        (0.2, 0.8): "intermediate",
        (0.3, 0.5): "intermediate",
    }
    assert {pair: family(*pair) for pair in expected} == expected


def test_options_name_the_key_and_what_to_do():
    for bad, text in (
        ({"grid_step": 0.3}, "grid step"),
        ({"scale": "ranks"}, "scale"),
        ({"geodesic_graphs": ["nearest"]}, "geodesic_graphs"),
        ({"disconnected": "inf"}, "disconnected"),
        ({"statistics": ["rgdm"]}, "statistics"),
        ({"comparison": "cosine"}, "comparison"),
        ({"sigmoid_slope": 0.0}, "sigmoid_slope"),
        ({"geodesic_lower": 0.9}, "geodesic_lower"),
        ({"geodesic_upper": 2.0}, "quantiles"),
        ({"geodesic_fraction": 0.0}, "geodesic_fraction"),
        ({"interval": 1.0}, "interval"),
        ({"resample": "all"}, "resample"),
    ):
        with pytest.raises(InputError, match=text):
            TopologyOptions(**bad)
    with pytest.raises(TypeError):
        TopologyOptions(gird_step=0.1)


def test_defaults_and_keys_are_those_of_the_schema(root):
    import json
    from dataclasses import asdict

    schema = json.loads((root / "workflow/schemas/config/trsa.json").read_text())
    defaults = {
        key: value["default"]
        for key, value in schema["properties"].items()
        if value["type"] != "object"  # the optional parts have rules of their own
    }
    ours = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(TopologyOptions()).items()}
    assert ours.pop("seed") == 0  # the study's, not the section's
    assert ours == defaults


def test_statistics_are_named_once_each():
    graphs = ["twostep", "p_shortest", "p_nearest", "k_nearest"]
    names = [s.name for s in list_statistics(TopologyOptions(geodesic_graphs=graphs))]
    assert len(set(names)) == len(names) == 3 + 55 + 9 + 1 + 4
    assert names[58:60] == ["adjacency(0.10)", "adjacency(0.20)"]
    assert names[67] == "sigmoid"
    assert names[:4] == ["rdm", "rank_rdm", "unit_rdm", "rgtm(0.00,0.10)"]
    assert names[-4:] == [
        "rgdm(0.00,0.80)",
        "rgdm(p_shortest,0.05)",
        "rgdm(p_nearest,0.05)",
        "rgdm(k_nearest,5)",
    ]


@pytest.mark.parametrize("scale", ["rank", "raw"])
def test_every_statistic_of_a_set_is_the_function_of_its_name(rdms, scale):
    options = TopologyOptions(
        grid_step=0.25,
        scale=scale,
        sigmoid_slope=6.0,
        sigmoid_centre=0.4,
        geodesic_graphs=["twostep", "k_nearest"],
    )
    estimator = {**PAPER, "scale": scale}
    found = SummarySet(rdms, options)
    names = {statistic.name: statistic for statistic in list_statistics(options)}
    for name, expected in (
        ("rdm", rdms),
        ("rank_rdm", rank_rdm(rdms)),
        ("unit_rdm", unit_rdm(rdms)),
        ("rgtm(0.25,0.75)", rgtm(rdms, 0.25, 0.75, **estimator)),
        ("adjacency(0.25)", adjacency(rdms, 0.25, **estimator)),
        ("sigmoid(6,0.4)", sigmoid_gt(rdms, scale=scale, slope=6.0, centre=0.4)),
        ("rgdm(0.00,0.80)", rgdm(rdms, **estimator)),
        ("rgdm(k_nearest,5)", rgdm(rdms, graph="k_nearest", **estimator)),
    ):
        np.testing.assert_allclose(found.compute(names[name]), expected, atol=1e-12)
    few = list_statistics(TopologyOptions(statistics=[], geodesic_graphs=[]))
    assert [statistic.name for statistic in few] == ["rdm", "rank_rdm", "unit_rdm"]


def test_ranks_and_quantiles_equal_scipy_and_numpy_with_ties():
    rng = np.random.default_rng(6)
    values = rng.normal(size=(7, 4, 66))
    values[::2] = np.round(values[::2], 1)
    assert np.array_equal(ranks(values), rankdata(values, axis=-1))
    levels = (0.0, 0.05, 1 / 3, 0.8, 1.0)
    expected = np.quantile(values, levels, axis=-1)[..., None]
    got = threshold_values(values, levels, threshold="quantile", pool="rdm")
    np.testing.assert_allclose(got, expected, atol=1e-12)
    got = threshold_values(values, levels, threshold="quantile", pool="all")
    np.testing.assert_allclose(got[:, 0, 0, 0], np.quantile(values, levels), atol=1e-12)


@pytest.mark.parametrize(
    ("text", "name", "statistic"),
    [
        ("rank", "rank", rank_rdm),
        ("unit", "unit", unit_rdm),
        ("rgtm(0.2, .8)", "rgtm(0.20,0.80)", lambda d: rgtm(d, 0.2, 0.8, **PAPER)),
        ("rgtm(0.125,0.5)", "rgtm(0.125,0.50)", lambda d: rgtm(d, 0.125, 0.5, **PAPER)),
        ("adjacency(0.5)", "adjacency(0.50)", lambda d: adjacency(d, 0.5, **PAPER)),
        ("sigmoid", "sigmoid", partial(sigmoid_gt, scale="rank")),
        ("sigmoid(10,0.5)", "sigmoid", partial(sigmoid_gt, scale="rank")),
        (
            "sigmoid(4,.3)",
            "sigmoid(4,0.3)",
            partial(sigmoid_gt, scale="rank", slope=4, centre=0.3),
        ),
        ("rgdm(0,0.8)", "rgdm(0.00,0.80)", partial(rgdm, graph="twostep", **PAPER)),
        ("rgdm(p_shortest,.1)", "rgdm(p_shortest,0.10)", None),
        ("rgdm(p_nearest,.2)", "rgdm(p_nearest,0.20)", None),
        ("rgdm(k_nearest,3)", "rgdm(k_nearest,3)", None),
    ],
)
def test_a_transform_is_the_statistic_that_its_text_names(rdms, text, name, statistic):
    transform = parse_transform(text)
    assert transform.name == name
    assert parse_transform(name) == transform
    if statistic is None:
        graph, value = name[5:-1].split(",")
        choice = {"neighbours": int(value)} if graph == "k_nearest" else {"fraction": float(value)}
        statistic = partial(rgdm, graph=graph, **choice, **PAPER)
    before = rdms.copy()
    expected = statistic(rdms)
    np.testing.assert_allclose(transform.apply(rdms), expected, atol=1e-12)
    np.testing.assert_allclose(transform.apply(rdms[2]), expected[2], atol=1e-12)
    assert transform.apply(rdms.reshape(5, 1, -1)).shape == (5, 1, 66)
    assert np.array_equal(rdms, before)


def test_a_transform_leaves_gaps_and_rdms_without_spread_out_and_the_others_alone(rdms):
    gaps = rdms.copy()
    gaps[1, [4, 9]] = np.nan
    gaps[2] = 0.0
    gaps[3] = np.nan
    kept = np.delete(np.arange(66), [4, 9])
    for text in ("rank", "unit", "rgtm(0.2,0.8)", "adjacency(0.5)", "sigmoid"):
        transform = parse_transform(text)
        got = transform.apply(gaps)
        assert np.array_equal(got[[0, 4]], transform.apply(rdms[[0, 4]]))
        assert np.array_equal(got[1, kept], transform.apply(rdms[1, kept]))
        assert np.isnan(got[1, [4, 9]]).all()
        assert np.isnan(got[2:4]).all()
    got = parse_transform("rgdm(0,0.8)").apply(gaps)
    assert np.array_equal(np.isnan(got).all(axis=1), [False, True, True, True, False])
    assert np.isnan(parse_transform("rank").apply(np.full((2, 66), 1.5))).all()


@pytest.mark.parametrize(
    "text",
    [
        "rgtm",
        "rgtm(0.8,0.2)",
        "rgtm(0,1.5)",
        "rgtm(0.2)",
        "rgtm(a,b)",
        "rgtm(nan,1)",
        "ranks",
        "rank(1)",
        "rgdm(nearest,5)",
        "rgdm(k_nearest,2.5)",
        "rgdm(p_shortest,0)",
        "sigmoid(-1,0.5)",
        "adjacency()",
        "",
    ],
)
def test_a_text_that_names_no_transform_is_refused(text):
    with pytest.raises(InputError, match=r"use|needs"):
        parse_transform(text)
