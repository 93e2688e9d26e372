"""The interface of the one resampling: a raw run into every output space."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    TraitedSpec,
    isdefined,
    traits,
)
from scipy import ndimage

from isocortex.errors import InputError
from isocortex.preprocess import registration
from isocortex.preprocess.distortion import Distortion
from isocortex.preprocess.images import SeriesWriter
from isocortex.preprocess.interfaces.base import Interface
from isocortex.preprocess.masks import crown
from isocortex.preprocess.resampling import (
    SPLINE_ORDERS,
    grid_around,
    resample_volume,
    sample_series,
)
from isocortex.preprocess.slice_timing import ORDERS, SliceTiming
from isocortex.preprocess.surfaces import SurfaceSeries
from isocortex.preprocess.transforms import (
    AffineTransform,
    apply_chain,
    grid_points,
    read_itk_affine,
    read_motion,
    read_transforms,
)
from isocortex.surface import MESH

# mm around the brain that are resampled for the outputs
_MARGIN = 12.0
_NATIVE = "boldref"


class ResampleSeriesInput(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="raw run")
    reference = File(exists=True, mandatory=True, desc="BOLD reference, bias-corrected")
    matrices = File(exists=True, mandatory=True, desc="head motion")
    signal = File(exists=True, desc="where the reference has signal; everywhere by default")
    to_t1w = File(exists=True, mandatory=True, desc="reference to T1w, ITK text")
    t1w_mask = File(exists=True, mandatory=True, desc="brain mask of the T1w")
    to_template = File(exists=True, desc="T1w to template, composite; for the template's spaces")
    distortion = File(exists=True, desc="susceptibility distortion; none by default")
    spaces = traits.List(traits.Str, desc="T1w, the template's name or its surface's")
    resolution = traits.Float(mandatory=True, desc="voxel size of the outputs, mm")
    repetition_time = traits.Float(mandatory=True, desc="seconds")
    interpolation = traits.Enum(
        "cubic", *SPLINE_ORDERS, usedefault=True, desc="spline in space; in time it is cubic"
    )
    slice_times = traits.List(traits.Float, desc="seconds, one a slice; not corrected without")
    slice_axis = traits.Range(0, 2, 2, usedefault=True, desc="array axis of the slices")
    slice_order = traits.Enum(*ORDERS, usedefault=True, desc="slices before motion, or after")
    reference_time = traits.Float(0.0, usedefault=True, desc="seconds after the volume's start")
    n_dummy = traits.Int(0, usedefault=True, desc="volumes before the steady state")
    threads = traits.Int(1, usedefault=True)


class ResampleSeriesOutput(TraitedSpec):
    native_bold = File(exists=True, desc="run on the reference's grid, for the confounds")
    native_mask = File(exists=True, desc="brain mask there")
    native_covered = File(exists=True, desc="voxels there that every volume reaches")
    bold = traits.List(File(exists=True), desc="run in each space that is a volume")
    mask = traits.List(File(exists=True), desc="brain mask in each")
    boldref = traits.List(File(exists=True), desc="reference in each")
    surface = traits.List(File(exists=True), desc="left and right hemisphere of each surface")


@dataclass
class _Volume:
    """An output space that is a grid."""

    space: str
    shape: tuple[int, ...]
    affine: np.ndarray
    points: np.ndarray  # reference mm of every voxel
    brain: np.ndarray  # boolean, the T1w's brain
    filled: np.ndarray  # numbers of the voxels near the brain
    covered: np.ndarray  # boolean, flat: every volume reaches the voxel

    def full(self, values: np.ndarray) -> np.ndarray:
        """A volume of the values of the filled voxels; what is not reached is 0."""
        reached = np.isfinite(values)
        self.covered[self.filled[~reached]] = False
        volume = np.zeros(len(self.points), np.float32)
        volume[self.filled] = np.where(reached, values, 0)
        return volume.reshape(self.shape)


class ResampleSeries(Interface):
    """One interpolation of the raw run into all output spaces, motion and slice timing in it."""

    input_spec = ResampleSeriesInput
    output_spec = ResampleSeriesOutput

    def _run_interface(self, runtime):
        given = self.inputs
        image = nib.load(given.in_file)
        surfaces = [space for space in given.spaces if space == MESH]
        volumes = [
            self._volume(space, image)
            for space in [_NATIVE, *(space for space in given.spaces if space not in surfaces)]
        ]
        meshes = [SurfaceSeries(image.shape[3]) for _ in surfaces]
        points = [volume.points[volume.filled] for volume in volumes]
        points += [self._from_template(mesh.points) for mesh in meshes]
        folder = Path(runtime.cwd)
        writers = []
        try:
            for volume in volumes:
                # the native run is read again at once, and never kept
                name = f"{volume.space}_bold.nii" + ("" if volume.space == _NATIVE else ".gz")
                shape = (*volume.shape, image.shape[3])
                options = {"repetition_time": given.repetition_time}
                writers.append(SeriesWriter(folder / name, shape, volume.affine, **options))
            for t, sampled in enumerate(self._sample(image, points)):
                for volume, writer, values in zip(volumes, writers, sampled, strict=False):
                    writer.put(volume.full(values))
                for mesh, values in zip(meshes, sampled[len(volumes) :], strict=True):
                    mesh.put(t, values)
        finally:
            for writer in writers:
                writer.close()
        references = [self._reference(volume) for volume in volumes]
        masks = [self._mask(volume) for volume in volumes]
        self._results["bold"] = [str(writer.path) for writer in writers]
        for what, images in (("mask", masks), ("boldref", references)):
            self._results[what] = [
                self._keep(runtime, f"{volume.space}_{what}.nii.gz", values, volume.affine)
                for volume, values in zip(volumes, images, strict=True)
            ]
        for what in ("bold", "mask"):
            self._results[f"native_{what}"] = self._results[what][0]
        covered = volumes[0].covered.reshape(volumes[0].shape).astype(np.uint8)
        self._results["native_covered"] = self._keep(
            runtime, "covered.nii.gz", covered, volumes[0].affine
        )
        for what in ("bold", "mask", "boldref"):
            self._results[what] = self._results[what][1:]
        self._results["surface"] = [
            file
            for space, mesh in zip(surfaces, meshes, strict=True)
            for file in mesh.save(folder, space, repetition_time=given.repetition_time)
        ]
        return runtime

    def _sample(self, image: nib.Nifti1Image, points: list[np.ndarray]) -> Iterator:
        given = self.inputs
        timing = None
        if isdefined(given.slice_times):
            timing = SliceTiming(
                tuple(given.slice_times),
                given.slice_axis,
                given.repetition_time,
                given.reference_time,
                n_dummy=given.n_dummy,
                order=given.slice_order,
            )
        return sample_series(
            np.asanyarray(image.dataobj),
            image.affine,
            read_motion(given.matrices),
            points,
            slice_timing=timing,
            distortion=Distortion.load(given.distortion) if isdefined(given.distortion) else None,
            order=SPLINE_ORDERS[given.interpolation],
            threads=given.threads,
        )

    def _from_template(self, points: np.ndarray) -> np.ndarray:
        """Reference mm of points of the template."""
        in_t1w = apply_chain(read_transforms(self.inputs.to_template), points)
        return read_itk_affine(self.inputs.to_t1w).apply(in_t1w)

    def _volume(self, space: str, image: nib.Nifti1Image) -> _Volume:
        """The grid of an output space, and where its voxels lie in the reference."""
        t1w_mask = nib.load(self.inputs.t1w_mask)
        inside_t1w = np.asarray(t1w_mask.dataobj, np.float32)
        to_t1w = read_itk_affine(self.inputs.to_t1w)
        to_reference = AffineTransform(np.linalg.inv(to_t1w.matrix))
        if space == _NATIVE:
            shape, affine = image.shape[:3], image.affine
            points = grid_points(shape, affine)
        elif space == "T1w":
            resolution = self.inputs.resolution
            shape, affine = grid_around(inside_t1w > 0, t1w_mask.affine, resolution=resolution)
            points = to_t1w.apply(grid_points(shape, affine))
        else:
            template = registration.load_template(self.inputs.resolution)
            shape, affine = template.shape, template.affine
            points = self._from_template(grid_points(shape, affine))
        in_t1w = to_reference.apply(points)
        brain = resample_volume(inside_t1w, t1w_mask.affine, in_t1w, shape, order=1) > 0.5
        if space == _NATIVE:
            # for the confounds: the brain and the band around it
            near = brain | crown(brain)
        else:
            # beyond the scalp there is nothing to resample
            size = np.linalg.norm(affine[:3, :3], axis=0)
            near = ndimage.distance_transform_edt(~brain, sampling=size) <= _MARGIN
        filled = np.flatnonzero(near if brain.any() else brain)
        return _Volume(space, shape, affine, points, brain, filled, np.ones(len(points), bool))

    def _reference(self, volume: _Volume) -> np.ndarray:
        reference = nib.load(self.inputs.reference)
        values = np.asarray(reference.dataobj, np.float32)
        found = resample_volume(values, reference.affine, volume.points, volume.shape, order=3)
        return np.maximum(found, 0)

    def _mask(self, volume: _Volume) -> np.ndarray:
        """Brain that every volume reaches and where there is signal, uint8."""
        mask = volume.brain & volume.covered.reshape(volume.shape)
        if isdefined(self.inputs.signal):
            # dropout: nothing to analyse; found once, so that all spaces have the same brain
            signal = nib.load(self.inputs.signal)
            values = np.asarray(signal.dataobj, np.float32)
            mask &= (
                resample_volume(values, signal.affine, volume.points, volume.shape, order=1) > 0.5
            )
        if mask.sum() < 20:
            raise InputError(
                f"the run and the T1w brain do not overlap in space {volume.space}: "
                "check the affines of both images"
            )
        return mask.astype(np.uint8)
