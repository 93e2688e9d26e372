"""Topological RSA of the 92 images: human IT of 4 people in 2 sessions, published model RDMs."""

from pathlib import Path

import networkx as nx
import numpy as np
import pytest
from rsatoolbox.rdm import RDMs, compare
from rsatoolbox.rdm.transform import geotopological_transform
from scipy.io import loadmat

from isocortex.rsa.rdms import BrainRDMs, ModelRDMs, to_matrices, to_vectors
from isocortex.topology import (
    DependenceOptions,
    PersistenceOptions,
    TopologyOptions,
    dependence_dataset,
    identification_dataset,
    persistence_dataset,
    rank_rdm,
    rgdm,
    rgtm,
    topology_dataset,
)


@pytest.fixture(scope="module")
def human_it(data: Path) -> np.ndarray:
    """Dissimilarities, shape (person, session, pair)."""
    stored = loadmat(data / "images92" / "92_brainRDMs.mat")["RDMs"][0]
    return np.array([[to_vectors(rdm.astype(float)) for rdm in row["RDM"]] for row in stored])


@pytest.fixture(scope="module")
def models(data: Path) -> dict[str, np.ndarray]:
    """Published model RDMs as vectors."""
    stored = loadmat(data / "images92" / "92_modelRDMs.mat")["Models"][0]
    return {str(m["name"][0]): to_vectors(m["RDM"].astype(float)) for m in stored}


def brain(dissimilarity: np.ndarray, regions: list[str]) -> BrainRDMs:
    n_subjects, n_regions = dissimilarity.shape[:2]
    return BrainRDMs(
        dissimilarity=dissimilarity,
        n_voxels=np.full((n_subjects, n_regions), 316, dtype=np.int32),
        subjects=tuple(f"{s + 1:02d}" for s in range(n_subjects)),
        regions=tuple(regions),
        stimuli=tuple(f"image{k:02d}" for k in range(92)),
        task="images",
        measure="correlation",
        groups={},
        n_stimuli_dropped=0,
    )


def test_rgtm_of_real_rdms_equals_rsatoolbox(human_it):
    """Times ten: where the upper threshold is below 1, the peer rounds what is just under 1 up."""
    rdms = human_it.reshape(8, -1)
    theirs = geotopological_transform(RDMs(10 * rdms), 0.2, 0.8).get_vectors()
    ours = rgtm(rdms, 0.2, 0.8, scale="raw", threshold="quantile", pool="all")
    np.testing.assert_allclose(ours, theirs, atol=1e-12)
    assert np.quantile(rdms, 0.8) < 1
    spoilt = geotopological_transform(RDMs(rdms.copy()), 0.2, 0.8).get_vectors()
    assert np.abs(spoilt - theirs).max() > 1e-4


def test_geodesics_of_real_rdms_equal_dijkstra(human_it):
    d = human_it[0, :1]
    weights = rgtm(d, 0.05, 0.5, scale="rank", threshold="quantile", pool="rdm")[0]
    graph = nx.Graph()
    graph.add_nodes_from(range(92))
    for (i, j), w in zip(zip(*np.triu_indices(92, 1)), weights):
        if w < 1:
            graph.add_edge(int(i), int(j), weight=float(w))
    assert nx.is_connected(graph)
    lengths = dict(nx.all_pairs_dijkstra_path_length(graph))
    expected = [lengths[int(i)][int(j)] for i, j in zip(*np.triu_indices(92, 1))]
    options = {"scale": "rank", "threshold": "quantile", "pool": "rdm"}
    got = rgdm(d, lower=0.05, upper=0.5, **options)[0]
    np.testing.assert_allclose(got, expected, atol=1e-10)
    assert to_matrices(got).shape == (92, 92)


def test_published_models_score_as_in_rsatoolbox(human_it, models):
    names = list(models)
    values = np.array([models[name] for name in names])
    result = topology_dataset(
        brain(human_it.mean(axis=1)[:, None], ["IT"]),
        values,
        TopologyOptions(grid_step=0.5, bootstrap_samples=200),
        predictors=[f"published/{name}" for name in names],
        models=["published"] * len(names),
        layers=names,
    )
    subjects = RDMs(human_it.mean(axis=1))
    for statistic, method in (("rdm", "corr"), ("rank_rdm", "spearman")):
        theirs = compare(RDMs(values), subjects, method=method)
        ours = result["score_subject"].sel(statistic=statistic, region="IT").values
        np.testing.assert_allclose(ours, theirs, atol=1e-8)
    best = result["best_predictor"].sel(region="IT", statistic=["rdm", "rank_rdm"]).values
    assert set(best) <= {f"published/{n}" for n in ("animacy", "FaceBodyManmadeNatobj", "monkeyIT")}
    scores = result.sel(region="IT", statistic="rank_rdm")
    assert scores["p_corrected"].sel(predictor="published/monkeyIT") < 0.05
    assert scores["score"].sel(predictor="published/monkeyIT") > scores["score"].sel(
        predictor="published/V1"
    )


def test_cortex_and_judgements_are_told_apart(human_it, data):
    """Two representations of the same images: IT of 4 people, and 4 people's judgements."""
    stored = loadmat(data / "images92" / "92_behavRDMs.mat")["rdms_behav_92"][0]
    judged = np.array([to_vectors(row["RDM"].astype(float)) for row in stored[:4]])
    result = identification_dataset(
        brain(np.stack([human_it.mean(axis=1), judged], axis=1), ["IT", "judgement"]),
        TopologyOptions(bootstrap_samples=200, permutations=200, grid_step=0.2),
    )
    found = result.sel(statistic=["rank_rdm", "unit_rdm", "rgtm(0.40,0.60)"])
    assert (found["accuracy"] >= 0.75).all()
    assert (found["ratio"] < 1).all()
    assert (found["accuracy_low"] <= found["accuracy"]).all()
    assert rank_rdm(judged).max() == 1


def test_dependence_of_human_it_on_published_models(human_it, models):
    """Every model has something of IT (n = 92 images), categories and monkey IT the most."""
    names = list(models)
    brain_rdms = brain(human_it.mean(axis=1)[:, None], ["IT"])
    result = dependence_dataset(
        brain_rdms,
        ModelRDMs(
            dissimilarity=np.array([models[name] for name in names]),
            predictors=tuple(f"published/{name}" for name in names),
            models=("published",) * len(names),
            layers=tuple(names),
            stimuli=brain_rdms.stimuli,
        ),
        DependenceOptions(permutations=499),
    ).sel(region="IT")
    assert (result["p_corrected"] < 0.05).all()
    found = dict(zip(names, result["mean"].values))
    assert sorted(found, key=found.get)[-3:] == ["FaceBodyManmadeNatobj", "monkeyIT", "animacy"]
    assert found["RADON"] == min(found.values())
    assert (result["mean"] >= result["distance_correlation"] - 1e-12).all()
    assert (abs(result["null_mean"]) < 0.05).all()


def test_persistence_tells_cortex_and_judgements_apart(human_it, data):
    stored = loadmat(data / "images92" / "92_behavRDMs.mat")["rdms_behav_92"][0]
    judged = np.array([to_vectors(row["RDM"].astype(float)) for row in stored[:4]])
    both = brain(np.stack([human_it.mean(axis=1), judged], axis=1), ["IT", "judgement"])
    result = persistence_dataset(both, PersistenceOptions())
    # Clusters and loops of one representation are more alike between people than of two.
    assert (result["ratio"] < 1).all()
    assert (result["distance_across"].transpose("dimension", ...).values > 0).all()
    # The 91 other images join one after the other; ties in rank join some at once.
    assert (result["n_bars"].sel(dimension="H0") <= 91).all()
    assert (result["n_bars"].sel(dimension="H0") > 80).all()
    assert (result["accuracy"] >= 0.75).all()
