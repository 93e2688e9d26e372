"""Interfaces of the anatomy: average, brain, tissues, template."""

from __future__ import annotations

import logging
from pathlib import Path

import nibabel as nib
import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    InputMultiObject,
    TraitedSpec,
    traits,
)

from isocortex.errors import InputError
from isocortex.preprocess import registration, tissues
from isocortex.preprocess.images import as_image, read_anatomy
from isocortex.preprocess.interfaces.base import Interface
from isocortex.preprocess.normalisation import normalisation_quality
from isocortex.preprocess.resampling import resample_volume
from isocortex.preprocess.transforms import (
    apply_chain,
    grid_points,
    read_itk_affine,
    read_transforms,
    write_composite,
    write_itk_affine,
)

logger = logging.getLogger(__name__)


class AverageAnatomyInput(BaseInterfaceInputSpec):
    in_files = InputMultiObject(File(exists=True), mandatory=True, desc="T1w volumes")
    seed = traits.Int(mandatory=True, desc="of the registration")


class AverageAnatomyOutput(TraitedSpec):
    out_file = File(exists=True, desc="bias-corrected T1w, the mean if there are several")


class AverageAnatomy(Interface):
    """Read the T1w volumes, divide out their bias field, align them rigidly and average."""

    input_spec = AverageAnatomyInput
    output_spec = AverageAnatomyOutput

    def _run_interface(self, runtime):
        registration.make_deterministic(self.inputs.seed)
        images = []
        for path in self.inputs.in_files:
            image = read_anatomy(path)
            images.append(as_image(registration.correct_bias(image), image.affine))
        first = images[0]
        total = np.asarray(first.dataobj, np.float32)
        level = np.median(total[registration.foreground(total)])
        count = np.ones(first.shape, np.float32)
        for image in images[1:]:
            chain, _ = registration.register(
                registration.downsample(first, 2.0),
                registration.downsample(image, 2.0),
                "Rigid",
                seed=self.inputs.seed,
                aff_iterations=(200, 100, 50),
                aff_shrink_factors=(4, 2, 1),
                aff_smoothing_sigmas=(2, 1, 0),
            )
            moved = registration.warp(image, chain, first, order=3)
            own = np.median(moved[registration.foreground(moved)])
            total = total + np.maximum(moved, 0) * (level / own)
            # a volume that ends earlier says nothing about what lies beyond it
            view = as_image(np.ones(image.shape, np.float32), image.affine)
            count += registration.warp(view, chain, first) > 0.5
        mean = total / count
        if len(images) > 1:
            logger.info("averaged %d T1w volumes on the grid of the first", len(images))
        self._results["out_file"] = self._keep(runtime, "t1w.nii", mean, first.affine)
        return runtime


class BrainExtractionInput(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="bias-corrected T1w")
    seed = traits.Int(mandatory=True, desc="of the registration")


class BrainExtractionOutput(TraitedSpec):
    mask = File(exists=True, desc="brain mask")
    brain = File(exists=True, desc="T1w, zero outside the mask")
    affine = File(exists=True, desc="from T1w to template, ITK text")


class BrainExtraction(Interface):
    """Brain mask by registration of the template."""

    input_spec = BrainExtractionInput
    output_spec = BrainExtractionOutput

    def _run_interface(self, runtime):
        head = nib.load(self.inputs.in_file)
        registration.make_deterministic(self.inputs.seed)
        matrix = registration.align_head_to_template(head, seed=self.inputs.seed)
        mask, _ = tissues.brain_mask(head, matrix, seed=self.inputs.seed)
        litres = mask.sum() * abs(np.linalg.det(head.affine[:3, :3])) / 1e6
        logger.info("brain mask: %.2f l", litres)
        if not 0.4 < litres < 3.0:
            raise InputError(
                f"brain mask of {litres:.2f} l in the T1w: check its orientation and voxel size"
            )
        values = np.asarray(head.dataobj, np.float32)
        self._results["mask"] = self._keep(
            runtime, "mask.nii.gz", mask.astype(np.uint8), head.affine
        )
        self._results["brain"] = self._keep(runtime, "brain.nii", values * mask, head.affine)
        path = Path(runtime.cwd) / "affine.txt"
        self._results["affine"] = str(write_itk_affine(path, matrix))
        return runtime


class NormaliseInput(BaseInterfaceInputSpec):
    brain = File(exists=True, mandatory=True, desc="T1w, zero outside the brain")
    affine = File(exists=True, mandatory=True, desc="start, ITK text")
    seed = traits.Int(mandatory=True, desc="of the registration")
    resolution = traits.Float(2.0, usedefault=True, desc="of the registration, mm")


class NormaliseOutput(TraitedSpec):
    to_template = File(exists=True, desc="composite: resamples the T1w on the template")
    from_template = File(exists=True, desc="composite: resamples the template on the T1w")


class Normalise(Interface):
    """SyN registration to the template."""

    input_spec = NormaliseInput
    output_spec = NormaliseOutput

    def _run_interface(self, runtime):
        forward, inverse = registration.normalise(
            nib.load(self.inputs.brain),
            read_itk_affine(self.inputs.affine).matrix,
            seed=self.inputs.seed,
            resolution=self.inputs.resolution,
        )
        for name, chain in (("to_template", forward), ("from_template", inverse)):
            path = Path(runtime.cwd) / f"{name}.h5"
            self._results[name] = str(write_composite(path, chain))
        return runtime


class TissueClassesInput(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="bias-corrected T1w")
    mask = File(exists=True, mandatory=True, desc="brain mask")
    from_template = File(exists=True, mandatory=True, desc="resamples the template on the T1w")
    seed = traits.Int(mandatory=True, desc="of Atropos")


class TissueClassesOutput(TraitedSpec):
    dseg = File(exists=True, desc="1 GM, 2 WM, 3 CSF")
    gm = File(exists=True, desc="probability of grey matter")
    wm = File(exists=True, desc="probability of white matter")
    csf = File(exists=True, desc="probability of CSF")


class TissueClasses(Interface):
    """Atropos with the template's tissue priors."""

    input_spec = TissueClassesInput
    output_spec = TissueClassesOutput

    def _run_interface(self, runtime):
        head = nib.load(self.inputs.in_file)
        labels, probabilities = tissues.tissue_classes(
            head,
            np.asarray(nib.load(self.inputs.mask).dataobj) > 0,
            read_transforms(self.inputs.from_template),
            seed=self.inputs.seed,
        )
        self._results["dseg"] = self._keep(runtime, "dseg.nii.gz", labels, head.affine)
        for name, values in zip(("gm", "wm", "csf"), probabilities, strict=True):
            self._results[name] = self._keep(runtime, f"{name}.nii.gz", values, head.affine)
        return runtime


class TemplateAnatomyInput(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="bias-corrected T1w")
    mask = File(exists=True, mandatory=True, desc="brain mask")
    gm = File(exists=True, mandatory=True, desc="probability of grey matter")
    to_template = File(exists=True, mandatory=True, desc="composite transform")
    resolution = traits.Float(2.0, usedefault=True, desc="of the output, mm")


class TemplateAnatomyOutput(TraitedSpec):
    out_file = File(exists=True, desc="T1w in template space")
    compressed = File(exists=True, desc="T1w in its own space, compressed")
    correlation = traits.Float(desc="with the template, inside its brain mask")
    quality = traits.Dict(desc="overlap with the template and folding, for qc")


class TemplateAnatomy(Interface):
    """The T1w on the template's grid, and how well the two agree."""

    input_spec = TemplateAnatomyInput
    output_spec = TemplateAnatomyOutput

    def _run_interface(self, runtime):
        template = registration.load_template(self.inputs.resolution)
        chain = read_transforms(self.inputs.to_template)
        head = nib.load(self.inputs.in_file)
        points = apply_chain(chain, grid_points(template.shape, template.affine))

        def carried(image: nib.Nifti1Image, order: int = 1) -> np.ndarray:
            values = np.asarray(image.dataobj, np.float32)
            return resample_volume(values, image.affine, points, template.shape, order=order)

        warped = np.maximum(carried(head, order=3), 0)
        quality = normalisation_quality(
            warped,
            chain,
            mask=carried(nib.load(self.inputs.mask)) > 0.5,
            grey=carried(nib.load(self.inputs.gm)),
            resolution=self.inputs.resolution,
        )
        self._results["correlation"] = quality["template_correlation"]
        self._results["quality"] = quality
        self._results["out_file"] = self._keep(runtime, "template.nii.gz", warped, template.affine)
        self._results["compressed"] = self._keep(
            runtime, "t1w.nii.gz", np.asarray(head.dataobj, np.float32), head.affine
        )
        return runtime
