"""What reports say of intervals, corrections and choices is what the stores say."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from isocortex import store
from isocortex.report.study_findings import headline_statistic, identification_finding
from isocortex.report.study_flags import flags_section
from isocortex.report.study_models import encoding_section, models_section
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
    return " ".join(words)


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
    encoding = _text(encoding_section([_opened(files, "encoding_summary")], (), choices, "bids"))
    assert "80% interval" in encoding
    topology = _text(
        topology_section(
            [_opened(files, "identification")], [_opened(files, "topology")], choices, "bids"
        )
    )
    assert topology.count("90% interval") >= 2
    assert "bootstrap over subjects and stimuli" in topology
    models = _text(models_section([_opened(files, "scores")], choices, "bids"))
    assert "95% interval (bootstrap over subjects and stimuli, 1000 samples)" in models
    assert "95%" not in encoding + topology


def test_two_subjects_without_intervals_claim_none(files, choices):
    dataset = _opened(files, "identification")
    for name in ("accuracy_low", "accuracy_high"):
        dataset[name] = xr.full_like(dataset[name], np.nan)
    assert "interval" not in identification_finding([dataset], "bids").detail
    text = _text(topology_section([dataset], [], choices, "bids"))
    assert "no intervals, which 3 subjects cannot give" in text
    assert "bootstrap over" not in text


def test_p_values_that_were_not_corrected_are_not_called_corrected(files, choices):
    dataset = _opened(files, "scores")
    assert "'p, corrected'" in _text(models_section([dataset], choices, "bids"))
    dataset.attrs["correction"] = "none"
    text = _text(models_section([dataset], choices, "bids"))
    assert "p, not corrected" in text
    assert "p, corrected" not in text


def test_scores_without_a_bootstrap_claim_no_intervals(files, choices):
    dataset = _opened(files, "scores")
    dataset.attrs["bootstrap"] = "none"
    text = _text(models_section([dataset], choices, "bids"))
    assert "no intervals, because" in text
    assert "samples" not in text


def test_subjects_without_a_ceiling_are_named(files, choices):
    dataset = _opened(files, "encoding_summary")
    text = _text(encoding_section([dataset], (), choices, "bids"))
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
