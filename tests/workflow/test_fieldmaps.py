"""A fieldmap is a job of its own, and belongs to its subject alone."""

import json
import re

from tests.workflow import tiny


def add_fieldmap(folder, subject, intended=(1, 2)):
    """Images of opposite phase encoding, and what runs must say for them."""
    base = folder / "bids" / f"sub-{subject}"
    for direction, axis in (("AP", "j-"), ("PA", "j")):
        stem = base / "fmap" / f"sub-{subject}_dir-{direction}_epi"
        tiny.nifti(stem.with_suffix(".nii.gz"), tiny.SHAPE)
        names = [f"func/sub-{subject}_task-objects_run-{n}_bold.nii.gz" for n in intended]
        told = {"PhaseEncodingDirection": axis, "TotalReadoutTime": 0.04, "IntendedFor": names}
        stem.with_suffix(".json").write_text(json.dumps(told))
    for run in intended:
        path = base / "func" / f"sub-{subject}_task-objects_run-{run}_bold.json"
        path.write_text('{"PhaseEncodingDirection": "j-", "TotalReadoutTime": 0.04}')


def jobs(folder, *targets):
    """Rule and subject of each job that a dry run lists."""
    done = tiny.snakemake(folder, "--dry-run", *targets)
    assert done.returncode == 0, done.stderr
    found = re.findall(
        r"^rule (\w+):\n(?:    .*\n)*?    wildcards: .*?subject=(\w+)", done.stdout, re.MULTILINE
    )
    return found, done.stdout


def pretend(folder, listing):
    """Make every output that a dry run lists, and have Snakemake take them as up to date."""
    for names in re.findall(r"^    output: (.+)$", listing, re.MULTILINE):
        for name in names.split(", "):
            path = folder / name
            if "." in path.name:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("")
            else:
                path.mkdir(parents=True, exist_ok=True)
    done = tiny.snakemake(folder, "--touch", "preprocess")
    assert done.returncode == 0, done.stderr


def test_a_new_fieldmap_re_runs_its_own_subject(tmp_path):
    tiny.make(tmp_path)
    first, listing = jobs(tmp_path, "preprocess")
    assert {rule for rule, _ in first} == {"preprocess_anat", "preprocess_bold"}
    pretend(tmp_path, listing)
    assert jobs(tmp_path, "preprocess")[0] == []
    add_fieldmap(tmp_path, "02", intended=(1,))
    again, listing = jobs(tmp_path, "preprocess")
    assert sorted(again) == [("estimate_fieldmap", "02"), ("preprocess_bold", "02")]
    assert "sub-02_fmapid-pepolar_desc-preproc_fieldmap.nii.gz" in listing


def test_what_a_fieldmap_lacks_is_told_before_any_job(tmp_path):
    tiny.make(tmp_path)
    add_fieldmap(tmp_path, "02")
    path = tmp_path / "bids/sub-02/func/sub-02_task-objects_run-2_bold.json"
    path.write_text('{"PhaseEncodingDirection": "j-"}')
    # checks of headers and sidecars precede the first job, not a dry run
    done = tiny.snakemake(tmp_path, "preprocess")
    assert done.returncode != 0
    assert "TotalReadoutTime is missing for" in done.stderr
    assert "estimate_fieldmap" not in [*(tmp_path / "results").glob("tiny/preprocess/*")]
