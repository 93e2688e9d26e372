"""Interfaces of noise masks, DVARS and the confounds table."""

from __future__ import annotations

import dataclasses
import json
import logging
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

from isocortex.preprocess.confounds import (
    DECOMPOSITIONS,
    confounds_table,
    temporal_difference_variance,
    write_table,
)
from isocortex.preprocess.interfaces.base import Interface, values_of
from isocortex.preprocess.masks import crown
from isocortex.preprocess.noise_components import (
    HALF,
    Decomposition,
    cosine_basis,
    most_variable,
    noise_components,
)
from isocortex.preprocess.resampling import resample_volume
from isocortex.preprocess.transforms import (
    AffineTransform,
    grid_points,
    read_itk_affine,
)

logger = logging.getLogger(__name__)

# fMRIPrep's number of components of the voxels around the brain
EDGE_COMPONENTS = 24


class NoiseMasksInput(BaseInterfaceInputSpec):
    mask = File(exists=True, mandatory=True, desc="brain mask in the reference's space")
    covered = File(exists=True, desc="voxels that every volume reaches; all by default")
    to_t1w = File(exists=True, mandatory=True, desc="reference to T1w, ITK text")
    gm = File(exists=True, mandatory=True)
    wm = File(exists=True, mandatory=True)
    csf = File(exists=True, mandatory=True)


class NoiseMasksOutput(TraitedSpec):
    csf = File(exists=True, desc="eroded CSF")
    wm = File(exists=True, desc="eroded white matter")
    combined = File(exists=True, desc="both")
    tissues = File(exists=True, desc="1 GM, 2 WM, 3 CSF in the reference's space")
    crown = File(exists=True, desc="band of two voxels around the brain")


class NoiseMasks(Interface):
    """White matter and CSF away from grey matter, in the space of the reference."""

    input_spec = NoiseMasksInput
    output_spec = NoiseMasksOutput

    def _run_interface(self, runtime):
        mask = nib.load(self.inputs.mask)
        brain = np.asarray(mask.dataobj) > 0
        back = np.linalg.inv(read_itk_affine(self.inputs.to_t1w).matrix)
        points = grid_points(mask.shape, mask.affine)[brain.ravel()]
        points = AffineTransform(back).apply(points)
        size = np.linalg.norm(mask.affine[:3, :3], axis=0)
        shares = {}
        for name in ("gm", "wm", "csf"):
            image = nib.load(getattr(self.inputs, name))
            fine = np.linalg.norm(image.affine[:3, :3], axis=0)
            # the mean over a BOLD voxel, not the value at its centre
            sigma = np.sqrt(np.maximum((size.mean() / fine) ** 2 - 1, 0)) / 2.355
            smooth = ndimage.gaussian_filter(values_of(getattr(self.inputs, name)), sigma)
            shares[name] = np.zeros(mask.shape, np.float32)
            shares[name][brain] = resample_volume(
                smooth, image.affine, points, (len(points),), order=1
            )
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
        band = crown(brain)
        if isdefined(self.inputs.covered):
            # at the edge of the field of view a volume's 0 is no signal
            band &= np.asarray(nib.load(self.inputs.covered).dataobj) > 0
        found |= {"combined": combined, "tissues": tissues, "crown": band}
        for name, values in found.items():
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
    out_vxstd = File(exists=True, desc="voxel-wise standardised DVARS, from the second volume on")


class Dvars(Interface):
    """DVARS with the inputs, outputs and numbers of nipype's ComputeDVARS."""

    input_spec = DvarsInput
    output_spec = DvarsOutput

    def _run_interface(self, runtime):
        mask = np.asarray(nib.load(self.inputs.in_mask).dataobj) > 0
        series = np.asarray(nib.load(self.inputs.in_file).dataobj)[mask]
        for name, values in zip(
            ("out_nstd", "out_std", "out_vxstd"), temporal_difference_variance(series), strict=True
        ):
            path = Path(runtime.cwd) / f"{name}.txt"
            np.savetxt(path, values, fmt="%.8f")
            self._results[name] = str(path)
        return runtime


class NoiseComponentsInput(BaseInterfaceInputSpec):
    bold = File(exists=True, mandatory=True, desc="run in the reference's space")
    mask = File(exists=True, mandatory=True, desc="brain mask")
    csf = File(exists=True, mandatory=True)
    wm = File(exists=True, mandatory=True)
    combined = File(exists=True, mandatory=True, desc="CSF and white matter")
    crown = File(exists=True, mandatory=True, desc="band around the brain")
    criterion = traits.Float(
        HALF, usedefault=True, desc="share of variance, or number of components"
    )
    high_pass = traits.Float(mandatory=True, desc="slowest period left, s")
    repetition_time = traits.Float(mandatory=True, desc="seconds")
    n_dummy = traits.Int(0, usedefault=True, desc="volumes before the steady state")


class NoiseComponentsOutput(TraitedSpec):
    out_file = File(exists=True, desc="components, singular values, cosines and signals, npz")


class NoiseComponents(Interface):
    """Every CompCor of a run and the mean signals of its masks, in one reading of the series."""

    input_spec = NoiseComponentsInput
    output_spec = NoiseComponentsOutput

    def _run_interface(self, runtime):
        series = np.asarray(nib.load(self.inputs.bold).dataobj)
        n_dummy = self.inputs.n_dummy
        basis = cosine_basis(
            series.shape[3] - n_dummy,
            repetition_time=self.inputs.repetition_time,
            period=self.inputs.high_pass,
        )
        kept = {"cosines": np.r_[np.zeros((n_dummy, basis.shape[1])), basis]}
        for prefix, name, signal, criterion in (
            ("t_comp_cor", "mask", "global_signal", self.inputs.criterion),
            ("c_comp_cor", "csf", "csf", self.inputs.criterion),
            ("w_comp_cor", "wm", "white_matter", self.inputs.criterion),
            ("a_comp_cor", "combined", "csf_wm", self.inputs.criterion),
            ("edge_comp", "crown", None, EDGE_COMPONENTS),
        ):
            values = series[np.asarray(nib.load(getattr(self.inputs, name)).dataobj) > 0]
            if not len(values):
                logger.info("no voxel of %s in the field of view: no %s", name, prefix)
                continue
            if signal:
                kept[f"signal/{signal}"] = values.mean(axis=0, dtype=np.float64)
            if prefix == "t_comp_cor":
                values = values[most_variable(values[:, n_dummy:])]
                kept["signal/tcompcor"] = values.mean(axis=0, dtype=np.float64)
            found = noise_components(values, basis, criterion=criterion, n_dummy=n_dummy)
            for part in dataclasses.fields(found):
                kept[f"{prefix}/{part.name}"] = getattr(found, part.name)
        path = Path(runtime.cwd) / "components.npz"
        np.savez(path, **kept)
        self._results["out_file"] = str(path)
        return runtime


class AssembleConfoundsInput(BaseInterfaceInputSpec):
    parameters = File(exists=True, mandatory=True, desc="motion, FSL's order")
    framewise_displacement = File(exists=True, mandatory=True)
    dvars = File(exists=True, mandatory=True)
    std_dvars = File(exists=True, mandatory=True)
    components = File(exists=True, mandatory=True, desc="of NoiseComponents")
    n_dummy = traits.Int(0, usedefault=True)
    fd_threshold = traits.Float(mandatory=True)
    dvars_threshold = traits.Float(mandatory=True)


class AssembleConfoundsOutput(TraitedSpec):
    table = File(exists=True)
    sidecar = File(exists=True)


class AssembleConfounds(Interface):
    """One table with fMRIPrep's column names."""

    input_spec = AssembleConfoundsInput
    output_spec = AssembleConfoundsOutput

    def _run_interface(self, runtime):
        rows = np.loadtxt(self.inputs.parameters, ndmin=2)
        with np.load(self.inputs.components) as stored:
            kept = dict(stored)
        parts = [part.name for part in dataclasses.fields(Decomposition)]
        table, sidecar = confounds_table(
            motion=np.c_[rows[:, 3:], rows[:, :3]],
            signals={
                name.removeprefix("signal/"): values
                for name, values in kept.items()
                if name.startswith("signal/")
            },
            framewise_displacement=np.r_[
                np.nan, np.loadtxt(self.inputs.framewise_displacement, skiprows=1, ndmin=1)
            ],
            dvars=np.r_[np.nan, np.loadtxt(self.inputs.dvars, ndmin=1)],
            std_dvars=np.r_[np.nan, np.loadtxt(self.inputs.std_dvars, ndmin=1)],
            decompositions={
                prefix: Decomposition(**{part: kept[f"{prefix}/{part}"] for part in parts})
                for prefix in DECOMPOSITIONS
                if f"{prefix}/components" in kept
            },
            cosines=kept["cosines"],
            n_dummy=self.inputs.n_dummy,
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
