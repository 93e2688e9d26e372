"""Where torch runs, and that it gives the same numbers every time."""

import contextlib
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
    """Deterministic kernels on `threads` cores inside the block; the state before comes back."""
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.get_num_threads(),
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.allow_tf32,
        torch.backends.cuda.matmul.allow_tf32,
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = False
    # Ten bits of mantissa would make the GPU's features differ from the CPU's
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.set_num_threads(before[1])
        torch.backends.cudnn.benchmark = before[2]
        torch.backends.cudnn.allow_tf32 = before[3]
        torch.backends.cuda.matmul.allow_tf32 = before[4]
