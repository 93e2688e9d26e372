"""Transformer decoder: queries that attend to the patches of an image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from isocortex.encoding.readouts.base import Readout
from isocortex.encoding.readouts.tokens import as_tokens, places, position_code, token_grid
from isocortex.errors import InputError

QUERIES = ("voxel", "region", "learnt")


class Routing(Readout):
    """Queries attend to the tokens of each layer; voxels weight what their query brings.

    After the transformer brain encoder of Adeli, Sun & Kriegeskorte (2025, NeurIPS,
    arXiv:2505.17329): queries of brain regions (or of voxels) cross-attend to the patch tokens of
    a network, and each voxel is linear in its query's output. Keys see a token's features and its
    place, values its features alone; queries don't see each other. Each layer has an attention of
    its own, so that layers add up; the blocks after the first put the first one's output, through
    a small network, to the tokens again.
    See `Readout` for the parameters.

    Notes
    -----
    Options: `queries`, one for each ``voxel``, for each ``region``, or `n_queries` ``learnt``
    ones that each voxel mixes by a softmax of its own; `dimension` of queries, keys and values,
    and `heads` among which it is cut; `depth`, number of blocks; `frequencies` of the places'
    code; `dropout` of what attention brings; `ridge`, penalty on the voxels' weights (mean over
    the dimension of their squares).

    Results are the mean attention of each query, and x, y, size: the centre of a voxel's
    attention over the image and its SD around it, averages over images.
    """

    name = "routing"
    needs = "tokens"
    voxelwise = False
    defaults = {  # noqa: RUF012
        "queries": "voxel",
        "n_queries": 16,
        "dimension": 32,
        "heads": 1,
        "depth": 1,
        "frequencies": 4,
        "dropout": 0.0,
        "ridge": 0.1,
    }

    def __init__(self, shapes, n_voxels, *, generator, regions=None, **options) -> None:
        super().__init__(shapes, n_voxels, generator=generator, regions=regions, **options)
        size, self.heads = int(self.options["dimension"]), int(self.options["heads"])
        kind = self.options["queries"]
        self.query = "region" if kind == "region" else "voxel"

        def random(*shape: int, scale: float = 1.0) -> nn.Parameter:
            return nn.Parameter(scale * torch.randn(*shape, generator=generator))

        if kind == "region":
            if regions is None:
                raise InputError(
                    "readout 'routing' with a query for each region needs a label image: give "
                    "encoding.readouts its regions, or set queries to voxel or learnt"
                )
            self.register_buffer("region", torch.as_tensor(np.asarray(regions)).long())
            self.register_buffer("known", self.region >= 0)
            n_queries = int(np.max(regions, initial=0)) + 1
        else:
            n_queries = n_voxels if kind == "voxel" else int(self.options["n_queries"])
        if kind == "learnt":
            self.mixture = nn.Parameter(torch.zeros(n_voxels, n_queries))
        self.queries = random(n_queries, size, scale=0.5)
        self.grids = {layer: token_grid(shape) for layer, shape in self.shapes.items()}
        frequencies = int(self.options["frequencies"])
        self.layer_parts = nn.ModuleList()
        for grid in self.grids.values():
            part = nn.Module()
            scale = grid.n_units**-0.5
            part.key = random(size, grid.n_units, scale=scale)
            part.value = random(size, grid.n_units, scale=scale)
            part.place = random(size, 4 * frequencies, scale=0.5 * frequencies**-0.5)
            part.extra = nn.Parameter(torch.zeros(grid.n_extra, size))
            part.blocks = nn.ModuleList()
            for _ in range(int(self.options["depth"]) - 1):
                block = nn.Module()
                block.expand = random(2 * size, size, scale=size**-0.5)
                block.expand_bias = nn.Parameter(torch.zeros(2 * size))
                block.reduce = nn.Parameter(torch.zeros(size, 2 * size))
                part.blocks.append(block)
            part.register_buffer("code", position_code(grid, frequencies), persistent=False)
            part.register_buffer("places", places(grid), persistent=False)
            self.layer_parts.append(part)
        self.weight = nn.Parameter(torch.zeros(len(self.layers), n_voxels, size))

    @classmethod
    def complete(cls, options, *, key: str = "options") -> dict[str, Any]:
        """Options over the defaults, refused where values don't go together."""
        options = super().complete(options, key=key)
        if options["queries"] not in QUERIES:
            raise InputError(
                f"option 'queries' of readout 'routing' in {key} is {options['queries']!r}: write "
                + ", ".join(QUERIES)
            )
        for option in ("n_queries", "dimension", "heads", "depth", "frequencies"):
            if options[option] < 1:
                raise InputError(
                    f"option {option!r} of readout 'routing' in {key} is below 1: raise it"
                )
        if options["dimension"] % options["heads"]:
            raise InputError(
                f"option 'dimension' of readout 'routing' in {key} ({options['dimension']}) is no "
                f"multiple of heads ({options['heads']}): change one"
            )
        return options

    def _attend(self, index: int, layer: str, maps: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """What each query brings (n, query, dimension), and the last block's attention.

        The attention is (n, query, token), the mean over heads.
        """
        part = self.layer_parts[index]
        tokens = as_tokens(maps[layer])
        place = torch.cat([part.extra, part.code @ part.place.T])
        keys = (tokens @ part.key.T + place).unflatten(-1, (self.heads, -1))
        values = (tokens @ part.value.T).unflatten(-1, (self.heads, -1))
        queries = self.queries.expand(len(tokens), -1, -1)
        for block in (None, *part.blocks):
            if block is not None:
                hidden = functional.gelu(brought @ block.expand.T + block.expand_bias)  # noqa: F821
                queries = queries + hidden @ block.reduce.T
            heads = queries.unflatten(-1, (self.heads, -1))
            logits = torch.einsum("nqhd,nthd->nhqt", heads, keys)
            attention = torch.softmax(logits * heads.shape[-1] ** -0.5, -1)
            brought = torch.einsum("nhqt,nthd->nqhd", attention, values).flatten(2)
        return brought, attention.mean(1)

    def _of_voxels(self, of_queries: Tensor) -> Tensor:
        """What the query of each voxel has, (n, voxels, ...)."""
        if self.options["queries"] == "voxel":
            return of_queries
        if self.options["queries"] == "region":
            return of_queries[:, self.region.clamp_min(0)]
        return torch.einsum("vq,nq...->nv...", torch.softmax(self.mixture, 1), of_queries)

    def contributions(self, maps: Mapping[str, Tensor]) -> Tensor:
        added = []
        for index, layer in enumerate(self.layers):
            brought, _ = self._attend(index, layer, maps)
            brought = functional.dropout(brought, float(self.options["dropout"]), self.training)
            part = (self._of_voxels(brought) * self.weight[index]).sum(-1)
            if self.options["queries"] == "region":
                part = part * self.known  # voxels of no region have no query
            added.append(part)
        return torch.stack(added, 1)

    def penalty(self) -> Tensor:
        return float(self.options["ridge"]) * self.weight.square().mean(-1).sum()

    def _maps(self, maps: Mapping[str, Tensor]) -> Tensor | None:
        """Attention of each query over the patches of the finest layer, layers averaged.

        Layers count as much as their voxels weight them. Shape (n, query, row, column); the
        attention to tokens without a place is left out and the rest has sum 1.
        """
        finest = max(self.grids.values(), key=lambda grid: grid.columns)
        if not finest.columns:
            return None
        share = self.weight.detach().square().sum(-1)  # (layers, voxels)
        if self.options["queries"] == "region":
            of_query = share.new_zeros(len(share), len(self.queries))
            share = of_query.index_add(1, self.region[self.known], share[:, self.known])
        elif self.options["queries"] == "learnt":
            share = share @ torch.softmax(self.mixture, 1).detach()
        share = share + torch.finfo(share.dtype).eps
        total = None
        for index, layer in enumerate(self.layers):
            grid = self.grids[layer]
            if not grid.columns:
                continue
            seen = self._attend(index, layer, maps)[1][..., grid.n_extra :]
            seen = seen.unflatten(-1, (grid.rows, grid.columns))
            resized = functional.interpolate(
                seen, (finest.rows, finest.columns), mode="bilinear", align_corners=False
            )
            scaled = resized * (share[index] / resized.sum((2, 3)))[..., None, None]
            total = scaled if total is None else total + scaled
        return total / total.sum((2, 3), keepdim=True)

    def attention(self, maps: Mapping[str, Tensor]) -> Tensor | None:
        """Attention of each query in each image, shape (n, query, row, column).

        Queries are voxels or regions; a voxel that mixes learnt queries has their mixture.
        Regions of which the batch has no voxel have NaN.
        """
        seen = self._maps(maps)
        if seen is None or self.options["queries"] == "voxel":
            return seen
        if self.options["queries"] == "learnt":
            return self._of_voxels(seen)
        absent = torch.ones(len(self.queries), dtype=torch.bool, device=seen.device)
        absent[self.region[self.known]] = False
        return seen.masked_fill(absent[:, None, None], torch.nan)

    def averages(self, maps: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        seen = self._maps(maps)
        if seen is None:
            return {}
        finest = max(range(len(self.layers)), key=lambda i: self.grids[self.layers[i]].columns)
        place = self.layer_parts[finest].places
        seen = self._of_voxels(seen).flatten(2)
        centre = seen @ place
        spread = seen @ place.square() - centre.square()
        of_voxel = {
            "x": centre[..., 0],
            "y": centre[..., 1],
            "size": spread.mean(-1).clamp_min(0).sqrt(),
        }
        if self.options["queries"] == "region":
            of_voxel = {
                key: value.masked_fill(~self.known, torch.nan) for key, value in of_voxel.items()
            }
        return of_voxel
