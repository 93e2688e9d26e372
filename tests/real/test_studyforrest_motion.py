"""Head motion of the studyforrest localizer: ours against ANTs' on the same volumes."""

import numpy as np
from scipy import ndimage

from isocortex.preprocess.images import read_series
from isocortex.preprocess.masks import epi_mask
from isocortex.preprocess.motion import RigidAligner, reference_volume
from isocortex.preprocess.motion_ants import AntsAligner
from isocortex.preprocess.resampling import resample_series
from isocortex.preprocess.transforms import centre_of_grid, grid_points, rigid_parameters

STEM = "sub-01_task-objectcategories_run-1"
N_VOLUMES = 12


def displacement(matrices, centre):
    step = np.abs(np.diff([rigid_parameters(m, centre) for m in matrices], axis=0))
    return step @ np.array([1, 1, 1, 50, 50, 50])


def test_displacement_follows_ants_and_volumes_lie_no_worse(data):
    func = data / "studyforrest-localizer" / "sub-01" / "func"
    image = read_series(func / f"{STEM}_bold.nii.gz")
    series, affine, shape = np.asarray(image.dataobj), image.affine, image.shape[:3]
    centre = centre_of_grid(image)
    mask = ndimage.binary_dilation(epi_mask(series[..., ::15].mean(axis=-1)))
    reference = reference_volume(series, affine, mask=mask, centre=centre, threads=2)
    few = series[..., :N_VOLUMES]
    arguments = (reference, affine, mask, centre)
    ours = RigidAligner(*arguments).align_all(few, threads=2)
    theirs = AntsAligner(*arguments, seed=1).align_all(few)
    found, expected = displacement(ours, centre), displacement(theirs, centre)
    assert np.corrcoef(found, expected)[0, 1] >= 0.95
    assert 0.8 < found.mean() / expected.mean() < 1.25
    still = np.tile(np.eye(4), (N_VOLUMES, 1, 1))
    quality = []
    for matrices in (ours, theirs, still):
        points = grid_points(shape, affine)
        moved, _ = resample_series(few, affine, matrices, points, shape, threads=2)
        values = moved[mask].astype(float)
        snr = np.median(values.mean(axis=1) / values.std(axis=1))
        rms = np.sqrt(np.square(values - reference[mask][:, None]).mean(axis=0)).mean()
        quality.append((snr, rms))
    assert quality[0][0] >= 0.998 * max(quality[1][0], quality[2][0]), "temporal SNR"
    assert quality[0][1] <= 1.002 * min(quality[1][1], quality[2][1]), "residual"
