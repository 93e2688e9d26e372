"""The ways into the chain: sessions and tasks, given betas, a cluster profile."""

import re
import subprocess
import sys
from collections import Counter

import nibabel as nib
import numpy as np
from PIL import Image
from rsatoolbox.rdm import RDMs
from scipy.io import savemat
from scipy.spatial.distance import pdist, squareform

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
    (tmp_path / "ids.txt").write_text("\n".join(names))
    rows = ["model\tlayer\tfile\tstimuli"]
    for region, vectors in zip("AB", code):
        np.save(tmp_path / f"{region}.npy", pdist(vectors, "sqeuclidean"))
        rows.append(f"code\t{region}\t{region}.npy\tids.txt")
    (tmp_path / "models.tsv").write_text("\n".join(rows) + "\n")
    # Models without features: nothing is encoded, and everything else compares with them.
    config["input"] = {"betas": "betas.tsv", "model_rdms": "models.tsv"}
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
        scores = store.open(results / f"rsa/task-all_measure-{measure}_scores.zarr", "scores")
        best = scores["best_predictor"].sel(comparison="pearson")
        assert best.values.tolist() == ["code/A", "code/B"]
    assert not (results / "encoding").exists()
    html = (results / "report/study.html").read_text()
    assert "Started from" in html
    assert "Given as RDMs (made elsewhere, without features): code." in html
    assert len(list((results / "report").glob("sub-*.html"))) == 3


def test_a_study_of_given_rdms_runs_to_its_report(tmp_path):
    """No image of a brain: RDMs in one rsatoolbox file and in others, and the models' stimuli.

    Region A has the geometry of the images' pixels, B another one; in C one subject's RDM lacks a
    pair, and one subject has no C.
    """
    rng = np.random.default_rng(4)
    names = [f"{letter}.png" for letter in "abcdefgh"]
    pixels = rng.integers(0, 256, (8, 4, 4, 3), dtype=np.uint8)
    pixels = pixels.repeat(8, axis=1).repeat(8, axis=2)
    (tmp_path / "images").mkdir()
    for name, image in zip(names, pixels):
        Image.fromarray(image).save(tmp_path / "images" / name)
    geometry = {
        "A": pdist(pixels.reshape(8, -1) / 255.0, "correlation"),
        "B": pdist(rng.standard_normal((8, 5))),
        "C": pdist(rng.standard_normal((8, 5))),
    }
    rdms = {
        (subject, region): vector * (1 + 0.02 * rng.standard_normal(vector.shape))
        for subject in ("01", "02", "03")
        for region, vector in geometry.items()
    }
    del rdms["03", "C"]
    rdms["02", "C"][4] = np.nan
    of_two = [key for key in rdms if key[0] != "03"]
    RDMs(
        np.array([rdms[key] for key in of_two]),
        rdm_descriptors={
            "subject": [f"sub-{subject}" for subject, _ in of_two],
            "roi": [region for _, region in of_two],
        },
        pattern_descriptors={"stimulus": names},
    ).save(str(tmp_path / "all.h5"), file_type="hdf5")
    savemat(tmp_path / "third.mat", {"A": squareform(rdms["03", "A"])})
    np.save(tmp_path / "third.npy", rdms["03", "B"])
    (tmp_path / "ids.txt").write_text("\n".join(names))
    rows = [f"{subject}\t{region}\tall.h5\t" for subject, region in of_two]
    rows += ["03\tA\tthird.mat\tids.txt", "03\tB\tthird.npy\tids.txt"]
    table = ["subject\tregion\tfile\tstimuli", *rows]
    (tmp_path / "rdms.tsv").write_text("\n".join(table) + "\n")
    given = {"true": geometry["B"], "other": pdist(rng.standard_normal((8, 5)))}
    RDMs(
        np.array(list(given.values())),
        rdm_descriptors={"layer": list(given)},
        pattern_descriptors={"stimulus": names},
    ).save(str(tmp_path / "layers.h5"), file_type="hdf5")
    halves = np.repeat([[0], [1]], 4, axis=0) * np.ones(3)
    np.savetxt(tmp_path / "halves.csv", squareform(pdist(halves)), delimiter=",")
    table = ["model\tfile\tstimuli", "net\tlayers.h5\t", "halves\thalves.csv\tids.txt"]
    (tmp_path / "models.tsv").write_text("\n".join(table) + "\n")
    config = {
        "study": "tiny",
        "input": {"rdms": "rdms.tsv", "stimuli": "images", "model_rdms": "models.tsv"},
        "features": {"models": {"pixels": {"source": "builtin", "architecture": "pixels"}}},
        "rsa": {"bootstrap": {"samples": 200}},
    }
    tiny.write_config(tmp_path, config)
    done = tiny.snakemake(tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    results = tmp_path / "results" / "tiny"
    scores = store.open(results / "rsa/task-all_measure-given_scores.zarr", "scores").load()
    assert scores.attrs["n_pairs_missing"] == {"A": 0, "B": 0, "C": 1}
    pearson = scores["mean"].sel(comparison="pearson").isel(predictor=0)
    assert pearson.sel(region="A") > 0.9 > pearson.sel(region="B")
    assert np.isfinite(pearson.sel(region="C"))
    assert scores["predictor"].values.tolist()[1:] == ["net/true", "net/other", "halves/halves"]
    best = scores["best_predictor"].sel(comparison="pearson", region="B")
    assert best.item() == "net/true"
    np.testing.assert_allclose(
        scores["score"].sel(comparison="pearson", region="B", predictor="halves/halves"),
        [np.corrcoef(pdist(halves), rdms[s, "B"])[0, 1] for s in ("01", "02", "03")],
        atol=1e-9,
    )
    path = results / "trsa/task-all_measure-given_identification.zarr"
    found = store.open(path, "identification").sel(statistic="rdm")
    assert float(found.accuracy) == 1.0
    html = (results / "report/study.html").read_text()
    assert "Started from" in html
    assert len(list((results / "report").glob("sub-*.html"))) == 3
    assert "Given as RDMs (made elsewhere, without features): halves and net." in html
    # The same brain against given models alone: no features, no images; one file changed.
    config["input"].pop("stimuli")
    config.pop("features")
    tiny.write_config(tmp_path, config)
    (tmp_path / "halves.csv").write_text((tmp_path / "halves.csv").read_text() + "\n")
    done = tiny.snakemake(tmp_path, "--dry-run")
    assert done.returncode == 0, done.stderr
    jobs = job_counts(done.stdout)
    assert jobs["import_model_rdms"] == 1
    assert jobs["compare_rdms"] == jobs["report_study"] == 1
    assert not {"import_rdms", "extract_features", "fit_encoding"} & set(jobs)


def test_stimulus_ids_of_given_rdms_are_followed_and_a_touch_is_not(tmp_path):
    """Ids in a list that the table names, and in one beside the file that it does not."""
    for region in "AB":
        np.save(tmp_path / f"{region}.npy", np.random.default_rng(0).random(15))
    lists = {"A": tmp_path / "A_stimuli.txt", "B": tmp_path / "ids.txt"}
    for file in lists.values():
        file.write_text("\n".join("abcdef"))
    rows = ["subject\tregion\tfile\tstimuli", "01\tA\tA.npy\t", "01\tB\tB.npy\tids.txt"]
    (tmp_path / "rdms.tsv").write_text("\n".join(rows) + "\n")
    tiny.write_config(tmp_path, {"study": "tiny", "input": {"rdms": "rdms.tsv"}})
    target = "results/tiny/rsa/sub-01_task-all_measure-given_rdms.json"
    done = tiny.snakemake(tmp_path, target)
    assert done.returncode == 0, done.stderr[-4000:]
    for file in tmp_path.glob("*.*"):
        file.touch()
    assert "rule import_rdms:" not in tiny.snakemake(tmp_path, "--dry-run", target).stdout
    for file in lists.values():
        file.write_text("\n".join("abcdfe"))
        assert "rule import_rdms:" in tiny.snakemake(tmp_path, "--dry-run", target).stdout
        file.write_text("\n".join("abcdef"))
