"""A Gaussian receptive field that moves, grows and changes its channels with the content."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from isocortex.encoding.readouts.gaussian import Gaussian
from isocortex.encoding.readouts.tokens import TokenGrid, places

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

    It starts as the Gaussian readout, with no modulation; see there for its options and
    `Readout` for the parameters.

    Notes
    -----
    Further options: `hidden`, units of the hidden layer; `centroids`, learnt maps a layer;
    `reach`, farthest shift, share of the image's width; `gain`, whether channels are weighted
    anew; `max_alpha`, limit of the ridge penalty that the fixed field suggests (where fields
    move, a fixed one finds nothing, and would have all weights shrunk).

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
        "max_alpha": 0.1,
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

    def initialise(self, maps, targets, *, train, validation, weights) -> None:
        super().initialise(maps, targets, train=train, validation=validation, weights=weights)
        self.alpha.clamp_(max=float(self.options["max_alpha"]))

    def _content(self, maps: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Hidden units (n, hidden), and the whole code (n, code)."""
        means = torch.cat([maps[layer].mean((2, 3)) for layer in self.layers], 1)
        hidden = torch.tanh(means @ self.embed.T + self.embed_bias)
        centroids = [
            torch.softmax(detector @ maps[layer].flatten(2), -1) @ getattr(self, f"place{index}")
            for index, (layer, detector) in enumerate(zip(self.layers, self.detectors, strict=True))
        ]
        where = torch.cat([part.flatten(1) for part in centroids], 1)
        return hidden, torch.cat([hidden, 2 * where], 1)

    def _moved(self, code: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x, y and size of the fields, each (n, voxels)."""
        x, y, size = self._place()
        change = torch.einsum("nk,vdk->dnv", code, self.move)
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
        place = self._moved(code)
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

    def averages(self, maps: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        x, y, _ = self._moved(self._content(maps)[1])
        still = self._place()
        return {"shift": torch.hypot(x - still[0], y - still[1])}

    def attention(self, maps: Mapping[str, Tensor]) -> Tensor:
        """The moved fields on the finest map, shape (n, voxel, row, column)."""
        shape = max(self.shapes.values(), key=lambda shape: shape[2])
        vertical, horizontal = self._windows(*self._moved(self._content(maps)[1]), shape)
        return vertical[..., None] * horizontal[..., None, :]
