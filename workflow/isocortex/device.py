"""Where torch runs, and that it gives the same numbers every time."""

import contextlib
import os
from collections.abc import Iterator

import torch

from isocortex.errors import InputError


def select_device(device: str, *, key: str) -> torch.device:
    """The torch device of `auto`, `cpu` or `cuda`; `key` is the config key, for the message.

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
    return torch.device("cuda" if available and device != "cpu" else "cpu")


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
