"""How a nipype workflow is run inside a Snakemake job, and how it fails."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import traceback
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from nipype.pipeline.engine import Workflow
from nipype.pipeline.plugins.multiproc import MultiProcPlugin, process_initializer, run_node

from isocortex.errors import InputError
from isocortex.jobs import die_with_parent

logger = logging.getLogger(__name__)

_INPUT_ERROR = re.compile(r"isocortex\.errors\.InputError: (.+)")
_ERROR_LINE = re.compile(r"^\s*[\w.]+(Error|Exit)")


class WatchedMultiProcPlugin(MultiProcPlugin):
    """nipype's MultiProc, of which no worker outlives its job, and no job waits for a dead worker.

    A worker that the system kills, mostly for want of memory, breaks the pool, and a result that
    cannot be read or sent is none: nipype's own plugin waits for ever for both.
    """

    def __init__(self, plugin_args: Mapping[str, Any]) -> None:
        super().__init__(plugin_args=plugin_args)
        self.pool.shutdown(wait=False)
        # forked: workers inherit ITK's single thread and what is imported
        self.pool = ProcessPoolExecutor(
            max_workers=self.processors,
            initializer=_start_worker,
            initargs=(self._cwd, os.getpid()),
            mp_context=get_context("fork"),
        )
        self._running: dict[int, str] = {}

    def _submit_job(self, node: Any, updatehash: bool = False) -> int:
        self._taskid = taskid = self._taskid + 1
        self._running[taskid] = node.fullname
        self._task_obj[taskid] = None
        try:
            future = self.pool.submit(run_node, node, updatehash, taskid)
        except BrokenProcessPool:
            self._taskresult[taskid] = self._killed(taskid)
        else:
            self._task_obj[taskid] = future
            future.add_done_callback(partial(self._finished, taskid))
        return taskid

    def _finished(self, taskid: int, future: Future) -> None:
        """Keep what a step gave, or why it gave nothing: a task without a result never ends."""
        if future.cancelled():
            return
        error = future.exception()
        if error is None:
            self._taskresult[taskid] = future.result()
        elif isinstance(error, BrokenProcessPool):
            self._taskresult.setdefault(taskid, self._killed(taskid))
        else:
            # nipype fails to read the step's result file, or to send what it holds
            lines = traceback.format_exception(error)
            self._taskresult[taskid] = {"result": None, "traceback": lines, "taskid": taskid}

    def _clear_task(self, taskid: int) -> None:
        self._running.pop(taskid, None)
        super()._clear_task(taskid)

    def _killed(self, taskid: int) -> dict[str, Any]:
        """Return what a step that was killed leaves, in the manner of nipype's run_node."""
        others = sorted(set(self._running.values()) - {self._running[taskid]})
        beside = f" (or one of {', '.join(others)} beside it)" if others else ""
        line = (
            f"ChildProcessError: its process was killed{beside}, mostly for want of memory: give "
            "the rule more mem_mb, or fewer jobs at a time\n"
        )
        return {"result": None, "traceback": [line], "taskid": taskid}

    def stop(self) -> None:
        """End all workers, whatever they are at."""
        workers = list((self.pool._processes or {}).values())
        self.pool.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.join()


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a line of nipype's says more than the one line in which bad input ends."""
    return not _INPUT_ERROR.search(record.getMessage())


@contextmanager
def _log_once() -> Iterator[None]:
    """Keep nipype from writing each line a second time, and tracebacks of bad input at all."""
    parent, steps = logging.getLogger("nipype"), logging.getLogger("nipype.workflow")
    handlers = list(parent.handlers)
    for handler in handlers:
        parent.removeHandler(handler)
    steps.addFilter(_is_news)
    try:
        yield
    finally:
        steps.removeFilter(_is_news)
        for handler in handlers:
            parent.addHandler(handler)


def _start_worker(folder: str, parent: int) -> None:
    die_with_parent(parent)
    process_initializer(folder)


def run_workflow(
    workflow: Workflow,
    *,
    folder: Path,
    crash_file: Path,
    where: str,
    threads: int,
    mem_mb: int,
    seconds_file: Path | None = None,
) -> Mapping[str, Any]:
    """Run a workflow with nipype's MultiProc and give back what its outputnode holds.

    Parameters
    ----------
    workflow
        With an ``outputnode``.
    folder
        Working folder; the caller removes it.
    crash_file
        Where nipype's crash report goes if a step fails.
    where
        Subject and run, for messages.
    threads, mem_mb
        What the job may use.
    seconds_file
        JSON file that gets the seconds that each step took; the log has them, too. They are in
        no output: the same run gives the same bytes.

    Returns
    -------
    dict
        Output name to value.

    Raises
    ------
    InputError
        A step found bad input; the message is the step's.
    RuntimeError
        A step failed, or its process was killed: names the interface, the subject and run, and
        the crash file.
    """
    crashes = folder / "crash"
    workflow.base_dir = str(folder)
    workflow.config["execution"] = {
        "crashdump_dir": str(crashes),
        "crashfile_format": "txt",
        "poll_sleep_duration": "0.05",
        "stop_on_first_crash": "true",
        "remove_unnecessary_outputs": "false",
        "hash_method": "timestamp",
        "check_version": "false",
    }
    sources = [
        (source, output, name)
        for source, _, data in workflow._graph.in_edges(workflow.get_node("outputnode"), data=True)
        for output, name in data["connect"]
    ]
    plugin = WatchedMultiProcPlugin(
        {"n_procs": max(threads, 1), "memory_gb": mem_mb / 1000, "raise_insufficient": False}
    )
    crash_file.unlink(missing_ok=True)
    try:
        with _log_once():
            graph = workflow.run(plugin=plugin)
    except Exception as error:
        raise _explain(error, crashes, crash_file, where) from None
    finally:
        plugin.stop()
    results = {node.name: node for node in graph.nodes()}
    runtimes = {name: node.result.runtime for name, node in results.items()}
    seconds = {
        name: round(float(runtimes[name].duration), 2)
        for name in sorted(runtimes, key=lambda name: str(runtimes[name].startTime))
    }
    logger.info("seconds of %s: %s", where, ", ".join(f"{n} {s:g}" for n, s in seconds.items()))
    if seconds_file is not None:
        seconds_file.parent.mkdir(parents=True, exist_ok=True)
        seconds_file.write_text(json.dumps(seconds, indent=2) + "\n")
    return {
        name: getattr(results[source.name].result.outputs, output)
        for source, output, name in sources
    }


def _explain(error: Exception, crashes: Path, crash_file: Path, where: str) -> Exception:
    """The failure in one line, and nipype's report beside the log."""
    reports = sorted(crashes.glob("crash-*")) if crashes.is_dir() else []
    text = "\n".join([str(error), *(r.read_text(errors="replace") for r in reports)])
    told = _INPUT_ERROR.search(text)
    if told:
        return InputError(f"{told[1].strip()} ({where})")
    names = re.findall(r"^Node: (\S+)", text, re.MULTILINE) or ["workflow"]
    lines = [line.strip() for line in text.splitlines() if _ERROR_LINE.match(line)]
    reason = lines[-1] if lines else str(error).splitlines()[0]
    if reports:
        crash_file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(reports[0], crash_file)
        reason = f"{reason}; crash report in {crash_file}"
    return RuntimeError(f"{names[0]} failed for {where}: {reason}")
