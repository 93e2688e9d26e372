"""Runs that are killed go on and end with the same results; a subject that fails fails alone."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pytest
import yaml

from .conftest import ROOT, Demo, environment, kill_tree

SMALL = ["--runs", "2", "--images", "20", "--voxel-size", "4", "--t1w-voxel-size", "3"]


class Small(Demo):
    """A demo study of one subject at a coarse resolution."""

    def command(self, *arguments, **options):
        command = super().command(*arguments, **options)
        command[command.index("--configfile") + 1] = str(self.folder / "config.yaml")
        return command


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    demo = Small(tmp_path_factory.mktemp("undisturbed"))
    demo.data(1, *SMALL)
    config = yaml.safe_load((ROOT / "config" / "demo.yaml").read_text())
    config["preprocess"]["resolution"] = 4.0
    # What runs is here to be killed; what it finds is tested on the demo study itself.
    config["searchlight"] = {"run": True, "step": 2}
    config["features"]["models"] = {"convnet": config["features"]["models"]["convnet"]}
    config["rsa"] = {"measures": ["correlation"]}
    config.pop("trsa")
    config["report"]["surface"] = False
    (demo.folder / "config.yaml").write_text(yaml.safe_dump(config))
    done = demo.run()
    assert done.returncode == 0, done.stderr[-5000:]
    return demo


def manifests(folder: Path) -> dict[str, str]:
    results = folder / "results"
    return {
        str(path.relative_to(results)): path.read_text()
        for path in results.rglob("*.json")
        if path.name.endswith("manifest.json") or path.with_suffix(".zarr").is_dir()
    }


def pieces(folder: Path) -> list[Path]:
    """Return temporary files that a finished run must not leave among its results."""
    return [p for p in (folder / "results").rglob("*") if p.name.endswith((".tmp", ".old"))]


def killed_in(demo: Demo, rule: str, word: str) -> None:
    """Start a run and kill Snakemake, and nothing else, once a job's log says some word."""
    folder = demo.folder / "results" / "demo" / "logs" / rule  # stores beside it come and go
    before = set(folder.rglob("*.log"))
    process = subprocess.Popen(demo.command(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    family: list[psutil.Process] = []
    try:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            logs = set(folder.rglob("*.log")) - before
            if any(word in log.read_text() for log in logs):
                break
            assert process.poll() is None, f"{rule} never ran"
            time.sleep(0.05)
        family = psutil.Process(process.pid).children(recursive=True)
        assert process.poll() is None
        process.kill()
        process.wait()
        # neither jobs nor nipype's workers go on into the next run's results
        _, alive = psutil.wait_procs(family, timeout=10)
        assert not alive, [p.cmdline() for p in alive]
    finally:
        for one in [process.pid, *(p.pid for p in family if p.is_running())]:
            kill_tree(one)


def test_killed_runs_end_with_the_same_digests(undisturbed, tmp_path, monkeypatch):
    demo = Small(tmp_path)
    shutil.copytree(undisturbed.folder / "demo", tmp_path / "demo")
    shutil.copy(undisturbed.folder / "config.yaml", tmp_path)
    working = tmp_path / "working"
    working.mkdir()
    monkeypatch.setenv("TMPDIR", str(working))
    # in the midst of a nipype workflow, as soon as its longest step is at work
    for rule, word in (("preprocess_bold", 'Executing "resample'), ("fit_encoding", "started")):
        killed_in(demo, rule, word)
        if rule == "preprocess_bold":
            assert list(working.glob("isocortex-bold-*/bold_wf/estimate_motion"))
        assert list((tmp_path / ".snakemake" / "locks").glob("*"))
        assert manifests(tmp_path) != manifests(undisturbed.folder)
        refused = demo.run()
        assert refused.returncode != 0
        assert "lock" in (refused.stderr + refused.stdout).lower()
        freed = subprocess.run(
            [sys.executable, "-m", "isocortex.stale_lock"],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            check=True,
        )
        assert "a killed run left its lock behind" in freed.stdout
    done = demo.run()
    assert done.returncode == 0, done.stderr[-5000:]
    ours, theirs = manifests(tmp_path), manifests(undisturbed.folder)
    assert len(theirs) >= 15
    assert {k for k in theirs if ours.get(k) != theirs[k]} == set()
    assert ours.keys() == theirs.keys()
    assert pieces(tmp_path) == []
    assert list(working.glob("isocortex-bold-*")) == []
    for name in ("study.html", "sub-01.html"):
        a = (tmp_path / "results/demo/report" / name).read_bytes()
        assert a == (undisturbed.folder / "results/demo/report" / name).read_bytes()


def add_broken_subject(folder: Path) -> None:
    """Add a second subject: the first one's recordings, with two volumes of NaN in a run."""
    for path in sorted((folder / "demo/bids/sub-01").rglob("*")):
        if path.is_file():
            copy = Path(str(path).replace("sub-01", "sub-02"))
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    bold = folder / "demo/bids/sub-02/func/sub-02_task-objects_run-02_bold.nii.gz"
    image = nib.load(bold)
    values = image.get_fdata(dtype=np.float32)
    values[..., 3:5] = np.nan
    header = image.header.copy()
    header.set_data_dtype("f4")
    header.set_slope_inter(1, 0)
    nib.save(nib.Nifti1Image(values, image.affine, header), bold)


def test_a_failing_subject_leaves_the_others_alone(undisturbed, tmp_path):
    shutil.copytree(undisturbed.folder, tmp_path / "study")
    demo = Small(tmp_path / "study")
    before = manifests(demo.folder)
    add_broken_subject(demo.folder)
    done = demo.run()
    assert done.returncode == 1
    # Once from the job, once more where Snakemake shows the failed job's log.
    lines = {line for line in done.stderr.splitlines() if line.startswith("isocortex: ")}
    assert len(lines) == 1, done.stderr[-3000:]
    (line,) = lines
    assert "preprocess_bold sub-02" in line
    assert "NaN" in line
    after = manifests(demo.folder)
    assert {k: after.get(k) for k in before} == before
    assert any("sub-02" in k for k in set(after) - set(before)), "its other run was made"
    config = yaml.safe_load((demo.folder / "config.yaml").read_text())
    config["exclude"] = {"02": "two volumes are damaged"}
    (demo.folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert {rule for rule, _ in demo.jobs()} == {"report_study", "all"}
    done = demo.run()
    assert done.returncode == 0, done.stderr[-3000:]
    report = (demo.folder / "results/demo/report/study.html").read_text()
    assert "two volumes are damaged" in report


def test_one_subject_is_flagged_not_refused(undisturbed):
    text = (undisturbed.folder / "results/demo/report/study.html").read_text()
    assert "needs at least 2 subjects" in text


def test_a_living_runs_lock_is_left_alone(tmp_path):
    locks = tmp_path / ".snakemake" / "locks"
    locks.mkdir(parents=True)
    (locks / "0.input.lock").write_text("x")
    name = tmp_path / "snakemake"
    name.write_text("import time; time.sleep(60)")
    living = subprocess.Popen([sys.executable, str(name)], cwd=tmp_path)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "isocortex.stale_lock"],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        living.kill()
        living.wait()
    assert done.returncode == 1
    assert f"process {living.pid}" in done.stderr
    assert list(locks.glob("*"))
