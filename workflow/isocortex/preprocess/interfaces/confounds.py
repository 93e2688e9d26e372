"""Interfaces of noise masks, DVARS and the confounds table."""

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
    TraitedSpec,
    traits,
)
from scipy import ndimage

from isocortex.preprocess.confounds import (
    confounds_table,
    temporal_difference_variance,
    write_table,
)
from isocortex.preprocess.interfaces.base import Interface, values_of
from isocortex.preprocess.resampling import resample_volume
from isocortex.preprocess.transforms import (
    AffineTransform,
    grid_points,
    read_itk_affine,
)

logger = logging.getLogger(__name__)


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


class NoiseMasks(Interface):
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
            smooth = ndimage.gaussian_filter(values_of(getattr(self.inputs, name)), sigma)
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


class Dvars(Interface):
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


class AssembleConfounds(Interface):
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
