"""Interfaces of slice timing and of the one resampling."""

from __future__ import annotations

import nibabel as nib
import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    TraitedSpec,
    traits,
)
from scipy import ndimage

from isocortex.errors import InputError
from isocortex.preprocess import registration
from isocortex.preprocess.interfaces.base import Interface
from isocortex.preprocess.resampling import grid_around, resample_series, resample_volume
from isocortex.preprocess.slice_timing import correct_slice_timing
from isocortex.preprocess.transforms import (
    AffineTransform,
    apply_chain,
    grid_points,
    read_itk_affine,
    read_motion,
    read_transforms,
)

# mm around the brain that are resampled: for the outputs, and for the confounds
_MARGIN, _NATIVE_MARGIN = 12.0, 4.0


class CorrectSliceTimingInput(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="raw run")
    n_dummy = traits.Int(0, usedefault=True, desc="volumes before the steady state")
    slice_times = traits.List(traits.Float, mandatory=True, desc="seconds, one a slice")
    slice_axis = traits.Range(0, 2, mandatory=True, desc="array axis of the slices")
    repetition_time = traits.Float(mandatory=True, desc="seconds")
    reference_time = traits.Float(mandatory=True, desc="seconds after the volume's start")


class CorrectSliceTimingOutput(TraitedSpec):
    out_file = File(exists=True, desc="corrected run")


class CorrectSliceTiming(Interface):
    """Every slice at the same moment of the volume, by cubic splines."""

    input_spec = CorrectSliceTimingInput
    output_spec = CorrectSliceTimingOutput

    def _run_interface(self, runtime):
        image = nib.load(self.inputs.in_file)
        corrected = correct_slice_timing(
            np.asarray(image.dataobj),
            slice_times=self.inputs.slice_times,
            repetition_time=self.inputs.repetition_time,
            reference_time=self.inputs.reference_time,
            slice_axis=self.inputs.slice_axis,
            n_dummy=self.inputs.n_dummy,
        )
        self._results["out_file"] = self._keep(
            runtime,
            "corrected.nii",
            corrected,
            image.affine,
            repetition_time=self.inputs.repetition_time,
        )
        return runtime


class ResampleSpaceInput(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="(slice-timing corrected) run")
    reference = File(exists=True, mandatory=True, desc="BOLD reference, bias-corrected")
    matrices = File(exists=True, mandatory=True, desc="head motion")
    to_t1w = File(exists=True, mandatory=True, desc="reference to T1w, ITK text")
    t1w_mask = File(exists=True, mandatory=True, desc="brain mask of the T1w")
    to_template = File(exists=True, desc="T1w to template, composite; for the template space")
    space = traits.Str(mandatory=True, desc="boldref, T1w or the template's name")
    resolution = traits.Float(mandatory=True, desc="voxel size of the output, mm")
    repetition_time = traits.Float(mandatory=True, desc="seconds")
    threads = traits.Int(1, usedefault=True)


class ResampleSpaceOutput(TraitedSpec):
    bold = File(exists=True, desc="resampled run")
    mask = File(exists=True, desc="brain mask")
    boldref = File(exists=True, desc="reference")


class ResampleSpace(Interface):
    """One single resampling of the run into one output space."""

    input_spec = ResampleSpaceInput
    output_spec = ResampleSpaceOutput

    def _run_interface(self, runtime):
        image = nib.load(self.inputs.in_file)
        t1w_mask = nib.load(self.inputs.t1w_mask)
        to_t1w = read_itk_affine(self.inputs.to_t1w)
        inside_t1w = np.asarray(t1w_mask.dataobj, np.float32)
        space = self.inputs.space
        if space == "boldref":
            shape, affine = image.shape[:3], image.affine
            points = grid_points(shape, affine)
            in_t1w = AffineTransform(np.linalg.inv(to_t1w.matrix)).apply(points)
        else:
            if space == "T1w":
                shape, affine = grid_around(
                    inside_t1w > 0, t1w_mask.affine, resolution=self.inputs.resolution
                )
                in_t1w = grid_points(shape, affine)
            else:
                template = registration.load_template(self.inputs.resolution)
                shape, affine = template.shape, template.affine
                chain = read_transforms(self.inputs.to_template)
                in_t1w = apply_chain(chain, grid_points(shape, affine))
            points = to_t1w.apply(in_t1w)
        brain = resample_volume(inside_t1w, t1w_mask.affine, in_t1w, shape, order=1) > 0.5
        # beyond the scalp there is nothing to resample
        depth = _NATIVE_MARGIN if space == "boldref" else _MARGIN
        size = np.linalg.norm(affine[:3, :3], axis=0)
        near = ndimage.distance_transform_edt(~brain, sampling=size) <= depth
        if not brain.any():
            near = brain
        values, covered = resample_series(
            np.asarray(image.dataobj),
            image.affine,
            read_motion(self.inputs.matrices),
            points,
            shape,
            near=near,
            threads=self.inputs.threads,
        )
        reference = nib.load(self.inputs.reference)
        boldref = resample_volume(
            np.asarray(reference.dataobj, np.float32), reference.affine, points, shape, order=3
        )
        boldref = np.maximum(boldref, 0)
        mask = brain & covered
        if mask.any():
            # no signal at all (dropout): nothing to analyse
            mask &= boldref > 0.05 * np.median(boldref[mask])
        if mask.sum() < 20:
            raise InputError(
                f"the run and the T1w brain do not overlap in space {space}: "
                "check the affines of both images"
            )
        options = {"repetition_time": self.inputs.repetition_time}
        name = "bold.nii" if space == "boldref" else "bold.nii.gz"
        self._results["bold"] = self._keep(runtime, name, values, affine, **options)
        self._results["mask"] = self._keep(runtime, "mask.nii.gz", mask.astype(np.uint8), affine)
        self._results["boldref"] = self._keep(runtime, "boldref.nii.gz", boldref, affine)
        return runtime
