"""Interface of the image quality measures of a run."""

from __future__ import annotations

import nibabel as nib
import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    TraitedSpec,
    isdefined,
    traits,
)

from isocortex.preprocess.interfaces.base import Interface
from isocortex.preprocess.quality import run_quality, slice_means, temporal_signal_to_noise
from isocortex.preprocess.registration import load_template
from isocortex.preprocess.transforms import apply_chain, read_itk_affine, read_transforms


class TemporalSnrInput(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="run after motion correction")
    n_dummy = traits.Int(0, usedefault=True, desc="volumes before the steady state, left out")


class TemporalSnrOutput(TraitedSpec):
    tsnr_file = File(exists=True)


class TemporalSnr(Interface):
    """nipype's TSNR of the volumes in the steady state."""

    input_spec = TemporalSnrInput
    output_spec = TemporalSnrOutput

    def _run_interface(self, runtime):
        image = nib.load(self.inputs.in_file)
        ratio = temporal_signal_to_noise(np.asanyarray(image.dataobj)[..., self.inputs.n_dummy :])
        self._results["tsnr_file"] = self._keep(runtime, "tsnr.nii", ratio, image.affine)
        return runtime


class RunQualityInput(BaseInterfaceInputSpec):
    raw = File(exists=True, mandatory=True, desc="run as it was scanned")
    mean = File(exists=True, mandatory=True, desc="mean of aligned volumes, bias field and all")
    bold = File(exists=True, mandatory=True, desc="run after motion correction, same grid")
    mask = File(exists=True, mandatory=True, desc="brain mask, same grid")
    tsnr = File(exists=True, mandatory=True)
    framewise_displacement = File(exists=True, mandatory=True)
    dvars = File(exists=True, mandatory=True)
    std_dvars = File(exists=True, mandatory=True)
    voxelwise_dvars = File(exists=True, mandatory=True)
    t1w_mask = File(exists=True, desc="brain mask of the T1w, for the coverage")
    to_t1w = File(exists=True, desc="reference to T1w, ITK text")
    to_template = File(exists=True, desc="T1w to template, composite")
    resolution = traits.Float(3.0, usedefault=True, desc="of the template's voxels, mm")
    slice_axis = traits.Range(0, 2, value=2, usedefault=True, desc="array axis of the slices")
    n_dummy = traits.Int(0, usedefault=True)
    fd_threshold = traits.Float(mandatory=True, desc="mm")
    repetition_time = traits.Float(mandatory=True, desc="seconds")


class RunQualityOutput(TraitedSpec):
    qc = traits.Dict(desc="number by measure")


class RunQuality(Interface):
    """MRIQC's measures of one run."""

    input_spec = RunQualityInput
    output_spec = RunQualityOutput

    def _run_interface(self, runtime):
        inputs = self.inputs
        mean = nib.load(inputs.mean)
        mask = np.asarray(nib.load(inputs.mask).dataobj) > 0
        series = np.asarray(nib.load(inputs.bold).dataobj)[mask]
        raw = np.asarray(nib.load(inputs.raw).dataobj)
        dvars = (inputs.dvars, inputs.std_dvars, inputs.voxelwise_dvars)
        self._results["qc"] = run_quality(
            mean=np.asarray(mean.dataobj, np.float64),
            affine=mean.affine,
            mask=mask,
            series=series,
            slice_means=slice_means(raw, mask, axis=inputs.slice_axis),
            tsnr=np.asarray(nib.load(inputs.tsnr).dataobj),
            framewise_displacement=np.loadtxt(inputs.framewise_displacement, skiprows=1, ndmin=1),
            dvars={
                name: np.loadtxt(path, ndmin=1)
                for name, path in zip(("nstd", "std", "vstd"), dvars, strict=True)
            },
            n_dummy=inputs.n_dummy,
            fd_threshold=inputs.fd_threshold,
            repetition_time=inputs.repetition_time,
            brain_points=self._brains(),
        )
        return runtime

    def _brains(self) -> dict[str, np.ndarray]:
        """Points of the subject's and of the template's brain, mm of the run."""
        inputs = self.inputs
        if not (isdefined(inputs.t1w_mask) and isdefined(inputs.to_t1w)):
            return {}
        to_t1w = read_itk_affine(inputs.to_t1w)
        inside = nib.load(inputs.t1w_mask)
        brains = {"brain": to_t1w.apply(_points(np.asarray(inside.dataobj) > 0, inside.affine, 3))}
        if isdefined(inputs.to_template):
            template = load_template(inputs.resolution)
            # nilearn's own brain mask of its template
            points = _points(np.asarray(template.dataobj) > 0.2, template.affine, 2)
            points = apply_chain(read_transforms(inputs.to_template), points)
            brains["template"] = to_t1w.apply(points)
        return brains


def _points(inside: np.ndarray, affine: np.ndarray, step: int) -> np.ndarray:
    """Every so many voxels of a mask along each axis, mm."""
    index = np.argwhere(inside[::step, ::step, ::step]) * step
    return index @ affine[:3, :3].T + affine[:3, 3]
