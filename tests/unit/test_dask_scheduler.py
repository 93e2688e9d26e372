"""Stores are the same, bit for bit, from threads and from workers in other processes."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from isocortex import parallel, rsa, searchlight, topology
from isocortex.rsa.partition import partition_models
from tests.unit import rdm_sets
from tests.unit import test_rsa_stores as stores

ROOT = Path(__file__).resolve().parents[2]
FEW = {"bootstrap": {"over": "both", "samples": 100}}


@pytest.fixture(scope="module")
def address():
    """A scheduler with a worker that is another process, as on another machine."""
    from distributed import LocalCluster

    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(ROOT / "workflow")
    try:
        with LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=None) as cluster:
            yield cluster.scheduler_address
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """RDMs of four subjects and a model, betas and features."""
    folder = tmp_path_factory.mktemp("given")
    rng = np.random.default_rng(4)
    base = rng.gamma(4.0, size=(3, 190))
    brain = base[None] + rng.gamma(2.0, size=(4, 3, 190))
    features = stores.write_features(folder / "features.zarr", stores.planted())
    models = folder / "models.zarr"
    rsa.compute_model_rdms(features=features, out=models)
    return {
        "rdms": {
            "rdms": rdm_sets.write_rdms(folder, brain),
            "model_rdms": [rdm_sets.write_model_rdms(folder, base)],
        },
        "betas": {"betas": stores.write_betas(folder / "betas.zarr"), "model_rdms": [models]},
        "features": features,
    }


def fitted(given, out):
    kinds = {"comparisons": ("pearson",), "model_kinds": ("fixed", "selected")}
    return rsa.compare_rdms(**given["rdms"], out=out, permutations=100, **kinds, **FEW)


def partitioned(given, out):
    layers = [f"net/layer{k}" for k in range(3)]
    return partition_models(**given["rdms"], out=out, models=layers, permutations=100, **FEW)


def identified(given, out):
    return topology.identify_regions(
        rdms=given["rdms"]["rdms"], out=out, bootstrap_samples=100, permutations=100, grid_step=0.5
    )


def dependent(given, out):
    return topology.measure_dependence(**given["rdms"], out=out, permutations=100)


def persistent(given, out):
    return topology.summarise_persistence(rdms=given["rdms"]["rdms"], out=out, permutations=100)


def compared(given, out):
    return topology.compare_topology(**given["rdms"], out=out, bootstrap_samples=100, grid_step=0.5)


def mapped(given, out):
    return searchlight.map_searchlight(
        **given["betas"], out=out, maps=out.with_suffix(""), radius=6.5, min_voxels=12
    )


def layers(given, out):
    return rsa.compute_model_rdms(features=given["features"], out=out)


@pytest.mark.parametrize(
    "stage",
    [fitted, partitioned, identified, dependent, persistent, compared, mapped, layers],
)
def test_stores_are_the_same_from_other_processes(stage, given, address, tmp_path, monkeypatch):
    stage(given, tmp_path / "here.zarr")
    monkeypatch.setenv(parallel.SETTINGS, json.dumps({"scheduler": address, "wait": 30}))
    stage(given, tmp_path / "there.zarr")
    here, there = ((tmp_path / f"{name}.json").read_text() for name in ("here", "there"))
    assert json.loads(here)["content"] == json.loads(there)["content"]
