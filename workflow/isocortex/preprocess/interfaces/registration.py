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
from isocortex.preprocess.images import as_image
from isocortex.preprocess.interfaces.base import Interface
from isocortex.preprocess.masks import epi_mask
from isocortex.preprocess.transforms import (
    write_itk_affine,
)


class CoregisterInput(BaseInterfaceInputSpec):
    reference = File(exists=True, mandatory=True, desc="BOLD reference")
    t1w = File(exists=True, mandatory=True, desc="bias-corrected T1w")
    mask = File(exists=True, mandatory=True, desc="brain mask of the T1w")
    seed = traits.Int(mandatory=True, desc="of the registration")


class CoregisterOutput(TraitedSpec):
    to_t1w = File(exists=True, desc="resamples the reference on the T1w, ITK text")
    reference = File(exists=True, desc="reference without its bias field")
    mask = File(exists=True, desc="brain mask from the reference alone")


class Coregister(Interface):
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
