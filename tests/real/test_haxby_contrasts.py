"""Haxby et al. (2001), one slice: contrast maps beside nilearn's, and faces against houses."""

import nibabel as nib
import numpy as np
import pandas as pd
from nilearn.glm.first_level import FirstLevelModel

from isocortex.glm import map_contrasts

ENDING = "_space-T1w_desc-preproc_bold.nii.gz"
MOTION = [f"{kind}_{axis}" for kind in ("trans", "rot") for axis in "xyz"]


def test_maps_equal_those_of_nilearn(data, tmp_path):
    root = data / "haxby2001-slice"
    func = root / "derivatives" / "preproc" / "sub-01" / "func"
    bold = sorted(func.glob(f"*{ENDING}"))
    stems = [path.name.removesuffix(ENDING) for path in bold]
    masks = [func / f"{stem}_space-T1w_desc-brain_mask.nii.gz" for stem in stems]
    confounds = [func / f"{stem}_desc-confounds_timeseries.tsv" for stem in stems]
    events = [root / "sub-01" / "func" / f"{stem}_events.tsv" for stem in stems]
    map_contrasts(
        bold=bold,
        mask=masks,
        confounds=confounds,
        sidecar=[func / f"{stem}_space-T1w_desc-preproc_bold.json" for stem in stems],
        events=events,
        runs=[{"session": None, "run": stem[-2:]} for stem in stems],
        out=tmp_path / "maps",
        manifest=tmp_path / "maps.json",
        subject="01",
        task="objectviewing",
        space="T1w",
        noise_model="ar1",
        contrasts={"houses": "house - face"},
    )

    def image(name, statistic):
        stem = f"sub-01_task-objectviewing_space-T1w_contrast-{name}_stat-{statistic}_statmap"
        return nib.load(tmp_path / "maps" / f"{stem}.nii.gz").get_fdata()

    images = [nib.load(path) for path in bold]
    model = FirstLevelModel(
        t_r=2.5, hrf_model="glover", noise_model="ar1", mask_img=masks[0], signal_scaling=0
    ).fit(
        # In double precision, as nilearn keeps the image's
        [nib.Nifti1Image(i.get_fdata(), i.affine) for i in images],
        [pd.read_csv(path, sep="\t")[["onset", "duration", "trial_type"]] for path in events],
        [pd.read_csv(path, sep="\t")[MOTION] for path in confounds],
    )
    peer = model.compute_contrast(["house - face"] * 12, output_type="all")
    for statistic, key in (("effect", "effect_size"), ("t", "stat"), ("z", "z_score")):
        np.testing.assert_allclose(
            image("houses", statistic), peer[key].get_fdata(), rtol=1e-6, atol=1e-6
        )
    # Ventral temporal cortex answers to both, and parts of it to one more than to the other.
    assert image("all", "z").max() > 8
    assert image("houses", "z").max() > 5
    assert image("houses", "z").min() < -3
