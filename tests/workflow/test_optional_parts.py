"""Optional parts of an analysis have no job until the config asks for them."""

import pytest

from . import tiny

OPTIONAL = ("measure_dependence", "summarise_persistence")


@pytest.mark.parametrize("run", [False, True])
def test_topological_parts_run_where_they_are_asked_for(tmp_path, run):
    config = tiny.make(tmp_path)
    config["trsa"] = {part: {"run": run} for part in ("dependence", "persistence")}
    tiny.write_config(tmp_path, config)
    done = tiny.snakemake(tmp_path, "--dry-run", "trsa")
    assert done.returncode == 0, done.stderr
    assert "rule identify_regions:" in done.stdout
    for rule in OPTIONAL:
        assert (f"rule {rule}:" in done.stdout) == run


def test_joint_models_are_jobs_of_each_subject(tmp_path):
    config = tiny.make(tmp_path)
    config["features"]["models"]["gabor"] = {"architecture": "gabor"}
    spaces = {"early": "gabor", "raw": "pixels"}
    config["encoding"] = {"joint": {"both": {"spaces": spaces, "candidates": 7}}}
    tiny.write_config(tmp_path, config)
    done = tiny.snakemake(tmp_path, "--dry-run", "encoding")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("rule fit_joint:") == 2
    assert "rule map_contrasts:" not in done.stdout
    assert "rule export_betas:" not in done.stdout
    assert "sub-01_task-objects_joint-both.zarr" in done.stdout


def test_models_that_keep_to_regions_take_them_in(tmp_path):
    config = tiny.make(tmp_path)
    config["features"]["models"]["gabor"] = {"architecture": "gabor"}
    chosen = {"voxels": "regions"}
    config["encoding"] = {
        "joint": {"both": {"spaces": {"early": "gabor", "raw": "pixels"}, **chosen}},
        "universal": {"crowd": {"model": "pixels", **chosen}},
    }
    tiny.write_config(tmp_path, config)
    done = tiny.snakemake(tmp_path, "--dry-run", "encoding")
    assert done.returncode == 0, done.stderr
    for rule, count in (("fit_joint", 1), ("fit_universal", 2)):
        job = done.stdout.split(f"rule {rule}:")[1].split("output:")[0]
        assert job.count("dseg.nii.gz") == job.count("dseg.tsv") == count


def test_contrasts_and_images_of_betas_are_made_where_asked_for(tmp_path):
    config = tiny.make(tmp_path)
    config["glm"] = {"contrasts": {"things": "thing"}, "nifti": True}
    tiny.write_config(tmp_path, config)
    done = tiny.snakemake(tmp_path, "--dry-run")
    assert done.returncode == 0, done.stderr
    for rule in ("fit_glm", "map_contrasts", "export_betas"):
        assert done.stdout.count(f"rule {rule}:") == 2
    report = done.stdout.split("rule report_subject:")[1].split("output:")[0]
    assert "task-objects_contrasts.json" in report
