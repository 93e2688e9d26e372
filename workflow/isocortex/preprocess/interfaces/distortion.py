"""Interfaces of susceptibility distortion: estimate a field, and undistort a run's reference."""

from __future__ import annotations

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
from isocortex.preprocess.distortion import Distortion, place_field, values_at
from isocortex.preprocess.figures.distortion import fieldmap_figures
from isocortex.preprocess.images import as_image, clean_affine, open_image, read_values
from isocortex.preprocess.interfaces.base import Interface, values_of
from isocortex.preprocess.masks import epi_mask
from isocortex.preprocess.measured_field import field_of_map, field_of_phases, to_radians
from isocortex.preprocess.motion import reference_volume
from isocortex.preprocess.opposite_phase import opposite_field
from isocortex.preprocess.transforms import centre_of_grid, grid_points

# volumes of a run that stand for it, and those before them that are brighter
_FRAMES, _UNSTEADY = 16, 4


class FieldOutput(TraitedSpec):
    field = File(exists=True, desc="Hz")
    reference = File(exists=True, desc="undistorted image on the field's grid")
    before = File(exists=True, desc="both images as recorded; opposite phase encoding alone")
    after = File(exists=True, desc="both images undistorted")
    qc = traits.Dict(desc="numbers for the report")


class MeasureFieldInput(BaseInterfaceInputSpec):
    in_files = traits.List(File(exists=True), mandatory=True, desc="phases, or the field")
    magnitude = File(exists=True, mandatory=True, desc="of the first echo")
    echo_times = traits.Tuple(traits.Float, traits.Float, desc="s, of phases")
    units = traits.Enum("Hz", "rad/s", "T", desc="of a field")


class MeasureField(Interface):
    """The field in Hz from phases of gradient echoes, or from a measured map."""

    input_spec = MeasureFieldInput
    output_spec = FieldOutput

    def _run_interface(self, runtime):
        given = self.inputs
        images = [_frames(path) for path in given.in_files]
        affine = images[0][1]
        magnitude = _frames(given.magnitude)[0].mean(axis=3)
        values = [frames.mean(axis=3) for frames, _ in images]
        for path, value in zip(given.in_files, values, strict=True):
            if value.shape != magnitude.shape:
                raise InputError(f"{path} and {given.magnitude} have different grids: restore them")
        size = np.linalg.norm(affine[:3, :3], axis=0)
        if isdefined(given.units):
            field = field_of_map(values[0], given.units, magnitude, size)
        else:
            phases = [to_radians(v, p) for v, p in zip(values, given.in_files, strict=True)]
            field = field_of_phases(phases, magnitude, size, echo_times=given.echo_times)
        plain = registration.correct_bias(as_image(magnitude.astype(np.float32), affine))
        self._results["field"] = self._keep(runtime, "field.nii.gz", field, affine)
        self._results["reference"] = self._keep(runtime, "reference.nii.gz", plain, affine)
        self._results["qc"] = _numbers(field, registration.foreground(magnitude))
        return runtime


class OppositeFieldInput(BaseInterfaceInputSpec):
    first = traits.List(File(exists=True), mandatory=True, desc="images of one direction")
    second = traits.List(File(exists=True), mandatory=True, desc="images of the opposite one")
    axis = traits.Range(0, 2, mandatory=True, desc="array axis of the phase encoding")
    signs = traits.Tuple(traits.Int, traits.Int, mandatory=True, desc="-1 for directions with -")
    readout_times = traits.Tuple(traits.Float, traits.Float, mandatory=True, desc="s")


class OppositeField(Interface):
    """The field in Hz from echo-planar images of opposite phase encoding."""

    input_spec = OppositeFieldInput
    output_spec = FieldOutput

    def _run_interface(self, runtime):
        given = self.inputs
        first, affine = _direction(given.first)
        second, second_affine = _direction(given.second)
        # the second image's axis may run the other way in the scanner, or have other voxels
        one, two = affine[:3, given.axis], second_affine[:3, given.axis]
        turn = float(one @ two) / float(one @ one)
        if abs(turn) < 0.9 * np.linalg.norm(two) / np.linalg.norm(one):
            raise InputError(
                f"{given.first[0]} and {given.second[0]} are encoded along different directions "
                "of the scanner: give them B0FieldIdentifier of their own"
            )
        scales = (
            given.signs[0] * given.readout_times[0],
            given.signs[1] * given.readout_times[1] * turn,
        )
        if scales[0] * scales[1] > 0:
            raise InputError(
                f"{given.first[0]} and {given.second[0]} are distorted the same way, as their "
                "affines turn them: correct PhaseEncodingDirection of one"
            )
        found = opposite_field(first, second, affine, second_affine, axis=given.axis, scales=scales)
        reference = found.corrected.mean(axis=0)
        head = epi_mask(reference)
        plain = registration.correct_bias(as_image(reference, affine), mask=head)
        for name, values in (
            ("field", found.field),
            ("reference", plain),
            ("before", np.moveaxis(found.recorded, 0, -1)),
            ("after", np.moveaxis(found.corrected, 0, -1)),
        ):
            self._results[name] = self._keep(runtime, f"{name}.nii.gz", values, affine)
        self._results["qc"] = _numbers(found.field, head) | {
            "correlation_before": found.correlation[0],
            "correlation_after": found.correlation[1],
        }
        return runtime


class UndistortReferenceInput(BaseInterfaceInputSpec):
    reference = File(exists=True, mandatory=True, desc="BOLD reference as recorded")
    field = File(exists=True, mandatory=True, desc="Hz")
    field_reference = File(exists=True, mandatory=True, desc="undistorted, on the field's grid")
    kind = traits.Str(mandatory=True, desc="of the field, for the report")
    axis = traits.Range(0, 2, mandatory=True, desc="array axis of the run's phase encoding")
    sign = traits.Int(mandatory=True, desc="-1 where the direction ends in -")
    readout_time = traits.Float(mandatory=True, desc="of the run, s")
    modulate = traits.Bool(True, usedefault=True, desc="multiply by the Jacobian")
    seed = traits.Int(mandatory=True, desc="of the registration")


class UndistortReferenceOutput(TraitedSpec):
    reference = File(exists=True, desc="undistorted")
    distortion = File(exists=True, desc="for the resampling")
    qc = traits.Dict(desc="numbers for the report")


class UndistortReference(Interface):
    """Bring a field to a run's reference, and undistort that."""

    input_spec = UndistortReferenceInput
    output_spec = UndistortReferenceOutput

    def _run_interface(self, runtime):
        given = self.inputs
        image = nib.load(given.reference)
        values = np.asarray(image.dataobj, np.float32)
        encoding = {
            "axis": given.axis,
            "sign": given.sign,
            "total_readout_time": given.readout_time,
        }
        field = nib.load(given.field)
        matrix = place_field(
            field, nib.load(given.field_reference), image, seed=given.seed, **encoding
        )
        points = grid_points(image.shape, image.affine) @ matrix[:3, :3].T + matrix[:3, 3]
        there = values_at(values_of(given.field), field.affine, points).reshape(image.shape)
        distortion = Distortion(there, image.affine, modulate=given.modulate, **encoding)
        corrected = distortion.correct(values)
        self._results["reference"] = self._keep(
            runtime, "reference.nii", corrected.astype(np.float32), image.affine
        )
        self._results["distortion"] = distortion.save(Path(runtime.cwd) / "distortion.npz")
        size = np.linalg.norm(image.affine[:3, given.axis])
        moved = np.abs(distortion.voxels[epi_mask(corrected)]) * size
        turn = np.degrees(np.arccos(np.clip((np.trace(matrix[:3, :3]) - 1) / 2, -1, 1)))
        centre = centre_of_grid(image)
        self._results["qc"] = {
            "distortion": given.kind,
            "distortion_median_mm": float(np.median(moved)),
            "distortion_max_mm": float(np.percentile(moved, 99.5)),
            "fieldmap_moved_mm": float(
                np.linalg.norm(matrix[:3, :3] @ centre + matrix[:3, 3] - centre)
            ),
            "fieldmap_turned_degrees": float(turn),
        }
        return runtime


def _frames(path: str, most: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Volumes of an image, at most so many, float32 (x, y, z, t), and its affine."""
    image = open_image(path)
    if len(image.shape) == 4 and image.shape[3] > most:
        image = image.slicer[..., :most]
    values = np.nan_to_num(read_values(image, path), posinf=0, neginf=0)
    if values.ndim not in (3, 4):
        raise InputError(f"{path} has {values.ndim} dimensions: give a volume, or a few")
    return values.reshape(*values.shape[:3], -1), clean_affine(image, path)


def _direction(paths: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The mean of all volumes of one phase-encoding direction, aligned, and its affine."""
    collected, affine = [], None
    for path in paths:
        frames, own = _frames(path, _FRAMES)
        # of a run the first volumes are brighter; fieldmaps have few
        collected.append(frames[..., _UNSTEADY if frames.shape[3] >= _FRAMES else 0 :])
        affine = own if affine is None else affine
        if collected[-1].shape[:3] != collected[0].shape[:3] or np.abs(own - affine).max() > 1e-2:
            raise InputError(
                f"{path} and {paths[0]} have one direction and different grids: give them "
                "B0FieldIdentifier of their own"
            )
    series = np.concatenate(collected, axis=3)
    if series.shape[3] == 1:
        return series[..., 0], affine
    image = as_image(series, affine)
    mask = ndimage.binary_dilation(epi_mask(series.mean(axis=3)), iterations=1)
    options = {"mask": mask, "centre": centre_of_grid(image)}
    return reference_volume(series, affine, **options), affine


def _numbers(field: np.ndarray, head: np.ndarray) -> dict[str, float]:
    low, high = np.percentile(field[head], [0.5, 99.5])
    return {"field_low_hz": float(low), "field_high_hz": float(high)}


class FieldmapFiguresInput(BaseInterfaceInputSpec):
    field = File(exists=True, mandatory=True, desc="Hz")
    reference = File(exists=True, mandatory=True, desc="undistorted")
    before = File(exists=True, desc="both directions as recorded")
    after = File(exists=True, desc="both directions undistorted")
    qc = traits.Dict(mandatory=True, desc="numbers for the report")


class FieldmapFiguresOutput(TraitedSpec):
    figures = traits.Directory(exists=True, desc="figures, figures.json and qc.json")


class FieldmapFigures(Interface):
    """Pictures by which a field is judged."""

    input_spec = FieldmapFiguresInput
    output_spec = FieldmapFiguresOutput

    def _run_interface(self, runtime):
        folder = Path(runtime.cwd) / "figures"
        folder.mkdir(exist_ok=True)
        given = self.inputs
        fieldmap_figures(
            folder,
            field=nib.load(given.field),
            reference=nib.load(given.reference),
            before=nib.load(given.before) if isdefined(given.before) else None,
            after=nib.load(given.after) if isdefined(given.after) else None,
            qc=given.qc,
        )
        self._results["figures"] = str(folder)
        return runtime
