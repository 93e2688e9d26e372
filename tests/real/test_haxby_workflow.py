"""Haxby et al. (2001), one slice: the whole workflow, from preprocessed runs to the report."""

import json

import numpy as np
import pytest

from isocortex import store
from tests.real import studies

KINDS = ["bottle", "cat", "chair", "face", "house", "scissors", "scrambledpix", "shoe"]


@pytest.fixture(scope="module")
def results(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("haxby_workflow")
    studies.prepare("haxby", data, folder)
    done = studies.run("haxby", data, folder)
    assert done.returncode == 0, done.stderr[-5000:]
    return folder / "results" / "haxby"


def test_crossnobis_rdm_of_the_kinds(results):
    file = results / "rsa" / "sub-01_task-objectviewing_measure-crossnobis_rdms.zarr"
    rdms = store.open(file, "rdms").load()
    assert list(rdms["region"].values) == ["VT"]
    assert sorted({*rdms["stimulus_i"].values, *rdms["stimulus_j"].values}) == KINDS
    distance = rdms["dissimilarity"].values[0]
    assert distance.shape == (28,)
    # An estimate without bias: around 0 where patterns do not differ. These do.
    assert (distance > 0).mean() > 0.9
    first, second = rdms["stimulus_i"].values, rdms["stimulus_j"].values
    house = (first == "house") | (second == "house")
    assert distance[house].mean() > distance[~house].mean()


def test_odd_and_even_runs_identify_the_kinds(results):
    betas = store.open(results / "glm" / "sub-01_task-objectviewing_betas.zarr", "betas").load()
    # Responsive voxels are chosen by the mean response to all kinds, which favours none of them.
    patterns = betas["beta"].values[:, betas["z_stimulus"].values > 3.1].astype(float)
    condition = betas["condition"].values
    odd = betas["run"].values.astype(int) % 2 == 1
    halves = []
    for half in (odd, ~odd):
        means = np.array([patterns[half & (condition == kind)].mean(axis=0) for kind in KINDS])
        halves.append(means - means.mean(axis=0))
    agreement = np.corrcoef(*halves)[:8, 8:]
    assert (agreement.argmax(axis=0) == np.arange(8)).sum() >= 6
    assert (agreement.argmax(axis=1) == np.arange(8)).sum() >= 6


def test_reports_say_what_was_left_out(results):
    study = (results / "report" / "study.html").read_text()
    assert (results / "report" / "sub-01.html").stat().st_size > 50_000
    assert "Haxby et al. (2001): one slice" in study
    found = json.loads((results / "report" / "summary.json").read_text())
    findings = {finding["name"]: finding for finding in found["findings"]}
    assert not any(finding["available"] for finding in findings.values())
    assert "needs at least 2" in findings["identification"]["text"]
    assert found["subjects"] == ["01"]
