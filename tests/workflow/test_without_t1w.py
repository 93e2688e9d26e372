"""Subjects without a T1w beside others: which jobs they have."""

import re
import shutil

import nibabel as nib
import numpy as np

from . import tiny


def jobs(text):
    """Return rule and subject of the jobs that a dry run lists."""
    found = re.findall(r"^(?:local)?rule (\w+):\n((?: .*\n)+)", text, re.MULTILINE)
    wildcards = ((rule, re.search(r"wildcards:.*subject=(\w+)", rest)) for rule, rest in found)
    return {(rule, match[1]) for rule, match in wildcards if match}


def lengthen(path, shape):
    """Put a long run, a file with holes, in place of one."""
    path.unlink()
    image = nib.Nifti1Image(np.zeros((2, 2, 2, 2), np.uint8), np.diag([3.0, 3, 3, 1]))
    image.header.set_data_shape(shape)
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_zooms((3, 3, 3, 2.0))
    with path.with_suffix("").open("wb") as file:
        image.header["vox_offset"] = 352
        image.header.write_to(file)
        file.truncate(352 + int(np.prod(shape)))


def test_a_subject_without_a_t1w_has_no_anatomy_and_all_else(tmp_path):
    tiny.make(tmp_path)
    shutil.rmtree(tmp_path / "bids" / "sub-02" / "anat")
    lengthen(
        tmp_path / "bids/sub-02/func/sub-02_task-objects_run-1_bold.nii.gz", (64, 64, 36, 2000)
    )
    done = tiny.snakemake(tmp_path, "--dry-run")
    assert done.returncode == 0, done.stderr
    found = jobs(done.stdout + done.stderr)
    own = {("preprocess_anat", "01"), ("preprocess_bold", "01"), ("preprocess_bold_alone", "02")}
    assert {job for job in found if job[0].startswith("preprocess_")} == own
    for rule in ("transform_regions", "fit_glm", "report_subject"):
        assert {(rule, "01"), (rule, "02")} <= found
    text = re.search(r"rule preprocess_bold_alone:\n((?: .*\n)+)", done.stdout + done.stderr)[1]
    assert "from-boldref_to-MNI152NLin2009aSym" in text
    assert "T1w" not in text
    # a run of 295 million values needs more than the least of 3500 MB
    memory = re.findall(
        r"mem_mb=(\d+)",
        "".join(
            re.findall(r"rule preprocess_bold(?:_alone)?:\n(?: .*\n)+", done.stdout + done.stderr)
        ),
    )
    assert sorted(set(memory)) == ["3500", "5038"]
