"""A raw BIDS study of a few kilobytes, for tests that look at the graph and at error messages."""

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import yaml

ROOT = Path(__file__).resolve().parents[2]
SHAPE = (8, 9, 6)


def nifti(path: Path, shape: tuple[int, ...], *, tr: float = 2.0, seed: int = 0) -> None:
    """Write a NIfTI of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).normal(500, 10, shape).astype("f4")
    image = nib.Nifti1Image(values, np.diag([3.0, 3, 3, 1]))
    if len(shape) == 4:
        image.header.set_zooms((3, 3, 3, tr))
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, path)


def events(path: Path, rows: list[tuple[float, float, str, str]]) -> None:
    """Write an events table."""
    text = "onset\tduration\ttrial_type\tstim_file\n"
    path.write_text(text + "".join("\t".join(map(str, row)) + "\n" for row in rows))


def make(folder: Path, *, subjects=("01", "02"), runs=(1, 2)) -> dict:
    """Make the study in a folder; return its config (written to config.yaml too)."""
    bids = folder / "bids"
    (bids / "stimuli").mkdir(parents=True)
    (bids / "dataset_description.json").write_text('{"Name": "tiny", "BIDSVersion": "1.9.0"}')
    (bids / "task-objects_bold.json").write_text(
        json.dumps({"RepetitionTime": 2.0, "TaskName": "objects"})
    )
    for name in "abcdef":
        (bids / "stimuli" / f"{name}.png").write_bytes(b"not read by a dry run")
    for subject in subjects:
        anat, func = bids / f"sub-{subject}" / "anat", bids / f"sub-{subject}" / "func"
        nifti(anat / f"sub-{subject}_T1w.nii.gz", SHAPE)
        for run in runs:
            stem = f"sub-{subject}_task-objects_run-{run}"
            nifti(func / f"{stem}_bold.nii.gz", (*SHAPE, 20))
            rows = [(2.0 + 4 * i, 1.0, "thing", f"{n}.png") for i, n in enumerate("abcdef")]
            events(func / f"{stem}_events.tsv", rows)
    labels = np.zeros(SHAPE, "i2")
    labels[:4], labels[4:] = 1, 2
    nib.save(nib.Nifti1Image(labels, np.diag([3.0, 3, 3, 1])), folder / "atlas.nii.gz")
    (folder / "atlas.tsv").write_text("index\tname\n1\tA\n2\tB\n")
    config = {
        "study": "tiny",
        "input": {"bids": "bids"},
        "regions": {
            "atlas": "atlas.nii.gz",
            "labels": "atlas.tsv",
            "space": "MNI152NLin2009aSym",
        },
        "features": {"models": {"pixels": {"source": "builtin", "architecture": "pixels"}}},
    }
    write_config(folder, config)
    return config


def write_config(folder: Path, config: dict) -> None:
    """Write the study's config."""
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def snakemake(folder: Path, *arguments: str, root: Path = ROOT) -> subprocess.CompletedProcess:
    """Run Snakemake on the study in a folder."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(root / "Snakefile")]
    command += ["--directory", str(folder), "--profile", str(root / "profiles" / "default")]
    command += ["--configfile", str(folder / "config.yaml"), "--cores", "2", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
