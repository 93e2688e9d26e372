"""Where torch runs, how much at once, and that it gives the same numbers every time."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from typing import TypeVar

import psutil
import torch

from isocortex.errors import InputError

logger = logging.getLogger(__name__)

T = TypeVar("T")
_NO_MEMORY = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "alloc_failed",
)


def select_device(device: str, *, key: str) -> torch.device:
    """The torch device of `auto`, `cpu` or `cuda`; `key` is the config key, for the message.

    Of several GPUs it is the one with the most free memory among those that CUDA_VISIBLE_DEVICES
    leaves visible, the first of equals: jobs that start one after another take one each.

    Raises
    ------
    InputError
        If `cuda` is asked for where there is none.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"unknown device {device!r} in {key}: write auto, cpu or cuda")
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise InputError(f"device cuda in {key} but torch finds none: write auto or cpu")
    if device == "cpu" or not available:
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if count < 2:
        return torch.device("cuda")
    free = [torch.cuda.mem_get_info(number)[0] for number in range(count)]
    return torch.device("cuda", max(range(count), key=lambda number: free[number]))


def free_memory(device: torch.device | str = "cpu") -> int:
    """Bytes that can still be allocated on a device.

    On a GPU that is what no process holds and what torch has cached; on the CPU what the system
    says is available, within the memory limit of a container or a cluster's job (cgroup).
    """
    device = torch.device(device)
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + cached)
    free = psutil.virtual_memory().available
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ):
        with contextlib.suppress(OSError, ValueError), open(limit) as most, open(used) as held:
            free = min(free, int(most.read()) - int(held.read()))
    return max(free, 0)


def memory_batch(
    item_bytes: float,
    *,
    device: torch.device | str = "cpu",
    most: int,
    least: int = 1,
    share: float = 0.5,
    reserve: float = 0,
) -> int:
    """How many items to work on together, from the memory that is free now.

    Parameters
    ----------
    item_bytes
        Bytes that one item takes while it is worked on, copies and products included.
    device
        Where.
    most, least
        Bounds of the answer; `most` is what is asked for where there is room.
    share
        Of the free memory, how much may be used.
    reserve
        Bytes that are needed whatever the batch.

    Returns
    -------
    int
        Between `least` and `most`.
    """
    room = free_memory(device) * share - reserve
    return int(min(most, max(least, room // max(item_bytes, 1))))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be allocated, on a GPU or the CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(part in text for part in _NO_MEMORY)


def halving(
    work: Callable[[int, int], T],
    count: int,
    *,
    batch: int,
    least: int = 1,
    what: str = "items",
) -> Iterator[tuple[int, int, T]]:
    """Do work in batches, in halves of them from where memory runs out.

    Parameters
    ----------
    work
        Of items first to last; has to be able to run again after it has failed.
    count
        How many items there are.
    batch
        How many are worked on together at first.
    least
        Where a batch of so many runs out of memory, the error is raised.
    what
        Name of the items, for the warning.

    Yields
    ------
    first, last, result
        In order; what `work` returned for items first to last.
    """
    batch, first = max(int(batch), 1), 0
    while first < count:
        last = min(first + batch, count)
        failed = None
        try:
            result = work(first, last)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or last - first <= least:
                raise
            failed = str(error).splitlines()[0] if str(error) else type(error).__name__
        if failed is not None:  # outside of except, whose traceback holds the tensors
            batch = max((last - first) // 2, least)
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
            logger.warning(
                "out of memory with %d %s at once: going on with %d (%s)",
                last - first,
                what,
                batch,
                failed,
            )
            continue
        yield first, last, result
        first = last


@contextlib.contextmanager
def deterministic(threads: int) -> Iterator[None]:
    """Deterministic kernels on `threads` cores inside the block; the state before comes back.

    Inside it an operation of which torch has no deterministic kernel raises `RuntimeError`.
    """
    before = (
        torch.get_deterministic_debug_mode(),
        torch.utils.deterministic.fill_uninitialized_memory,
        torch.get_num_threads(),
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.allow_tf32,
        torch.backends.cuda.matmul.allow_tf32,
    )
    # What cuBLAS needs to be deterministic; read when CUDA starts
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # The same switch as use_deterministic_algorithms, which would import torch's compiler (2 s)
    torch.set_deterministic_debug_mode("error")
    torch.utils.deterministic.fill_uninitialized_memory = False  # nothing here reads such memory
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = False
    # Ten bits of mantissa would make the GPU's numbers differ from the CPU's
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before[0])
        torch.utils.deterministic.fill_uninitialized_memory = before[1]
        torch.set_num_threads(before[2])
        torch.backends.cudnn.benchmark = before[3]
        torch.backends.cudnn.allow_tf32 = before[4]
        torch.backends.cuda.matmul.allow_tf32 = before[5]
