"""Blocks give the same on threads, on a dask scheduler and on workers that Slurm starts."""

import json
import operator
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from isocortex import parallel
from isocortex.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
ARRAY = np.arange(12.0).reshape(3, 4)
# Functions of the package's own dependencies, which workers in other processes can import too.
BLOCKS = [0, 2, 1]


@pytest.fixture
def settings(monkeypatch):
    def use(**section):
        monkeypatch.setenv(parallel.SETTINGS, json.dumps(section))

    monkeypatch.setenv("PYTHONPATH", str(ROOT / "workflow"))
    return use


def row(block, array):
    return array[block]


def check_rows(**options):
    rows = list(parallel.map_blocks(np.take_along_axis, [ARRAY[b : b + 1] for b in BLOCKS],
                                    np.zeros((1, 4), dtype=int), 1, **options))  # fmt: skip
    np.testing.assert_array_equal(np.concatenate(rows)[:, 3], ARRAY[BLOCKS, 0])


def test_threads_keep_the_order_of_blocks_and_few_in_flight():
    running, most = 0, 0
    lock = threading.Lock()

    def slow(block, _):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.002 * (5 - block % 5))
        with lock:
            running -= 1
        return block

    started = []
    results = parallel.map_blocks(
        lambda b, a: started.append(b) or slow(b, a), range(40), 0, threads=3
    )
    first = next(results)
    assert first == 0
    assert len(started) <= 3 * 2
    assert [first, *results] == list(range(40))
    assert most <= 3
    with pytest.raises(ValueError, match="threads is 0"):
        list(parallel.map_blocks(row, [0], ARRAY, threads=0))


def test_linear_algebra_runs_on_one_thread_in_a_block():
    def limits(_):
        pools = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
        return {pool["num_threads"] for pool in pools}

    assert set().union(*parallel.map_blocks(limits, range(3), threads=2)) == {1}


def test_workers_are_let_go_with_the_last_result():
    def limits():
        return [pool["num_threads"] for pool in threadpool_info()]

    before = limits()
    with threadpool_limits(limits=2):
        found = parallel.map_blocks(row, BLOCKS, ARRAY, threads=2)
        assert [block for block, _ in zip(BLOCKS, found)] == BLOCKS
        assert set(limits()) == {2}
        del found
    assert limits() == before


def test_an_error_in_a_block_ends_the_work():
    with pytest.raises(IndexError):
        list(parallel.map_blocks(row, [0, 9, 1], ARRAY, threads=2))


def test_an_existing_scheduler_gives_the_same(settings):
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=1, threads_per_worker=2, processes=True, dashboard_address=None
    ) as cluster:
        settings(scheduler=cluster.scheduler_address, wait=30)
        check_rows(threads=1)
        with pytest.raises(IndexError):
            list(parallel.map_blocks(operator.getitem, [[0]], 9))


def test_slurm_workers_give_the_same(settings, tmp_path, monkeypatch):
    """`sbatch` is stood in for by a program that starts the job's script on this machine."""
    commands = tmp_path / "bin"
    commands.mkdir()
    sbatch = (
        f'#!/bin/sh\nfor last; do :; done\ncp "$last" {tmp_path}/job.sh\n'
        f"setsid sh {tmp_path}/job.sh >{tmp_path}/job.log 2>&1 &\n"
        f"echo $! > {tmp_path}/pid\necho Submitted batch job 17\n"
    )
    scancel = f'#!/bin/sh\necho "$@" > {tmp_path}/cancelled\nkill -- -$(cat {tmp_path}/pid)\n'
    for name, text in (("sbatch", sbatch), ("scancel", scancel)):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.delenv("PYTHONPATH")
    settings_of_slurm = {"jobs": 1, "cores": 2, "mem_mb": 900, "runtime": "00:10:00"}
    settings(
        scheduler="slurm",
        wait=60,
        slurm={**settings_of_slurm, "partition": "brain", "directives": ["--constraint=x"]},
    )
    check_rows(threads=1)
    script = (tmp_path / "job.sh").read_text()
    for line in ("-p brain", "--cpus-per-task=2", "-t 00:10:00", "--constraint=x"):
        assert f"#SBATCH {line}" in script
    assert f"export PYTHONPATH={ROOT / 'workflow'}" in script
    assert (tmp_path / "cancelled").read_text().split() == ["17"]


def test_a_scheduler_that_is_not_there_is_named(settings):
    settings(scheduler="tcp://127.0.0.1:9", wait=1)
    with pytest.raises(InputError, match="no scheduler answers at tcp:"):
        list(parallel.map_blocks(row, [0], ARRAY))


def test_a_scheduler_without_workers_is_named(settings):
    from distributed import LocalCluster

    with LocalCluster(n_workers=0, dashboard_address=None) as cluster:
        settings(scheduler=cluster.scheduler_address, wait=1)
        with pytest.raises(InputError, match="has no worker after 1 s"):
            list(parallel.map_blocks(row, [0], ARRAY))


def test_workers_with_other_code_are_refused(settings, monkeypatch):
    class Client:
        def run(self, function, on_error):
            return {"tcp://node:1": {**function(), "numpy": "1.0"}}

    with pytest.raises(InputError, match="has numpy 1"):
        parallel._check_workers(Client(), "tcp://head:1")


def test_workers_without_the_package_are_refused(settings, tmp_path, monkeypatch):
    """A real worker whose environment lacks the workflow folder."""
    from distributed import LocalCluster

    bare = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    with LocalCluster(n_workers=0, dashboard_address=None) as cluster:
        worker = subprocess.Popen(
            [sys.executable, "-m", "distributed.cli.dask_worker", cluster.scheduler_address,
             "--no-nanny", "--no-dashboard"],
            env=bare, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            settings(scheduler=cluster.scheduler_address, wait=30)
            with pytest.raises(InputError, match="cannot import isocortex"):
                list(parallel.map_blocks(row, [0], ARRAY))
        finally:
            worker.kill()
            worker.wait()
