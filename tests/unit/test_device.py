"""Batches follow the free memory, halve where it runs out, and the idlest GPU is taken."""

import logging

import numpy as np
import psutil
import pytest
import torch

from isocortex import device
from isocortex.errors import InputError


def test_unknown_and_missing_devices_are_one_line(monkeypatch):
    with pytest.raises(InputError, match="'tpu' in features"):
        device.select_device("tpu", key="features.device")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="cuda in encoding"):
        device.select_device("cuda", key="encoding.device")
    assert device.select_device("auto", key="k") == torch.device("cpu")


@pytest.mark.parametrize(
    ("free", "expected"), [([5], "cuda"), ([5, 9, 9], "cuda:1"), ([9, 5], "cuda:0")]
)
def test_of_several_gpus_the_one_with_most_free_memory(monkeypatch, free, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (free[number], 10))
    for name in ("cuda", "auto"):
        assert device.select_device(name, key="k") == torch.device(expected)
    assert device.select_device("cpu", key="k") == torch.device("cpu")


def test_batch_is_what_fits_the_free_memory(monkeypatch):
    monkeypatch.setattr(device, "free_memory", lambda where: 10_000)
    assert device.memory_batch(100, most=1000) == 50
    assert device.memory_batch(100, most=20) == 20
    assert device.memory_batch(100, most=1000, share=1, reserve=4000) == 60
    assert device.memory_batch(100_000, most=1000, least=8) == 8
    assert device.memory_batch(100, most=1000, reserve=1e9) == 1


def test_free_memory_is_at_most_what_the_system_has():
    assert 0 < device.free_memory() <= psutil.virtual_memory().total


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    MemoryError(),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_out_of_memory_halves_the_batch_and_says_so(error, caplog):
    values, sizes = np.arange(23), []

    def work(first, last):
        sizes.append(last - first)
        if last - first > 5:
            raise error
        return values[first:last] * 2

    with caplog.at_level(logging.WARNING):
        done = list(device.halving(work, 23, batch=16, what="voxels"))
    np.testing.assert_array_equal(np.concatenate([part for *_, part in done]), values * 2)
    assert [first for first, *_ in done] == [0, *(last for _, last, _ in done[:-1])]
    assert sizes == [16, 8, 4, 4, 4, 4, 4, 3]  # what fitted once is kept to
    warned = [record.getMessage() for record in caplog.records]
    assert [text.split(" (")[0] for text in warned] == [
        "out of memory with 16 voxels at once: going on with 8",
        "out of memory with 8 voxels at once: going on with 4",
    ]


def test_a_real_allocation_that_fails_is_known():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 58, dtype=torch.uint8)
    assert device.is_out_of_memory(caught.value)


@pytest.mark.parametrize("error", [RuntimeError("shapes cannot be multiplied"), ValueError("x")])
def test_other_errors_are_not_taken_for_it(error, caplog):
    def work(first, last):
        raise error

    with pytest.raises(type(error)):
        list(device.halving(work, 8, batch=4))
    assert not caplog.records


def test_the_least_batch_fails_for_good():
    def work(first, last):
        raise MemoryError

    with pytest.raises(MemoryError):
        list(device.halving(work, 8, batch=8, least=2))
