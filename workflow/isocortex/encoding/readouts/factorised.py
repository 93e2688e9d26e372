"""A spatial mask times channel weights, for each voxel and layer.

Klindt, Ecker, Euler & Bethge (2017, NeurIPS): what a voxel answers to is separated from where.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from isocortex.encoding.readouts.base import Readout
from isocortex.encoding.readouts.closed_form import (
    row_coefficients,
)
from isocortex.encoding.readouts.gaussian import Gaussian

WEIGHT_BYTES = 256 << 20  # ridge weights of a block of voxels that are held at a time
GRAM_ROWS = 512
POWER_ITERATIONS = 15
GAIN_PENALTY = 1e-3  # keeps gains of layers that say the same apart


class Factorised(Readout):
    """Each voxel reads each layer through a mask over places and a vector of channel weights.

    Mask and channel weights have norm 1; a gain for each layer carries the scale. The start is
    the rank-one part of the ridge regression on all units (of all layers or of one alone) or the
    best Gaussian field, whichever predicts the validation rows best. See `Readout` for the
    parameters.

    Notes
    -----
    Options, all strengths of penalties summed over voxels and layers: `smoothness`, squared
    differences of neighbouring places of the mask (times the number of places); `mask_l1`, mean
    absolute value of the mask and `channel_l1` of the channel weights (1 for an even one, lower
    for a sparse one); `gain_l2` and `gain_l1`, of the gains, the latter to leave layers out.
    `alphas` are the ridge penalties of the start to choose from.
    """

    name = "factorised"
    needs = "space"
    defaults = {  # noqa: RUF012
        "smoothness": 0.003,
        "mask_l1": 0.01,
        "channel_l1": 0.0,
        "gain_l2": 0.01,
        "gain_l1": 0.003,
        "alphas": [0.1, 1.0, 10.0, 100.0],
    }

    def __init__(self, shapes, n_voxels, *, generator, regions=None, **options) -> None:
        super().__init__(shapes, n_voxels, generator=generator, regions=regions, **options)
        self.mask, self.channel = nn.ParameterList(), nn.ParameterList()
        for channels, rows, columns in self.shapes.values():
            self.mask.append(nn.Parameter(torch.ones(n_voxels, rows, columns)))
            first = torch.randn(channels, generator=generator)
            self.channel.append(nn.Parameter(first.expand(n_voxels, -1).clone()))
        self.gain = nn.Parameter(torch.full((n_voxels, len(self.layers)), 0.1))

    def _weights(self) -> list[tuple[Tensor, Tensor]]:
        """Masks (voxels, places) and channel weights (voxels, channels) of norm 1, by layer."""
        return [
            (functional.normalize(mask.flatten(1)), functional.normalize(channel))
            for mask, channel in zip(self.mask, self.channel, strict=True)
        ]

    def _parts(self, maps: Mapping[str, Tensor]) -> Tensor:
        """What each layer says before its gain, shape (n, layers, voxels)."""
        parts = []
        for layer, (mask, channel) in zip(self.layers, self._weights(), strict=True):
            pooled = maps[layer].flatten(2) @ mask.T
            parts.append((pooled * channel.T).sum(1))
        return torch.stack(parts, 1)

    def contributions(self, maps: Mapping[str, Tensor]) -> Tensor:
        return self._parts(maps) * self.gain.T

    def penalty(self) -> Tensor:
        strength = self.options
        total = strength["gain_l2"] * self.gain.square().sum()
        total = total + strength["gain_l1"] * self.gain.abs().sum()
        for (mask, channel), shape in zip(self._weights(), self.shapes.values(), strict=True):
            n_places = mask.shape[1]
            grid = mask.view(-1, *shape[1:])
            rough = grid.diff(dim=1).square().sum() + grid.diff(dim=2).square().sum()
            total = total + strength["smoothness"] * n_places * rough
            total = total + strength["mask_l1"] * mask.abs().sum() / n_places**0.5
            total = total + strength["channel_l1"] * channel.abs().sum() / channel.shape[1] ** 0.5
        return total

    @torch.no_grad()
    def initialise(self, maps, targets, *, train, validation, weights) -> None:
        rows = {"train": train, "validation": validation, "weights": weights}
        self._from_ridge(maps, targets, **rows)
        first = {name: value.clone() for name, value in self.state_dict().items()}
        loss = self._loss(maps, targets, validation, weights)
        self._from_gaussian(maps, targets, **rows)
        better = loss < self._loss(maps, targets, validation, weights)
        for name, value in self.state_dict().items():
            value[better] = first[name][better]

    def _loss(self, maps, targets: Tensor, rows, weights: Tensor) -> Tensor:
        """Weighted squared error of each voxel over some rows."""
        said = torch.cat([self(batch) for _, batch in maps.batches(rows, 256)])
        return (weights[rows, None] * (said - targets[rows]).square()).sum(0)

    def _from_gaussian(self, maps, targets: Tensor, **rows) -> None:
        """Masks and weights of the best Gaussian field, found as that readout finds it."""
        start = Gaussian(self.shapes, self.n_voxels, generator=torch.Generator())
        start = start.to(targets.device)
        start.initialise(maps, targets, **rows)
        self.bias.copy_(start.bias)
        for index, (field, weight) in enumerate(start.as_factors()):
            self._set(index, slice(None), field.flatten(1), weight)
            self.gain[:, index] = field.flatten(1).norm(dim=1) * weight.norm(dim=1)

    def _set(self, index: int, voxels: slice, mask: Tensor, channel: Tensor) -> None:
        """Set factors of a layer, scaled to entries of about 1 whatever their number.

        The learning rate then means the same for layers of any size.
        """
        for kept, values in ((self.mask, mask), (self.channel, channel)):
            values = functional.normalize(values) * values.shape[1] ** 0.5
            kept[index][voxels] = values.view(-1, *kept[index].shape[1:])

    def _from_ridge(self, maps, targets: Tensor, *, train, validation, weights: Tensor) -> None:
        """Rank-one parts of the ridge regression on all units."""
        rows = np.concatenate([train, validation])
        grams = self._grams(maps, rows)
        share = weights[train].double()[:, None]
        share = share / share.sum()
        held_out = weights[validation].double()[:, None]
        answers = targets[rows].double()
        n_train, alphas = len(train), self.options["alphas"]
        best = torch.full((self.n_voxels,), torch.inf, dtype=answers.dtype, device=answers.device)
        chosen = answers.new_zeros(n_train, self.n_voxels)
        part = answers.new_zeros(len(grams), self.n_voxels)
        for layers in self._layer_sets():
            gram = torch.einsum("l,lij->ij", layers.to(grams), grams) / layers.sum()
            mean = gram[:, :n_train] @ share
            gram = gram - mean - mean.T + (share * mean[:n_train]).sum()
            known, new = gram[:n_train, :n_train], gram[n_train:, :n_train]
            for solved in row_coefficients(known, answers[:n_train], share, alphas):
                error = (held_out * (new @ solved - answers[n_train:]).square()).sum(0)
                better = error < best
                best = torch.where(better, error, best)
                # Of features about their mean, as coefficients of the features themselves
                chosen = torch.where(better, solved - share * solved.sum(0), chosen)
                part = torch.where(better, (layers / layers.sum()).to(part)[:, None], part)
        self._factorise(maps, train, chosen.float(), part.float().T)
        self._fit_gains(maps, train, targets, share)

    def _layer_sets(self) -> list[Tensor]:
        alone = list(torch.eye(len(self.layers)))
        return [torch.ones(len(self.layers)), *(alone if len(alone) > 1 else [])]

    def _grams(self, maps, rows) -> Tensor:
        """Inner products of rows over all units of each layer, mean square 1: (layers, n, n)."""
        grams = torch.zeros(len(self.layers), len(rows), len(rows), dtype=torch.float64)
        grams = grams.to(self.bias.device)
        # Maps of two blocks at a time: all of them may not fit
        for i, (here, first) in enumerate(maps.batches(rows, GRAM_ROWS)):
            before = rows[: (i + 1) * GRAM_ROWS]
            for j, (there, second) in enumerate(maps.batches(before, GRAM_ROWS)):
                left = slice(i * GRAM_ROWS, i * GRAM_ROWS + len(here))
                right = slice(j * GRAM_ROWS, j * GRAM_ROWS + len(there))
                for gram, layer in zip(grams, self.layers, strict=True):
                    block = first[layer].flatten(1) @ second[layer].flatten(1).T
                    gram[left, right] = block.double()
                    gram[right, left] = block.T.double()
        return grams / grams.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-12)[:, None, None]

    def _factorise(self, maps, train, rows: Tensor, part: Tensor) -> None:
        """Masks and channel weights: the first singular vectors of each voxel's ridge weights."""
        for index, layer in enumerate(self.layers):
            channels, n_rows, n_columns = self.shapes[layer]
            n_places = n_rows * n_columns
            step = max(1, WEIGHT_BYTES // (4 * channels * n_places))
            for first in range(0, self.n_voxels, step):
                last = min(first + step, self.n_voxels)
                ridge = rows.new_zeros(last - first, channels * n_places)
                done = 0
                for numbers, batch in maps.batches(train, 256):
                    block = rows[done : done + len(numbers), first:last]
                    ridge += block.T @ batch[layer].flatten(1)
                    done += len(numbers)
                ridge = ridge.view(-1, channels, n_places)
                mask = ridge.square().sum(1).sqrt()
                for _ in range(POWER_ITERATIONS):
                    channel = functional.normalize(torch.einsum("vcs,vs->vc", ridge, mask))
                    mask = functional.normalize(torch.einsum("vcs,vc->vs", ridge, channel))
                self._set(index, slice(first, last), mask, channel)
                self.gain[first:last, index] = part[first:last, index]

    def _fit_gains(self, maps, train, targets: Tensor, share: Tensor) -> None:
        """Least squares of the responses on what each layer says; 0 for layers left out."""
        said = torch.cat([self._parts(batch) for _, batch in maps.batches(train, 256)]).double()
        said = said * (self.gain.T != 0)
        centre = (share[..., None] * said).sum(0)
        said = (said - centre).permute(2, 0, 1)
        products = said.mT @ (share * said)
        right = said.mT @ (share * targets[train].double()).T[..., None]
        ridge = GAIN_PENALTY * products.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-12)
        identity = torch.eye(products.shape[1], dtype=products.dtype, device=products.device)
        gain = torch.linalg.solve(products + ridge[:, None, None] * identity, right)[..., 0]
        self.gain.copy_(gain)
        self.bias.copy_(-(gain * centre.T).sum(1))
