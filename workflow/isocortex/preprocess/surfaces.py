"""Sampling a run on the template's surface: depths between white and pial, and GIFTI series."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from isocortex.surface import (
    HEMISPHERES,
    SERIES_DEPTHS,
    Surface,
    series_image,
    template_surface,
)

SIDECAR = {
    "SpatialReference": "fsaverage",
    "Density": "10,242 vertices per hemisphere (fifth-order icosahedron, fsaverage5)",
    "SamplingMethod": (
        f"Mean over {SERIES_DEPTHS} depths from white to pial surface of the template, each read "
        "from the raw run in one interpolation; NaN where the surface has no cortex (medial wall) "
        "and where a volume does not reach"
    ),
}
"""What the JSON sidecar of a surface says beside a volume's entries."""


class SurfaceSeries:
    """Mean over depths of a run, vertex by vertex, made a volume at a time.

    Parameters
    ----------
    n_volumes
        Of the run.

    Attributes
    ----------
    points : numpy.ndarray
        (n, 3) template mm at which each volume is sampled: all depths of a vertex with cortex
        after one another.
    """

    def __init__(self, n_volumes: int) -> None:
        self._surface: Surface = template_surface()
        self._vertices = np.flatnonzero(self._surface.cortex)
        white = self._surface.white[self._vertices]
        pial = self._surface.pial[self._vertices]
        depths = np.linspace(0, 1, SERIES_DEPTHS)[:, None]
        self.points = (white[:, None] + depths * (pial - white)[:, None]).reshape(-1, 3)
        self._values = np.full((n_volumes, len(self._surface.index)), np.nan, np.float32)

    def put(self, t: int, sampled: np.ndarray) -> None:
        """Keep volume ``t``: values (n,) at `points`, NaN where the volume does not reach."""
        self._values[t, self._vertices] = sampled.reshape(-1, SERIES_DEPTHS).mean(axis=1)

    @property
    def values(self) -> np.ndarray:
        """float32 (time, vertices of both hemispheres).

        NaN throughout in the parts of the medial wall where the surface has no cortex, and where
        a volume does not reach all depths of the vertex.
        """
        return np.where(np.isfinite(self._values).all(axis=0), self._values, np.nan)

    def save(self, folder: Path, name: str, *, repetition_time: float) -> list[str]:
        """Write both hemispheres into a folder; returns the paths, the left one first."""
        values, files = self.values, []
        for side, letter in HEMISPHERES.items():
            part = values[:, self._surface.hemisphere == side]
            path = Path(folder) / f"hemi-{letter}_{name}.func.gii"
            series_image(part, side=side, repetition_time=repetition_time).to_filename(path)
            files.append(str(path))
        return files
