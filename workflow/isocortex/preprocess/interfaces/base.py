"""What the interfaces share: files in the node's folder, values of images."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from nipype.interfaces.base import (
    SimpleInterface,
)

from isocortex.preprocess.images import save_image


class Interface(SimpleInterface):
    """Writes its files into the node's folder."""

    def _keep(self, runtime, name: str, values: np.ndarray, affine: np.ndarray, **options) -> str:
        return save_image(Path(runtime.cwd) / name, values, affine, **options)


def values_of(path: str) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj, dtype=np.float32)
