"""Sparse random projection of a layer to fewer dimensions."""

import hashlib
import math
import warnings

import numpy as np
import torch


class SparseProjection:
    """Projection by a very sparse random matrix: distances are kept on average.

    An entry is + or - sqrt(1 / (density x dimensions)), each with probability density / 2, and
    otherwise 0.

    Parameters
    ----------
    units
        Number of units of the layer, p.
    dimensions
        Number of dimensions of the result, less than `units`.
    seed
        Of the matrix.
    layer
        The layer's name: each layer has a matrix of its own.

    References
    ----------
    Achlioptas (2003), Database-friendly random projections; Li, Hastie & Church (2006), Very
    sparse random projections (density 1 / sqrt(p)).
    """

    def __init__(self, units: int, dimensions: int, *, seed: int, layer: str) -> None:
        self.units, self.dimensions = units, dimensions
        self.density = 1 / math.sqrt(units)
        name = int.from_bytes(hashlib.sha256(layer.encode()).digest()[:8])
        generator = np.random.default_rng([seed, name])
        counts = generator.binomial(units, self.density, size=dimensions)
        columns = np.concatenate(
            [np.sort(generator.choice(units, count, replace=False)) for count in counts]
        )
        signs = generator.integers(0, 2, size=len(columns), dtype=np.int8) * 2 - 1
        height = math.sqrt(1 / (self.density * dimensions))
        self._rows = torch.from_numpy(np.concatenate([[0], counts.cumsum()]))
        self._columns = torch.from_numpy(columns)
        self._values = torch.from_numpy((signs * height).astype(np.float32))
        self._on: dict[torch.device, torch.Tensor] = {}

    @property
    def matrix(self) -> torch.Tensor:
        """The matrix, sparse, shape (dimensions, units), float32."""
        return self._at(torch.device("cpu"))

    def _at(self, device: torch.device) -> torch.Tensor:
        if device not in self._on:
            parts = (part.to(device) for part in (self._rows, self._columns, self._values))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that sparse tensors are in beta
                self._on[device] = torch.sparse_csr_tensor(
                    *parts, size=(self.dimensions, self.units), check_invariants=False
                )
        return self._on[device]

    def __call__(self, activation: torch.Tensor) -> torch.Tensor:
        """Project activations, shape (n, ...) with `units` entries each, to (n, dimensions)."""
        flat = activation.flatten(1).to(torch.float32)
        return (self._at(flat.device) @ flat.T.contiguous()).T
