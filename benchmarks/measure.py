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
import torch
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
    flop: float | None = None,
    device: str = "cpu",
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
    flop
        Nominal floating-point operations of one run of ours, as the plain algorithm would need
        them (the note gives the formula). The figure then has the share `matmul_share` of the
        rate that torch's own float32 matrix product reaches in the same run; it is over 1 where
        fewer operations than the nominal ones are done.
    device
        Where that product runs, and whose memory is meant by `peak_mib`: "cpu" or "cuda".

    Raises
    ------
    Disagreement
        Where answers differ by more than the tolerance, or one is not finite.
    """
    with threadpool_limits(limits=1 if one_thread else None):
        answer, peak = _peak_mib(ours, device)
        start = time.perf_counter()
        rates: list[float] = []
        seconds: dict[str, list[float]] = {"ours": [], "peer": []}
        while not seconds["ours"] or (
            len(seconds["ours"]) < _REPEATS and time.perf_counter() - start < _SECONDS
        ):
            if flop:
                rates.append(matmul_rate(device))
            seconds["ours"].append(_timed(ours, device)[0])
            elapsed, theirs = _timed(peer, device)
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
        **(_share(flop / ours_units / ours_s, float(np.median(rates))) if flop else {}),
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


def matmul_rate(device: str = "cpu", *, size: int = 2048) -> float:
    """Floating-point operations a second of torch's float32 matrix product, the best of 3."""
    factors = torch.ones((2, size, size), device=device)
    torch.mm(factors[0], factors[1])  # starts threads, loads kernels
    best = min(_timed(lambda: torch.mm(factors[0], factors[1]), device)[0] for _ in range(3))
    return 2 * size**3 / best


def _share(rate: float, product: float) -> dict[str, float]:
    return {
        "matmul_share": float(f"{rate / product:.3g}"),
        "matmul_tflop_s": float(f"{product / 1e12:.3g}"),
    }


def _timed(work: Callable[[], Any], device: str = "cpu") -> tuple[float, Any]:
    start = time.perf_counter()
    answer = work()
    if device != "cpu":
        torch.cuda.synchronize()  # work on a GPU goes on after the call
    return time.perf_counter() - start, answer


def _peak_mib(work: Callable[[], Any], device: str = "cpu") -> tuple[Any, float]:
    """Return the answer and by how much the process grew at most, sampled every 2 ms.

    On a GPU it is the growth of the memory allocated there.
    """
    if device != "cpu":
        allocated = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        answer = work()
        return answer, (torch.cuda.max_memory_allocated() - allocated) / 2**20
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
