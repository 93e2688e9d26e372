"""Preprocessing of a real head and a real run, from raw BIDS."""

import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from isocortex.preprocess import preprocess_anat, preprocess_bold
from isocortex.preprocess.registration import load_template

ANATOMY = {
    "t1w": "desc-preproc_T1w.nii.gz",
    "mask": "desc-brain_mask.nii.gz",
    "dseg": "dseg.nii.gz",
    "gm": "label-GM_probseg.nii.gz",
    "wm": "label-WM_probseg.nii.gz",
    "csf": "label-CSF_probseg.nii.gz",
    "to_template": "to_template.h5",
    "from_template": "from_template.h5",
    "t1w_template": "template_T1w.nii.gz",
    "sidecar": "T1w.json",
    "figures": "figures_anat",
    "manifest": "manifest.json",
}


@pytest.fixture(scope="module")
def preprocessed(data, tmp_path_factory):
    raw = data / "studyforrest-localizer" / "sub-01"
    out = tmp_path_factory.mktemp("studyforrest")
    anatomy = {name: out / file for name, file in ANATOMY.items()}
    preprocess_anat(
        [raw / "anat" / "sub-01_T1w.nii.gz"],
        subject="01",
        outputs=anatomy,
        seed=1,
        log=out / "anat.log",
        temporary=out,
    )
    stem = raw / "func" / "sub-01_task-objectcategories_run-1_bold"
    files = {
        "bold": [out / "bold.nii.gz"],
        "mask": [out / "mask.nii.gz"],
        "boldref": [out / "boldref.nii.gz"],
        "sidecar": [out / "bold.json"],
        "confounds": out / "confounds.tsv",
        "confounds_json": out / "confounds.json",
        "motion": out / "motion.tsv",
        "to_t1w": out / "to_t1w.txt",
        "figures": out / "figures_bold",
        "manifest": out / "bold_manifest.json",
    }
    preprocess_bold(
        stem.with_name(stem.name + ".nii.gz"),
        sidecars=[stem.with_name(stem.name + ".json")],
        anatomy={name: anatomy[name] for name in list(ANATOMY)[:7]},
        subject="01",
        run="func/sub-01_task-objectcategories_run-1",
        outputs=files,
        options={
            "spaces": ["MNI152NLin2009aSym"],
            "resolution": 3,
            "slice_timing": True,
            "dummy_scans": "auto",
            "fd_threshold": 0.5,
            "dvars_threshold": 1.5,
            "high_pass": 128,
            "compcor_components": 6,
        },
        seed=1,
        log=out / "bold.log",
        temporary=out,
    )
    return anatomy, files


def test_anatomy(preprocessed):
    anatomy, _ = preprocessed
    qc = json.loads((anatomy["figures"] / "qc.json").read_text())
    assert 1200 < qc["brain_volume_ml"] < 1900
    assert qc["template_correlation"] > 0.6
    assert 1.1 < qc["grey_matter_ml"] / qc["white_matter_ml"] < 2.2
    t1w = np.asarray(nib.load(anatomy["t1w"]).dataobj)
    labels = np.asarray(nib.load(anatomy["dseg"]).dataobj)
    means = [t1w[labels == k].mean() for k in (3, 1, 2)]
    assert means == sorted(means), "CSF is darker than grey matter, that than white matter"


def test_run(preprocessed):
    _, files = preprocessed
    sidecar = json.loads(files["sidecar"][0].read_text())
    assert sidecar["SliceTimingCorrected"]
    assert sidecar["StartTime"] == pytest.approx(1.9429 / 2, abs=1e-6)
    table = pd.read_csv(files["confounds"], sep="\t", na_values="n/a")
    bold = nib.load(files["bold"][0])
    assert len(table) == bold.shape[3] == 156
    assert table["framewise_displacement"].mean() < 0.3
    assert np.isnan(table["trans_x_derivative1"][0])
    assert table.filter(regex=r"^a_comp_cor_\d\d$").shape[1] == 6
    mask = np.asarray(nib.load(files["mask"][0]).dataobj) > 0
    brain = np.asarray(load_template(3.0, "mask").dataobj) > 0.5
    assert (mask & brain).sum() > 0.95 * mask.sum()
    qc = json.loads((files["figures"] / "qc.json").read_text())
    assert qc["median_tsnr"] > 40
    assert qc["dice_bold_mask_t1w_mask"] > 0.85
    # grey matter is the brighter one in BOLD, and most so where the template says it is: a
    # shift of one voxel either way blurs the difference
    boldref = np.asarray(nib.load(files["boldref"][0]).dataobj)
    grey = np.asarray(load_template(3.0, "GM").dataobj) - np.asarray(
        load_template(3.0, "WM").dataobj
    )
    cortex = mask & (ndimage.binary_erosion(mask, iterations=2))

    def agreement(shift, axis):
        return np.corrcoef(np.roll(boldref, shift, axis)[cortex], grey[cortex])[0, 1]

    here = agreement(0, 0)
    assert here > 0.2
    assert all(agreement(shift, axis) < here for axis in range(3) for shift in (-1, 1))


def test_every_listed_figure_is_there(preprocessed):
    anatomy, files = preprocessed
    for folder in (anatomy["figures"], files["figures"]):
        listed = json.loads((folder / "figures.json").read_text())
        assert len(listed) >= 2
        assert all((folder / entry["file"]).stat().st_size > 20_000 for entry in listed)
