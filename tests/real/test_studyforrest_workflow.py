"""The studyforrest localizer: the whole workflow, from raw BIDS to the reports, run once."""

import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from isocortex import store
from isocortex.preprocess.registration import load_template
from isocortex.preprocess.transforms import apply_chain, read_transforms
from tests.real import studies

TASK = "sub-01_task-objectcategories"
TEMPLATE = "space-MNI152NLin2009aSym"


@pytest.fixture(scope="module")
def results(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("studyforrest_workflow")
    studies.prepare("studyforrest", data, folder)
    done = studies.run("studyforrest", data, folder)
    assert done.returncode == 0, done.stderr[-5000:]
    return folder / "results" / "studyforrest"


@pytest.fixture(scope="module")
def betas(results):
    return store.open(results / "glm" / f"{TASK}_betas.zarr", "betas").load()


def volume(path):
    return np.asarray(nib.load(path).dataobj)


def quality(results, part):
    folder = results / "preprocess" / "sub-01" / "figures" / part
    return json.loads((folder / "qc.json").read_text())


def test_anatomy(results):
    qc = quality(results, "anat")
    assert 1200 < qc["brain_volume_ml"] < 1900
    assert qc["template_correlation"] > 0.6
    assert 1.1 < qc["grey_matter_ml"] / qc["white_matter_ml"] < 2.2
    prefix = results / "preprocess" / "sub-01" / "anat"
    t1w = volume(prefix / "sub-01_desc-preproc_T1w.nii.gz")
    labels = volume(prefix / "sub-01_dseg.nii.gz")
    means = [t1w[labels == k].mean() for k in (3, 1, 2)]
    assert means == sorted(means), "CSF is darker than grey matter, that than white matter"


def test_run(results):
    func = results / "preprocess" / "sub-01" / "func"
    table = pd.read_csv(
        func / f"{TASK}_run-1_desc-confounds_timeseries.tsv", sep="\t", na_values="n/a"
    )
    for space in ("T1w", "MNI152NLin2009aSym"):
        prefix = f"{TASK}_run-1_space-{space}_desc-preproc_bold"
        sidecar = json.loads((func / f"{prefix}.json").read_text())
        assert sidecar["SliceTimingCorrected"]
        assert sidecar["StartTime"] == pytest.approx(1.9429 / 2, abs=1e-6)
        assert nib.load(func / f"{prefix}.nii.gz").shape[3] == len(table) == 156
    assert table["framewise_displacement"].mean() < 0.3
    assert np.isnan(table["trans_x_derivative1"][0])
    for prefix in ("a_comp_cor", "c_comp_cor", "w_comp_cor", "t_comp_cor"):
        assert 1 <= table.filter(regex=rf"^{prefix}_\d\d$").shape[1] < 100
    assert table.filter(regex=r"^edge_comp_\d\d$").shape[1] == 24
    qc = quality(results, f"func/{TASK}_run-1")
    assert qc["median_tsnr"] > 40
    assert qc["dice_bold_mask_t1w_mask"] > 0.85


def test_run_lies_on_the_template(results):
    func = results / "preprocess" / "sub-01" / "func"
    mask = volume(func / f"{TASK}_run-1_{TEMPLATE}_desc-brain_mask.nii.gz") > 0
    brain = np.asarray(load_template(3.0, "mask").dataobj) > 0.5
    assert (mask & brain).sum() > 0.95 * mask.sum()
    # grey matter is the brighter one in BOLD, and most so where the template says it is: a
    # shift of one voxel either way blurs the difference
    boldref = volume(func / f"{TASK}_run-1_{TEMPLATE}_boldref.nii.gz")
    grey = np.asarray(load_template(3.0, "GM").dataobj) - np.asarray(
        load_template(3.0, "WM").dataobj
    )
    cortex = mask & (ndimage.binary_erosion(mask, iterations=2))

    def agreement(shift, axis):
        return np.corrcoef(np.roll(boldref, shift, axis)[cortex], grey[cortex])[0, 1]

    here = agreement(0, 0)
    assert here > 0.2
    assert all(agreement(shift, axis) < here for axis in range(3) for shift in (-1, 1))


def test_every_listed_figure_is_there(results):
    figures = results / "preprocess" / "sub-01" / "figures"
    for folder in (figures / "anat", figures / "func" / f"{TASK}_run-1"):
        listed = json.loads((folder / "figures.json").read_text())
        assert len(listed) >= 2
        assert all((folder / entry["file"]).stat().st_size > 20_000 for entry in listed)


def test_images_activate_occipital_cortex(results, betas):
    z = betas["z_stimulus"].values
    # 3,000 voxels as recorded (3 x 3 x 3.3 mm) fill as much as 3,300 of 3 mm
    assert (z > 3.1).sum() >= 3300
    assert z.max() > 10
    # Where the voxels lie in the template's space, by the subject's own registration
    indices = np.array([betas[axis].values for axis in "ijk"]).T
    anat = results / "preprocess" / "sub-01" / "anat"
    there = apply_chain(
        read_transforms(anat / "sub-01_from-MNI152NLin2009aSym_to-T1w_mode-image_xfm.h5"),
        nib.affines.apply_affine(np.array(betas.attrs["affine"]), indices),
    )
    x, y, height = there[z.argmax()]
    # Behind -80 mm there is no lobe but the occipital one, above -15 mm no cerebellum
    assert y < -80
    assert -15 < height < 40
    assert abs(x) < 45
    assert (there[z > 8, 1] < -50).mean() > 0.9
    regions = volume(results / "regions" / f"{TASK}_dseg.nii.gz")
    names = pd.read_csv(results / "regions" / f"{TASK}_dseg.tsv", sep="\t", index_col="index")
    label = regions[tuple(indices.T)]
    occipital = np.isin(label, names.index[names["name"].str.startswith("occipital")])
    assert (z[occipital] > 3.1).mean() > 3 * (z[(label > 0) & ~occipital] > 3.1).mean()


def test_second_blocks_identify_the_categories(betas):
    patterns = betas["beta"].values[:, betas["z_stimulus"].values > 3.1].astype(float)
    condition = betas["condition"].values
    kinds = sorted(set(condition))
    assert len(kinds) == 6
    assert betas.sizes["trial"] == 12
    blocks = np.array([np.flatnonzero(condition == kind) for kind in kinds])
    halves = [patterns[blocks[:, half]] for half in (0, 1)]
    halves = [half - half.mean(axis=0) for half in halves]
    agreement = np.corrcoef(*halves)[:6, 6:]
    assert (agreement.argmax(axis=0) == np.arange(6)).sum() >= 5
    assert (agreement.argmax(axis=1) == np.arange(6)).sum() >= 5


def test_reports_say_what_one_subject_without_models_cannot_show(results):
    report = results / "report"
    assert (report / "sub-01.html").stat().st_size > 500_000
    study = (report / "study.html").read_text()
    assert "studyforrest: visual localizer" in study
    found = json.loads((report / "summary.json").read_text())
    findings = {finding["name"]: finding for finding in found["findings"]}
    assert not any(finding["available"] for finding in findings.values())
    assert "needs at least 2 subjects, has 1" in findings["identification"]["text"]
    assert "names none" in findings["rsa"]["text"]
    assert "names none" in findings["encoding"]["text"]
