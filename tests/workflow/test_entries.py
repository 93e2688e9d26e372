"""The ways into the chain: sessions and tasks, given betas, a cluster profile."""

import re
import subprocess
import sys
from collections import Counter

import nibabel as nib
import numpy as np

from isocortex import store

from . import tiny


def job_counts(text: str) -> Counter:
    """Return the number of jobs of each rule that a dry run lists."""
    table = text.split("Job stats:")[1].split("total")[0]
    return Counter({rule: int(n) for rule, n in re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE)})


def test_sessions_tasks_and_a_missing_run(tmp_path):
    config = tiny.make(tmp_path, runs=(1, 2))
    bids = tmp_path / "bids"
    for session in ("a", "b"):
        for task in ("objects", "words"):
            stem = f"sub-03_ses-{session}_task-{task}"
            func = bids / "sub-03" / f"ses-{session}" / "func"
            tiny.nifti(func / f"{stem}_bold.nii.gz", (*tiny.SHAPE, 20))
            tiny.events(func / f"{stem}_events.tsv", [(2.0, 1.0, "thing", "a.png")])
    tiny.nifti(bids / "sub-03/ses-a/anat/sub-03_ses-a_T1w.nii.gz", tiny.SHAPE)
    for file in (bids / "sub-02/func").glob("*run-2*"):
        file.unlink()
    config["rsa"] = {"measures": ["correlation"]}
    tiny.write_config(tmp_path, config)
    done = tiny.snakemake(tmp_path, "--dry-run")
    assert done.returncode == 0, done.stderr
    jobs = job_counts(done.stdout)
    assert jobs["preprocess_anat"] == 3
    assert jobs["preprocess_bold"] == 2 + 1 + 4
    assert jobs["fit_glm"] == 4, "three subjects have task objects, one has words too"
    assert jobs["compare_rdms"] == 2, "one a task"
    assert jobs["report_subject"] == 3


def test_the_slurm_profile_gives_the_same_jobs(tmp_path):
    tiny.make(tmp_path)
    here = tiny.snakemake(tmp_path, "--dry-run")
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(tiny.ROOT / "Snakefile")]
    command += ["--directory", str(tmp_path), "--configfile", str(tmp_path / "config.yaml")]
    command += ["--profile", str(tiny.ROOT / "profiles" / "slurm"), "--dry-run"]
    there = subprocess.run(command, capture_output=True, text=True, check=False)
    assert there.returncode == 0, there.stderr
    assert job_counts(there.stdout) == job_counts(here.stdout)


def test_a_study_of_given_betas_runs_to_its_report(tmp_path):
    """Two regions, each with its own geometry, the same in all subjects."""
    config = tiny.make(tmp_path, subjects=())
    names = [f"{letter}.png" for letter in "abcdef"]
    rng = np.random.default_rng(3)
    code = rng.standard_normal((2, 6, 5))
    rows = ["subject\timage\tevents"]
    for subject in ("01", "02", "03"):
        patterns = np.zeros((*tiny.SHAPE, 12))
        for half, region in ((slice(0, 4), 0), (slice(4, 8), 1)):
            shape = patterns[half].shape[:3]
            mixture = rng.standard_normal((5, int(np.prod(shape))))
            once = (code[region] @ mixture).T.reshape(*shape, 6)
            patterns[half] = np.concatenate([once, once], axis=3)
        patterns += 0.5 * rng.standard_normal(patterns.shape)
        image = nib.Nifti1Image(patterns.astype("f4"), np.diag([3.0, 3, 3, 1]))
        nib.save(image, tmp_path / f"betas{subject}.nii.gz")
        table = ["stimulus\trun"] + [f"{n}\t{run}" for run in (1, 2) for n in names]
        (tmp_path / f"events{subject}.tsv").write_text("\n".join(table) + "\n")
        rows.append(f"sub-{subject}\tbetas{subject}.nii.gz\tevents{subject}.tsv")
    (tmp_path / "betas.tsv").write_text("\n".join(rows) + "\n")
    config["input"] = {"betas": "betas.tsv"}
    config.pop("features")
    config["rsa"] = {
        "measures": ["correlation", "crossnobis"],
        "noise_normalisation": {"source": "betas"},
    }
    tiny.write_config(tmp_path, config)
    done = tiny.snakemake(tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    results = tmp_path / "results" / "tiny"
    betas = store.open(results / "glm/sub-01_task-all_betas.zarr", "betas")
    assert betas.sizes["trial"] == 12
    assert sorted(set(betas.stimulus.values)) == names
    for measure in ("correlation", "crossnobis"):
        path = results / f"trsa/task-all_measure-{measure}_identification.zarr"
        found = store.open(path, "identification").sel(statistic="rdm")
        assert float(found.accuracy) == 1.0
    html = (results / "report/study.html").read_text()
    assert "Started from" in html
    assert len(list((results / "report").glob("sub-*.html"))) == 3
