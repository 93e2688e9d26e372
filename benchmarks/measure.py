"""Time of ours and of the peer in turn, memory of ours, and that the answers agree."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
import psutil
from threadpoolctl import threadpool_limits

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
_REPEATS, _SECONDS = 5, 20.0


class Disagreement(Exception):
    """Ours and the peer do not give the same answer."""


def side_by_side(
    ours: Callable[[], Any],
    peer: Callable[[], Any],
    *,
    difference: Callable[[Any, Any], float],
    tolerance: float,
    package: str,
    note: str | Callable[[Any, Any], str],
    ours_units: int = 1,
    peer_units: int = 1,
    one_thread: bool = False,
) -> dict[str, Any]:
    """Run two implementations in turn and return the figure without its name.

    A first run of ours, not timed, gives its memory; it and the peer's first run are compared.
    Then both are timed, again in turn while there is time, and the medians count.

    Parameters
    ----------
    ours, peer
        Do the work and return the answer.
    difference
        Of the two answers, the largest absolute one.
    tolerance
        How large it may be.
    package
        The peer's distribution, whose version is given.
    note
        What was run, and what the seconds are of; or a function of the two answers.
    ours_units, peer_units
        How many things of a kind each run makes; seconds are for one.
    one_thread
        Give linear algebra one thread in both, as where a stage works on a block a core.

    Raises
    ------
    Disagreement
        Where answers differ by more than the tolerance, or one is not finite.
    """
    with threadpool_limits(limits=1 if one_thread else None):
        answer, peak = _peak_mib(ours)
        start = time.perf_counter()
        seconds: dict[str, list[float]] = {"ours": [], "peer": []}
        while not seconds["ours"] or (
            len(seconds["ours"]) < _REPEATS and time.perf_counter() - start < _SECONDS
        ):
            seconds["ours"].append(_timed(ours)[0])
            elapsed, theirs = _timed(peer)
            seconds["peer"].append(elapsed)
            if len(seconds["ours"]) == 1:
                gap = float(difference(answer, theirs))
                if not gap <= tolerance:
                    raise Disagreement(
                        f"differs from {package} by {gap:.3g}, more than {tolerance:g}"
                    )
    text = note if isinstance(note, str) else note(answer, theirs)
    ours_s = float(np.median(seconds["ours"])) / ours_units
    peer_s = float(np.median(seconds["peer"])) / peer_units
    repeats = len(seconds["ours"])
    return {
        "ours_s": float(f"{ours_s:.4g}"),
        "peer": f"{package} {version(package)}",
        "peer_s": float(f"{peer_s:.4g}"),
        "ratio": float(f"{peer_s / ours_s:.4g}"),
        "max_abs_diff": float(f"{gap:.3g}"),
        "peak_mib": round(peak, 1),
        "note": f"{text}; median of {repeats}, {'one thread' if one_thread else f'{CORES} cores'}",
    }


def largest_difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the largest absolute difference; NaN where ours has no answer."""
    ours, theirs = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    if ours.shape != theirs.shape:
        raise Disagreement(f"answers have shapes {ours.shape} and {theirs.shape}")
    if not np.isfinite(ours).all():
        return float("nan")
    return float(np.abs(ours - theirs).max())


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    answer = work()
    return time.perf_counter() - start, answer


def _peak_mib(work: Callable[[], Any]) -> tuple[Any, float]:
    """Return the answer and by how much the process grew at most, sampled every 2 ms."""
    process = psutil.Process()
    before = process.memory_info().rss
    most = before
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.002):
            most = max(most, process.memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        answer = work()
    finally:
        done.set()
        watcher.join()
    return answer, (max(most, process.memory_info().rss) - before) / 2**20
