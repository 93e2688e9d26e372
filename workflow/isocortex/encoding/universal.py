"""One encoder for all subjects: a shared network, and an embedding for each voxel.

After the universal brain encoder of Beliy, Wasserman, Zalcher & Irani (2024, arXiv:2406.12179).
What a voxel does is said by its embedding alone, so that subjects with other voxels, other
stimuli and other numbers of trials train one network, and a new subject needs embeddings only.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from isocortex.encoding.readouts.base import Readout
from isocortex.encoding.readouts.tokens import as_tokens, position_code, token_grid
from isocortex.encoding.readouts.training import FeatureMaps, Trained, load_state, save_state, train

logger = logging.getLogger(__name__)

MIN_IMPROVEMENT = 1e-4  # share of the variance by which a loss must fall to count as better

SPREAD = 0.1  # of embeddings about the one they start from


class UniversalEncoder(nn.Module):
    """The network that all voxels share.

    Parameters
    ----------
    shapes
        Layer to the shape of one stimulus' features.
    dimension
        Components of a voxel's embedding.
    width
        Of queries, keys and values.
    heads
        Attentions of a voxel in each layer, among which the width is cut.
    frequencies
        Of the code of places.
    generator
        Source of random initial values.

    Notes
    -----
    In each layer the embedding makes a query that attends to the tokens (attention over space),
    keys see features and places, and it makes weights for what attention brings (attention over
    features). Layers add up, so that a voxel's weights also say which layers it reads.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        *,
        dimension: int,
        width: int,
        heads: int,
        frequencies: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.layers, self.dimension, self.heads = tuple(shapes), dimension, heads

        def random(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator) * shape[-1] ** -0.5)

        self.parts = nn.ModuleList()
        for shape in shapes.values():
            grid = token_grid(shape)
            part = nn.Module()
            part.query, part.feature = random(width, dimension), random(width, dimension)
            part.key, part.value = random(width, grid.n_units), random(width, grid.n_units)
            part.place = random(width, 4 * frequencies)
            part.extra = nn.Parameter(torch.zeros(grid.n_extra, width))
            part.register_buffer("code", position_code(grid, frequencies), persistent=False)
            self.parts.append(part)

    def forward(self, maps: Mapping[str, Tensor], embedding: Tensor) -> Tensor:
        """What each layer adds to the prediction of each voxel, shape (n, layers, voxels).

        Parameters
        ----------
        maps
            Layer to standardised features, (n, ...).
        embedding
            Shape (voxels, dimension).
        """
        added = []
        for part, layer in zip(self.parts, self.layers, strict=True):
            tokens = as_tokens(maps[layer])
            place = torch.cat([part.extra, part.code @ part.place.T])
            keys = (tokens @ part.key.T + place).unflatten(-1, (self.heads, -1))
            values = (tokens @ part.value.T).unflatten(-1, (self.heads, -1))
            queries = (embedding @ part.query.T).unflatten(-1, (self.heads, -1))
            features = (embedding @ part.feature.T).unflatten(-1, (self.heads, -1))
            scale = queries.shape[-1] ** -0.5
            attention = torch.softmax(torch.einsum("vhd,nthd->nhvt", queries * scale, keys), -1)
            # Weighting features first keeps what is held at (n, heads, voxels, tokens)
            weighted = torch.einsum("vhd,nthd->nhvt", features * scale, values)
            added.append((attention * weighted).sum((1, 3)))
        return torch.stack(added, 1)


class UniversalVoxels(Readout):
    """Voxels of one subject under a trained network that stays as it is.

    Parameters
    ----------
    network
        Trained; none of its parameters is changed.
    start
        Embeddings to begin with, shape (voxels, dimension).
    start_bias
        Shape (voxels,).

    The others are those of `Readout`.
    """

    name = "universal"
    needs = "any"
    voxelwise = True

    def __init__(
        self, shapes, n_voxels, *, generator, network, start, start_bias, regions=None
    ) -> None:
        super().__init__(shapes, n_voxels, generator=generator, regions=regions)
        # Not a submodule: neither trained nor part of the state
        object.__setattr__(self, "network", network)
        self.embedding = nn.Parameter(start.clone())
        with torch.no_grad():
            self.bias.copy_(start_bias)

    def contributions(self, maps: Mapping[str, Tensor]) -> Tensor:
        return self.network(maps, self.embedding)

    def results(self) -> Mapping[str, np.ndarray]:
        return {"embedding": self.embedding.detach().cpu().numpy().T}


@dataclass(frozen=True)
class Responders:
    """Responses of one subject to some of the rows.

    Attributes
    ----------
    rows
        Rows of the features that the subject has responses to, shape (n,).
    responses
        Means over trials, shape (n, voxels); not finite or constant: the voxel takes no part.
    weights
        Number of trials of each row, shape (n,).
    """

    rows: np.ndarray
    responses: np.ndarray
    weights: np.ndarray


class _Part:
    """A batch of one subject's voxels: what the network is to predict for it."""

    def __init__(self, subject: Responders, voxels: slice, among: dict[str, np.ndarray]) -> None:
        row_of = {int(row): index for index, row in enumerate(subject.rows)}
        self.rows, self.targets, self.weights = {}, {}, {}
        raw = {}
        for name, rows in among.items():
            mine = np.array([row_of[row] for row in rows.tolist() if row in row_of], int)
            self.rows[name] = subject.rows[mine]
            raw[name] = np.asarray(subject.responses[mine, voxels], np.float64)
            weights = subject.weights[mine].astype(np.float64)
            self.weights[name] = torch.from_numpy(weights / weights.mean()).float()
        share = self.weights["train"].numpy()[:, None] / len(self.rows["train"])
        self.usable = np.logical_and.reduce([np.isfinite(part).all(0) for part in raw.values()])
        known = np.where(self.usable, raw["train"], 0)
        centre = (share * known).sum(0)
        deviation = np.sqrt((share * (known - centre) ** 2).sum(0))
        self.usable &= deviation > 1e-6 * (np.abs(centre) + deviation)
        for name, values in raw.items():
            scaled = (values - centre) / np.where(self.usable, deviation, 1)
            self.targets[name] = torch.from_numpy(np.where(self.usable, scaled, 0)).float()
        self.mask = torch.from_numpy(self.usable).float()


@dataclass(frozen=True)
class TrainedNetwork:
    """What shared training gives.

    Attributes
    ----------
    network
        Of the epoch with the lowest validation loss.
    embedding, bias
        Per subject, shapes (voxels, dimension) and (voxels,).
    training_loss, validation_loss
        Mean squared error of standardised responses, mean over all usable voxels, shape (epochs,).
    """

    network: UniversalEncoder
    embedding: tuple[Tensor, ...]
    bias: tuple[Tensor, ...]
    training_loss: np.ndarray
    validation_loss: np.ndarray


def train_network(
    maps: FeatureMaps,
    subjects: Sequence[Responders],
    *,
    train_rows: np.ndarray,
    validation_rows: np.ndarray,
    dimension: int = 64,
    width: int = 64,
    heads: int = 1,
    frequencies: int = 4,
    epochs: int = 100,
    patience: int = 15,
    batch_size: int = 64,
    voxel_batch: int = 1024,
    learning_rate: float = 0.003,
    weight_decay: float = 0.01,
    precision: str = "auto",
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 10.0,
    seed: int = 0,
    label: str = "universal encoder",
) -> TrainedNetwork:
    """Train the shared network and the embeddings of all subjects' voxels together.

    Parameters
    ----------
    maps
        Features of all rows, standardised on the training rows.
    subjects
        Who responded how to which rows.
    train_rows, validation_rows
        Rows to fit to and rows to stop by, of all subjects: a row that one subject is tested on
        must be in neither.
    dimension, width, heads, frequencies
        Of `UniversalEncoder`.
    epochs, patience
        Most passes through all subjects' training rows and voxels; passes without a lower
        validation loss after which training stops.
    batch_size, voxel_batch
        Rows and voxels of a step. A step has the voxels of one subject; those of others stay as
        they are in it.
    learning_rate, weight_decay
        Of AdamW (Loshchilov & Hutter 2019).
    precision
        ``single``, ``mixed`` (bfloat16 products, the rest single) or ``auto``: mixed on a GPU.
    checkpoint
        File for the state, replaced at the end of an epoch whenever `checkpoint_seconds` have
        passed; what is found there is gone on with.
    seed
        Of initial values and of the order of steps.
    label
        Of progress lines.

    Notes
    -----
    The loss is the mean squared error over a step's rows, summed over its voxels and divided by
    `voxel_batch`, so that a voxel counts the same whoever's it is and however many voxels a
    subject has.
    """
    device = maps.device
    generator = torch.Generator().manual_seed(seed)
    network = UniversalEncoder(
        maps.shapes,
        dimension=dimension,
        width=width,
        heads=heads,
        frequencies=frequencies,
        generator=generator,
    ).to(device)
    among = {"train": train_rows, "validation": validation_rows}
    parts, owners = [], []
    for number, subject in enumerate(subjects):
        n_voxels = subject.responses.shape[1]
        for first in range(0, n_voxels, voxel_batch):
            parts.append(_Part(subject, slice(first, min(first + voxel_batch, n_voxels)), among))
            owners.append(number)
    # One start for all, so that voxels with few trials have the meaning that the others learn
    common = torch.randn(dimension, generator=generator)
    spread = [
        SPREAD * torch.randn(len(part.mask), dimension, generator=generator) for part in parts
    ]
    # One parameter a part: AdamW leaves those alone that a step does not touch
    embeddings = nn.ParameterList([nn.Parameter(common + values) for values in spread])
    biases = nn.ParameterList([nn.Parameter(torch.zeros(len(part.mask))) for part in parts])
    state = nn.ModuleDict({"network": network, "embedding": embeddings, "bias": biases}).to(device)
    optimiser = torch.optim.AdamW(state.parameters(), lr=learning_rate, weight_decay=weight_decay)
    mixed = precision == "mixed" or (precision == "auto" and device.type == "cuda")

    def squares(index: int, which: str, chosen: Tensor) -> Tensor:
        """Weighted mean squared error of each voxel of a part."""
        part = parts[index]
        with (
            torch.autocast(device.type, dtype=torch.bfloat16) if mixed else contextlib.nullcontext()
        ):
            predicted = network(maps(part.rows[which][chosen.numpy()]), embeddings[index])
        predicted = predicted.float().sum(1) + biases[index]
        errors = (predicted - part.targets[which][chosen].to(device)).square()
        weights = part.weights[which][chosen, None].to(device)
        return (weights * errors).mean(0) * part.mask.to(device)

    steps = [
        (index, first)
        for index, part in enumerate(parts)
        for first in range(0, len(part.rows["train"]), batch_size)
    ]
    n_usable = max(sum(float(part.mask.sum()) for part in parts), 1.0)

    def epoch() -> float:
        orders = [torch.randperm(len(part.rows["train"]), generator=generator) for part in parts]
        total = 0.0
        for step in torch.randperm(len(steps), generator=generator).tolist():
            index, first = steps[step]
            chosen = orders[index][first : first + batch_size]
            optimiser.zero_grad(set_to_none=True)
            loss = squares(index, "train", chosen).sum()
            (loss / voxel_batch).backward()
            optimiser.step()
            total += loss.item() * len(chosen) / len(parts[index].rows["train"])
        return total / n_usable

    @torch.no_grad()
    def validate() -> float:
        total = 0.0
        for index, part in enumerate(parts):
            n_rows = len(part.rows["validation"])
            for chosen in torch.arange(n_rows).split(batch_size):
                loss = squares(index, "validation", chosen).sum()
                total += loss.item() * len(chosen) / n_rows
        return total / n_usable

    losses: list[tuple[float, float]] = []
    best, best_loss, waited = None, float("inf"), 0
    found = load_state(checkpoint) if checkpoint is not None else None
    if found is not None:
        state.load_state_dict(found["state"])
        optimiser.load_state_dict(found["optimiser"])
        generator.set_state(found["generator"])
        best = {key: value.to(device) for key, value in found["best"].items()}
        best_loss, waited = found["best_loss"], found["waited"]
        losses = [tuple(pair) for pair in found["losses"]]
        logger.info("%s: going on after epoch %d", label, len(losses))

    def save() -> None:
        save_state(
            {
                "state": state.state_dict(),
                "optimiser": optimiser.state_dict(),
                "generator": generator.get_state(),
                "best": best,
                "best_loss": best_loss,
                "waited": waited,
                "losses": losses,
            },
            checkpoint,
        )

    saved = time.monotonic()
    bar = tqdm(total=epochs, initial=len(losses), desc=label, disable=None)
    while len(losses) < epochs and waited < patience:
        training = epoch()
        validation = validate()
        losses.append((training, validation))
        waited += 1
        if best is None or validation < best_loss - MIN_IMPROVEMENT:
            best = {key: value.clone() for key, value in state.state_dict().items()}
            best_loss, waited = validation, 0
        bar.update()
        bar.set_postfix(validation=f"{validation:.4f}", refresh=False)
        if checkpoint is not None and time.monotonic() - saved >= checkpoint_seconds:
            save()
            saved = time.monotonic()
    bar.close()
    if checkpoint is not None:
        save()
    state.load_state_dict(best)
    state.requires_grad_(False)
    table = np.array(losses)
    return TrainedNetwork(
        network,
        *(
            tuple(
                torch.cat([p.data for p, o in zip(chosen, owners, strict=True) if o == number])
                for number in range(len(subjects))
            )
            for chosen in (embeddings, biases)
        ),
        table[:, 0],
        table[:, 1],
    )


def fit_embeddings(
    trained: TrainedNetwork,
    maps: FeatureMaps,
    subject: Responders,
    *,
    known: int | None,
    train_rows: np.ndarray,
    validation_rows: np.ndarray,
    predict_rows: np.ndarray,
    **options: Any,
) -> Trained:
    """Fit a subject's embeddings alone, under the network as it is.

    Parameters
    ----------
    trained
        Of `train_network`.
    maps, subject, train_rows, validation_rows
        As there; rows that the subject has no responses to don't count.
    known
        Number of the subject in the shared training, whose embeddings are the start; None for a
        new one, whose voxels start from the mean embedding.
    predict_rows
        Rows to predict, whether the subject has seen them or not.
    options
        Of `isocortex.encoding.readouts.training.train`.

    Returns
    -------
    Trained
        With ``embedding`` (component, voxel) and ``layer_weight`` (layer, voxel).
    """
    n_voxels = subject.responses.shape[1]
    if known is None:
        start = torch.cat(trained.embedding).mean(0).expand(n_voxels, -1)
        start_bias = torch.zeros(n_voxels)
    else:
        start, start_bias = trained.embedding[known], trained.bias[known]

    def make(voxels: slice, generator: torch.Generator) -> UniversalVoxels:
        return UniversalVoxels(
            maps.shapes,
            voxels.stop - voxels.start,
            generator=generator,
            network=trained.network,
            start=start[voxels].cpu(),
            start_bias=start_bias[voxels].cpu(),
        )

    weights = np.zeros(maps.n_rows)
    weights[subject.rows] = subject.weights

    def read_targets(first: int, last: int) -> np.ndarray:
        table = np.full((maps.n_rows, last - first), np.nan)
        table[subject.rows] = subject.responses[:, first:last]
        return table

    return train(
        make,
        maps,
        read_targets,
        n_voxels,
        train_rows=train_rows[np.isin(train_rows, subject.rows)],
        validation_rows=validation_rows[np.isin(validation_rows, subject.rows)],
        predict_rows=predict_rows,
        weights=weights,
        **options,
    )
