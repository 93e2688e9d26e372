"""The demo's results are what was planted in it (simulated data)."""

import json

import ants
import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from isocortex import store
from isocortex.provenance import read_manifest

SUBJECTS = ("01", "02", "03", "04")
RUNS = ("01", "02", "03")


@pytest.fixture(scope="module")
def results(demo):
    return demo.folder / "results" / "demo"


@pytest.fixture(scope="module")
def truth(demo):
    return demo.folder / "demo" / "truth"


@pytest.fixture(scope="module")
def planted(truth):
    layers = json.loads((truth / "truth.json").read_text())["region_layer"]
    return {region: f"convnet/{layer}" for region, layer in layers.items()}


@pytest.mark.parametrize("comparison", ["pearson", "spearman", "corr_cov"])
def test_rsa_recovers_the_planted_layer_of_all_regions(results, planted, comparison):
    path = results / "rsa/task-objects_measure-correlation_scores.zarr"
    best = store.open(path, "scores").best_predictor.sel(comparison=comparison)
    assert {str(r): str(best.sel(region=r).item()) for r in best.region.values} == planted


def test_encoding_recovers_the_planted_layer_of_at_least_five_regions(results, planted):
    best = store.open(
        results / "encoding/task-objects_summary.zarr", "encoding_summary"
    ).best_predictor
    found = {str(r): str(best.sel(region=r).item()) for r in best.region.values}
    assert sum(found[region] == layer for region, layer in planted.items()) >= 5


@pytest.mark.parametrize("measure", ["correlation", "crossnobis"])
def test_topology_identifies_left_out_subjects_regions(results, measure):
    path = results / f"trsa/task-objects_measure-{measure}_identification.zarr"
    found = store.open(path, "identification").sel(statistic="rgtm(nested)")
    assert found.attrs["chance"] == pytest.approx(1 / 6)
    assert float(found.accuracy) >= 0.7
    assert float(found.accuracy_low) > 1 / 6
    assert float(found.p) < 0.01


def angle(rotation: np.ndarray) -> np.ndarray:
    """Return rotation matrices' angles, in degrees."""
    cosine = (np.trace(rotation, axis1=1, axis2=2) - 1) / 2
    return np.degrees(np.arccos(np.clip(cosine, -1, 1)))


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("run", RUNS)
def test_motion_is_within_a_tenth_of_a_millimetre_and_degree(demo, results, truth, subject, run):
    stem = f"sub-{subject}_task-objects_run-{run}"
    known = json.loads((truth / f"sub-{subject}" / f"{stem}_motion.json").read_text())
    true = np.array(known["t1w_to_scanner"])
    name = f"{stem}_from-orig_to-boldref_mode-image_desc-hmc_xfm.tsv"
    table = pd.read_csv(results / f"preprocess/sub-{subject}/func" / name, sep="\t")
    ours = np.zeros((len(table), 4, 4))
    ours[:, 3, 3] = 1
    ours[:, :3] = table.to_numpy().reshape(-1, 3, 4)
    # How far each volume is off, as seen from the middle volume.
    middle = len(ours) // 2
    moved = true @ np.linalg.inv(true[middle])
    error = np.linalg.inv(moved) @ ours @ np.linalg.inv(ours[middle])
    raw = nib.load(demo.folder / f"demo/bids/sub-{subject}/func/{stem}_bold.nii.gz")
    centre = raw.affine @ [*(np.array(raw.shape[:3]) / 2), 1]
    shift = (error @ centre - centre)[:, :3]
    assert len(ours) == raw.shape[3]
    assert np.sqrt((shift**2).sum(1).mean()) < 0.1
    assert np.sqrt((angle(error[:, :3, :3]) ** 2).mean()) < 0.1
    # The bound says something: the head did move.
    still = (moved @ centre - centre)[:, :3]
    assert np.sqrt((still**2).sum(1).mean()) > 0.2


@pytest.mark.parametrize("subject", SUBJECTS)
def test_registration_puts_planted_regions_back(results, truth, subject):
    """Their true place in the T1w, carried to the template, against the atlas at 3 mm."""
    atlas = str(results / f"regions/sub-{subject}_task-objects_dseg.nii.gz")
    place = truth / f"sub-{subject}" / f"sub-{subject}_space-T1w_desc-regions_dseg.nii.gz"
    transform = f"sub-{subject}_from-T1w_to-MNI152NLin2009aSym_mode-image_xfm.h5"
    carried = ants.apply_transforms(
        fixed=ants.image_read(atlas),
        moving=ants.image_read(str(place)),
        transformlist=[str(results / f"preprocess/sub-{subject}/anat" / transform)],
        interpolator="genericLabel",
    ).numpy()
    wanted = ants.image_read(atlas).numpy()
    for label in range(1, 7):
        both = ((carried == label) & (wanted == label)).sum()
        dice = 2 * both / ((carried == label).sum() + (wanted == label).sum())
        assert dice >= 0.8, label


@pytest.mark.parametrize("subject", SUBJECTS)
def test_brain_mask_and_temporal_snr(results, truth, subject):
    ours = nib.load(results / f"preprocess/sub-{subject}/anat/sub-{subject}_desc-brain_mask.nii.gz")
    true = nib.load(truth / f"sub-{subject}" / f"sub-{subject}_space-T1w_desc-brain_mask.nii.gz")
    a, b = np.asarray(ours.dataobj) > 0, np.asarray(true.dataobj) > 0
    assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.93


def test_every_store_is_what_its_manifest_says(results):
    stores = sorted(results.rglob("*.zarr"))
    assert len(stores) > 40
    for path in stores:
        assert store.verify(path), path


def test_every_manifest_tells_code_and_versions(results):
    for path in results.rglob("*_manifest.json"):
        manifest = read_manifest(path)
        assert manifest["outputs"]
        assert manifest["versions"]["nipype"]
        assert len(manifest["code"]) == 16
