"""What a readout is: a small torch module that predicts voxels from a network's feature maps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from isocortex.errors import InputError


class Readout(nn.Module):
    """Prediction of a batch of voxels from the feature maps of one or more layers.

    A kind of readout is a subclass in one file, named in `isocortex.encoding.readouts.KINDS`. It
    sets the class attributes, makes its parameters in `__init__` and gives either
    `contributions` (where layers add up) or `forward`.

    Parameters
    ----------
    shapes
        Layer to the shape of one stimulus' features: (channel, row, column), (token, unit) or
        (unit,).
    n_voxels
        Voxels of this batch.
    generator
        Source of random initial values. Readouts whose voxels are independent draw them for one
        voxel and give all voxels the same, so that how voxels are batched changes nothing.
    regions
        Region of each voxel, whole numbers from 0, -1 for none, shape (voxels,); for the kinds
        that use them.
    options
        Of `defaults`.

    Attributes
    ----------
    name
        Of the kind, as the config has it.
    needs
        Layers that it can read: ``space`` (channel, row, column), ``tokens`` (space, or token and
        unit) or ``any``.
    defaults
        Its own options and their defaults.
    voxelwise
        Whether voxels share no parameter. Then the first dimension of every parameter and of
        every persistent buffer is the voxel, and training keeps the best state of each voxel
        by itself.
    query
        What `attention` has a map for: ``voxel`` or ``region``.
    """

    name: ClassVar[str] = ""
    needs: ClassVar[str] = "any"
    defaults: ClassVar[Mapping[str, Any]] = {}
    voxelwise: ClassVar[bool] = True
    query: ClassVar[str] = "voxel"

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        n_voxels: int,
        *,
        generator: torch.Generator,
        regions: np.ndarray | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.shapes = {layer: tuple(shape) for layer, shape in shapes.items()}
        self.layers = tuple(shapes)
        self.n_voxels = n_voxels
        self.regions = regions
        self.options = self.complete(options)
        self.bias = nn.Parameter(torch.zeros(n_voxels))

    @classmethod
    def complete(cls, options: Mapping[str, Any], *, key: str = "options") -> dict[str, Any]:
        """Options over the kind's defaults.

        Raises
        ------
        InputError
            Where the kind has no such option, or its value is of another type than the default.
        """
        for name, value in options.items():
            if name not in cls.defaults:
                known = ", ".join(sorted(cls.defaults)) or "none"
                raise InputError(
                    f"readout {cls.name!r} has no option {name!r} in {key}: it has {known}"
                )
            default = cls.defaults[name]
            if isinstance(default, bool) or isinstance(value, bool):
                fits = isinstance(default, bool) and isinstance(value, bool)
            elif isinstance(default, float):
                fits = isinstance(value, (int, float))
            else:
                fits = default is None or isinstance(value, type(default))
            if not fits:
                raise InputError(
                    f"option {name!r} of readout {cls.name!r} in {key} is {value!r}: give it a "
                    f"value like {default!r}"
                )
        return {**cls.defaults, **options}

    @classmethod
    def reads(cls, shape: tuple[int, ...]) -> bool:
        """Whether it can read a layer with features of this shape."""
        return {"space": len(shape) == 3, "tokens": len(shape) in (2, 3), "any": True}[cls.needs]

    def initialise(
        self,
        maps: Any,
        targets: Tensor,
        *,
        train: np.ndarray,
        validation: np.ndarray,
        weights: Tensor,
    ) -> None:
        """Set initial values from training data; nothing unless a kind says otherwise.

        Parameters
        ----------
        maps
            `isocortex.encoding.readouts.training.FeatureMaps`: ``maps(rows)`` gives the
            standardised features of some rows.
        targets
            Standardised responses of all rows, shape (rows, voxels).
        train, validation
            Rows to fit to and rows to choose by. Both lie in the training fold.
        weights
            Weight of each row (its number of trials over the mean), shape (rows,).
        """

    def contributions(self, maps: Mapping[str, Tensor]) -> Tensor:
        """What each layer adds to the prediction, shape (n, layers, voxels)."""
        raise NotImplementedError

    def forward(self, maps: Mapping[str, Tensor]) -> Tensor:
        """Predicted responses, shape (n, voxels), from {layer: (n, *shape)}."""
        return self.contributions(maps).sum(1) + self.bias

    def penalty(self) -> Tensor:
        """Regularisation to add to the loss (which is summed over voxels): a scalar."""
        return self.bias.new_zeros(())

    def results(self) -> Mapping[str, np.ndarray]:
        """Arrays for the store; their last dimension is the voxel.

        ``layer_weight`` (layer, voxel) comes from `contributions` unless it is given here.
        """
        return {}

    def averages(self, maps: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Further arrays for the store that depend on the stimulus, each (n, voxels).

        The store gets their mean over the rows that are predicted.
        """
        return {}

    def attention(self, maps: Mapping[str, Tensor]) -> Tensor | None:
        """Attention over the image, shape (n, query, row, column), where the kind has any.

        Queries are the batch's voxels, or the regions in the order of their numbers with NaN for
        those of which the batch has no voxel.
        """
        return None
