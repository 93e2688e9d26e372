"""Rigid head motion by ANTs: the alternative to `motion.RigidAligner`, and far slower."""

from __future__ import annotations

import nibabel as nib
import numpy as np

from isocortex.errors import InputError
from isocortex.preprocess.images import as_image
from isocortex.preprocess.registration import linear_part, register

_FEWEST = 5  # voxels along an axis, below which ITK's sampling has no gradient to follow


class AntsAligner:
    """Aligns volumes to one reference by ANTs' rigid registration, reproducible to the byte.

    The metric is mutual information over a quarter of the mask's voxels; each volume starts from
    the centres of mass, on its own. Three rounds at full resolution, as ITK's optimiser stops a
    tenth of a degree short in one.

    Parameters
    ----------
    reference
        Shape (x, y, z).
    affine
        4 x 4, voxels to mm.
    mask
        Boolean (x, y, z): where the images are compared.
    centre
        Not used: ANTs turns about the centre of mass. A rigid matrix is the same about any.
    seed
        Of ANTs.

    Raises
    ------
    InputError
        The images have fewer than 5 voxels along an axis.
    """

    def __init__(
        self,
        reference: np.ndarray,
        affine: np.ndarray,
        mask: np.ndarray,
        centre: np.ndarray | None = None,
        *,
        seed: int,
    ) -> None:
        if min(reference.shape) < _FEWEST:
            shape = "x".join(map(str, reference.shape))
            raise InputError(
                f"preprocess.motion is ants but volumes are {shape} voxels: set it to gauss_newton"
            )
        self._fixed = as_image(np.asarray(reference, np.float32), affine)
        self._mask, self._seed = mask, seed

    def align_all(self, series: np.ndarray, *, threads: int = 1) -> np.ndarray:
        """Matrices (time, 4, 4), reference mm to the volume's, of a series (x, y, z, time).

        ANTs is reproducible on one thread alone, and not safe on several at once: volumes are
        taken one after the other, whatever ``threads``.
        """
        return np.array([self.align(series[..., t]) for t in range(series.shape[3])])

    def align(self, volume: np.ndarray) -> np.ndarray:
        """The 4 x 4 matrix that carries reference mm into a volume's mm."""
        moving: nib.Nifti1Image = as_image(np.asarray(volume, np.float32), self._fixed.affine)
        chain, _ = register(
            self._fixed,
            moving,
            "Rigid",
            seed=self._seed,
            fixed_mask=self._mask,
            aff_metric="mattes",
            aff_iterations=(60, 60, 60),
            aff_shrink_factors=(1, 1, 1),
            aff_smoothing_sigmas=(1, 1, 0.5),
            aff_random_sampling_rate=0.25,
        )
        return linear_part(chain)
