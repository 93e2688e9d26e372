"""A Gaussian receptive field that moves, grows and changes its channels with the content."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from isocortex.encoding.readouts.gaussian import Gaussian
from isocortex.encoding.readouts.tokens import TokenGrid, places

SHARPNESS = 2.0  # of learnt maps at the start: softmax of so many SDs of a channel
CODE_SCALE = 2.0  # of centroids, so that they vary as much as hidden units
GROWTH = 0.7  # most that content can change the logarithm of a field's size


class Semantic(Gaussian):
    """Receptive field and channel weights of each voxel, modulated by what the image shows.

    After the semantic spatial transformer readout of Saha, Chadha & Khosla (2024,
    arXiv:2410.14031), in which a small network of the image's features moves and scales the
    spatial masks of voxels and weights their channels anew, image by image; the moving window is
    the spatial transformer of Jaderberg et al. (2015, NeurIPS). Here the window is a Gaussian: a
    code of the content, shared by all voxels, gives each voxel a shift of the centre and a factor
    of the size through weights of its own, and gains of the channels that each voxel takes up as
    far as it likes. The code holds the mean of each channel over the image, passed through one
    hidden layer, and the centroids of learnt maps (spatial soft argmax, Finn et al. 2016, ICRA),
    which say where something is.

    It starts as the best, by closed-form ridge regression, of the Gaussian readout's fixed fields
    and of fields that follow one of the channels that stand out most; see there for its options
    and `Readout` for the parameters.

    Notes
    -----
    Further options: `hidden`, units of the hidden layer; `centroids`, learnt maps a layer;
    `reach`, farthest shift, share of the image's width; `gain`, whether channels are weighted
    anew; `modulation`, penalty on the sum of squares of what ties a voxel's field to the content.

    Results are x, y and size of the field without modulation, and `shift`, how far the content
    moves it on average, in shares of the image's width.
    """

    name = "semantic"
    needs = "space"
    voxelwise = False
    defaults = {  # noqa: RUF012
        **Gaussian.defaults,
        "hidden": 8,
        "centroids": 4,
        "reach": 0.5,
        "gain": True,
        "modulation": 0.3,
    }

    def __init__(self, shapes, n_voxels, *, generator, regions=None, **options) -> None:
        super().__init__(shapes, n_voxels, generator=generator, regions=regions, **options)

        def random(*size: int, scale: float) -> nn.Parameter:
            return nn.Parameter(scale * torch.randn(*size, generator=generator))

        hidden, centroids = int(self.options["hidden"]), int(self.options["centroids"])
        channels = [shape[0] for shape in self.shapes.values()]
        self.detectors = nn.ParameterList(
            [random(centroids, n, scale=2 / n**0.5) for n in channels]
        )
        self.embed = random(hidden, self.n_channels, scale=1 / self.n_channels**0.5)
        self.embed_bias = nn.Parameter(torch.zeros(hidden))
        n_code = hidden + 2 * centroids * len(channels)
        self.move = nn.Parameter(torch.zeros(n_voxels, 3, n_code))
        self.gains = nn.ParameterList([random(n, hidden, scale=hidden**-0.5) for n in channels])
        self.take_up = nn.Parameter(torch.zeros(n_voxels))
        for index, shape in enumerate(self.shapes.values()):
            grid = TokenGrid(shape[1], shape[2], 0, shape[0])
            self.register_buffer(f"place{index}", places(grid), persistent=False)

    def _candidates(self, device: torch.device) -> Tensor:
        """Fixed fields, then fields in the middle of each size for each learnt map to move."""
        fixed = super()._candidates(device)
        self.n_fixed = len(fixed)
        n_maps = sum(len(detector) for detector in self.detectors)
        sizes = fixed.new_tensor(self.options["sizes"])
        following = torch.zeros(n_maps, len(sizes), 3, dtype=fixed.dtype, device=device)
        following[..., 2] = sizes
        return torch.cat([fixed, following.flatten(0, 1)])

    def initialise(self, maps, targets, *, train, validation, weights) -> None:
        self._detect(maps, train)
        super().initialise(maps, targets, train=train, validation=validation, weights=weights)

    @torch.no_grad()
    def _detect(self, maps, rows) -> None:
        """Let the learnt maps be the channels, of either sign, that stand out most.

        That is, whose highest value over an image is the most SDs from the mean, on average.
        """
        for layer, detector in zip(self.layers, self.detectors, strict=True):
            height = 0.0
            for _, batch in maps.batches(rows, 256):
                flat = batch[layer].flatten(2)
                height = height + torch.stack([flat, -flat]).amax(-1).sum(1).double()
            order = height.flatten().argsort(descending=True, stable=True)[: len(detector)]
            n_channels = height.shape[1]
            detector.zero_()
            for row, place in enumerate(order.tolist()):
                detector[row, place % n_channels] = SHARPNESS * (1 if place < n_channels else -1)

    def _follow(self, number: int) -> Tensor:
        """What moves a field with the learnt map of a candidate, (3, code)."""
        move = torch.zeros_like(self.move[0])
        if number >= self.n_fixed:
            learnt = (number - self.n_fixed) // len(self.options["sizes"])
            first = len(self.embed) + 2 * learnt
            move[[0, 1], [first, first + 1]] = 1 / CODE_SCALE
        return move

    def _pooled(self, maps, rows, candidates, numbers):
        yield from super()._pooled(maps, rows, candidates, numbers[numbers < self.n_fixed])
        for number in numbers[numbers >= self.n_fixed].tolist():
            parts = []
            for _, batch in maps.batches(rows, 256):
                code = self._content(batch)[1]
                place = candidates[number].expand(1, 3).T
                moved = self._moved(code, place, self._follow(number)[None])
                layers = []
                for layer, shape in self.shapes.items():
                    vertical, horizontal = (part[:, 0] for part in self._windows(*moved, shape))
                    layers.append(
                        torch.einsum("ncij,ni,nj->nc", batch[layer], vertical, horizontal)
                    )
                parts.append(torch.cat(layers, 1))
            yield number, torch.cat(parts).double()

    def _take(self, voxels, place, number, alpha, solved, mean, scale) -> None:
        super()._take(voxels, place, number, alpha, solved, mean, scale)
        self.move[voxels] = self._follow(number)

    def _content(self, maps: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Hidden units (n, hidden), and the whole code (n, code)."""
        means = torch.cat([maps[layer].mean((2, 3)) for layer in self.layers], 1)
        hidden = torch.tanh(means @ self.embed.T + self.embed_bias)
        centroids = [
            torch.softmax(detector @ maps[layer].flatten(2), -1) @ getattr(self, f"place{index}")
            for index, (layer, detector) in enumerate(zip(self.layers, self.detectors, strict=True))
        ]
        where = torch.cat([part.flatten(1) for part in centroids], 1)
        return hidden, torch.cat([hidden, CODE_SCALE * where], 1)

    def _moved(self, code: Tensor, place, move: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x, y and size of fields that are moved, each (n, fields)."""
        x, y, size = place
        change = torch.einsum("nk,vdk->dnv", code, move)
        reach = float(self.options["reach"])
        shift = reach * torch.tanh(change[:2] / reach)
        return x + shift[0], y + shift[1], size * (GROWTH * torch.tanh(change[2])).exp()

    def _windows(self, x: Tensor, y: Tensor, size: Tensor, shape) -> tuple[Tensor, Tensor]:
        """Fields of each stimulus along rows and columns, (n, voxels, rows or columns)."""
        _, rows, columns = shape
        across = (torch.arange(columns, device=x.device) + 0.5) / columns - 0.5
        up = self.height * (0.5 - (torch.arange(rows, device=x.device) + 0.5) / rows)
        precision = 0.5 / size.square()[..., None]
        vertical = torch.softmax(-precision * (up - y[..., None]).square(), -1)
        return vertical, torch.softmax(-precision * (across - x[..., None]).square(), -1)

    def contributions(self, maps: Mapping[str, Tensor]) -> Tensor:
        hidden, code = self._content(maps)
        place = self._moved(code, self._place(), self.move)
        added = []
        for index, (layer, weight) in enumerate(zip(self.layers, self.weight, strict=True)):
            vertical, horizontal = self._windows(*place, self.shapes[layer])
            scaled = weight * getattr(self, f"scale{index}")
            values = torch.einsum("vc,ncij->nvij", scaled, maps[layer])
            if self.options["gain"]:
                gain = torch.tanh(hidden @ self.gains[index].T)[:, :, None, None]
                changed = torch.einsum("vc,ncij->nvij", scaled, gain * maps[layer])
                values = values + self.take_up[:, None, None] * changed
            added.append(torch.einsum("nvij,nvi,nvj->nv", values, vertical, horizontal))
        return torch.stack(added, 1)

    def penalty(self) -> Tensor:
        changes = self.move.square().sum() + self.take_up.square().sum()
        return super().penalty() + float(self.options["modulation"]) * changes

    def averages(self, maps: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        still = self._place()
        x, y, _ = self._moved(self._content(maps)[1], still, self.move)
        return {"shift": torch.hypot(x - still[0], y - still[1])}

    def attention(self, maps: Mapping[str, Tensor]) -> Tensor:
        """The moved fields on the finest map, shape (n, voxel, row, column)."""
        shape = max(self.shapes.values(), key=lambda shape: shape[2])
        place = self._moved(self._content(maps)[1], self._place(), self.move)
        vertical, horizontal = self._windows(*place, shape)
        return vertical[..., None] * horizontal[..., None, :]
