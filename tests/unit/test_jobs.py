"""Jobs end with their workflow, their working folders and workers with them; crashes are named."""

import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import psutil
import pytest
from nipype import Function, Node, Workflow
from nipype.interfaces.utility import IdentityInterface

from isocortex.jobs import working_folder
from isocortex.preprocess import interfaces
from isocortex.preprocess.engine import run_workflow

ROOT = Path(__file__).resolve().parents[2]


def killed():
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


def lost():
    """Fail, and leave nothing that nipype could read."""
    import os
    import shutil

    shutil.rmtree(os.getcwd())
    raise ValueError("by design")


def unsendable():
    """End well with what does not go from one process to another."""
    return lambda: None


def slow():
    import time

    time.sleep(60)
    return 1


def workflow_of(*functions):
    """A workflow of steps that run beside one another."""
    workflow = Workflow(name="x_wf")
    outputs = Node(IdentityInterface(fields=[f.__name__ for f in functions]), name="outputnode")
    for function in functions:
        step = Node(Function(output_names=["out"], function=function), name=function.__name__)
        workflow.connect(step, "out", outputs, function.__name__)
    return workflow


@pytest.mark.parametrize("beside", [(), (slow,)], ids=["alone", "beside another"])
def test_a_killed_worker_is_an_error_that_names_the_step(tmp_path, beside):
    functions = (killed, *beside)
    # other tests of the session may have left a resource tracker behind
    before = set(psutil.Process().children(recursive=True))
    started = time.monotonic()
    with pytest.raises(RuntimeError, match=r"x_wf\.\w+ failed for sub-07 func/run") as caught:
        run_workflow(
            workflow_of(*functions),
            folder=tmp_path / "work",
            crash_file=tmp_path / "run.crash.txt",
            where="sub-07 func/run",
            threads=len(functions),
            mem_mb=1000,
        )
    assert time.monotonic() - started < 30
    told = str(caught.value)
    assert "x_wf.killed" in told
    assert "was killed" in told
    assert "mem_mb" in told
    assert "\n" not in told
    assert "ChildProcessError" in (tmp_path / "run.crash.txt").read_text()
    # the one beside it is not waited for
    assert set(psutil.Process().children(recursive=True)) <= before


@pytest.mark.parametrize(("broken", "line"), [(lost, "result_lost.pklz"), (unsendable, "pickle")])
def test_a_step_whose_result_is_lost_is_an_error_with_its_cause(tmp_path, broken, line):
    with pytest.raises(RuntimeError, match=rf"x_wf\.{broken.__name__} failed for sub-07") as caught:
        run_workflow(
            workflow_of(broken, slow),
            folder=tmp_path / "work",
            crash_file=tmp_path / "run.crash.txt",
            where="sub-07 func/run",
            threads=2,
            mem_mb=1000,
        )
    assert "\n" not in str(caught.value)
    assert "FileNotFoundError: " in str(caught.value)
    assert line in (tmp_path / "run.crash.txt").read_text()


def job(folder, script, **items):
    """What Snakemake gives the script of a rule."""
    return SimpleNamespace(
        log=[str(folder / "logs" / f"{script}.log")],
        wildcards=SimpleNamespace(subject="07", run="func/sub-07_task-x"),
        resources=SimpleNamespace(tmpdir=str(folder / "tmp"), mem_mb=3000),
        threads=1,
        **items,
    )


def crash(*args, **kwargs):
    raise ZeroDivisionError("by design")


@pytest.mark.parametrize(
    ("broken", "line"), [(crash, "ZeroDivisionError: by design"), (killed, "ChildProcessError")]
)
def test_a_failing_interface_of_anatomy_ends_in_the_rules_log(tmp_path, capfd, broken, line):
    """Through the rule's own script: subject and interface in one line, and the crash file."""
    t1w = tmp_path / "sub-07_T1w.nii"
    nib.save(nib.Nifti1Image(np.ones((8, 8, 8), np.float32), np.eye(4)), t1w)
    snakemake = job(
        tmp_path,
        "preprocess_anat",
        input=SimpleNamespace(t1w=[str(t1w)]),
        output={"manifest": str(tmp_path / "manifest.json")},
        params=SimpleNamespace(seed=1, code=""),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            interfaces.AverageAnatomy, "_run_interface", lambda *args: broken() or args[1]
        )
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(
                str(ROOT / "workflow" / "preprocess_anat.py"),
                init_globals={"snakemake": snakemake},
                run_name="__main__",
            )
    assert ended.value.code == 1
    told = [x for x in capfd.readouterr().err.splitlines() if x.startswith("isocortex: ")]
    log = (tmp_path / "logs/preprocess_anat.log").read_text()
    (told,) = told
    assert told in log
    assert "preprocess_anat sub-07" in told
    assert "anat_wf.average failed for sub-07" in told
    assert line in told
    crash_file = tmp_path / "logs/preprocess_anat.crash.txt"
    assert str(crash_file) in told
    assert line.split(":")[0] in crash_file.read_text()
    assert not list((tmp_path / "tmp").iterdir())  # the working folder is gone
    assert not (tmp_path / "manifest.json").exists()


def test_what_a_killed_job_left_is_removed(tmp_path):
    def prefix(folder):
        return folder.name.rsplit("-", 1)[0]

    with working_folder("bold", "a.log", within=tmp_path) as one:
        (one / "x").write_text("x")
        with working_folder("bold", "b.log", within=tmp_path) as other:
            assert prefix(one) != prefix(other)
        left = tmp_path / f"{prefix(one)}-left"
        left.mkdir()
        (left / "x").touch()
    assert not one.exists()
    assert left.exists()
    with working_folder("bold", os.path.abspath("a.log"), within=tmp_path) as again:
        assert list(tmp_path.iterdir()) == [again]


MAIN = """
import subprocess, sys
subprocess.run([sys.executable, sys.argv[1]] if sys.argv[2] == "direct"
               else ["bash", "-c", f"{sys.executable} {sys.argv[1]}; true"])
"""
SCRIPT = """
import os, sys, time
sys.path.insert(0, {package!r})
from isocortex.provenance import job_log
from concurrent.futures import ProcessPoolExecutor
from isocortex.jobs import die_with_parent
with job_log({log!r}, where="test"):
    pool = ProcessPoolExecutor(1, initializer=die_with_parent, initargs=(os.getpid(),))
    worker = pool.submit(os.getpid).result()
    pool.submit(time.sleep, 60)
    with open({pids!r} + ".tmp", "w") as file:
        file.write(f"{{os.getpid()}} {{worker}}")
    os.rename({pids!r} + ".tmp", {pids!r})
    time.sleep(60)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
@pytest.mark.parametrize("way", ["direct", "shell"])
def test_a_killed_snakemake_takes_jobs_and_workers_with_it(tmp_path, way):
    """Also where a shell lies between, as where an environment is activated."""
    main, script, pids = (tmp_path / name for name in ("snakemake", "job.py", "pids"))
    main.write_text(MAIN)
    script.write_text(
        SCRIPT.format(package=str(ROOT / "workflow"), log=str(tmp_path / "job.log"), pids=str(pids))
    )
    parent = subprocess.Popen([sys.executable, str(main), str(script), way])
    family = []
    try:
        deadline = time.monotonic() + 60
        while not pids.exists():
            assert time.monotonic() < deadline
            assert parent.poll() is None
            time.sleep(0.05)
        family = [psutil.Process(int(pid)) for pid in pids.read_text().split()]
        assert all(process.is_running() for process in family)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        gone, alive = psutil.wait_procs(family, timeout=10)
        assert not alive
        assert len(gone) == 2
    finally:
        parent.kill()
        for process in family:
            if process.is_running():
                process.kill()
