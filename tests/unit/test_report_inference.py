"""What reports say of intervals, corrections and choices is what the stores say."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from isocortex import store
from isocortex.report import study_models
from isocortex.report.brain import Vertices
from isocortex.report.methods import methods_blocks
from isocortex.report.model_tests import choose_predictors, model_tests
from isocortex.report.page import number
from isocortex.report.study import KINDS
from isocortex.report.study_encoding import encoding_section
from isocortex.report.study_findings import (
    headline_statistic,
    identification_finding,
    rsa_scores,
    views_table,
)
from isocortex.report.study_flags import flags_section
from isocortex.report.study_geometry import best_layers
from isocortex.report.study_models import models_section
from isocortex.report.study_searchlight import searchlight_section
from isocortex.report.study_topology import topology_section


def _sibling(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


report = _sibling("test_report")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return report.files_of.make_study(tmp_path_factory.mktemp("study"))


@pytest.fixture
def choices():
    return report.ReportOptions.from_config(report.OPTIONS)


def _opened(files, kind):
    return store.open(files.of(kind)[0], kind).load()


def _text(blocks) -> str:
    """All words of some blocks, a figure's pictures left out."""
    words = []
    for block in blocks:
        for name, value in vars(block).items():
            if name not in ("images", "sources", "pictures"):
                words.append(str(value))
    return " ".join(words).replace("\\xa0", " ")


def _identification(accuracy: dict[str, float], n_subjects: int = 2) -> xr.Dataset:
    names, values = list(accuracy), np.array(list(accuracy.values()))
    same = dict.fromkeys(("accuracy_low", "accuracy_high", "p"), ("statistic", values))
    return xr.Dataset(
        {"accuracy": ("statistic", values), **same},
        coords={
            "statistic": np.array(names, dtype=object),
            "subject": np.arange(n_subjects),
            "region": np.arange(4),
        },
        attrs={"chance": 0.25, "task": "t", "measure": "correlation", "flag": ""}
        | {"interval_level": 0.9, "options": {"resample": "stimuli"}},
    )


def test_the_headline_is_chosen_beforehand_and_has_a_value():
    full = {"rdm": 0.5, "rank_rdm": 0.6, "rgtm(0.20,0.80)": 0.9, "rgtm(nested)": 0.7}
    two = full | {"rgtm(nested)": np.nan}
    assert headline_statistic(_identification(full)) == 3
    assert headline_statistic(_identification(two)) == 1
    assert headline_statistic(_identification(two | {"rank_rdm": np.nan})) == 0
    models = xr.Dataset(
        {"score": (("statistic", "region"), np.ones((4, 2)))},
        coords={"statistic": np.array(list(full), dtype=object)},
    )
    assert headline_statistic(models) == 2


def test_a_stand_in_for_the_nested_statistic_is_said():
    accuracy = {"rdm": 0.5, "rank_rdm": 0.6, "rgtm(nested)": np.nan}
    dataset = _identification(accuracy)
    dataset.attrs["regions_left_out"] = {"V4": "sub-02 has no RDM"}
    found = identification_finding([dataset], "bids")
    assert found.text.startswith("rank_rdm identifies 60%")
    assert "rgtm(nested) needs at least 3 subjects" in found.detail
    assert "Left out: V4." in found.detail
    assert "[90% interval, bootstrap over stimuli]" in found.detail
    assert found.values["statistic"] == "rank_rdm"
    whole = identification_finding([_identification(accuracy | {"rgtm(nested)": 0.7}, 4)], "bids")
    assert "needs at least" not in whole.detail


def test_intervals_have_the_level_of_their_store(files, choices):
    encoding = _text(encoding_section([_opened(files, "encoding_summary")], (), (), choices))
    assert "80% interval" in encoding
    topology = _text(
        topology_section([_opened(files, "identification")], [_opened(files, "topology")])
    )
    assert topology.count("90% interval") >= 2
    assert "bootstrap over subjects and stimuli" in topology
    models = _text(models_section([_opened(files, "scores")], choices))
    assert "95% interval (bootstrap over subjects and stimuli, 1000 samples)" in models
    assert "95%" not in encoding + topology


def test_two_subjects_without_intervals_claim_none(files, choices):
    dataset = _opened(files, "identification")
    for name in ("accuracy_low", "accuracy_high"):
        dataset[name] = xr.full_like(dataset[name], np.nan)
    assert "interval" not in identification_finding([dataset], "bids").detail
    text = _text(topology_section([dataset], []))
    assert "no intervals, which 3 subjects cannot give" in text
    assert "bootstrap over" not in text


def test_p_values_that_were_not_corrected_are_not_called_corrected(files, choices):
    dataset = _opened(files, "scores")
    dataset["p_corrected"] = xr.full_like(dataset["p_corrected"], 0.03)
    assert "'p, corrected'" in _text(models_section([dataset], choices))
    dataset.attrs["correction"] = "none"
    text = _text(models_section([dataset], choices))
    assert "p, not corrected" in text
    assert "p, corrected" not in text
    dataset["p_fwe"] = xr.full_like(dataset["p_fwe"], 0.04)
    assert "'p FWE'" in _text(models_section([dataset], choices))


def _tested(files):
    """A scores store with the tests of enough subjects."""
    dataset = _opened(files, "scores")
    tests = report.files_of._score_tests(dataset["mean"].values, few=False)
    return dataset.assign(tests)


def test_tests_between_predictors_are_those_of_the_store(files, choices):
    dataset = _tested(files)
    tests = model_tests(dataset)
    wins = tests.wins(0)
    mean = dataset["mean"].values[0, :, 0]
    assert wins.any()
    assert np.array_equal(wins, mean[:, None] - mean > 0.2)
    text = _text(models_section([dataset], choices))
    assert "two-sided, corrected by Holm's method over the pairs of a region" in text
    second = np.argsort(-mean)[1]
    name = dataset["predictor"].values[second]
    assert f"{name} ({number(mean[second])}; p = 0.400)" in text
    dataset["difference_p_fwe"][:] = 0.0004
    dataset.attrs["correction"] = "fdr"
    assert not np.isin(model_tests(dataset).difference_p, 0.0004).any()
    dataset.attrs["correction"] = "holm"
    assert f"{name} ({number(mean[second])}; p < 0.001)" in _text(
        models_section([dataset], choices)
    )
    findings = _text(views_table({"scores": [dataset], "topology": [], "encoding_summary": []}))
    assert not findings
    views = views_table(
        {"scores": [dataset], "topology": [_opened(files, "topology")], "encoding_summary": []}
    )
    assert views[0].rows[0][-1] == "< 0.001"
    assert "is not tested here" not in views[0].caption


def test_a_layer_is_held_against_layers_not_against_its_weighted_model(files, choices):
    dataset = _tested(files)
    mean = dataset["mean"].values[0, :, 0]
    best, second, third = np.argsort(-mean)[:3]
    kind = np.array(["fixed"] * len(mean), dtype=object)
    kind[second] = "weighted"
    dataset["kind"] = ("predictor", kind)
    tests, scores = model_tests(dataset), rsa_scores(dataset)
    assert scores.runner_up(0) == second
    assert scores.runner_up(0, tests.rivals(best)) == third
    kind[:] = "fixed"
    kind[best] = "weighted"
    dataset["kind"] = ("predictor", kind)
    assert scores.runner_up(0, model_tests(dataset).rivals(best)) == second
    name = str(dataset["predictor"].values[second])
    assert f"{name} ({number(mean[second])}" in _text(models_section([dataset], choices))


def test_a_score_over_the_ceiling_is_not_called_below_it(files, choices, monkeypatch):
    drawn = []
    monkeypatch.setattr(study_models, "bars_figure", lambda panels, label: drawn.extend(panels))
    dataset = _tested(files)
    dataset["p_ceiling"] = xr.full_like(dataset["p_ceiling"], 0.001)
    dataset["mean"][:, 1] = 0.9
    models_section([dataset], choices)
    assert all(panel.below_ceiling[1] is False for panel in drawn)
    assert all(panel.below_ceiling[7] is True for panel in drawn)


def test_many_predictors_are_drawn_by_the_best_of_each_model():
    mean = np.array([0.1, 0.4, np.nan, 0.3, 0.2, 0.25])
    models = ["a", "a", "a", "b", "b", "a"]
    kind = ["fixed"] * 5 + ["weighted"]
    assert choose_predictors(mean, models, kind, most=6) == [0, 1, 3, 4, 5]
    assert choose_predictors(mean, models, kind, most=4) == [1, 3, 5]
    assert choose_predictors(mean, models, kind, most=2) == [1, 3]


def test_fitted_models_have_no_rdm_of_their_own(files):
    dataset = _opened(files, "scores")
    kind = np.array(["fixed"] * dataset.sizes["predictor"], dtype=object)
    kind[0] = "weighted"
    dataset["kind"] = ("predictor", kind)
    found = best_layers([dataset], "objects", "correlation", ["V1", "V2"])
    assert "convnet/layer1" not in found
    assert sorted(region for regions in found.values() for region in regions) == ["V1", "V2"]
    assert best_layers([dataset], "objects", "crossnobis", ["V1"]) == {}


@pytest.mark.parametrize(("has_tfce", "test"), [(True, "p_tfce"), (False, "p_corrected")])
def test_searchlight_maps_are_thresholded_by_the_test_that_there_is(files, choices, has_tfce, test):
    dataset = _opened(files, "searchlight_group")
    mean = dataset["mean"].values
    tests = report.files_of._searchlight_tests(mean, "voxel", False)
    dataset = dataset.assign(tests)
    if not has_tfce:
        dataset = dataset.drop_vars("p_tfce")
    n = int((tests[test][1] < 0.05).any(axis=0).sum())
    text = _text(searchlight_section([dataset], [], choices))
    assert f"{n:,} of {mean.shape[1]:,} voxels are above 0 (p < 0.05 by" in text
    assert ("threshold-free" in text) == has_tfce
    assert "no threshold" in text
    assert "display threshold" not in text


def test_surface_maps_put_values_on_their_vertices(files):
    dataset = _opened(files, "searchlight_surface_group").isel(vertex=slice(None, None, 7))
    vertices = Vertices.of(dataset)
    values = np.arange(dataset.sizes["vertex"], dtype=float)
    textures = vertices.textures(values)
    for side in ("left", "right"):
        here = dataset["hemisphere"].values == side
        index = dataset["index"].values[here]
        np.testing.assert_array_equal(textures[side][index], values[here])
        assert np.isfinite(textures[side]).sum() == here.sum()


def test_methods_name_the_tests_that_were_made(files):
    none = dict.fromkeys(KINDS, ())
    group = _opened(files, "searchlight_group")
    tested = group.assign(report.files_of._searchlight_tests(group["mean"].values, "voxel", False))

    def written(**opened):
        blocks, references = methods_blocks(
            entry="betas", config={}, versions={}, opened=none | opened, surface=False
        )
        return _text(blocks), {reference.key for reference in references.items}

    text, cited = written(searchlight=[group], scores=[_opened(files, "scores")])
    assert "flipping" not in text
    assert not {"tfce", "signflip", "wings", "trsa", "persistence"} & cited
    text, cited = written(searchlight=[tested], scores=[_tested(files)])
    assert {"tfce", "signflip", "wings", "holm", "ceiling", "inference"} <= cited
    assert "against each other" in text
    kinds = {"partition": {"partition"}, "dependence": {"agtic", "dcor"}}
    kinds |= {"persistence": {"persistence", "gudhi"}}
    for kind, keys in kinds.items():
        assert keys <= written(**{kind: [_opened(files, kind)]})[1]
    empty = _opened(files, "identification")
    empty["accuracy"] = xr.full_like(empty["accuracy"], np.nan)
    assert "opolog" not in written(identification=[empty])[0]


def test_scores_without_a_bootstrap_claim_no_intervals(files, choices):
    dataset = _opened(files, "scores")
    dataset.attrs["bootstrap"] = "none"
    text = _text(models_section([dataset], choices))
    assert "no intervals, because" in text
    assert "samples" not in text


def test_subjects_without_a_ceiling_are_named(files, choices):
    dataset = _opened(files, "encoding_summary")
    text = _text(encoding_section([dataset], (), (), choices))
    assert "at least 10% of the single-trial variance" in text
    assert "of subject 02 every voxel counts" in text
    empty = dict.fromkeys(
        ["scores", "identification", "topology", "searchlight", "encoding", "rdms", "betas"], ()
    )
    flags = _text(flags_section(empty | {"encoding_summary": [dataset]}, {}, {}, choices))
    assert "subject 02, encoding" in flags


def test_categories_come_from_all_subjects(files, tmp_path):
    """Where subjects saw other stimuli, those of the second have a category too."""
    first = _opened(files, "betas")
    names = sorted(set(first["stimulus"].values))
    kept = first.isel(trial=np.isin(first["stimulus"].values, names[::2]))
    store.write(kept, tmp_path / "sub-01_betas.zarr", spec="betas")
    chosen = {
        "rdms": files.of("rdms_correlation")[:1],
        "betas": [tmp_path / "sub-01_betas.zarr", *files.of("betas")[1:2]],
    }
    page = report.Page(
        report._study(files, tmp_path / "study.html", **(report.NOTHING | chosen))
    ).section("rdms")
    assert "ordered by category" in page


def test_summary_repeats_the_stand_in(files, tmp_path):
    dataset = _opened(files, "identification")
    names = list(dataset["statistic"].values)
    accuracy = dataset["accuracy"].values.copy()
    accuracy[names.index("rgtm(nested)")] = np.nan
    dataset["accuracy"] = ("statistic", accuracy)
    store.write(dataset, tmp_path / "identification.zarr", spec="identification")
    chosen = {"identification": [tmp_path / "identification.zarr"]}
    report._study(files, tmp_path / "study.html", **(report.NOTHING | chosen))
    summary = json.loads((tmp_path / "study_summary.json").read_text())
    found = {entry["name"]: entry for entry in summary["findings"]}["identification"]
    assert found["values"]["statistic"] == "rank_rdm"
    assert found["text"].startswith("rank_rdm identifies ")
