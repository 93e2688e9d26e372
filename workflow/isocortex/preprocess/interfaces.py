"""nipype interfaces: our own steps and ANTs' behind typed inputs and outputs."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    InputMultiObject,
    SimpleInterface,
    TraitedSpec,
    traits,
)
from scipy import ndimage
from skimage.filters import threshold_otsu

from isocortex.errors import InputError
from isocortex.preprocess import figures, registration
from isocortex.preprocess.confounds import (
    confounds_table,
    temporal_difference_variance,
    write_table,
)
from isocortex.preprocess.images import as_image, read_anatomy, read_series, save_image
from isocortex.preprocess.motion import estimate_motion, reference_volume
from isocortex.preprocess.resampling import grid_around, resample_series, resample_volume
from isocortex.preprocess.slice_timing import correct_slice_timing
from isocortex.preprocess.transforms import (
    AffineTransform,
    apply_chain,
    centre_of_grid,
    grid_points,
    read_itk_affine,
    read_transforms,
    write_composite,
    write_itk_affine,
)

logger = logging.getLogger(__name__)

# mm around the brain that are resampled: for the outputs, and for the confounds
_MARGIN, _NATIVE_MARGIN = 12.0, 4.0


class _Interface(SimpleInterface):
    """Writes its files into the node's folder."""

    def _keep(self, runtime, name: str, values: np.ndarray, affine: np.ndarray, **options) -> str:
        return save_image(Path(runtime.cwd) / name, values, affine, **options)


def _values(path: str) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj, dtype=np.float32)


# --- anatomy -------------------------------------------------------------------------------


class AverageAnatomyInput(BaseInterfaceInputSpec):
    in_files = InputMultiObject(File(exists=True), mandatory=True, desc="T1w volumes")
    seed = traits.Int(mandatory=True, desc="of the registration")


class AverageAnatomyOutput(TraitedSpec):
    out_file = File(exists=True, desc="bias-corrected T1w, the mean if there are several")


class AverageAnatomy(_Interface):
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
        mean = total / len(images)
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


class BrainExtraction(_Interface):
    """Brain mask by registration of the template."""

    input_spec = BrainExtractionInput
    output_spec = BrainExtractionOutput

    def _run_interface(self, runtime):
        head = nib.load(self.inputs.in_file)
        registration.make_deterministic(self.inputs.seed)
        matrix = registration.align_head_to_template(head, seed=self.inputs.seed)
        mask, _ = registration.brain_mask(head, matrix, seed=self.inputs.seed)
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


class Normalise(_Interface):
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


class TissueClasses(_Interface):
    """Atropos with the template's tissue priors."""

    input_spec = TissueClassesInput
    output_spec = TissueClassesOutput

    def _run_interface(self, runtime):
        head = nib.load(self.inputs.in_file)
        labels, probabilities = registration.tissue_classes(
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
    to_template = File(exists=True, mandatory=True, desc="composite transform")
    resolution = traits.Float(2.0, usedefault=True, desc="of the output, mm")


class TemplateAnatomyOutput(TraitedSpec):
    out_file = File(exists=True, desc="T1w in template space")
    compressed = File(exists=True, desc="T1w in its own space, compressed")
    correlation = traits.Float(desc="with the template, inside its brain mask")


class TemplateAnatomy(_Interface):
    """The T1w on the template's grid, and how well the two agree."""

    input_spec = TemplateAnatomyInput
    output_spec = TemplateAnatomyOutput

    def _run_interface(self, runtime):
        template = registration.load_template(self.inputs.resolution)
        brain = np.asarray(registration.load_template(self.inputs.resolution, "mask").dataobj)
        chain = read_transforms(self.inputs.to_template)
        head = nib.load(self.inputs.in_file)
        warped = np.maximum(registration.warp(head, chain, template, order=3), 0)
        inside = brain > 0.5
        self._results["correlation"] = float(
            np.corrcoef(np.asarray(template.dataobj)[inside], warped[inside])[0, 1]
        )
        self._results["out_file"] = self._keep(runtime, "template.nii.gz", warped, template.affine)
        self._results["compressed"] = self._keep(
            runtime, "t1w.nii.gz", np.asarray(head.dataobj, np.float32), head.affine
        )
        return runtime


class AnatomyFiguresInput(BaseInterfaceInputSpec):
    t1w = File(exists=True, mandatory=True)
    mask = File(exists=True, mandatory=True)
    dseg = File(exists=True, mandatory=True)
    t1w_template = File(exists=True, mandatory=True)
    correlation = traits.Float(mandatory=True)
    n_images = traits.Int(mandatory=True, desc="T1w volumes averaged")


class FiguresOutput(TraitedSpec):
    figures = traits.Directory(exists=True, desc="figures, figures.json and qc.json")
    qc = traits.Dict(desc="numbers for the report")


class AnatomyFigures(_Interface):
    """Pictures and numbers by which the anatomy is judged."""

    input_spec = AnatomyFiguresInput
    output_spec = FiguresOutput

    def _run_interface(self, runtime):
        folder = Path(runtime.cwd) / "figures"
        folder.mkdir(exist_ok=True)
        dseg = nib.load(self.inputs.dseg)
        labels = np.asarray(dseg.dataobj)
        voxel = abs(np.linalg.det(dseg.affine[:3, :3])) / 1e3
        qc = {
            "n_t1w": self.inputs.n_images,
            "brain_volume_ml": float((np.asarray(nib.load(self.inputs.mask).dataobj) > 0).sum())
            * voxel,
            "grey_matter_ml": float((labels == 1).sum()) * voxel,
            "white_matter_ml": float((labels == 2).sum()) * voxel,
            "csf_ml": float((labels == 3).sum()) * voxel,
            "template_correlation": self.inputs.correlation,
        }
        figures.anatomy_figures(
            folder,
            t1w=nib.load(self.inputs.t1w),
            mask=nib.load(self.inputs.mask),
            dseg=dseg,
            t1w_template=nib.load(self.inputs.t1w_template),
            qc=qc,
        )
        self._results["figures"] = str(folder)
        self._results["qc"] = qc
        return runtime


# --- BOLD ----------------------------------------------------------------------------------


class ReadSeriesInput(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="raw run")
    repetition_time = traits.Float(mandatory=True, desc="seconds")


class ReadSeriesOutput(TraitedSpec):
    out_file = File(exists=True, desc="float32, uncompressed, checked")


class ReadSeries(_Interface):
    """Read a run, check it, and keep it where it can be mapped into memory."""

    input_spec = ReadSeriesInput
    output_spec = ReadSeriesOutput

    def _run_interface(self, runtime):
        image = read_series(self.inputs.in_file)
        self._results["out_file"] = self._keep(
            runtime,
            "series.nii",
            np.asarray(image.dataobj),
            image.affine,
            repetition_time=self.inputs.repetition_time,
        )
        return runtime


class EstimateMotionInput(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="raw run")
    n_dummy = traits.Int(0, usedefault=True, desc="volumes before the steady state")


class EstimateMotionOutput(TraitedSpec):
    reference = File(exists=True, desc="robust mean of aligned volumes")
    matrices = File(exists=True, desc="a row a volume: 3 x 4 numbers, row by row")
    parameters = File(exists=True, desc="rot_x rot_y rot_z trans_x trans_y trans_z, as FSL's")


class EstimateMotion(_Interface):
    """Reference image and rigid motion of every volume."""

    input_spec = EstimateMotionInput
    output_spec = EstimateMotionOutput

    def _run_interface(self, runtime):
        image = nib.load(self.inputs.in_file)
        series = np.asarray(image.dataobj)
        centre = centre_of_grid(image)
        n_dummy = min(self.inputs.n_dummy, series.shape[3] - 2)
        rough = series[..., n_dummy :: max((series.shape[3] - n_dummy) // 10, 1)].mean(axis=3)
        mask = ndimage.binary_dilation(epi_mask(rough), iterations=1)
        options = {"mask": mask, "centre": centre}
        reference = reference_volume(series, image.affine, n_dummy=n_dummy, **options)
        matrices, parameters = estimate_motion(series, image.affine, reference=reference, **options)
        self._results["reference"] = self._keep(runtime, "reference.nii", reference, image.affine)
        table = pd.DataFrame(
            matrices[:, :3].reshape(len(matrices), 12),
            columns=[f"m{row}{column}" for row in range(3) for column in range(4)],
        )
        path = Path(runtime.cwd) / "motion.tsv"
        table.to_csv(path, sep="\t", index=False, float_format="%.10g")
        self._results["matrices"] = str(path)
        path = Path(runtime.cwd) / "motion.par"
        np.savetxt(path, np.c_[parameters[:, 3:], parameters[:, :3]], fmt="%.10g")
        self._results["parameters"] = str(path)
        return runtime


def read_motion(path: str | Path) -> np.ndarray:
    """Matrices (time, 4, 4) from the table that `EstimateMotion` writes."""
    rows = pd.read_csv(path, sep="\t").to_numpy(float)
    matrices = np.tile(np.eye(4), (len(rows), 1, 1))
    matrices[:, :3] = rows.reshape(-1, 3, 4)
    return matrices


def epi_mask(mean: np.ndarray) -> np.ndarray:
    """Boolean mask of the bright, compact part of a BOLD mean: the brain, roughly."""
    # a slab of one or two slices cannot be opened across its thickness
    structure = ndimage.generate_binary_structure(3, 1)
    if min(mean.shape) < 5:
        structure[:, :, [0, 2]] = False
    smooth = ndimage.gaussian_filter(mean, 0.5)
    # in BOLD the brain outshines the scalp: Otsu on the plain scale, a little below
    top = np.percentile(smooth, 99)
    threshold = 0.8 * threshold_otsu(np.minimum(smooth, top))
    mask = ndimage.binary_fill_holes(smooth > threshold)
    opened = ndimage.binary_opening(mask, structure, iterations=2)
    if opened.sum() < 0.3 * mask.sum():
        opened = mask
    piece = registration.largest_piece(opened)
    return ndimage.binary_fill_holes(ndimage.binary_dilation(piece, structure) & mask)


class CorrectSliceTimingInput(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="raw run")
    n_dummy = traits.Int(0, usedefault=True, desc="volumes before the steady state")
    slice_times = traits.List(traits.Float, mandatory=True, desc="seconds, one a slice")
    slice_axis = traits.Range(0, 2, mandatory=True, desc="array axis of the slices")
    repetition_time = traits.Float(mandatory=True, desc="seconds")
    reference_time = traits.Float(mandatory=True, desc="seconds after the volume's start")


class CorrectSliceTimingOutput(TraitedSpec):
    out_file = File(exists=True, desc="corrected run")


class CorrectSliceTiming(_Interface):
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


class CoregisterInput(BaseInterfaceInputSpec):
    reference = File(exists=True, mandatory=True, desc="BOLD reference")
    t1w = File(exists=True, mandatory=True, desc="bias-corrected T1w")
    mask = File(exists=True, mandatory=True, desc="brain mask of the T1w")
    seed = traits.Int(mandatory=True, desc="of the registration")


class CoregisterOutput(TraitedSpec):
    to_t1w = File(exists=True, desc="resamples the reference on the T1w, ITK text")
    reference = File(exists=True, desc="reference without its bias field")
    mask = File(exists=True, desc="brain mask from the reference alone")


class Coregister(_Interface):
    """Rigid registration of the BOLD reference to the T1w."""

    input_spec = CoregisterInput
    output_spec = CoregisterOutput

    def _run_interface(self, runtime):
        registration.make_deterministic(self.inputs.seed)
        reference = nib.load(self.inputs.reference)
        rough = epi_mask(np.asarray(reference.dataobj, np.float32))
        values = registration.correct_bias(reference, mask=rough)
        reference = as_image(values, reference.affine)
        mask = epi_mask(values)
        t1w = nib.load(self.inputs.t1w)
        inside = np.asarray(nib.load(self.inputs.mask).dataobj) > 0
        matrix = registration.coregister(reference, mask, t1w, inside, seed=self.inputs.seed)
        path = Path(runtime.cwd) / "to_t1w.txt"
        self._results["to_t1w"] = str(write_itk_affine(path, matrix))
        self._results["reference"] = self._keep(
            runtime, "reference.nii.gz", values, reference.affine
        )
        self._results["mask"] = self._keep(
            runtime, "mask.nii.gz", mask.astype(np.uint8), reference.affine
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


class ResampleSpace(_Interface):
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


class NoiseMasksInput(BaseInterfaceInputSpec):
    mask = File(exists=True, mandatory=True, desc="brain mask in the reference's space")
    to_t1w = File(exists=True, mandatory=True, desc="reference to T1w, ITK text")
    gm = File(exists=True, mandatory=True)
    wm = File(exists=True, mandatory=True)
    csf = File(exists=True, mandatory=True)


class NoiseMasksOutput(TraitedSpec):
    csf = File(exists=True, desc="eroded CSF")
    wm = File(exists=True, desc="eroded white matter")
    combined = File(exists=True, desc="both")
    tissues = File(exists=True, desc="1 GM, 2 WM, 3 CSF in the reference's space")


class NoiseMasks(_Interface):
    """White matter and CSF away from grey matter, in the space of the reference."""

    input_spec = NoiseMasksInput
    output_spec = NoiseMasksOutput

    def _run_interface(self, runtime):
        mask = nib.load(self.inputs.mask)
        brain = np.asarray(mask.dataobj) > 0
        back = np.linalg.inv(read_itk_affine(self.inputs.to_t1w).matrix)
        points = AffineTransform(back).apply(grid_points(mask.shape, mask.affine))
        size = np.linalg.norm(mask.affine[:3, :3], axis=0)
        shares = {}
        for name in ("gm", "wm", "csf"):
            image = nib.load(getattr(self.inputs, name))
            fine = np.linalg.norm(image.affine[:3, :3], axis=0)
            # the mean over a BOLD voxel, not the value at its centre
            sigma = np.sqrt(np.maximum((size.mean() / fine) ** 2 - 1, 0)) / 2.355
            smooth = ndimage.gaussian_filter(_values(getattr(self.inputs, name)), sigma)
            shares[name] = resample_volume(smooth, image.affine, points, mask.shape, order=1)
        stack = np.stack([shares["gm"], shares["wm"], shares["csf"]])
        tissues = np.where(brain, stack.argmax(axis=0) + 1, 0).astype(np.uint8)
        found = {}
        for name in ("wm", "csf"):
            candidate = brain & (shares["gm"] < 0.05)
            for threshold in (0.99, 0.95, 0.9, 0.8, 0.7):
                found[name] = candidate & (shares[name] > threshold)
                if found[name].sum() >= 100:
                    break
                candidate = brain
            logger.info("%d voxels of %s above a share of %g", found[name].sum(), name, threshold)
        combined = found["wm"] | found["csf"]
        if combined.sum() < 20:
            logger.info("too few voxels of white matter and CSF: aCompCor takes the whole brain")
            combined = brain
        for name, values in (*found.items(), ("combined", combined), ("tissues", tissues)):
            self._results[name] = self._keep(
                runtime, f"{name}.nii.gz", values.astype(np.uint8), mask.affine
            )
        return runtime


class DvarsInput(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="run after motion correction")
    in_mask = File(exists=True, mandatory=True, desc="brain mask")


class DvarsOutput(TraitedSpec):
    out_nstd = File(exists=True, desc="DVARS, from the second volume on")
    out_std = File(exists=True, desc="standardised DVARS, from the second volume on")


class Dvars(_Interface):
    """DVARS with the inputs, outputs and numbers of nipype's ComputeDVARS."""

    input_spec = DvarsInput
    output_spec = DvarsOutput

    def _run_interface(self, runtime):
        mask = np.asarray(nib.load(self.inputs.in_mask).dataobj) > 0
        series = np.asarray(nib.load(self.inputs.in_file).dataobj)[mask]
        for name, values in zip(
            ("out_nstd", "out_std"), temporal_difference_variance(series), strict=True
        ):
            path = Path(runtime.cwd) / f"{name}.txt"
            np.savetxt(path, values, fmt="%.8f")
            self._results[name] = str(path)
        return runtime


class AssembleConfoundsInput(BaseInterfaceInputSpec):
    bold = File(exists=True, mandatory=True, desc="run in the reference's space")
    mask = File(exists=True, mandatory=True)
    wm = File(exists=True, mandatory=True)
    csf = File(exists=True, mandatory=True)
    parameters = File(exists=True, mandatory=True, desc="motion, FSL's order")
    framewise_displacement = File(exists=True, mandatory=True)
    dvars = File(exists=True, mandatory=True)
    std_dvars = File(exists=True, mandatory=True)
    components = File(exists=True, mandatory=True)
    components_metadata = File(exists=True, mandatory=True)
    cosines = File(exists=True, mandatory=True)
    n_dummy = traits.Int(0, usedefault=True)
    fd_threshold = traits.Float(mandatory=True)
    dvars_threshold = traits.Float(mandatory=True)


class AssembleConfoundsOutput(TraitedSpec):
    table = File(exists=True)
    sidecar = File(exists=True)


class AssembleConfounds(_Interface):
    """One table with fMRIPrep's column names."""

    input_spec = AssembleConfoundsInput
    output_spec = AssembleConfoundsOutput

    def _run_interface(self, runtime):
        series = np.asarray(nib.load(self.inputs.bold).dataobj)
        signals = {}
        for name, path in (
            ("csf", self.inputs.csf),
            ("white_matter", self.inputs.wm),
            ("global_signal", self.inputs.mask),
        ):
            inside = np.asarray(nib.load(path).dataobj) > 0
            if inside.any():
                signals[name] = series[inside].mean(axis=0, dtype=np.float64)
        rows = np.loadtxt(self.inputs.parameters, ndmin=2)
        n_dummy = self.inputs.n_dummy
        components = pd.read_csv(self.inputs.components, sep="\t")
        metadata = pd.read_csv(self.inputs.components_metadata, sep="\t")
        metadata = metadata[metadata["retained"].astype(str) == "True"]
        explained = [
            {
                "SingularValue": row.singular_value,
                "VarianceExplained": row.variance_explained,
                "CumulativeVarianceExplained": row.cumulative_variance_explained,
            }
            for row in metadata.itertuples()
        ]
        table, sidecar = confounds_table(
            motion=np.c_[rows[:, 3:], rows[:, :3]],
            signals=signals,
            framewise_displacement=np.r_[
                np.nan, np.loadtxt(self.inputs.framewise_displacement, skiprows=1, ndmin=1)
            ],
            dvars=np.r_[np.nan, np.loadtxt(self.inputs.dvars, ndmin=1)],
            std_dvars=np.r_[np.nan, np.loadtxt(self.inputs.std_dvars, ndmin=1)],
            components=components.to_numpy(float),
            components_explained=explained,
            cosines=_cosines(self.inputs.cosines, len(rows)),
            n_dummy=n_dummy,
            fd_threshold=self.inputs.fd_threshold,
            dvars_threshold=self.inputs.dvars_threshold,
        )
        path = Path(runtime.cwd) / "confounds.tsv"
        write_table(str(path), table)
        self._results["table"] = str(path)
        path = Path(runtime.cwd) / "confounds.json"
        path.write_text(json.dumps(sidecar, indent=2, sort_keys=True) + "\n")
        self._results["sidecar"] = str(path)
        return runtime


def _cosines(path: str, n_volumes: int) -> np.ndarray:
    """The cosine columns of nipype's filter file; empty where the run is too short for one."""
    header, *_ = Path(path).read_text().splitlines() or [""]
    names = header.split("\t")
    kept = [n for n, name in enumerate(names) if name.startswith("Cosine")]
    if not kept:
        return np.zeros((n_volumes, 0))
    return np.loadtxt(path, skiprows=1, ndmin=2, delimiter="\t")[:, kept]


class BoldFiguresInput(BaseInterfaceInputSpec):
    reference = File(exists=True, mandatory=True, desc="bias-corrected reference")
    epi_mask = File(exists=True, mandatory=True, desc="mask from the reference alone")
    bold = File(exists=True, mandatory=True, desc="run in the reference's space")
    mask = File(exists=True, mandatory=True, desc="brain mask in the reference's space")
    tissues = File(exists=True, mandatory=True)
    tsnr = File(exists=True, mandatory=True)
    to_t1w = File(exists=True, mandatory=True)
    t1w = File(exists=True, mandatory=True)
    dseg = File(exists=True, mandatory=True)
    confounds = File(exists=True, mandatory=True)
    repetition_time = traits.Float(mandatory=True)
    fd_threshold = traits.Float(mandatory=True)
    dvars_threshold = traits.Float(mandatory=True)
    n_dummy = traits.Int(0, usedefault=True)


class BoldFigures(_Interface):
    """Pictures and numbers by which a run is judged."""

    input_spec = BoldFiguresInput
    output_spec = FiguresOutput

    def _run_interface(self, runtime):
        folder = Path(runtime.cwd) / "figures"
        folder.mkdir(exist_ok=True)
        table = pd.read_csv(self.inputs.confounds, sep="\t", na_values="n/a")
        mask = np.asarray(nib.load(self.inputs.mask).dataobj) > 0
        rough = np.asarray(nib.load(self.inputs.epi_mask).dataobj) > 0
        tsnr = nib.load(self.inputs.tsnr)
        displacement = table["framewise_displacement"].to_numpy(float)[1:]
        qc = {
            "n_volumes": len(table),
            "n_non_steady_state": self.inputs.n_dummy,
            "mean_framewise_displacement_mm": float(displacement.mean()),
            "max_framewise_displacement_mm": float(displacement.max()),
            "n_motion_outliers": sum(c.startswith("motion_outlier") for c in table.columns),
            "mean_std_dvars": float(np.nanmean(table["std_dvars"].to_numpy(float))),
            "median_tsnr": float(np.median(np.asarray(tsnr.dataobj)[mask])),
            "n_voxels_mask": int(mask.sum()),
            "dice_bold_mask_t1w_mask": float(
                2 * (mask & rough).sum() / max(mask.sum() + rough.sum(), 1)
            ),
        }
        figures.bold_figures(
            folder,
            reference=nib.load(self.inputs.reference),
            series=nib.load(self.inputs.bold),
            mask=mask,
            tissues=np.asarray(nib.load(self.inputs.tissues).dataobj),
            tsnr=tsnr,
            to_t1w=read_itk_affine(self.inputs.to_t1w).matrix,
            t1w=nib.load(self.inputs.t1w),
            dseg=nib.load(self.inputs.dseg),
            confounds=table,
            repetition_time=self.inputs.repetition_time,
            fd_threshold=self.inputs.fd_threshold,
            dvars_threshold=self.inputs.dvars_threshold,
            qc=qc,
        )
        self._results["figures"] = str(folder)
        self._results["qc"] = qc
        return runtime
