"""A Gaussian receptive field for each voxel, with channel weights for each layer.

The feature-weighted receptive field of St-Yves & Naselaris (2018, NeuroImage), its centre and size
learnt by gradient as in the readout of Lurz et al. (2021, ICLR).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from isocortex.encoding.readouts.base import Readout
from isocortex.encoding.readouts.closed_form import coefficients, held_out_error

CANDIDATE_BYTES = 256 << 20  # pooled features of candidate fields that are held at a time
REACH = 0.55  # farthest centre from the middle, share of the image


class Gaussian(Readout):
    """Each voxel pools all layers through one Gaussian and weights their channels.

    The start is the best of a grid of fields by closed-form ridge regression on the pooled
    channels, with a penalty of its own for each voxel; field and weights are then learnt together
    under the same penalty. See `Readout` for the parameters.

    Notes
    -----
    Options: `grid`, centres along the width in the first search; `sizes`, standard deviations in
    it, shares of the image's width; `alphas`, ridge penalties to choose from, for pooled channels
    z-scored and divided by the root of their number.
    """

    name = "gaussian"
    needs = "space"
    defaults = {  # noqa: RUF012
        "grid": 9,
        "sizes": [0.06, 0.12, 0.24],
        "alphas": [0.01, 0.1, 1.0, 10.0],
    }

    def __init__(self, shapes, n_voxels, *, generator, regions=None, **options) -> None:
        super().__init__(shapes, n_voxels, generator=generator, regions=regions, **options)
        self.centre = nn.Parameter(torch.zeros(n_voxels, 2))
        self.log_size = nn.Parameter(torch.full((n_voxels,), float(np.log(0.2))))
        self.weight = nn.ParameterList(
            [nn.Parameter(torch.zeros(n_voxels, shape[0])) for shape in self.shapes.values()]
        )
        self.n_channels = sum(shape[0] for shape in self.shapes.values())
        for index, shape in enumerate(self.shapes.values()):
            self.register_buffer(f"scale{index}", torch.ones(n_voxels, shape[0]))
        self.register_buffer("alpha", torch.ones(n_voxels))
        finest = max(self.shapes.values(), key=lambda shape: shape[2])
        self.height = finest[1] / finest[2]
        self.smallest = 0.3 / finest[2]  # a field within one cell has no size to be learnt

    def _fields(self, x: Tensor, y: Tensor, size: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Fields on the cells of a map, each with sum 1, shape (fields, rows x columns)."""
        _, rows, columns = shape
        across = (torch.arange(columns, device=x.device) + 0.5) / columns - 0.5
        up = self.height * (0.5 - (torch.arange(rows, device=x.device) + 0.5) / rows)
        precision = 0.5 / size.square()[:, None]
        horizontal = torch.softmax(-precision * (across - x[:, None]).square(), 1)
        vertical = torch.softmax(-precision * (up - y[:, None]).square(), 1)
        return (vertical[:, :, None] * horizontal[:, None, :]).flatten(1)

    def _place(self) -> tuple[Tensor, Tensor, Tensor]:
        centre = REACH * torch.tanh(self.centre / REACH)
        return centre[:, 0], self.height * centre[:, 1], self.smallest + self.log_size.exp()

    def contributions(self, maps: Mapping[str, Tensor]) -> Tensor:
        added = []
        for layer, (fields, weight) in zip(self.layers, self.as_factors(), strict=True):
            pooled = maps[layer].flatten(2) @ fields.flatten(1).T
            added.append((pooled * weight.T).sum(1))
        return torch.stack(added, 1)

    def as_factors(self) -> list[tuple[Tensor, Tensor]]:
        """Fields (voxels, rows, columns) and channel weights (voxels, channels), by layer."""
        place = self._place()
        return [
            (
                self._fields(*place, shape).view(-1, *shape[1:]),
                weight * getattr(self, f"scale{index}"),
            )
            for index, (shape, weight) in enumerate(
                zip(self.shapes.values(), self.weight, strict=True)
            )
        ]

    def penalty(self) -> Tensor:
        squares = sum(weight.square().sum(1) for weight in self.weight)
        return (self.alpha * squares).sum()

    def results(self) -> Mapping[str, np.ndarray]:
        x, y, size = (part.detach().cpu().numpy() for part in self._place())
        return {"x": x, "y": y, "size": size}

    def _candidates(self, device: torch.device) -> Tensor:
        """x, y and size of the fields that are tried first, shape (fields, 3)."""
        n_across = int(self.options["grid"])
        n_up = max(1, round(n_across * self.height))
        x = (np.arange(n_across) + 0.5) / n_across - 0.5
        y = self.height * ((np.arange(n_up) + 0.5) / n_up - 0.5)
        table = np.stack(np.meshgrid(x, y, self.options["sizes"], indexing="ij"), -1)
        return torch.tensor(table.reshape(-1, 3), dtype=torch.float32, device=device)

    @torch.no_grad()
    def initialise(self, maps, targets, *, train, validation, weights) -> None:
        candidates = self._candidates(targets.device)
        rows = np.concatenate([train, validation])
        per_field = 4 * len(rows) * self.n_channels
        step = max(1, CANDIDATE_BYTES // per_field)
        best = torch.full((self.n_voxels,), torch.inf, device=targets.device)
        for first in range(0, len(candidates), step):
            among = candidates[first : first + step]
            fields = {layer: self._fields(*among.T, shape) for layer, shape in self.shapes.items()}
            pooled = torch.cat(
                [
                    torch.cat(
                        [batch[layer].flatten(2) @ fields[layer].T for layer in self.layers], 1
                    )
                    for _, batch in maps.batches(rows, 256)
                ]
            )
            for number, place in enumerate(among):
                for layers in self._layer_sets():
                    part = (pooled[:, :, number], layers, place)
                    best = self._try(*part, best, targets[rows], weights[rows], len(train))

    def _layer_sets(self) -> list[Tensor]:
        """Which channels take part: all, then those of each layer alone."""
        layer = torch.cat(
            [torch.full((weight.shape[1],), i) for i, weight in enumerate(self.weight)]
        ).to(self.bias.device)
        alone = [layer == index for index in range(len(self.layers))]
        return [torch.ones_like(alone[0]), *(alone if len(alone) > 1 else [])]

    def _try(self, pooled, channels, place, best, targets, weights, n_train) -> Tensor:
        """Take over a candidate field where its ridge regression predicts best so far."""
        weights = weights.double()[:, None]
        share = weights[:n_train] / weights[:n_train].sum()
        pooled, targets = pooled.double(), targets.double()
        mean = (share * pooled[:n_train]).sum(0)
        deviation = (share * (pooled[:n_train] - mean).square()).sum(0).sqrt()
        scale = torch.where(deviation > 1e-6, 1 / deviation.clamp_min(1e-6), 0.0) * channels
        scale = scale / channels.sum().sqrt()
        standard = ((pooled - mean) * scale)[:, channels]
        alphas = self.options["alphas"]
        losses = held_out_error(standard, targets, weights, alphas).float()
        solutions = coefficients(standard[:n_train], targets[:n_train], share, alphas)
        for alpha, loss, solved in zip(alphas, losses, solutions, strict=True):
            better = loss < best
            if not bool(better.any()):
                continue
            best = torch.where(better, loss, best)
            x, y, size = place
            stretched = torch.stack([x, y / self.height]) / REACH
            self.centre[better] = REACH * torch.atanh(stretched)
            self.log_size[better] = (size - self.smallest).clamp_min(1e-3).log()
            self.alpha[better] = alpha
            whole = solved.new_zeros(len(channels), targets.shape[1])
            whole[channels] = solved
            self.bias[better] = -(whole.T @ (mean * scale)).float()[better]
            first = 0
            for index, weight in enumerate(self.weight):
                last = first + weight.shape[1]
                weight[better] = whole[first:last].T.float()[better]
                getattr(self, f"scale{index}")[better] = scale[first:last].float()
                first = last
        return best
