"""Quality of a study's runs: who is marked, in which direction, and how often by chance."""

import json

import numpy as np
import pytest
from scipy import stats

from isocortex.report import report_study, study_quality
from isocortex.report.drawing import report_style
from isocortex.report.page import Note, Picture, Table
from isocortex.report.study_quality import (
    MEASURES,
    chance_rate,
    quality_figure,
    quality_section,
    quality_table,
    robust_z,
)

from .report_study_files import default_options


def runs_of(n, seed=0, **changes):
    rng = np.random.default_rng(seed)
    runs = []
    for index in range(n):
        run = {"run": f"sub-{index:02d}_task-x_run-1", "slice_timing": "corrected", "efc": None}
        run |= {m.name: float(50 + rng.standard_normal()) for m in MEASURES if m.name != "efc"}
        runs.append(run)
    for name, (index, value) in changes.items():
        runs[index][name] = value
    return runs


def test_robust_z_is_the_distance_over_the_scaled_median_absolute_deviation():
    values = np.random.default_rng(1).standard_normal(400)
    expected = (values - np.median(values)) / stats.median_abs_deviation(values, scale="normal")
    np.testing.assert_allclose(robust_z(values, worse="high"), expected, rtol=1e-5)
    np.testing.assert_allclose(robust_z(values, worse="low"), -expected, rtol=1e-5)
    np.testing.assert_allclose(robust_z(values, worse="both"), np.abs(expected), rtol=1e-5)


def test_an_outlier_is_marked_only_where_it_is_worse():
    runs = runs_of(12, fd_mean=(3, 70.0), tsnr=(5, 20.0), fwhm_avg=(7, 20.0), snr=(2, 90.0))
    table = quality_table(runs)
    marked = {
        (table.runs[row][:6], table.measures[column].name)
        for row, column in np.argwhere(table.z > 8)
    }
    # a high SNR is no fault; a smooth and a rough image both are odd
    assert marked == {("sub-03", "fd_mean"), ("sub-05", "tsnr"), ("sub-07", "fwhm_avg")}
    assert "efc" not in [m.name for m in table.measures], "no run has it"


def test_equal_values_and_small_differences_are_no_outliers():
    runs = runs_of(8)
    for run in runs:
        run |= {"spikes_num": 0, "coverage_brain": 100.0, "dvars_std": 1.0}
    runs[1]["spikes_num"] = 2
    runs[2]["coverage_brain"] = 99.0
    runs[4]["coverage_brain"] = 93.0
    table = quality_table(runs)
    column = [m.name for m in table.measures].index
    assert not table.flagged[:, column("spikes_num")].any()
    assert np.flatnonzero(table.flagged[:, column("coverage_brain")]).tolist() == [4]
    assert np.isnan(robust_z(np.ones(9), worse="high")).all()


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_runs_cannot_call_an_outlier(n, tmp_path):
    runs = runs_of(n, fd_mean=(0, 900.0))
    assert not quality_table(runs).flagged.any()
    assert not quality_table(runs).called.any()
    blocks = quality_section(manifests(tmp_path, runs))
    note = next(block for block in blocks if isinstance(block, Note))
    assert "no outlier can be called" in note.text
    assert not any(isinstance(block, Picture) for block in blocks)
    assert len(next(b for b in blocks if isinstance(b, Table)).rows) == n


@pytest.mark.parametrize("n", [4, 12, 60])
@pytest.mark.parametrize("worse", ["high", "both"])
def test_normal_measures_are_marked_at_the_stated_rate(n, worse):
    rng = np.random.default_rng(11)
    n_studies = 12_000 // n
    marks = [
        (robust_z(rng.normal(80, 7, n), worse=worse) > study_quality.THRESHOLD).sum()
        for _ in range(n_studies)
    ]
    rate = chance_rate(n, both=worse == "both")
    # marks of one study share its median and deviation: their variance is not a binomial's
    error = np.std(marks) / np.sqrt(n_studies)
    assert abs(np.mean(marks) - rate * n) < 2.576 * np.hypot(
        error, error * np.sqrt(n_studies / 4000)
    )
    if n == 60:
        nominal = stats.norm.sf(3) * (2 if worse == "both" else 1)
        assert nominal < rate < 3 * nominal


def manifests(folder, runs):
    paths = []
    for run in runs:
        paths.append(folder / f"{run['run']}_manifest.json")
        content = {"run": f"func/{run['run']}", "subject": "x", "qc": run}
        paths[-1].write_text(json.dumps(content))
    anatomy = folder / "anat_manifest.json"
    anatomy.write_text(json.dumps({"subject": "x", "qc": {"n_t1w": 1}}))
    return [*reversed(paths), anatomy, folder / "absent.json"]


def test_section_names_the_outlier_and_draws_all_measures(tmp_path):
    runs = runs_of(10, gsr_y=(6, 99.0))
    blocks = quality_section(manifests(tmp_path, runs))
    tables = {block.title: block for block in blocks if isinstance(block, Table)}
    first = tables["Runs that stand out"].rows[0]
    assert first[:3] == ["sub-06_task-x_run-1", "Ghost back-front", "99.0000"]
    assert "by chance" in tables["Runs that stand out"].caption
    every = tables["Image quality by run"]
    assert [row[0] for row in every.rows] == [run["run"] for run in runs]
    assert len(every.header) == len(MEASURES)  # the name, and all measures but the one not there
    picture = next(block for block in blocks if isinstance(block, Picture))
    assert f"n = {len(runs)}" in picture.caption
    with report_style():
        first, second = (quality_figure(quality_table(runs)).sources for _ in range(2))
    assert first == second
    assert quality_section([]) == []
    assert quality_section([tmp_path / "anat_manifest.json"]) == []


def test_study_report_holds_it(tmp_path):
    out = report_study(
        study="made",
        subjects=["00"],
        out=tmp_path / "study.html",
        summary=tmp_path / "summary.json",
        options=default_options(),
        config={},
        manifests=manifests(tmp_path, runs_of(6, aqi=(1, 99.0)))[:-1],
    )
    page = out.read_text()
    assert page.index("Sample and data quality") < page.index("Image quality of the runs")
    assert "Runs that stand out" in page
    assert "Distance to median (aqi)" in page
