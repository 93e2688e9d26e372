"""Processes and working folders of jobs: neither outlives the workflow that started them.

Only the standard library is imported at module level, because the Snakefile imports this module.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_POLL_SECONDS = 0.5


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process once its parent is gone (Linux; elsewhere nothing).

    Parameters
    ----------
    parent
        Process id; where it is gone already this process ends at once.

    Notes
    -----
    Workers of a pool wait for work for ever once the process that gave it was killed: each holds
    the other end of the others' pipe open.
    """
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def end_with_workflow() -> list[int]:
    """End this job, at the latest half a second after it, with the Snakemake that started it.

    A job that outlives a killed Snakemake would write into the results of the next one.

    Returns
    -------
    list of int
        The process ids that are watched: all Snakemakes above this process; none where a script
        is called otherwise, or where the system does not tell (no ``/proc``).
    """
    chain = _ancestors()
    watched = [pid for pid in chain if _is_snakemake(pid)]
    if watched and watched[0] == chain[0]:
        die_with_parent(chain[0])
    if watched and watched != chain[:1]:
        # an activated environment has a shell in between, which would live on
        threading.Thread(target=_watch, args=(watched,), daemon=True).start()
    return watched


def _ancestors() -> list[int]:
    """Return the process ids of parent, grandparent and so on."""
    found: list[int] = []
    pid = os.getppid()
    while pid > 1:
        try:
            status = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            break
        found.append(pid)
        # the name, in brackets, may hold spaces
        pid = int(status.rpartition(")")[2].split()[1])
    return found


def _is_snakemake(pid: int) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(os.path.basename(word) == b"snakemake" for word in words[:5])


def _watch(watched: list[int]) -> None:
    """Kill this process as soon as one of those is gone, or no Snakemake any more."""
    while all(_is_snakemake(pid) for pid in watched):
        time.sleep(_POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def working_folder(
    kind: str, owner: str | Path, *, within: str | Path | None = None
) -> Iterator[Path]:
    """Make a folder for a job's intermediate files, removed at the end.

    What a killed job of the same owner left is removed first.

    Parameters
    ----------
    kind
        Of the job, a part of the folder's name.
    owner
        A file that only this job writes, its log or its output: jobs of one owner do not run at
        a time.
    within
        Where to make it; the system's place for temporary files by default.
    """
    place = Path(within or tempfile.gettempdir())
    place.mkdir(parents=True, exist_ok=True)
    sign = hashlib.sha256(os.path.abspath(owner).encode()).hexdigest()[:16]
    prefix = f"isocortex-{kind}-{sign}-"
    for left in place.glob(f"{prefix}*"):
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=place) as folder:
        yield Path(folder)
