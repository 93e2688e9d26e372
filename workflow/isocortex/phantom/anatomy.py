"""Heads for the demo study: the MNI152 template, warped, with a skull, a scalp and a contrast."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from nilearn.datasets import load_mni152_gm_template, load_mni152_template, load_mni152_wm_template
from scipy import ndimage

TEMPLATE_RESOLUTION = 2
# Voxels added around the template (which ends close to the brain) to make room for the scalp.
PADDING = 14
# Where rigid movements of a head turn: the middle of the brain, mm in MNI space.
HEAD_CENTRE = np.array([0.0, -18.0, 8.0])
TISSUES = ("gm", "wm", "csf", "skull", "scalp", "muscle")


@dataclass(frozen=True)
class Template:
    """Tissue fractions of the template's head on a padded 2 mm grid.

    Attributes
    ----------
    maps
        Name of tissue to cubic spline coefficients of its fraction, float32.
    affine
        Voxel index to MNI mm.
    """

    maps: dict[str, np.ndarray]
    affine: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """Of each map."""
        return self.maps["gm"].shape


@cache
def load_template() -> Template:
    """Build the tissue maps of a whole head from the skull-stripped template of nilearn.

    Grey and white matter are the template's own maps; the rest of the brain mask is
    cerebrospinal fluid; bone and scalp are shells at 2-7 and 7-13 mm around the brain; below,
    where a real head has a face and a neck, is muscle.
    """
    t1 = load_mni152_template(resolution=TEMPLATE_RESOLUTION)
    grey = load_mni152_gm_template(resolution=TEMPLATE_RESOLUTION).get_fdata()
    white = load_mni152_wm_template(resolution=TEMPLATE_RESOLUTION).get_fdata()
    brain = np.pad(t1.get_fdata() > 0.05, PADDING)
    brain = ndimage.binary_fill_holes(ndimage.binary_closing(brain, iterations=3))
    grey, white = np.pad(grey, PADDING), np.pad(white, PADDING)
    affine = t1.affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ np.full(3, PADDING)

    inside = np.clip(ndimage.gaussian_filter(brain.astype(np.float32), 0.5), 0, 1)
    grey, white = grey * inside, white * inside
    fluid = np.clip(inside - grey - white, 0, 1)
    distance = ndimage.distance_transform_edt(~brain, sampling=TEMPLATE_RESOLUTION)
    index = np.indices(brain.shape, dtype=np.float32)
    x, y, z = (index[k] * affine[k, k] + affine[k, 3] for k in range(3))
    face = ((x / 62) ** 2 + ((y - 28) / 62) ** 2 + ((z + 68) / 52) ** 2 < 1) | (
        (x / 52) ** 2 + ((y + 42) / 58) ** 2 + ((z + 92) / 60) ** 2 < 1
    )
    rim = ((distance > 0) & (distance <= 2)).astype(np.float32)
    bone = ((distance > 2) & (distance <= 7)).astype(np.float32)
    scalp = ((distance > 7) & (distance <= 13)).astype(np.float32)
    muscle = ((distance > 13) & face).astype(np.float32)
    maps = {
        "gm": grey,
        "wm": white,
        "csf": fluid + ndimage.gaussian_filter(rim, 0.5) * (1 - inside),
        "skull": ndimage.gaussian_filter(bone, 0.7),
        "scalp": ndimage.gaussian_filter(scalp, 0.7),
        "muscle": ndimage.gaussian_filter(muscle, 0.7),
    }
    return Template(
        maps={
            name: ndimage.spline_filter(data.astype(np.float32), order=3, output=np.float32)
            for name, data in maps.items()
        },
        affine=affine,
    )


def rigid_matrix(parameters: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Return the 4x4 matrix of a rigid movement.

    Parameters
    ----------
    parameters
        Three translations in mm, three rotations in radians about x, y and z, applied in that
        order (matrix Rz Ry Rx).
    centre
        The point that the rotations leave where it is, mm.
    """
    cosine, sine = np.cos(parameters[3:]), np.sin(parameters[3:])
    about_x = np.array([[1, 0, 0], [0, cosine[0], -sine[0]], [0, sine[0], cosine[0]]])
    about_y = np.array([[cosine[1], 0, sine[1]], [0, 1, 0], [-sine[1], 0, cosine[1]]])
    about_z = np.array([[cosine[2], -sine[2], 0], [sine[2], cosine[2], 0], [0, 0, 1]])
    matrix = np.eye(4)
    matrix[:3, :3] = about_z @ about_y @ about_x
    matrix[:3, 3] = np.asarray(parameters[:3]) + centre - matrix[:3, :3] @ centre
    return matrix


def apply_affine(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Map points, (..., 3), by a 4x4 matrix."""
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def sample(
    coefficients: np.ndarray, affine: np.ndarray, points: np.ndarray, *, order: int = 3
) -> np.ndarray:
    """Read an image, given by spline coefficients, at points in mm; 0 outside of it."""
    index = apply_affine(np.linalg.inv(affine), points)
    return ndimage.map_coordinates(
        coefficients,
        np.moveaxis(index, -1, 0),
        order=order,
        prefilter=False,
        mode="constant",
        output=np.float32,
    )


class Anatomy:
    """One subject's head: a map from its T1w space to MNI space, and tissue contrasts.

    The map is an affine (a rotation of up to 4 degrees about each axis, scaling within 4 %, a
    shift of some mm) after a smooth displacement: cubic B-splines with knots 36 mm apart and
    coefficients of 2.2 mm standard deviation, which is a diffeomorphism at this size.

    Parameters
    ----------
    rng
        The subject's random numbers.
    """

    KNOTS_MM = 36.0
    DISPLACEMENT_MM = 2.2

    def __init__(self, rng: np.random.Generator) -> None:
        rotation = np.deg2rad(rng.uniform(-4, 4, 3))
        shift = rng.uniform(-6, 6, 3)
        scale = np.eye(4)
        scale[:3, :3] = np.diag(rng.uniform(0.96, 1.04, 3))
        rigid = rigid_matrix(np.concatenate([shift, rotation]), HEAD_CENTRE)
        self.affine = rigid @ scale
        self.knots = np.eye(4)
        self.knots[:3, :3] *= self.KNOTS_MM
        self.knots[:3, 3] = HEAD_CENTRE - self.KNOTS_MM * 4
        self.displacement = rng.normal(0, self.DISPLACEMENT_MM, (3, 9, 9, 9)).astype(np.float32)
        # Relative intensities; the white matter of a T1w is 1.
        self.t1_contrast = {
            "gm": rng.uniform(0.60, 0.68),
            "wm": 1.0,
            "csf": rng.uniform(0.20, 0.28),
            "skull": rng.uniform(0.06, 0.12),
            "scalp": rng.uniform(0.75, 0.95),
            "muscle": rng.uniform(0.40, 0.50),
        }
        self.epi_contrast = {
            "gm": 1.0,
            "wm": rng.uniform(0.72, 0.80),
            "csf": rng.uniform(1.35, 1.55),
            "skull": 0.05,
            "scalp": rng.uniform(0.16, 0.24),
            "muscle": rng.uniform(0.10, 0.16),
        }
        self.centre = self._preimage(HEAD_CENTRE)

    def to_template(self, points: np.ndarray) -> np.ndarray:
        """Map points of the T1w space, (..., 3) mm, to MNI space."""
        moved = apply_affine(self.affine, points)
        return moved + np.stack(
            [sample(axis, self.knots, moved) for axis in self.displacement], axis=-1
        )

    def _preimage(self, point: np.ndarray) -> np.ndarray:
        guess = np.asarray(point, dtype=float)
        for _ in range(30):
            error = point - self.to_template(guess[None])[0]
            guess = guess + np.linalg.solve(self.affine[:3, :3], error)
        return guess

    def tissues(self, points: np.ndarray) -> dict[str, np.ndarray]:
        """Return the fraction of each tissue at points of the T1w space, in [0, 1]."""
        template = load_template()
        there = self.to_template(points)
        # All of the head lies in this box; the air around it needs no interpolation.
        low, high = apply_affine(template.affine, np.array([[0, 0, 0], template.shape]))
        inside = ((there > low) & (there < high)).all(axis=-1)
        fractions = {}
        for name in TISSUES:
            fractions[name] = np.zeros(inside.shape, dtype=np.float32)
            values = sample(template.maps[name], template.affine, there[inside])
            fractions[name][inside] = np.clip(values, 0, 1)
        return fractions

    def t1w_grid(self, voxel_size: float) -> tuple[tuple[int, int, int], np.ndarray]:
        """Return shape and affine of the T1w image: 180 x 224 x 216 mm about the head."""
        shape = tuple(int(np.ceil(extent / voxel_size)) for extent in (180, 224, 216))
        affine = np.eye(4)
        affine[:3, :3] *= voxel_size
        centre = self.centre + np.array([0.0, 2.0, -4.0])
        affine[:3, 3] = np.round(centre - voxel_size * (np.array(shape) - 1) / 2, 2)
        return shape, affine


def grid_points(shape: tuple[int, int, int], affine: np.ndarray) -> np.ndarray:
    """Return the centres of a grid's voxels, shape + (3,), mm."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    return apply_affine(affine, index.astype(np.float64))


def bias_field(points: np.ndarray, rng: np.random.Generator, *, strength: float) -> np.ndarray:
    """Return a smooth multiplicative field about 1, as receive coils make it."""
    scaled = points / 110.0
    x, y, z = scaled[..., 0], scaled[..., 1], scaled[..., 2]
    terms = [x, y, z, x * y, y * z, x * z, x**2 - 0.3, y**2 - 0.3, z**2 - 0.3]
    weights = rng.normal(0, strength / 2, len(terms))
    return np.exp(sum(w * t for w, t in zip(weights, terms)))


def make_t1w(
    anatomy: Anatomy,
    tissues: dict[str, np.ndarray],
    points: np.ndarray,
    rng: np.random.Generator,
    *,
    noise: float,
) -> np.ndarray:
    """Return a T1-weighted image, white matter near 1000, as int16.

    Parameters
    ----------
    tissues, points
        As from `Anatomy.tissues` and `grid_points`, on the image's grid.
    noise
        1 gives a signal-to-noise ratio of 40 in white matter; 0 none.
    """
    signal = sum(anatomy.t1_contrast[name] * tissues[name] for name in TISSUES)
    signal = signal * bias_field(points - anatomy.centre, rng, strength=0.2)
    channels = rng.standard_normal((2, *signal.shape), dtype=np.float32) * (noise / 40)
    # A magnitude image: noise is Gaussian where there is signal and Rayleigh in the air.
    magnitude = np.hypot(signal + channels[0], channels[1])
    return np.clip(np.round(magnitude * 1000), 0, 32767).astype(np.int16)
