"""Kriegeskorte et al. (2008) through the workflow: human IT RDMs, 92 images, given models."""

import json

import numpy as np
import pytest
from scipy.io import loadmat

from isocortex import store
from tests.real import studies


@pytest.fixture(scope="module")
def results(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("images92_workflow")
    studies.prepare("images92", data, folder)
    done = studies.run("images92", data, folder)
    assert done.returncode == 0, done.stderr[-5000:]
    return folder / "results" / "images92"


@pytest.mark.parametrize("comparison", ["pearson", "spearman", "corr_cov"])
def test_resnet_is_above_gabor_and_under_the_ceiling(results, comparison):
    file = results / "rsa" / "task-all_measure-given_scores.zarr"
    scores = store.open(file, "scores").load().sel(comparison=comparison, region="hIT")
    assert scores.sizes["subject"] == 4
    mean = scores["mean"].to_series()
    assert scores["best_predictor"].item() in ("resnet20/layer3.2", "resnet20/avgpool")
    assert mean.max() > 1.5 * mean["gabor/energy"] > 0
    low, high = scores["ceiling_low"].item(), scores["ceiling_high"].item()
    assert mean.max() < low < high < 1
    assert scores["interval_low"].sel(predictor=scores["best_predictor"]).item() > 0


def test_reports_tell_the_finding_and_what_was_left_out(results):
    found = json.loads((results / "report" / "summary.json").read_text())
    assert found["subjects"] == ["01", "02", "03", "04"]
    findings = {finding["name"]: finding for finding in found["findings"]}
    assert findings["rsa"]["text"].startswith("hIT: resnet20/")
    assert "needs at least 2 regions" in findings["identification"]["text"]
    assert "made elsewhere" in findings["encoding"]["text"]
    for name in ("study", *(f"sub-{label}" for label in found["subjects"])):
        assert (results / "report" / f"{name}.html").stat().st_size > 50_000


def test_human_it_against_monkey_it_and_published_models(data, tmp_path):
    """Every RDM is given: two sessions of four people and their mean, nine models."""
    studies.prepare("images92_models", data, tmp_path)
    done = studies.run("images92_models", data, tmp_path, "rsa")
    assert done.returncode == 0, done.stderr[-5000:]
    folder = tmp_path / "results" / "images92models"
    assert not (folder / "features").exists()
    found = {
        task: store.open(folder / f"rsa/task-{task}_measure-given_scores.zarr", "scores")
        .load()
        .sel(region="hIT")
        for task in ("session1", "session2", "mean")
    }
    pairs = np.triu_indices(92, 1)
    cells = loadmat(data / "images92" / "92_modelRDMs.mat")["Models"][0]
    published = {str(cell["name"][0]): np.asarray(cell["RDM"])[pairs] for cell in cells}
    brain = loadmat(data / "images92" / "92_brainRDMs.mat")["RDMs"][0]
    for session in (0, 1):
        scores = found[f"session{session + 1}"].sel(comparison="pearson")
        for model, layers in studies.PUBLISHED.items():
            for layer in layers:
                wanted = [
                    np.corrcoef(np.asarray(cell[session]["RDM"])[pairs], published[layer])[0, 1]
                    for cell in brain
                ]
                row = scores["score"].sel(predictor=f"{model}/{layer}")
                np.testing.assert_allclose(row.values, wanted, atol=1e-9)
    for comparison in ("pearson", "spearman", "corr_cov"):
        by_task = {task: scores.sel(comparison=comparison) for task, scores in found.items()}
        scores = by_task["mean"]
        assert scores.sizes["predictor"] == 9
        assert scores["best_predictor"].item() == "categories/animacy"
        mean = scores["mean"].to_series()
        low, high = scores["ceiling_low"].item(), scores["ceiling_high"].item()
        assert mean.max() < high < 1
        # Two sessions hold less noise than one.
        assert low > max(by_task[task]["ceiling_low"].item() for task in ("session1", "session2"))
        low_level = mean[[name for name in mean.index if name.startswith("computational/")]]
        assert mean["monkeyIT/monkeyIT"] > 1.5 * low_level.max()
        assert mean["behaviour/behaviour"] > 1.5 * low_level.max()
        p = scores["p_ceiling"].to_series()
        assert p["monkeyIT/monkeyIT"] > 0.05 > p["computational/V1"]
        assert scores["interval_low"].sel(predictor="monkeyIT/monkeyIT").item() > 0
