"""Interfaces that draw a subject's and a run's pictures."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    TraitedSpec,
    isdefined,
    traits,
)

from isocortex.preprocess import figures
from isocortex.preprocess.interfaces.base import Interface
from isocortex.preprocess.transforms import (
    read_itk_affine,
)


class AnatomyFiguresInput(BaseInterfaceInputSpec):
    t1w = File(exists=True, mandatory=True)
    mask = File(exists=True, mandatory=True)
    dseg = File(exists=True, mandatory=True)
    t1w_template = File(exists=True, mandatory=True)
    correlation = traits.Float(mandatory=True)
    n_images = traits.Int(mandatory=True, desc="T1w volumes averaged")
    quality = traits.Dict(usedefault=True, desc="numbers on the normalisation, for qc")


class FiguresOutput(TraitedSpec):
    figures = traits.Directory(exists=True, desc="figures, figures.json and qc.json")
    qc = traits.Dict(desc="numbers for the report")


class AnatomyFigures(Interface):
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
            **self.inputs.quality,
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
    mean = File(exists=True, mandatory=True, desc="reference with its bias field, whole view")
    crown = File(exists=True, mandatory=True, desc="band around the brain")
    measures = traits.Dict(usedefault=True, desc="image quality measures, for qc")
    settings = traits.Dict(usedefault=True, desc="how the run was processed, for qc")
    registration = traits.Dict(usedefault=True, desc="numbers on the registration, for qc")
    distortion = traits.Dict(usedefault=True, desc="what was corrected, for qc")
    recorded = File(exists=True, desc="reference before its correction for distortion")


class BoldFigures(Interface):
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
            **self.inputs.settings,
            **self.inputs.measures,
            **self.inputs.registration,
            **self.inputs.distortion,
        }
        figures.bold_figures(
            folder,
            reference=nib.load(self.inputs.reference),
            mean=nib.load(self.inputs.mean),
            series=nib.load(self.inputs.bold),
            mask=mask,
            tissues=np.asarray(nib.load(self.inputs.tissues).dataobj),
            crown=np.asarray(nib.load(self.inputs.crown).dataobj) > 0,
            tsnr=tsnr,
            to_t1w=read_itk_affine(self.inputs.to_t1w).matrix,
            t1w=nib.load(self.inputs.t1w),
            dseg=nib.load(self.inputs.dseg),
            confounds=table,
            repetition_time=self.inputs.repetition_time,
            fd_threshold=self.inputs.fd_threshold,
            dvars_threshold=self.inputs.dvars_threshold,
            recorded=nib.load(self.inputs.recorded) if isdefined(self.inputs.recorded) else None,
            qc=qc,
        )
        self._results["figures"] = str(folder)
        self._results["qc"] = qc
        return runtime
