"""A subject of two sessions: one anatomy, and runs that keep their sessions in every name."""

import re
import shutil

from . import tiny


def test_sessions_go_through_the_whole_chain(tmp_path):
    tiny.make(tmp_path, subjects=("01",), runs=(1,))
    subject = tmp_path / "bids/sub-01"
    for session in ("post", "pre"):
        for kind in ("anat", "func"):
            folder = subject / f"ses-{session}" / kind
            folder.mkdir(parents=True)
            for file in (subject / kind).iterdir():
                shutil.copy(file, folder / file.name.replace("sub-01_", f"sub-01_ses-{session}_"))
    for kind in ("anat", "func"):
        shutil.rmtree(subject / kind)
    done = tiny.snakemake(tmp_path, "--dry-run", "--until", "fit_glm")
    assert done.returncode == 0, done.stderr
    jobs = {}
    for part in re.split(r"\n(?=rule \w+:)", done.stdout)[1:]:
        jobs.setdefault(re.match(r"rule (\w+):", part)[1], []).append(part)
    (anatomy,) = jobs["preprocess_anat"]
    assert {f"ses-{s}/anat/sub-01_ses-{s}_T1w.nii.gz" in anatomy for s in ("pre", "post")} == {True}
    assert "preprocess/sub-01/anat/sub-01_desc-preproc_T1w.nii.gz" in anatomy
    assert len(jobs["preprocess_bold"]) == 2
    (glm,) = jobs["fit_glm"]
    for session in ("pre", "post"):
        stem = f"ses-{session}/func/sub-01_ses-{session}_task-objects_run-1"
        (run,) = (job for job in jobs["preprocess_bold"] if f"run={stem}" in job)
        for name in ("desc-confounds_timeseries.tsv", "from-boldref_to-T1w_mode-image_xfm.txt"):
            assert f"preprocess/sub-01/{stem}_{name}" in run
        assert f"logs/preprocess_bold/sub-01_{stem}.log" in run
        assert f"{stem}_space-MNI152NLin2009aSym_desc-preproc_bold.nii.gz" in glm
