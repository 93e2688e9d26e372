"""Interfaces that read a run and estimate its motion."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
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

from isocortex.errors import InputError
from isocortex.preprocess.images import read_series
from isocortex.preprocess.interfaces.base import Interface
from isocortex.preprocess.masks import epi_mask
from isocortex.preprocess.motion import (
    Aligner,
    RigidAligner,
    estimate_motion,
    reference_volume,
)
from isocortex.preprocess.motion_ants import AntsAligner
from isocortex.preprocess.transforms import (
    centre_of_grid,
)

_FEWEST = 5  # volumes in the steady state, as of a whole run


class ReadSeriesInput(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="raw run")
    repetition_time = traits.Float(mandatory=True, desc="seconds")


class ReadSeriesOutput(TraitedSpec):
    out_file = File(exists=True, desc="float32, uncompressed, checked")


class ReadSeries(Interface):
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
    threads = traits.Int(1, usedefault=True, desc="volumes worked on at the same time")


class EstimateMotionAntsInput(EstimateMotionInput):
    seed = traits.Int(mandatory=True, desc="of ANTs")


class EstimateMotionOutput(TraitedSpec):
    reference = File(exists=True, desc="robust mean of aligned volumes")
    matrices = File(exists=True, desc="a row a volume: 3 x 4 numbers, row by row")
    parameters = File(
        exists=True,
        desc="rot_x rot_y rot_z trans_x trans_y trans_z, as FSL's, about the middle of the grid",
    )


class EstimateMotion(Interface):
    """Reference image and rigid motion of every volume, by Gauss-Newton."""

    input_spec = EstimateMotionInput
    output_spec = EstimateMotionOutput

    def _aligner(self) -> Callable[..., Aligner]:
        return RigidAligner

    def _run_interface(self, runtime):
        image = nib.load(self.inputs.in_file)
        series = np.asarray(image.dataobj)
        centre = centre_of_grid(image)
        n_dummy, n_volumes = self.inputs.n_dummy, series.shape[3]
        if n_dummy and n_volumes - n_dummy < _FEWEST:
            raise InputError(
                f"{n_dummy} of {n_volumes} volumes are before the steady state: set "
                "preprocess.dummy_scans to their number, or exclude the run"
            )
        rough = series[..., n_dummy :: max((series.shape[3] - n_dummy) // 10, 1)].mean(axis=3)
        mask = ndimage.binary_dilation(epi_mask(rough), iterations=1)
        options = {"mask": mask, "centre": centre, "aligner": self._aligner()}
        options["threads"] = self.inputs.threads
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


class EstimateMotionAnts(EstimateMotion):
    """The same outputs, in the same conventions, by ANTs' rigid registration of each volume."""

    input_spec = EstimateMotionAntsInput

    def _aligner(self) -> Callable[..., Aligner]:
        return partial(AntsAligner, seed=self.inputs.seed)
