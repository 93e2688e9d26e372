"""The studyforrest localizer: the whole workflow, from raw BIDS to the reports, run once."""

import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from isocortex import store
from isocortex.preprocess.boundary import boundary_cost, white_matter_boundary
from isocortex.preprocess.images import read_series
from isocortex.preprocess.registration import load_template
from isocortex.preprocess.resampling import resample_series
from isocortex.preprocess.transforms import (
    apply_chain,
    grid_points,
    read_itk_affine,
    read_transforms,
    rigid_matrix,
)
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


@pytest.fixture(scope="module")
def in_template(results, betas):
    """Where each voxel lies in the template, mm, by the subject's own registration."""
    indices = np.array([betas[axis].values for axis in "ijk"]).T
    anat = results / "preprocess" / "sub-01" / "anat"
    return apply_chain(
        read_transforms(anat / "sub-01_from-MNI152NLin2009aSym_to-T1w_mode-image_xfm.h5"),
        nib.affines.apply_affine(np.array(betas.attrs["affine"]), indices),
    )


@pytest.fixture(scope="module")
def contrasts(results, betas):
    """z of each contrast in the voxels that have betas."""
    at = tuple(betas[axis].values for axis in "ijk")
    folder = results / "glm" / f"{TASK}_contrasts"
    name = f"{TASK}_space-T1w_contrast-%s_stat-z_statmap.nii.gz"
    kinds = ("faces", "houses", "scenes", "bodies", "objects", "facesPlaces")
    return {kind: volume(folder / (name % kind))[at] for kind in kinds}


@pytest.fixture(scope="module")
def ventral(in_template):
    """Ventral temporal cortex, from the collateral to the occipitotemporal sulcus: a box."""
    x, y, height = in_template.T
    side = (abs(x) > 16) & (abs(x) < 58)
    return side & (y > -72) & (y < -34) & (height > -28) & (height < -2)


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


def temporal_snr(series):
    """Mean over standard deviation of (voxel, time) without the quadratic trend, median."""
    trend = np.vander(np.linspace(-1, 1, series.shape[1]), 3)
    fitted = trend @ np.linalg.lstsq(trend, series.T, rcond=None)[0]
    noise = (series.T - fitted).std(axis=0)
    return np.median(series.mean(axis=1)[noise > 0] / noise[noise > 0])


def test_temporal_snr_is_above_the_raw_run_s(data, results):
    """Against the run as it was recorded, and as it was carried to the same grid without motion.

    A spline smooths, and so raises the ratio by itself: the second comparison takes that out.
    """
    func = results / "preprocess" / "sub-01" / "func"
    prefix = f"{TASK}_run-1_space-T1w_desc"
    mask = nib.load(func / f"{prefix}-brain_mask.nii.gz")
    inside = np.asarray(mask.dataobj) > 0
    ours = volume(func / f"{prefix}-preproc_bold.nii.gz")[inside][:, ::3]
    recording = data / "studyforrest-localizer" / "sub-01" / "func" / f"{TASK}_run-1_bold.nii.gz"
    raw = read_series(recording)
    series = np.asarray(raw.dataobj, np.float32)[..., ::3]
    to_reference = read_itk_affine(func / f"{TASK}_run-1_from-boldref_to-T1w_mode-image_xfm.txt")
    there = to_reference.apply(grid_points(mask.shape, mask.affine)[inside.ravel()])
    still = np.tile(np.eye(4), (series.shape[3], 1, 1))
    carried, _ = resample_series(series, raw.affine, still, there, (len(there), 1, 1), threads=2)
    voxels = np.rint(nib.affines.apply_affine(np.linalg.inv(raw.affine), there)).astype(int)
    recorded = series[tuple(np.unique(voxels, axis=0).T)]
    found = [temporal_snr(part) for part in (ours, carried[:, 0, 0], recorded)]
    print("tSNR preprocessed, carried, recorded:", np.round(found, 1))
    assert found[0] > 1.03 * found[1]
    assert found[0] > 1.1 * found[2]


def test_edges_of_the_run_and_of_the_anatomy_agree(results):
    """Along the T1w's boundary, grey matter is brighter than white, and less so in other poses."""
    folder = results / "preprocess" / "sub-01"
    tissues = (folder / "anat" / f"sub-01_label-{kind}_probseg.nii.gz" for kind in ("WM", "GM"))
    boundary = white_matter_boundary(*(nib.load(path) for path in tissues))
    reference = nib.load(folder / "func" / f"{TASK}_run-1_space-T1w_boldref.nii.gz")
    centre = boundary.points.mean(axis=0)

    def cost(parameters):
        return boundary_cost(reference, boundary, rigid_matrix(np.array(parameters), centre))

    here = cost(np.zeros(6))
    assert here < 0.35
    steps = np.diag([1.0, 1.0, 1.0, *np.deg2rad([1.0, 1.0, 1.0])])
    assert all(cost(sign * step) > here for step in steps for sign in (-1, 1))


def test_every_listed_figure_is_there(results):
    figures = results / "preprocess" / "sub-01" / "figures"
    for folder in (figures / "anat", figures / "func" / f"{TASK}_run-1"):
        listed = json.loads((folder / "figures.json").read_text())
        assert len(listed) >= 2
        assert all((folder / entry["file"]).stat().st_size > 20_000 for entry in listed)


def test_images_activate_occipital_cortex(results, betas, in_template):
    z = betas["z_stimulus"].values
    # 3,000 voxels as recorded (3 x 3 x 3.3 mm) fill as much as 3,300 of 3 mm
    assert (z > 3.1).sum() >= 3300
    assert z.max() > 10
    x, y, height = in_template[z.argmax()]
    # Behind -80 mm there is no lobe but the occipital one, above -15 mm no cerebellum
    assert y < -80
    assert -15 < height < 40
    assert abs(x) < 45
    assert (in_template[z > 8, 1] < -50).mean() > 0.9
    regions = volume(results / "regions" / f"{TASK}_dseg.nii.gz")
    names = pd.read_csv(results / "regions" / f"{TASK}_dseg.tsv", sep="\t", index_col="index")
    label = regions[tuple(betas[axis].values for axis in "ijk")]
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


def test_categories_are_where_the_literature_has_them(contrasts, in_template, ventral):
    def peak(kind, x, y, height, radius=12.0):
        distance = np.linalg.norm(in_template - [x, y, height], axis=1)
        return contrasts[kind][distance < radius].max()

    for side in (-1, 1):
        # The parahippocampal place area and the retrosplenial complex, lateral occipital cortex,
        # the fusiform face area: z of a voxel, of which 0.1 of 100 pass 3.1 by chance.
        assert peak("scenes", 26 * side, -48, -8) > 6
        assert peak("scenes", 16 * side, -56, 14) > 5
        assert peak("houses", 26 * side, -48, -8) > 3.1
        assert peak("objects", 46 * side, -74, -4) > 5
        assert peak("bodies", 48 * side, -72, 4) > 3.1
        assert peak("faces", 40 * side, -58, -14) > 3.1
        # The highest voxel of scenes in ventral temporal cortex is medial, that of faces lateral.
        here = np.flatnonzero(ventral & (in_template[:, 0] * side > 0))
        best = {kind: here[contrasts[kind][here].argmax()] for kind in ("scenes", "faces")}
        assert abs(in_template[best["scenes"], 0]) < 34
        assert abs(in_template[best["faces"], 0]) > 36


def test_faces_are_lateral_of_houses_and_scenes(betas, contrasts, in_template, ventral):
    """In ventral temporal cortex, in either hemisphere, in the first blocks as in the second."""
    x = in_template[ventral, 0]
    lateral = abs(x) > 35  # about where the mid-fusiform sulcus is

    def gradient(values):
        return values[lateral].mean() - values[~lateral].mean()

    z = contrasts["facesPlaces"][ventral]
    for side in (x < 0, x > 0):
        assert z[lateral & side].mean() > 0.2
        assert z[~lateral & side].mean() < -0.2
    order = z.argsort()
    faces, places = abs(x[order[-50:]]).mean(), abs(x[order[:50]]).mean()
    print(
        "mm from the midline of the highest and the lowest 50:", round(faces, 1), round(places, 1)
    )
    assert faces > places + 6
    # Maps of this run's own noise, with its covariance over voxels, have no such gradient.
    noise = betas["residual"].values[:, ventral].astype(float)
    scale = noise.std(axis=0)
    weights = np.random.default_rng(0).standard_normal((500, len(noise)))
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    null = [gradient(row) for row in weights @ (noise / scale)]
    print("lateral less medial:", round(gradient(z), 2), "noise at most:", round(max(null), 2))
    assert gradient(z) > 1.5 * max(null)
    condition = betas["condition"].values
    block = {kind: np.flatnonzero(condition == kind) for kind in set(condition)}
    response = betas["beta"].values[:, ventral] / scale
    for n in (0, 1):
        face, house, scene = (response[block[k][n]] for k in ("face", "house", "scene"))
        assert gradient(face - (house + scene) / 2) > 0.15


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
