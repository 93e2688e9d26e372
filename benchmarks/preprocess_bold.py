"""The whole rule preprocess_bold on a recorded run, with the seconds of each step."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import nibabel as nib

from benchmarks.measure import CORES
from isocortex.phantom import make_atlas, make_study

_ROOT = Path(__file__).resolve().parents[1]
_RECORDED = "studyforrest-localizer"
_LIMIT_S, _THREADS = 180, 2


def run(*, small: bool = False) -> dict[str, Any]:
    """One run through the workflow's rule, its anatomy made before and not timed."""
    recorded = Path(os.environ.get("ISOCORTEX_DATA", "")) / _RECORDED
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if small or not recorded.is_dir():
            size = {"voxel_size": 5.0, "t1w_voxel_size": 3.0} if small else {}
            n_images = 12 if small else 60
            recorded = make_study(
                folder / "phantom", n_subjects=1, n_runs=1, n_images=n_images, **size
            )
            source = "simulated"
        else:
            source = _RECORDED
        bold = next(recorded.glob("sub-*/func/*_bold.nii.gz"))
        shape, zooms = nib.load(bold).shape, nib.load(bold).header.get_zooms()
        config = _config(folder, recorded)
        subject, stem = bold.parts[-3], bold.name.removesuffix("_bold.nii.gz")
        preprocessed = folder / "results" / "benchmark" / "preprocess" / subject
        threads = min(_THREADS, CORES)
        _snakemake(config, preprocessed / "anat" / f"{subject}_manifest.json", threads)
        _snakemake(config, preprocessed / "func" / f"{stem}_manifest.json", threads)
        results = folder / "results" / "benchmark"
        (log,) = (results / "logs" / "preprocess_bold").rglob("*.seconds.json")
        parts = json.loads(log.read_text())
        (table,) = (results / "benchmarks" / "preprocess_bold").rglob("*.tsv")
        with table.open() as file:
            measured = next(csv.DictReader(file, delimiter="\t"))
    voxels = " x ".join(map(str, shape[:3]))
    millimetres = " x ".join(f"{float(size):.3g}" for size in zooms[:3])
    return {
        "ours_s": float(f"{float(measured['s']):.4g}"),
        "limit_s": _LIMIT_S,
        "parts_s": parts,
        "peak_mib": float(measured["max_rss"]),
        "note": f"{source}: {shape[3]} volumes of {voxels} voxels of {millimetres} mm, into "
        f"MNI152NLin2009aSym at 3 mm with the config's defaults; {threads} threads; the rule's "
        "seconds and memory as Snakemake measures them, with the start of its process, which is "
        "in no part; parts that do not need one another run at the same time; no peer",
    }


def _config(folder: Path, dataset: Path) -> Path:
    """A study of the dataset with the defaults of preprocessing."""
    nib.save(make_atlas(), folder / "atlas.nii.gz")
    (folder / "atlas.tsv").write_text("index\tname\n1\tV1\n")
    content = {
        "study": "benchmark",
        "results": str(folder / "results"),
        "input": {"bids": str(dataset)},
        "regions": {
            "atlas": str(folder / "atlas.nii.gz"),
            "labels": str(folder / "atlas.tsv"),
            "space": "MNI152NLin2009aSym",
        },
        # one run has nothing to cross-validate over
        "rsa": {"measures": ["correlation"]},
    }
    path = folder / "config.json"
    path.write_text(json.dumps(content))
    return path


def _snakemake(config: Path, target: Path, threads: int) -> None:
    command = [sys.executable, "-m", "snakemake", "--snakefile", _ROOT / "Snakefile"]
    command += ["--directory", config.parent, "--configfile", config, "--cores", str(threads)]
    command += ["--set-threads", f"preprocess_bold={threads}", "--quiet", "all", "--", target]
    done = subprocess.run(list(map(str, command)), cwd=_ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{target.name} was not made: {done.stderr[-2000:]}")
