"""A head in closed form: its intensity at any place, and runs in which it moves."""

import functools

import nibabel as nib
import numpy as np
from scipy import ndimage

from isocortex.preprocess import registration as reg
from isocortex.preprocess.images import as_image
from isocortex.preprocess.transforms import AffineTransform, grid_points, rigid_matrix

OBLIQUE = rigid_matrix(np.array([-80, -110, -50, 0.2, -0.1, 0.15]), np.zeros(3)) @ np.diag(
    [4.0, 4, 4, 1]
)
FLIPPED = np.array([[-4.0, 0, 0, 88], [0, 4, 0, -120], [0, 0, 4, -60], [0, 0, 0, 1]])


@functools.cache
def head_spline():
    image = reg.load_template(4.0)
    values = ndimage.gaussian_filter(np.asarray(image.dataobj), 0.8) * 1000
    return ndimage.spline_filter(values, order=3), image.affine


def head(points):
    """A smooth head-like intensity at mm coordinates, defined everywhere: a closed form."""
    spline, affine = head_spline()
    index = (points - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    return ndimage.map_coordinates(spline, index.T, order=3, prefilter=False)


def moved_series(affine, parameters, centre, shape=(44, 54, 42), noise=0.0):
    """Volumes of the head in the poses that the parameters say."""
    points = grid_points(shape, affine)
    rng = np.random.default_rng(5)
    volumes = []
    for row in parameters:
        back = np.linalg.inv(rigid_matrix(row, centre))
        volume = head(AffineTransform(back).apply(points)).reshape(shape)
        volumes.append(volume + noise * rng.standard_normal(shape))
    return np.stack(volumes, axis=-1).astype(np.float32)


def save(path, values, affine=FLIPPED, **options):
    nib.save(as_image(values, affine, **options), path)
    return path
