"""Crossnobis from BOLD to RDM: nothing where there is nothing, the planted geometry where it is."""

import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from nilearn.glm.first_level import make_first_level_design_matrix
from scipy import stats

from isocortex import store
from isocortex.glm import fit_glm
from isocortex.rsa import compute_rdms

SHAPE = (6, 6, 4)
TR = 2.0
N_VOLUMES = 70
N_RUNS = 3
SUBJECTS = 6
STIMULI = [f"{letter}.png" for letter in "abcdef"]
NOISE = {
    "residuals, shrinkage_diag": {"source": "residuals"},
    "betas, shrinkage_eye": {"source": "betas", "shrinkage": "shrinkage_eye"},
    "none": {"source": "none"},
}


def _noise(rng):
    """Noise that lasts from volume to volume and is shared by neighbouring voxels."""
    white = rng.standard_normal((*SHAPE, N_VOLUMES))
    for axis in range(3):
        white += 0.5 * np.roll(white, 1, axis=axis)
    for t in range(1, N_VOLUMES):
        white[..., t] += 0.4 * white[..., t - 1]
    return white


def _subject(folder, subject, rng, geometry):
    """BOLD of one subject: signal in the lower half of the volume only."""
    inputs = {key: [] for key in ("bold", "mask", "confounds", "sidecar", "events", "runs")}
    mixture = rng.standard_normal((geometry.shape[1], *SHAPE))
    mixture[:, SHAPE[0] // 2 :] = 0
    pattern = np.tensordot(geometry, mixture, axes=1)
    (folder / "bold.json").write_text(json.dumps({"RepetitionTime": TR}))
    nib.save(nib.Nifti1Image(np.ones(SHAPE, np.uint8), np.eye(4)), folder / "mask.nii.gz")
    for run in range(1, N_RUNS + 1):
        events = pd.DataFrame(
            {
                "onset": 4.0 + 10.0 * np.arange(12),
                "duration": 1.0,
                "stim_file": np.concatenate([rng.permutation(STIMULI) for _ in range(2)]),
            }
        )
        events.to_csv(folder / f"{run}.tsv", sep="\t", index=False)
        design = make_first_level_design_matrix(
            TR * np.arange(N_VOLUMES),
            events.assign(trial_type=events["stim_file"])[["onset", "duration", "trial_type"]],
            hrf_model="glover",
            drift_model=None,
        )
        response = design[STIMULI].to_numpy().T
        data = 500 + 5 * (_noise(rng) + 2 * np.tensordot(pattern, response, axes=(0, 0)))
        image = nib.Nifti1Image(data.astype(np.float32), np.eye(4))
        image.header.set_zooms((1, 1, 1, TR))
        image.header.set_xyzt_units("mm", "sec")
        nib.save(image, folder / f"{run}.nii.gz")
        inputs["bold"].append(folder / f"{run}.nii.gz")
        inputs["mask"].append(folder / "mask.nii.gz")
        inputs["sidecar"].append(folder / "bold.json")
        inputs["events"].append(folder / f"{run}.tsv")
        inputs["runs"].append({"session": None, "run": f"{run}"})
    fit_glm(
        **inputs,
        out=folder / "betas.zarr",
        subject=subject,
        task="objects",
        space="T1w",
        confound_columns="none",
    )
    return folder / "betas.zarr"


@pytest.fixture(scope="module")
def distances(tmp_path_factory):
    """Crossnobis by noise normalisation: (n_subjects, 2 regions, n_pairs); the true distances."""
    folder = tmp_path_factory.mktemp("bold")
    label = np.ones(SHAPE, np.int16)
    label[SHAPE[0] // 2 :] = 2
    nib.save(nib.Nifti1Image(label, np.eye(4)), folder / "dseg.nii.gz")
    (folder / "dseg.tsv").write_text("index\tname\n1\tsignal\n2\tnoise\n")
    rng = np.random.default_rng(0)
    geometry = rng.standard_normal((len(STIMULI), 3))
    found = {name: [] for name in (*NOISE, "mahalanobis")}
    for k in range(SUBJECTS):
        betas = _subject(folder, f"{k:02d}", rng, geometry)
        for name in found:
            compute_rdms(
                betas=betas,
                regions=folder / "dseg.nii.gz",
                region_labels=folder / "dseg.tsv",
                out=folder / "rdms.zarr",
                measure="crossnobis" if name in NOISE else name,
                noise_normalisation=NOISE.get(name),
            )
            rdms = store.open(folder / "rdms.zarr", "rdms")
            found[name].append(rdms["dissimilarity"].values)
    i, j = np.triu_indices(len(STIMULI), 1)
    truth = np.square(geometry[i] - geometry[j]).sum(axis=1)
    return {name: np.array(values) for name, values in found.items()}, truth


@pytest.mark.parametrize("noise", NOISE)
def test_a_region_of_noise_has_no_distances(distances, noise):
    """Mean 0 over pairs, by a t-test over subjects at p = .001; not cross-validated it is not."""
    means = distances[0][noise][:, 1].mean(axis=1)
    assert stats.ttest_1samp(means, 0).pvalue > 0.001
    means = distances[0]["mahalanobis"][:, 1].mean(axis=1)
    assert stats.ttest_1samp(means, 0, alternative="greater").pvalue < 1e-3


@pytest.mark.parametrize("noise", NOISE)
def test_a_region_with_signal_has_the_planted_ones(distances, noise):
    values, truth = distances[0][noise][:, 0], distances[1]
    assert stats.ttest_1samp(values.mean(axis=1), 0, alternative="greater").pvalue < 1e-3
    for subject in values:
        assert np.corrcoef(subject, truth)[0, 1] > 0.5
    assert np.corrcoef(values.mean(axis=0), truth)[0, 1] > 0.95
