"""What extracting features takes in memory: of 1,000 images and of 10,000."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.measure import Disagreement

EXTRACT = """
import pathlib, resource, sys
import psutil
from isocortex import features
folder, n = pathlib.Path(sys.argv[1]), int(sys.argv[2])
files = sorted(folder.glob("*.png"))
before = psutil.Process().memory_info().rss
features.extract_features(
    stimuli=[files[i % len(files)] for i in range(n)], stimulus_ids=[f"{i:06d}" for i in range(n)],
    out=folder / "out.zarr", model="net", architecture="resnet20-cifar",
    layers=["layer1.0", "layer2.0", "avgpool"])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before) / 2**20)
"""
ALLOWED = 1.1


def run(*, small: bool = False) -> dict[str, Any]:
    """Peak of the process less what it held before, each number of images in its own process."""
    numbers = (100, 300) if small else (1000, 10000)
    peaks, seconds = [], []
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        for index in range(100):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(Path(folder) / f"{index:03d}.png")
        for number in numbers:
            start = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-c", EXTRACT, folder, str(number)],
                capture_output=True,
                text=True,
                check=True,
            )
            seconds.append(time.perf_counter() - start)
            peaks.append(float(done.stdout.split()[-1]))
        size = sum(p.stat().st_size for p in (Path(folder) / "out.zarr").rglob("*") if p.is_file())
    ratio = peaks[1] / peaks[0]
    # A small run lies within one shard of the store, up to which memory may grow
    if not small and ratio > ALLOWED:
        raise Disagreement(
            f"{numbers[1]} images take {peaks[1]:.0f} MiB and {numbers[0]} {peaks[0]:.0f} MiB: "
            f"more than {ALLOWED} times as much"
        )
    return {
        "ours_s": float(f"{seconds[1]:.4g}"),
        "ratio": float(f"{ratio:.4g}"),
        "peak_mib": round(peaks[1], 1),
        "peak_mib_fewer": round(peaks[0], 1),
        "note": f"3 layers of ResNet-20, {numbers[0]} and {numbers[1]} images, "
        f"{size / 2**20:.0f} MiB of features; ratio: of the peaks, many over few; no peer",
    }
