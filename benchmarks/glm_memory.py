"""What fitting the GLM takes in memory: of 10,000 voxels and of 200,000."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd

from benchmarks.measure import Disagreement

# Not ru_maxrss where there is another way: a process inherits that of the one it was started by.
FIT = """
import json, pathlib, re, resource, sys
from isocortex.glm import fit_glm
fit_glm(**json.load(open(sys.argv[1])), threads=1)
status = pathlib.Path("/proc/self/status")
if status.exists():
    peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", status.read_text())[1])
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(peak / 1024)
"""
ALLOWED = 1.1
N_RUNS = 2


def run(*, small: bool = False) -> dict[str, Any]:
    """Peak of the whole process, interpreter and libraries included; each fit is one."""
    numbers, n_volumes = ((1000, 5000), 40) if small else ((10_000, 200_000), 150)
    peaks, seconds = [], []
    with tempfile.TemporaryDirectory() as folder:
        for number in numbers:
            options = _study(Path(folder), number, n_volumes)
            start = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-c", FIT, str(options)],
                capture_output=True,
                text=True,
                check=True,
            )
            seconds.append(time.perf_counter() - start)
            peaks.append(float(done.stdout.split()[-1]))
    ratio = peaks[1] / peaks[0]
    if ratio > ALLOWED:
        raise Disagreement(
            f"{numbers[1]} voxels take {peaks[1]:.0f} MiB and {numbers[0]} {peaks[0]:.0f} MiB: "
            f"more than {ALLOWED} times as much"
        )
    whole = N_RUNS * n_volumes * numbers[1] * 8 / 2**20
    return {
        "ours_s": float(f"{seconds[1]:.4g}"),
        "ratio": float(f"{ratio:.4g}"),
        "peak_mib": round(peaks[1], 1),
        "peak_mib_fewer": round(peaks[0], 1),
        "note": f"fit_glm of {N_RUNS} runs x {n_volumes} volumes, {numbers[0]} and {numbers[1]} "
        f"voxels, from compressed images to the store; peak of the process with its libraries; "
        f"in double precision the series alone would be {whole:.0f} MiB; ratio: of the peaks, "
        "many over few; no peer",
    }


def _study(folder: Path, n_voxels: int, n_volumes: int) -> Path:
    """Write runs of about so many voxels; return the file with the options of the fit."""
    side = round((n_voxels / 0.8) ** (1 / 3))
    shape = (side, side, -(-n_voxels * 5 // (4 * side**2)))
    inside = np.zeros(shape, dtype=np.uint8)
    inside.ravel()[:n_voxels] = 1
    rng = np.random.default_rng(0)
    options: dict[str, Any] = {
        key: [] for key in ("bold", "mask", "sidecar", "events", "runs", "confounds")
    }
    for number in range(1, N_RUNS + 1):
        stem = folder / f"voxels-{n_voxels}_run-{number}"
        data = np.empty((*shape, n_volumes), dtype=np.int16)
        for volume in range(n_volumes):
            data[..., volume] = 500 + 10 * rng.standard_normal(shape, dtype=np.float32)
        image = nib.Nifti1Image(data, np.eye(4))
        image.header.set_zooms((1, 1, 1, 2.0))
        image.header.set_xyzt_units("mm", "sec")
        nib.save(image, f"{stem}_bold.nii.gz")
        nib.save(nib.Nifti1Image(inside, np.eye(4)), f"{stem}_mask.nii.gz")
        Path(f"{stem}_bold.json").write_text(json.dumps({"RepetitionTime": 2.0}))
        spacing = (n_volumes * 2.0 - 20) / 20
        pd.DataFrame(
            {
                "onset": 4 + spacing * np.arange(20),
                "duration": 1.0,
                "trial_type": "image",
                "stim_file": [f"{k % 10}.png" for k in range(20)],
            }
        ).to_csv(f"{stem}_events.tsv", sep="\t", index=False)
        for key, ending in (("bold", "bold.nii.gz"), ("mask", "mask.nii.gz")):
            options[key].append(f"{stem}_{ending}")
        options["sidecar"].append(f"{stem}_bold.json")
        options["events"].append(f"{stem}_events.tsv")
        options["runs"].append({"session": None, "run": str(number)})
    options |= {"out": str(folder / f"{n_voxels}.zarr"), "subject": "01", "task": "objects"}
    options |= {"space": "T1w", "confound_columns": "none"}
    file = folder / f"options-{n_voxels}.json"
    file.write_text(json.dumps(options))
    return file
