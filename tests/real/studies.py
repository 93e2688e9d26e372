"""The studies of config/examples: what they need beside the recordings, and how they are run.

``ISOCORTEX_DATA=... python -m tests.real.studies FOLDER`` writes their atlases, tables and images
to FOLDER/inputs, for the commands of docs/real-data.md.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
from nilearn.datasets import load_mni152_gm_template
from PIL import Image
from scipy.io import loadmat

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "config" / "examples"


def prepare_studyforrest(data: Path, folder: Path) -> None:
    """Write an atlas of four lobes a side: boxes in the template's grey matter.

    Boxes, because the test asks only whether the largest response is where vision is.
    """
    template = load_mni152_gm_template(resolution=2)
    grey = np.asarray(template.dataobj) > 0.3
    i, j, k = np.indices(grey.shape)
    x, y, z = np.moveaxis(
        nib.affines.apply_affine(template.affine, np.stack([i, j, k], axis=-1)), -1, 0
    )
    cerebellum = (y < -40) & (z < -20) & (abs(x) < 50)
    occipital = (y < -68) & (z < 35) & (z > -20)
    parietal = ~occipital & (y < -20) & (z > 25)
    temporal = ~occipital & ~parietal & ~cerebellum & (y < 12) & (z < 8) & (abs(x) > 22)
    frontal = ~temporal & ~parietal & (y > -10)
    boxes = {"occipital": occipital, "temporal": temporal, "parietal": parietal, "frontal": frontal}
    labels, names = np.zeros(grey.shape, np.int16), []
    for side, half in (("L", x < 0), ("R", x > 0)):
        for name, box in boxes.items():
            names.append(f"{name} {side}")
            labels[grey & half & box] = len(names)
    write_atlas(folder / "lobes", labels, template.affine, names)


def prepare_haxby(data: Path, folder: Path) -> None:
    """Write an atlas of one region: the brain mask of the slice."""
    func = data / "haxby2001-slice" / "derivatives" / "preproc" / "sub-01" / "func"
    mask = nib.load(func / "sub-01_task-objectviewing_run-01_space-T1w_desc-brain_mask.nii.gz")
    labels = (np.asarray(mask.dataobj) > 0).astype(np.int16)
    write_atlas(folder / "vt", labels, mask.affine, ["VT"])


def prepare_images92(data: Path, folder: Path) -> None:
    """Write the images, the human RDMs (mean of two sessions a subject) and their table."""
    stimuli = folder / "stimuli"
    stimuli.mkdir(parents=True, exist_ok=True)
    file = loadmat(data / "images92" / "Kriegeskorte_Neuron2008_supplementalData.mat")
    names = [f"object{index:02d}.png" for index in range(92)]
    for name, cell in zip(names, file["stimuli_92objs"][0], strict=True):
        Image.fromarray(np.asarray(cell["image"], dtype=np.uint8)).save(stimuli / name)
    (folder / "ids.txt").write_text("\n".join(names) + "\n")
    rows = ["subject\tregion\tfile\tstimuli"]
    brain = loadmat(data / "images92" / "92_brainRDMs.mat")["RDMs"][0]
    for number, sessions in enumerate(brain, start=1):
        square = np.mean([np.asarray(cell["RDM"], dtype=float) for cell in sessions], axis=0)
        np.save(folder / f"sub-{number:02d}_hIT.npy", square)
        rows.append(f"{number:02d}\thIT\tsub-{number:02d}_hIT.npy\tids.txt")
    (folder / "rdms.tsv").write_text("\n".join(rows) + "\n")


PUBLISHED = {
    "monkeyIT": ("monkeyIT",),
    "categories": ("animacy", "FaceBodyManmadeNatobj"),
    "earlyVisual": ("EVA",),
    "computational": ("HMAX", "V1", "Silhouette", "RADON"),
}
"""Layers of the models that the published model RDMs are taken for."""


def prepare_images92_models(data: Path, folder: Path) -> None:
    """Write the human RDMs of each session and their mean, those of models, and both tables."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ids.txt").write_text("".join(f"object{index:02d}\n" for index in range(92)))
    rows = ["subject\ttask\tregion\tfile\tstimuli"]
    brain = loadmat(data / "images92" / "92_brainRDMs.mat")["RDMs"][0]
    for number, sessions in enumerate(brain, start=1):
        first, second = (np.asarray(cell["RDM"], dtype=float) for cell in sessions)
        for task, square in (
            ("session1", first),
            ("session2", second),
            ("mean", (first + second) / 2),
        ):
            file = f"sub-{number:02d}_{task}.npy"
            np.save(folder / file, square)
            rows.append(f"{number:02d}\t{task}\thIT\t{file}\tids.txt")
    (folder / "rdms.tsv").write_text("\n".join(rows) + "\n")
    rows = ["model\tlayer\tfile\tstimuli"]
    cells = loadmat(data / "images92" / "92_modelRDMs.mat")["Models"][0]
    published = {str(cell["name"][0]): np.asarray(cell["RDM"], dtype=float) for cell in cells}
    for model, layers in PUBLISHED.items():
        for layer in layers:
            np.savetxt(folder / f"{layer}.csv", published[layer], delimiter=",")
            rows.append(f"{model}\t{layer}\t{layer}.csv\tids.txt")
    people = loadmat(data / "images92" / "92_behavRDMs.mat")["rdms_behav_92"][0]
    judged = np.mean([np.asarray(cell["RDM"], dtype=float) for cell in people], axis=0)
    np.save(folder / "behaviour.npy", judged)
    rows.append("behaviour\t\tbehaviour.npy\tids.txt")
    (folder / "models.tsv").write_text("\n".join(rows) + "\n")


SZINTE_TR = 1.317025


def prepare_szinte(data: Path, folder: Path) -> None:
    """Write the movie as rows and columns of the screen, its timing, events and the table.

    The shipped movie has the columns of the screen before its rows, and white is 9.
    """
    source = data / "szinte2024-v1"
    (folder / "stimuli").mkdir(parents=True, exist_ok=True)
    frames = np.load(source / "dm_gazecenter.npz")["arr_0"].transpose(0, 2, 1)
    np.save(folder / "stimuli" / "bars.npy", np.ascontiguousarray(frames))
    timing = {"FrameRate": 1 / SZINTE_TR, "Black": 0, "White": 9}
    (folder / "stimuli" / "bars.json").write_text(json.dumps(timing))
    length = len(frames) * SZINTE_TR
    (folder / "events.tsv").write_text(f"onset\tduration\tstim_file\n0\t{length:.6f}\tbars.npy\n")
    series = source / "mask-v1_bold.tsv.gz"
    (folder / "timeseries.tsv").write_text(
        "subject\tfile\trun\ttask\ttr\tevents\n"
        f"01\t{series.resolve()}\t1\tretinotopy\t{SZINTE_TR}\tevents.tsv\n"
    )


PREPARATIONS = {
    "studyforrest": prepare_studyforrest,
    "haxby": prepare_haxby,
    "images92": prepare_images92,
    "images92_models": prepare_images92_models,
    "szinte": prepare_szinte,
}


def write_atlas(path: Path, labels: np.ndarray, affine: np.ndarray, names: list[str]) -> None:
    """Write an integer image and its table of names, which start at 1."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(labels, affine), path.with_suffix(".nii.gz"))
    rows = [f"{index}\t{name}" for index, name in enumerate(names, start=1)]
    path.with_suffix(".tsv").write_text("\n".join(["index\tname", *rows]) + "\n")


def prepare(name: str, data: Path, folder: Path) -> None:
    """Write what a study needs beside its recordings to inputs/<study>."""
    PREPARATIONS[name](data, folder / "inputs" / name)


def run(name: str, data: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run the workflow on a study, in a folder."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")]
    command += ["--directory", str(folder), "--profile", str(ROOT / "profiles" / "default")]
    command += ["--configfile", str(EXAMPLES / f"{name}.yaml"), "--cores", "2", *arguments]
    return subprocess.run(
        command,
        env=os.environ | {"ISOCORTEX_DATA": str(data)},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def main() -> None:
    """Prepare all studies."""
    data, folder = Path(os.environ["ISOCORTEX_DATA"]), Path(sys.argv[1])
    for name in PREPARATIONS:
        prepare(name, data, folder)


if __name__ == "__main__":
    main()
