"""Smooth fields on a grid of cubic B-splines: expansion, derivative, bending energy, fits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np


def _cubic(distance: np.ndarray, derivative: int) -> np.ndarray:
    """The cubic B-spline, or a derivative of it, at distances from its centre in knots."""
    d, side = np.abs(distance), np.sign(distance)
    near, far = d < 1, (d >= 1) & (d < 2)
    inner, outer = {
        0: (2 / 3 - d**2 + d**3 / 2, (2 - d) ** 3 / 6),
        1: (side * (1.5 * d**2 - 2 * d), side * -((2 - d) ** 2) / 2),
        2: (3 * d - 2, 2 - d),
    }[derivative]
    return np.where(near, inner, np.where(far, outer, 0.0))


class SplineField:
    """A field that is a sum of products of cubic B-splines, one factor an axis.

    Parameters
    ----------
    shape
        Of the voxel grid.
    size
        Voxel size, mm.
    knots
        Distance of the knots, mm; a little less where it does not divide the grid.
    step
        Every how manieth voxel of each axis the field is expanded at.
    """

    def __init__(
        self, shape: Sequence[int], size: Sequence[float], *, knots: float, step: Sequence[int]
    ) -> None:
        self.bases: list[list[np.ndarray]] = []
        gram: list[list[np.ndarray]] = []
        for n, mm, every in zip(shape, size, step, strict=True):
            pieces = max(int(np.ceil((n - 1) * mm / knots)), 1)
            width = max(n - 1, 1) / pieces
            middle = np.arange(pieces + 3) - 1.0

            def basis(at, derivative, width=width, middle=middle):
                away = at[:, None] / width - middle
                return _cubic(away, derivative) / width**derivative

            coarse = np.arange(0, n, every, dtype=float)
            # the slope is that from one expanded voxel to the next
            self.bases.append([basis(coarse, 0), basis(coarse, 1) * every])
            fine = np.arange(n, dtype=float)
            parts = [basis(fine, order) / mm**order for order in range(3)]
            gram.append([part.T @ part / n for part in parts])
        self.knots = tuple(bases[0].shape[1] for bases in self.bases)
        self.shape = tuple(bases[0].shape[0] for bases in self.bases)
        self._gram = gram

    def expand(self, coefficients: np.ndarray, slope: int | None = None) -> np.ndarray:
        """The field at the voxels, or its slope per expanded voxel along an axis."""
        chosen = [pair[axis == slope] for axis, pair in enumerate(self.bases)]
        return _product(chosen, coefficients)

    def gather(
        self, values: np.ndarray, slope: int | None = None, *, squared: bool = False
    ) -> np.ndarray:
        """The adjoint of `expand`; with squared factors, the diagonal of a weighted product."""
        chosen = [pair[axis == slope] for axis, pair in enumerate(self.bases)]
        return _product([(part**2 if squared else part).T for part in chosen], values)

    def bend(self, coefficients: np.ndarray) -> np.ndarray:
        """Half the gradient of the bending energy: the mean square of all second derivatives."""
        total = np.zeros_like(coefficients)
        for orders in ((2, 0, 0), (0, 2, 0), (0, 0, 2), (1, 1, 0), (1, 0, 1), (0, 1, 1)):
            parts = [self._gram[axis][order] for axis, order in enumerate(orders)]
            total += (2 if max(orders) == 1 else 1) * _product(parts, coefficients)
        return total

    def hold(self, coefficients: np.ndarray) -> np.ndarray:
        """Half the gradient of the field's mean square."""
        return _product([parts[0] for parts in self._gram], coefficients)

    def from_field(self, field: np.ndarray) -> np.ndarray:
        """Coefficients whose expansion is nearest to values at all the voxels."""
        inverse = [np.linalg.pinv(pair[0], rcond=1e-6) for pair in self.bases]
        return _product(inverse, field)


def _product(factors: Sequence[np.ndarray], values: np.ndarray) -> np.ndarray:
    """Apply a matrix along each axis of a volume."""
    first, second, third = factors
    values = values @ third.T
    values = second @ values
    out = first @ values.reshape(values.shape[0], -1)
    return out.reshape(first.shape[0], *values.shape[1:])


def solve(
    apply: Callable[[np.ndarray], np.ndarray],
    right: np.ndarray,
    diagonal: np.ndarray,
    *,
    start: np.ndarray | None = None,
    iterations: int = 40,
    tolerance: float = 1e-3,
) -> np.ndarray:
    """Solve a positive definite system by conjugate gradients, scaled by its diagonal.

    Parameters
    ----------
    apply
        The system's matrix times an array.
    right
        Right-hand side, of any shape.
    diagonal
        Of the matrix, roughly.
    start
        Where to start from; zeros by default.
    iterations, tolerance
        At most so many; until the residual's norm falls to this share.
    """
    scale = 1 / np.maximum(diagonal, 1e-12 * diagonal.max())
    found = np.zeros_like(right) if start is None else start.copy()
    residual = right - apply(found) if start is not None else right.copy()
    ready = scale * residual
    direction = ready.copy()
    product = np.vdot(residual, ready)
    goal = tolerance**2 * np.vdot(right, scale * right)
    for _ in range(iterations):
        if product <= goal:
            break
        image = apply(direction)
        length = product / np.vdot(direction, image)
        found += length * direction
        residual -= length * image
        ready = scale * residual
        last, product = product, np.vdot(residual, ready)
        direction = ready + (product / last) * direction
    return found


def smooth_field(
    field: np.ndarray,
    weights: np.ndarray,
    size: Sequence[float],
    *,
    knots: float = 8.0,
    bending: float = 100.0,
    hold: float = 1e-5,
) -> np.ndarray:
    """A smooth field that follows measured values where they have weight, and goes on beyond.

    Parameters
    ----------
    field
        Measured values (x, y, z).
    weights
        (x, y, z), 0 where nothing was measured.
    size
        Voxel size, mm.
    knots
        Distance of the B-splines, mm.
    bending
        Weight of the mean bending energy (unit of the field / mm2), squared, against the mean
        square of the misfit where weights are 1.
    hold
        Weight of the field's mean square, which ends extrapolation.

    Returns
    -------
    numpy.ndarray
        float32 (x, y, z), everywhere finite.
    """
    spline = SplineField(field.shape, size, knots=knots, step=(1, 1, 1))
    share = weights / field.size / max(float(weights.mean()), 1e-12)

    def apply(values: np.ndarray) -> np.ndarray:
        fitted = spline.gather(share * spline.expand(values))
        return fitted + bending * spline.bend(values) + hold * spline.hold(values)

    diagonal = spline.gather(share, squared=True)
    diagonal = diagonal + 1e-2 * diagonal.max()
    right = spline.gather(share * np.where(weights > 0, field, 0.0))
    found = solve(apply, right, diagonal, iterations=120, tolerance=1e-4)
    return spline.expand(found).astype(np.float32)
