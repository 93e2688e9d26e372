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
SHORTLIST = 16  # candidate fields of a voxel that are tried with all penalties and layers
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
    z-scored and divided by the root of their number; `search_channels`, principal components of
    each layer's channels that the first search makes do with (the weights have all channels).
    """

    name = "gaussian"
    needs = "space"
    defaults = {  # noqa: RUF012
        "grid": 9,
        "sizes": [0.06, 0.12, 0.24],
        "alphas": [0.01, 0.1, 1.0, 10.0],
        "search_channels": 64,
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
        alphas, sets = self.options["alphas"], self._layer_sets()
        answers, share = targets[rows].double(), weights[rows].double()[:, None]
        reduction = self._principal_channels(maps, train)
        best = torch.full((self.n_voxels,), torch.inf, dtype=answers.dtype, device=answers.device)
        # Candidate, layers and penalty of each voxel
        choice = torch.zeros(self.n_voxels, 3, dtype=torch.long, device=answers.device)
        listed = self._shortlist(maps, rows, candidates, answers, share, len(train), reduction)
        for number, pooled in self._pooled(maps, rows, candidates, listed.any(1).nonzero()[:, 0]):
            standard, _, scale = self._standard(pooled, share, len(train))
            voxels = listed[number].nonzero()[:, 0].to(answers.device)
            for which, channels in enumerate(sets):
                part = self._reduced(standard, channels, reduction)
                errors = held_out_error(part, answers[:, voxels], share, alphas)
                for index, error in enumerate(errors):
                    better = error < best[voxels]
                    best[voxels[better]] = error[better]
                    choice[voxels[better]] = choice.new_tensor([number, which, index])
        taken = choice[:, 0].unique().cpu()
        for number, pooled in self._pooled(maps, train, candidates, taken):
            standard, mean, scale = self._standard(pooled, share[: len(train)], len(train))
            for which, channels in enumerate(sets):
                here = (choice[:, 0] == number) & (choice[:, 1] == which)
                if not bool(here.any()):
                    continue
                factor = scale * channels / channels.sum().sqrt()
                part = standard[:, channels] / channels.sum().sqrt()
                within = share[: len(train)] / share[: len(train)].sum()
                solutions = coefficients(part, answers[: len(train), here], within, alphas)
                for index, solved in enumerate(solutions):
                    among = choice[here, 2] == index
                    voxels = here.nonzero()[among, 0]
                    whole = solved.new_zeros(len(channels), len(voxels))
                    whole[channels] = solved[:, among]
                    place = candidates[number]
                    self._take(voxels, place, number, alphas[index], whole, mean, factor)

    def _shortlist(
        self, maps, rows, candidates, answers, share, n_train: int, reduction: Tensor | None
    ) -> Tensor:
        """Candidates that are worth trying with all penalties and layers, (fields, voxels).

        Those of the least error with all layers and the middle penalty.
        """
        alphas = self.options["alphas"]
        middle = [alphas[len(alphas) // 2]]
        every = torch.ones(self.n_channels, dtype=torch.bool, device=answers.device)
        errors = torch.full((len(candidates), self.n_voxels), torch.inf, dtype=answers.dtype)
        numbers = torch.arange(len(candidates))
        for number, pooled in self._pooled(maps, rows, candidates, numbers):
            standard, _, _ = self._standard(pooled, share, n_train)
            part = self._reduced(standard, every, reduction)
            errors[number] = held_out_error(part, answers, share, middle)[0].cpu()
        first = errors.topk(min(SHORTLIST, len(candidates)), dim=0, largest=False).indices
        return torch.zeros_like(errors, dtype=torch.bool).scatter_(0, first, True)

    @staticmethod
    def _reduced(standard: Tensor, channels: Tensor, reduction: Tensor | None) -> Tensor:
        """Some of the z-scored channels over the root of their number, or their components."""
        part = standard[:, channels] / channels.sum().sqrt()
        return part if reduction is None else part @ reduction[channels]

    def _take(self, voxels: Tensor, place, number: int, alpha, solved, mean, scale) -> None:
        """Start some voxels at a candidate field with the coefficients of its pooled channels."""
        x, y, size = place
        self.centre[voxels] = REACH * torch.atanh(torch.stack([x, y / self.height]) / REACH)
        self.log_size[voxels] = (size - self.smallest).clamp_min(1e-3).log()
        self.alpha[voxels] = alpha
        self.bias[voxels] = -(solved.T @ (mean * scale)).float()
        first = 0
        for index, weight in enumerate(self.weight):
            last = first + weight.shape[1]
            weight[voxels] = solved[first:last].T.float()
            getattr(self, f"scale{index}")[voxels] = scale[first:last].float()
            first = last

    def _pooled(self, maps, rows, candidates: Tensor, numbers: Tensor):
        """Channels pooled by candidate fields: number of the field and (rows, channels)."""
        step = max(1, CANDIDATE_BYTES // (4 * len(rows) * self.n_channels))
        for among in numbers.split(step):
            chosen = candidates[among.to(candidates.device)]
            fields = {layer: self._fields(*chosen.T, shape) for layer, shape in self.shapes.items()}
            parts = []
            for _, batch in maps.batches(rows, 256):
                layers = [batch[layer].flatten(2) @ fields[layer].T for layer in self.layers]
                parts.append(torch.cat(layers, 1))
            pooled = torch.cat(parts)
            for index, number in enumerate(among.tolist()):
                yield number, pooled[:, :, index].double()

    @staticmethod
    def _standard(pooled: Tensor, share: Tensor, n_train: int) -> tuple[Tensor, Tensor, Tensor]:
        """Pooled channels z-scored by the training rows, their means and 1/SD."""
        share = share[:n_train] / share[:n_train].sum()
        mean = (share * pooled[:n_train]).sum(0)
        deviation = (share * (pooled[:n_train] - mean).square()).sum(0).sqrt()
        scale = torch.where(deviation > 1e-6, 1 / deviation.clamp_min(1e-6), 0.0)
        return (pooled - mean) * scale, mean, scale

    def _principal_channels(self, maps, rows) -> Tensor | None:
        """What takes channels to the first principal components of each layer, for the search.

        Shape (channels, components); None where no layer has more channels than that. The search
        solves many small systems, whose cost grows with the cube of their size.
        """
        most = int(self.options["search_channels"])
        if all(shape[0] <= most for shape in self.shapes.values()):
            return None
        products = [
            torch.zeros(shape[0], shape[0], dtype=torch.float64, device=self.bias.device)
            for shape in self.shapes.values()
        ]
        for _, batch in maps.batches(rows, 256):
            for product, layer in zip(products, self.layers, strict=True):
                flat = batch[layer].transpose(0, 1).flatten(1)
                product += (flat @ flat.T).double()
        vectors = [torch.linalg.eigh(product)[1][:, -most:] for product in products]
        return torch.block_diag(*vectors)

    def _layer_sets(self) -> list[Tensor]:
        """Which channels take part: all, then those of each layer alone."""
        layer = torch.cat(
            [torch.full((weight.shape[1],), i) for i, weight in enumerate(self.weight)]
        ).to(self.bias.device)
        alone = [layer == index for index in range(len(self.layers))]
        return [torch.ones_like(alone[0]), *(alone if len(alone) > 1 else [])]
