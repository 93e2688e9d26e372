"""Derivatives made elsewhere have no manifest: a change of any of their files is seen."""

import json

import pytest

from . import tiny
from .test_bad_inputs import derivatives
from .test_entries import job_counts


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study of given derivatives, run up to the betas and the regions on their grid."""
    folder = tmp_path_factory.mktemp("derivatives")
    config = tiny.make(folder)
    derivatives()(folder, config)
    config["regions"]["space"] = "T1w"
    config["rsa"] = {"measures": ["correlation"]}
    config["glm"] = config.get("glm", {}) | {"confound_columns": "none"}
    config.pop("features")
    tiny.write_config(folder, config)
    done = tiny.snakemake(folder, "--until", "fit_glm", "transform_regions")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def jobs(folder):
    done = tiny.snakemake(folder, "--dry-run", "--until", "fit_glm", "transform_regions")
    assert done.returncode == 0, done.stderr
    return dict(job_counts(done.stdout)) if "Job stats:" in done.stdout else {}


def test_nothing_is_left_to_do(study):
    assert jobs(study) == {}


@pytest.mark.parametrize(
    ("ending", "expected"),
    [
        ("_desc-preproc_bold.json", {"fit_glm": 1}),
        ("_desc-brain_mask.nii.gz", {"fit_glm": 1, "transform_regions": 1}),
    ],
)
def test_a_changed_file_runs_what_reads_it(study, ending, expected):
    file = next(
        f for f in sorted(study.glob("derivatives/sub-*/func/*")) if f.name.endswith(ending)
    )
    content = file.read_bytes()
    try:
        if ending.endswith(".json"):
            file.write_text(json.dumps(json.loads(content) | {"StartTime": 0.9}))
        else:
            file.write_bytes(content[:-8] + b"\0\0\0\0" + content[-4:])
        assert jobs(study) == expected
    finally:
        file.write_bytes(content)


def test_the_confounds_metadata_count(study):
    """CompCor's components are chosen by them."""
    table = next(study.glob("derivatives/sub-*/func/*_desc-confounds_timeseries.tsv"))
    beside = table.with_suffix(".json")
    try:
        beside.write_text("{}")
        assert jobs(study) == {"fit_glm": 1}
    finally:
        beside.unlink()
