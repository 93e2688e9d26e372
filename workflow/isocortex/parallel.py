"""Work in blocks: on the cores that a rule was given, or on the dask workers of the config.

The config's section ``dask`` says where blocks of regions, searchlight centres and bootstrap
samples run. It changes no result, so it is no part of a rule's params: the Snakefile hands it to
the jobs in an environment variable.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import hashlib
import importlib.metadata
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from isocortex.errors import InputError

logger = logging.getLogger(__name__)

SETTINGS = "ISOCORTEX_DASK"
"""Name of the environment variable with the config's section ``dask`` as JSON."""
_SECONDS_BETWEEN_LINES = 15.0
_ROOT = Path(__file__).resolve().parent.parent


@contextlib.contextmanager
def dask_workers(threads: int) -> Iterator[None]:
    """Compute dask graphs on ``threads`` threads inside the block.

    Linear algebra runs on one thread a block meanwhile, so that blocks times library threads
    never exceed the cores that Snakemake counted for the job.

    Parameters
    ----------
    threads
        Number of dask workers, at least 1; pass ``snakemake.threads``.
    """
    import dask
    from threadpoolctl import threadpool_limits

    _check_threads(threads)
    with dask.config.set(scheduler="threads", num_workers=threads), threadpool_limits(limits=1):
        yield


def map_blocks(
    function: Callable[..., Any],
    blocks: Iterable[Any],
    *shared: Any,
    threads: int = 1,
    label: str = "",
) -> Iterator[Any]:
    """Yield ``function(block, *shared)`` of every block, in the order of the blocks.

    Few blocks are at work or waiting at a time, so that memory does not grow with their number.

    Parameters
    ----------
    function
        Of a module's top level (or a `functools.partial` of one), which returns its result and
        writes to no argument: with a dask scheduler it runs in another process.
    blocks
        What the work is cut into: slices, indices, small arrays.
    shared
        What all blocks need, large arrays as they are: each worker gets them once.
    threads
        Blocks at work at a time on this machine, at least 1; pass ``snakemake.threads``.
    label
        What the log calls the work.

    Raises
    ------
    InputError
        Where the scheduler of the config cannot be used.
    """
    _check_threads(threads)
    blocks = list(blocks)
    last: list[Any] = []
    with _workers(threads) as (submit, share, width):
        arguments = [share(value) for value in shared]
        waiting: collections.deque[Any] = collections.deque()
        ahead = iter(blocks)
        progress = _Progress(label, len(blocks))
        try:
            for block in ahead:
                waiting.append(submit(function, block, *arguments))
                if len(waiting) >= 2 * width:
                    yield waiting.popleft().result()
                    progress.step()
            while len(waiting) > 1:
                yield waiting.popleft().result()
                progress.step()
            last = [task.result() for task in waiting]
        finally:
            for task in waiting:
                task.cancel()
    # Workers are let go by now: `zip` asks for no more than the last result.
    yield from last


def hand_on_scheduler(section: Mapping[str, Any]) -> None:
    """Put the config's section ``dask`` where this process' jobs find it."""
    os.environ[SETTINGS] = json.dumps(section)


def scheduler_settings() -> dict[str, Any]:
    """Return the config's section ``dask``, as the Snakefile handed it on; threads without it."""
    return {"scheduler": "threads", **json.loads(os.environ.get(SETTINGS, "{}"))}


def _check_threads(threads: int) -> None:
    if threads < 1:
        raise ValueError(f"threads is {threads}: pass at least 1")


def _on_one_thread(function: Callable[..., Any], block: Any, *shared: Any) -> Any:
    """Call a function with linear algebra on one thread, as there is a block a core."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1):
        return function(block, *shared)


class _Progress:
    """Lines in the log about work that takes long."""

    def __init__(self, label: str, total: int) -> None:
        self._label, self._total, self._done = label, total, 0
        self._started = self._said = time.monotonic()

    def step(self) -> None:
        self._done += 1
        now = time.monotonic()
        if self._label and now - self._said >= _SECONDS_BETWEEN_LINES:
            self._said = now
            left = (now - self._started) * (self._total - self._done) / self._done
            logger.info(
                "%s: %d of %d blocks, %.0f s left", self._label, self._done, self._total, left
            )


@contextlib.contextmanager
def _workers(threads: int) -> Iterator[tuple[Callable[..., Any], Callable[[Any], Any], int]]:
    """Open what blocks run on: how it is given calls and shared values, and its cores."""
    from threadpoolctl import threadpool_limits

    settings = scheduler_settings()
    if settings["scheduler"] == "threads":
        # One limit for all: it is the process', and a thread's end would lift it for the others.
        with threadpool_limits(limits=1), ThreadPoolExecutor(threads) as executor:
            yield executor.submit, lambda value: value, threads
        return
    with _client(settings) as client:
        _check_workers(client, settings["scheduler"])
        width = max(1, sum(client.ncores().values()))
        yield (
            functools.partial(client.submit, _on_one_thread, pure=False),
            lambda value: client.scatter([value], broadcast=True, hash=False)[0],
            width,
        )


@contextlib.contextmanager
def _client(settings: Mapping[str, Any]) -> Iterator[Any]:
    """Connect to the dask scheduler of the config, or start workers on Slurm."""
    from distributed import Client

    where = settings["scheduler"]
    wait = float(settings.get("wait", 60))
    if where == "slurm":
        with _slurm_cluster(settings.get("slurm", {})) as cluster, Client(cluster) as client:
            cluster.scale(jobs=int(settings["slurm"]["jobs"]))
            _wait_for_workers(client, where, wait)
            yield client
        return
    try:
        client = Client(where, timeout=wait)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(
            f"dask.scheduler: no scheduler answers at {where} within {wait:g} s: start it, correct "
            "the address, or set it to threads"
        ) from error
    with client:
        _wait_for_workers(client, where, wait)
        yield client


def _wait_for_workers(client: Any, where: str, wait: float) -> None:
    try:
        client.wait_for_workers(1, timeout=wait)
    except TimeoutError as error:
        raise InputError(
            f"dask.scheduler: {where} has no worker after {wait:g} s: start some, raise dask.wait, "
            "or set it to threads"
        ) from error


def _check_workers(client: Any, where: str) -> None:
    """Raise `InputError` where workers run other code or other versions than this process."""
    here = _versions()
    for worker, there in client.run(_versions, on_error="return").items():
        if isinstance(there, Exception):
            raise InputError(
                f"dask.scheduler: worker {worker} of {where} cannot import isocortex ({there}): "
                f"start it in the environment of the workflow, with PYTHONPATH={_ROOT}"
            )
        for name, version in here.items():
            if there.get(name) != version:
                raise InputError(
                    f"dask.scheduler: worker {worker} of {where} has {name} {there.get(name)}, "
                    f"this job {version}: start the workers in the environment of the workflow, "
                    f"with PYTHONPATH={_ROOT}"
                )


def _versions() -> dict[str, str]:
    """Return what must be the same in a worker for results to be the same."""
    code = hashlib.sha256()
    for file in sorted((_ROOT / "isocortex").rglob("*.py")):
        code.update(file.read_bytes())
    found = {"isocortex": code.hexdigest()[:12]}
    for name in ("numpy", "scipy"):
        found[name] = importlib.metadata.version(name)
    return found


def _slurm_cluster(slurm: Mapping[str, Any]) -> Any:
    """Return a dask cluster whose workers are Slurm jobs that import this package."""
    from dask_jobqueue import SLURMCluster

    return SLURMCluster(
        queue=slurm.get("partition") or None,
        account=slurm.get("account") or None,
        cores=int(slurm["cores"]),
        memory=f"{int(slurm['mem_mb'])}MB",
        walltime=str(slurm["runtime"]),
        interface=slurm.get("interface") or None,
        python=sys.executable,
        job_name="isocortex-dask",
        job_script_prologue=[f"export PYTHONPATH={_ROOT}"],
        job_extra_directives=list(slurm.get("directives", [])),
        log_directory=slurm.get("logs") or None,
    )
