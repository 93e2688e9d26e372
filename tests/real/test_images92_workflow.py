"""Kriegeskorte et al. (2008): human IT RDMs and 92 images through the whole workflow."""

import json

import pytest

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
