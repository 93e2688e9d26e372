"""The studyforrest localizer as it was recorded: does the GLM find visual cortex?"""

import json

import nibabel as nib
import numpy as np
import pytest
from nilearn.masking import compute_epi_mask

from isocortex import store
from isocortex.errors import InputError
from isocortex.glm import fit_glm

STEM = "sub-01_task-objectcategories_run-1"


@pytest.fixture(scope="module")
def recording(data, tmp_path_factory):
    func = data / "studyforrest-localizer" / "sub-01" / "func"
    folder = tmp_path_factory.mktemp("studyforrest")
    compute_epi_mask(func / f"{STEM}_bold.nii.gz").to_filename(folder / "mask.nii.gz")
    timing = json.loads((func / f"{STEM}_bold.json").read_text())
    # Slices were not shifted: a volume stands for the middle of its acquisition.
    (folder / "bold.json").write_text(
        json.dumps(
            {
                "RepetitionTime": timing["RepetitionTime"],
                "SliceTimingCorrected": False,
                "StartTime": float(np.mean(timing["SliceTiming"])),
            }
        )
    )
    return {
        "bold": [func / f"{STEM}_bold.nii.gz"],
        "mask": [folder / "mask.nii.gz"],
        "sidecar": [folder / "bold.json"],
        "events": [func / f"{STEM}_events.tsv"],
        "runs": [{"session": None, "run": "1"}],
        "out": folder / "betas.zarr",
        "subject": "01",
        "task": "objectcategories",
        "space": "orig",
        "confound_columns": "none",
        "threads": 2,
    }


@pytest.fixture(scope="module")
def betas(recording):
    fit_glm(**recording, trials="block")
    return store.open(recording["out"], "betas").load()


def test_images_activate_occipital_cortex(betas, recording):
    z = betas.z_stimulus.values
    assert (z > 3.1).sum() >= 3000
    assert z.max() > 10
    ijk = np.array([betas[axis].values for axis in "ijk"])
    world = nib.affines.apply_affine(np.array(betas.attrs["affine"]), ijk.T)
    # The most responsive voxels lie in the posterior third of the brain.
    back = np.quantile(world[:, 1], 1 / 3)
    assert world[z.argmax(), 1] < back
    assert (world[z > 8, 1] < back).mean() > 0.9


def test_second_blocks_identify_the_categories(betas):
    patterns = betas.beta.values[:, (betas.z_stimulus > 3.1).values].astype(float)
    condition = betas.condition.values
    kinds = sorted(set(condition))
    assert len(kinds) == 6
    assert betas.sizes["trial"] == 12
    blocks = np.array([np.flatnonzero(condition == kind) for kind in kinds])
    halves = [patterns[blocks[:, half]] for half in (0, 1)]
    halves = [half - half.mean(axis=0) for half in halves]
    agreement = np.corrcoef(*halves)[:6, 6:]
    assert (agreement.argmax(axis=0) == np.arange(6)).sum() >= 5
    assert (agreement.argmax(axis=1) == np.arange(6)).sum() >= 5


def test_single_trials_of_this_design_cannot_be_told_apart(recording):
    with pytest.raises(InputError, match=r"192 trials and .* for 156 volumes: set glm.trials"):
        fit_glm(**recording, trials="single")
