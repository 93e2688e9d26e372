"""Interfaces that bring a run to the anatomy."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    TraitedSpec,
    traits,
)

from isocortex.preprocess import registration
from isocortex.preprocess.boundary import refine, white_matter_boundary
from isocortex.preprocess.images import as_image
from isocortex.preprocess.interfaces.base import Interface
from isocortex.preprocess.masks import dice, epi_mask, signal_mask
from isocortex.preprocess.normalisation import normalisation_quality
from isocortex.preprocess.template_only import (
    TISSUES,
    carry_tissues,
    normalise_reference,
    template_as_bold,
)
from isocortex.preprocess.transforms import AffineTransform, write_composite, write_itk_affine


class CoregisterInput(BaseInterfaceInputSpec):
    reference = File(exists=True, mandatory=True, desc="BOLD reference, undistorted if it can be")
    t1w = File(exists=True, mandatory=True, desc="bias-corrected T1w")
    mask = File(exists=True, mandatory=True, desc="brain mask of the T1w")
    wm = File(exists=True, mandatory=True, desc="probability of white matter")
    gm = File(exists=True, mandatory=True, desc="probability of grey matter")
    seed = traits.Int(mandatory=True, desc="of the registration")


class CoregisterOutput(TraitedSpec):
    to_t1w = File(exists=True, desc="resamples the reference on the T1w, ITK text")
    reference = File(exists=True, desc="reference without its bias field")
    mask = File(exists=True, desc="brain mask from the reference alone")
    signal = File(exists=True, desc="where the reference has signal")
    quality = traits.Dict(desc="costs and overlap, for qc")


class Coregister(Interface):
    """Rigid registration of the BOLD reference to the T1w: mutual information, then boundary."""

    input_spec = CoregisterInput
    output_spec = CoregisterOutput

    def _run_interface(self, runtime):
        registration.make_deterministic(self.inputs.seed)
        reference, mask, signal = _plain_reference(self.inputs.reference)
        t1w, t1w_mask = nib.load(self.inputs.t1w), nib.load(self.inputs.mask)
        inside = np.asarray(t1w_mask.dataobj) > 0
        start = registration.coregister(reference, mask, t1w, inside, seed=self.inputs.seed)
        edge = white_matter_boundary(nib.load(self.inputs.wm), nib.load(self.inputs.gm))
        found = refine(reference, edge, start, mask=mask)
        path = Path(runtime.cwd) / "to_t1w.txt"
        self._results["to_t1w"] = str(write_itk_affine(path, found.matrix))
        back = [AffineTransform(np.linalg.inv(found.matrix))]
        soft = as_image(inside.astype(np.float32), t1w_mask.affine)
        self._results["quality"] = {
            "coregistration_accepted": "bbr" if found.accepted else "mi",
            # none where the run holds too little of the boundary
            "coregistration_cost_before": _or_none(found.cost_before),
            "coregistration_cost_after": _or_none(found.cost_after),
            "coregistration_moved_mm": found.moved_mm,
            "coregistration_note": "" if found.accepted else f"refused: {found.reason}",
            "dice_t1w_mask": dice(registration.warp(soft, back, reference) > 0.5, mask),
        }
        for name, values in (
            ("reference", np.asarray(reference.dataobj)),
            ("mask", mask.astype(np.uint8)),
            ("signal", signal.astype(np.uint8)),
        ):
            self._results[name] = self._keep(runtime, f"{name}.nii.gz", values, reference.affine)
        return runtime


class NormaliseReferenceInput(BaseInterfaceInputSpec):
    reference = File(exists=True, mandatory=True, desc="BOLD reference, undistorted if it can be")
    seed = traits.Int(mandatory=True, desc="of the registration")
    resolution = traits.Float(2.0, usedefault=True, desc="of the registration, mm")


class NormaliseReferenceOutput(TraitedSpec):
    to_t1w = File(exists=True, desc="identity: the reference stands in for the T1w")
    to_template = File(exists=True, desc="composite: resamples the reference on the template")
    from_template = File(exists=True, desc="composite: resamples the template on the reference")
    reference = File(exists=True, desc="reference without its bias field")
    mask = File(exists=True, desc="brain mask from the reference alone")
    signal = File(exists=True, desc="where the reference has signal")
    t1w = File(exists=True, desc="the template's T1w, carried to the reference")
    brain = File(exists=True, desc="the template's brain, carried to the reference")
    dseg = File(exists=True, desc="1 GM, 2 WM, 3 CSF, carried from the template")
    gm = File(exists=True, desc="share of grey matter, carried from the template")
    wm = File(exists=True, desc="share of white matter, carried from the template")
    csf = File(exists=True, desc="share of CSF, carried from the template")
    quality = traits.Dict(desc="overlap with the template and folding, for qc")


class NormaliseReference(Interface):
    """For a subject without a T1w: the BOLD reference straight to the template.

    What the anatomy gives otherwise is the template's, carried to the reference's grid, so that
    all later steps are those of a subject whose T1w space is the reference's.
    """

    input_spec = NormaliseReferenceInput
    output_spec = NormaliseReferenceOutput

    def _run_interface(self, runtime):
        registration.make_deterministic(self.inputs.seed)
        resolution = self.inputs.resolution
        reference, mask, signal = _plain_reference(self.inputs.reference)
        forward, inverse = normalise_reference(
            reference, mask, seed=self.inputs.seed, resolution=resolution
        )
        own = as_image(mask.astype(np.float32), reference.affine)
        brain, tissues = carry_tissues(inverse, own, resolution=resolution)
        target = template_as_bold(resolution)
        view = as_image(np.ones(mask.shape, np.float32), reference.affine)
        quality = normalisation_quality(
            registration.warp(reference, forward, target),
            forward,
            mask=registration.warp(own, forward, target) > 0.5,
            resolution=resolution,
            target=np.asarray(target.dataobj),
            seen=registration.warp(view, forward, target) > 0.5,
            # at the rim echo-planar images lose signal, and what CSF there is
            deeper_mm=6.0,
            least_correlation=0.2,
        )
        quality |= {"anatomy": "template", "dice_t1w_mask": dice(brain, mask)}
        self._results["quality"] = quality
        folder = Path(runtime.cwd)
        for name, chain in (("to_template", forward), ("from_template", inverse)):
            self._results[name] = str(write_composite(folder / f"{name}.h5", chain))
        self._results["to_t1w"] = str(write_itk_affine(folder / "to_t1w.txt", np.eye(4)))
        labels = np.stack([tissues[name] for name in TISSUES]).argmax(axis=0) + 1
        for name, values in (
            ("reference", np.asarray(reference.dataobj)),
            ("mask", mask.astype(np.uint8)),
            ("signal", signal.astype(np.uint8)),
            ("brain", brain.astype(np.uint8)),
            ("dseg", np.where(brain, labels, 0).astype(np.uint8)),
            ("t1w", registration.warp(registration.load_template(resolution), inverse, own)),
            *tissues.items(),
        ):
            self._results[name] = self._keep(runtime, f"{name}.nii.gz", values, reference.affine)
        return runtime


def _or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _plain_reference(path: str) -> tuple[nib.Nifti1Image, np.ndarray, np.ndarray]:
    """A reference without its bias field, its brain from itself alone, and its signal."""
    image = nib.load(path)
    rough = epi_mask(np.asarray(image.dataobj, np.float32))
    values = registration.correct_bias(image, mask=rough)
    mask = epi_mask(values)
    return as_image(values, image.affine), mask, signal_mask(values, mask)
