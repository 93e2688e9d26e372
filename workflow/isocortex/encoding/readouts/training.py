"""Training of readouts: early stopping for each voxel, batches of voxels, checkpoints."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from isocortex.device import halving
from isocortex.encoding.readouts.base import Readout
from isocortex.errors import InputError

logger = logging.getLogger(__name__)

RESIDENT_SHARE = 0.3  # of a GPU's free memory that feature maps may fill
MIN_IMPROVEMENT = 1e-4  # share of the variance by which a loss must fall to count as better


class FeatureMaps:
    """Feature maps of several layers, standardised on training rows as they are read.

    Parameters
    ----------
    maps
        Layer to features, shape (rows, ...): (rows, channel, row, column), (rows, token, unit)
        or (rows, unit).
    rows
        Rows that mean and standard deviation are taken from: one of each for a channel or unit,
        over rows and places, so that places keep their proportions.
    device
        Where batches go; maps stay there as a whole where they fit.
    """

    def __init__(
        self, maps: Mapping[str, np.ndarray], rows: np.ndarray, *, device: torch.device | str
    ) -> None:
        self.device = torch.device(device)
        self.shapes = {layer: tuple(values.shape[1:]) for layer, values in maps.items()}
        self.n_rows = len(next(iter(maps.values())))
        self._maps = {
            layer: torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
            for layer, values in maps.items()
        }
        self._scaling = {
            layer: _standardisation(values, rows) for layer, values in self._maps.items()
        }
        if self.device.type == "cuda":
            needed = sum(values.numel() * 4 for values in self._maps.values())
            if needed <= RESIDENT_SHARE * torch.cuda.mem_get_info(self.device)[0]:
                self._maps = {k: values.to(self.device) for k, values in self._maps.items()}
        self._scaling = {
            layer: (centre.to(self.device), scale.to(self.device))
            for layer, (centre, scale) in self._scaling.items()
        }

    def __call__(self, rows: np.ndarray | Tensor) -> dict[str, Tensor]:
        """Standardised maps of some rows, on the device, by layer."""
        wanted = torch.as_tensor(rows)
        batch = {}
        for layer, values in self._maps.items():
            centre, scale = self._scaling[layer]
            part = values[wanted.to(values.device)].to(self.device)
            batch[layer] = (part - centre) * scale
        return batch

    def batches(
        self, rows: np.ndarray, size: int
    ) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
        """Some rows in turn: their numbers and their maps."""
        for first in range(0, len(rows), size):
            part = rows[first : first + size]
            yield part, self(part)


def _standardisation(values: Tensor, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """Mean and 1/SD of each channel or unit over rows and places, 0 for a constant one."""
    shape = [1] * values.ndim
    channel = 1 if values.ndim == 4 else values.ndim - 1
    shape[channel] = values.shape[channel]
    total = torch.zeros(values.shape[channel], dtype=torch.float64)
    squares = torch.zeros_like(total)
    over = [axis for axis in range(values.ndim) if axis != channel]
    blocks = np.array_split(rows, max(1, len(rows) // 64))
    for block in blocks:
        total += values[torch.from_numpy(block)].double().sum(over)
    count = len(rows) * (values[0].numel() // values.shape[channel])
    centre = total / count
    for block in blocks:
        centred = values[torch.from_numpy(block)].double() - centre.view(shape)
        squares += centred.square().sum(over)
    deviation = (squares / count).sqrt()
    varies = deviation > 1e-6 * (centre.abs() + deviation)
    scale = torch.where(varies, 1 / torch.where(varies, deviation, 1.0), 0.0)
    return centre.float().view(shape), scale.float().view(shape)


def save_state(state: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint, so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as stream:
        torch.save(dict(state), stream)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def load_state(path: Path) -> dict[str, Any] | None:
    """Read a checkpoint, tensors on the CPU; None where there is none."""
    if not path.is_file():
        return None
    return torch.load(path, map_location="cpu", weights_only=True)


@dataclass(frozen=True)
class Trained:
    """What training gives.

    Parameters
    ----------
    prediction
        Of the rows to predict, in units of the targets, shape (rows, voxels); NaN for voxels
        whose targets are not finite or do not vary over the training rows.
    results
        Arrays of the readout for the store, voxels last.
    attention
        Mean attention over the rows to predict, shape (query, row, column), or None.
    training_loss, validation_loss
        Mean squared error of standardised responses, mean over voxels, shape (epochs,): after
        each epoch (that of training during it).
    """

    prediction: np.ndarray
    results: Mapping[str, np.ndarray]
    attention: np.ndarray | None
    training_loss: np.ndarray
    validation_loss: np.ndarray

    @property
    def n_epochs(self) -> int:
        """Epochs of the voxel batch that took longest."""
        return len(self.training_loss)


def train(
    make: Callable[[slice, torch.Generator], Readout],
    maps: FeatureMaps,
    read_targets: Callable[[int, int], np.ndarray],
    n_voxels: int,
    *,
    train_rows: np.ndarray,
    validation_rows: np.ndarray,
    predict_rows: np.ndarray,
    weights: np.ndarray | None = None,
    epochs: int = 200,
    patience: int = 10,
    batch_size: int = 64,
    voxel_batch: int = 1024,
    learning_rate: float = 0.003,
    weight_decay: float = 0.0,
    precision: str = "auto",
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 10.0,
    seed: int = 0,
    label: str = "readout",
) -> Trained:
    """Train one readout, batch of voxels by batch of voxels.

    Parameters
    ----------
    make
        Makes the readout of a slice of voxels, given the source of its initial values.
    maps
        Features of all rows, standardised on the training rows.
    read_targets
        Gives the responses of voxels first to last, shape (rows, last - first). Rows that
        neither train nor validate may hold anything.
    n_voxels
        Number of voxels.
    train_rows, validation_rows, predict_rows
        Rows to fit to, rows to stop by, rows to predict.
    weights
        Weight of each row, such as its number of trials, shape (rows,); by default all the same.
    epochs, patience
        Most passes through the training rows; passes without a lower validation loss after which
        a voxel stops (with voxels that share parameters, all of the batch).
    batch_size, voxel_batch
        Rows of a step; voxels trained together.
    learning_rate, weight_decay
        Of AdamW (Loshchilov & Hutter 2019).
    precision
        ``single``, ``mixed`` (bfloat16 products, the rest single) or ``auto``: mixed on a GPU.
    checkpoint
        Folder for the state of each voxel batch, replaced at the end of an epoch whenever
        `checkpoint_seconds` have passed. What is found there is gone on with: its caller names
        the folder after everything that training depends on.
    seed
        Of initial values, the order of rows, and dropout.
    label
        Of progress lines.

    Returns
    -------
    Trained

    Raises
    ------
    InputError
        Where there is no row to train or to stop by.

    Notes
    -----
    The loss is the weighted mean squared error of responses standardised over the training rows,
    summed over voxels, so that a voxel's gradient does not depend on its companions. Every batch
    of voxels sees the rows in the same order. Each voxel of a `voxelwise` readout keeps its own
    best state, so that batches of other sizes give the same results within rounding.
    """
    if not len(train_rows) or not len(validation_rows):
        raise InputError(f"{label}: no rows to train on or to stop by: use fewer folds")
    if weights is None:
        weights = np.ones(maps.n_rows)
    share = torch.zeros(maps.n_rows, dtype=torch.float32)
    for rows in (train_rows, validation_rows):
        share[rows] = torch.from_numpy(weights[rows] / weights[rows].mean()).float()
    share = share.to(maps.device)
    mixed = precision == "mixed" or (precision == "auto" and maps.device.type == "cuda")

    def work(first: int, last: int) -> tuple[Trained, float, str]:
        batch = _Batch(
            make,
            maps,
            torch.from_numpy(np.asarray(read_targets(first, last))),
            slice(first, last),
            train_rows=train_rows,
            validation_rows=validation_rows,
            weights=share,
            batch_size=batch_size,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            mixed=mixed,
            seed=seed,
        )
        path = checkpoint / f"voxels-{first}-{last}.pt" if checkpoint else None
        batch.run(epochs, patience, path, checkpoint_seconds, label)
        return batch.trained(predict_rows), batch.best_loss.mean().item(), batch.readout.query

    parts, query = [], Readout.query
    for first, last, done in halving(work, n_voxels, batch=voxel_batch, what="voxels"):
        part, loss, query = done
        parts.append(part)
        progress = (label, first + 1, last, n_voxels, part.n_epochs, loss)
        logger.info("%s: voxels %d to %d of %d: %d epochs, validation loss %.4f", *progress)
    return _join(parts, query)


class _Batch:
    """One batch of voxels in training."""

    def __init__(
        self,
        make,
        maps: FeatureMaps,
        targets: Tensor,
        voxels: slice,
        *,
        train_rows: np.ndarray,
        validation_rows: np.ndarray,
        weights: Tensor,
        batch_size: int,
        learning_rate: float,
        weight_decay: float,
        mixed: bool,
        seed: int,
    ) -> None:
        self.maps, self.weights, self.mixed, self.seed = maps, weights, mixed, seed
        self.train_rows, self.validation_rows = train_rows, validation_rows
        self.batch_size = batch_size
        device = maps.device
        share = weights.cpu().double()[train_rows, None]
        known = targets[train_rows].double()
        self.usable = torch.isfinite(known).all(0)
        self.usable &= torch.isfinite(targets[validation_rows]).all(0)
        known = torch.where(self.usable, known, 0.0)
        self.centre = (share * known).sum(0) / share.sum()
        self.scale = ((share * (known - self.centre).square()).sum(0) / share.sum()).sqrt()
        self.usable &= self.scale > 1e-6 * (self.centre.abs() + self.scale)
        scaled = (targets.double() - self.centre) / torch.where(self.usable, self.scale, 1.0)
        self.targets = torch.where(self.usable & torch.isfinite(scaled), scaled, 0.0)
        self.targets = self.targets.float().to(device)

        self.readout = make(voxels, torch.Generator().manual_seed(seed)).to(device)
        self.optimiser = torch.optim.AdamW(
            self.readout.parameters(), lr=learning_rate, weight_decay=weight_decay
        )
        self.generator = torch.Generator().manual_seed(seed)
        n_voxels = voxels.stop - voxels.start
        self.best_loss = torch.full((n_voxels,), torch.inf, device=device)
        self.waited = torch.zeros(n_voxels, dtype=torch.int64, device=device)
        self.best: dict[str, Tensor] = {}
        self.losses: list[tuple[float, float]] = []
        self.finished = False

    def run(self, epochs: int, patience: int, path: Path | None, every: float, label: str) -> None:
        """Train until no voxel improves, from the checkpoint on where there is one."""
        devices = [self.maps.device] if self.maps.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):  # dropout's numbers
            torch.manual_seed(self.seed)
            if path is None or not self._resume(path):
                self.readout.initialise(
                    self.maps,
                    self.targets,
                    train=self.train_rows,
                    validation=self.validation_rows,
                    weights=self.weights,
                )
                self._keep(self._validate(), patience)  # the initial state may be the best
            saved = time.monotonic()
            bar = tqdm(total=epochs, initial=len(self.losses), desc=label, disable=None)
            while (
                not self.finished
                and len(self.losses) < epochs
                and bool((self.waited < patience).any())
            ):
                training = self._epoch()
                loss = self._validate()
                self._keep(loss, patience)
                self.losses.append((training, self._mean(loss)))
                bar.update()
                bar.set_postfix(validation=f"{self.losses[-1][1]:.4f}", refresh=False)
                if path is not None and time.monotonic() - saved >= every:
                    self._save(path)
                    saved = time.monotonic()
            bar.close()
            if path is not None:
                self._save(path, finished=True)
        self.readout.load_state_dict(self.best)

    def _mean(self, loss: Tensor) -> float:
        usable = self.usable.to(loss.device)
        return loss[usable].double().mean().item() if bool(usable.any()) else float("nan")

    def _forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        kind = self.maps.device.type
        context = (
            torch.autocast(kind, dtype=torch.bfloat16) if self.mixed else contextlib.nullcontext()
        )
        with context:
            return self.readout(batch).float()

    def _squares(self, rows: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Weighted squared errors, shape (rows, voxels)."""
        rows = rows.to(self.targets.device)
        return self.weights[rows, None] * (self._forward(batch) - self.targets[rows]).square()

    def _epoch(self) -> float:
        self.readout.train()
        rows = torch.from_numpy(self.train_rows)
        rows = rows[torch.randperm(len(rows), generator=self.generator)]
        total = torch.zeros(self.targets.shape[1], device=self.targets.device)
        for first in range(0, len(rows), self.batch_size):
            part = rows[first : first + self.batch_size]
            self.optimiser.zero_grad(set_to_none=True)
            squares = self._squares(part, self.maps(part))
            (squares.mean(0).sum() + self.readout.penalty()).backward()
            self.optimiser.step()
            total += squares.detach().sum(0)
        return self._mean(total / len(rows))

    @torch.no_grad()
    def _validate(self) -> Tensor:
        self.readout.eval()
        total = torch.zeros(self.targets.shape[1], device=self.targets.device)
        for part, batch in self.maps.batches(self.validation_rows, self.batch_size):
            total += self._squares(torch.from_numpy(part), batch).sum(0)
        return total / len(self.validation_rows)

    @torch.no_grad()
    def _keep(self, loss: Tensor, patience: int) -> None:
        """Keep the state of voxels that got better; those that have stopped stay stopped."""
        if not self.readout.voxelwise:
            loss = loss[self.usable.to(loss.device)].mean().expand_as(loss)
        better = (loss < self.best_loss - MIN_IMPROVEMENT) & (self.waited < patience)
        self.best_loss = torch.where(better, loss, self.best_loss)
        self.waited = torch.where(
            self.waited < patience, torch.where(better, 0, self.waited + 1), self.waited
        )
        for key, value in self.readout.state_dict().items():
            if not self.best or key not in self.best:
                self.best[key] = value.clone()
            elif self.readout.voxelwise:
                chosen = better.view(-1, *[1] * (value.ndim - 1))
                self.best[key] = torch.where(chosen, value, self.best[key])
            elif bool(better.any()):
                self.best[key] = value.clone()

    def _save(self, path: Path, *, finished: bool = False) -> None:
        on_gpu = self.maps.device.type == "cuda"
        state = {
            "readout": self.readout.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "generator": self.generator.get_state(),
            "random": torch.get_rng_state(),
            "cuda_random": torch.cuda.get_rng_state(self.maps.device) if on_gpu else None,
            "best": self.best,
            "best_loss": self.best_loss,
            "waited": self.waited,
            "losses": self.losses,
            "finished": finished,
        }
        if finished:  # what it would take to go on is three times the size of the result
            state |= dict.fromkeys(("readout", "optimiser"))
        save_state(state, path)

    def _resume(self, path: Path) -> bool:
        state = load_state(path)
        if state is None:
            return False
        device = self.maps.device
        self.finished = state["finished"]
        if not self.finished:
            self.readout.load_state_dict(state["readout"])
            self.optimiser.load_state_dict(state["optimiser"])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["random"])
        if state["cuda_random"] is not None and device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_random"], device)
        self.best = {key: value.to(device) for key, value in state["best"].items()}
        self.best_loss = state["best_loss"].to(device)
        self.waited = state["waited"].to(device)
        self.losses = [tuple(pair) for pair in state["losses"]]
        done = "taken over" if self.finished else "gone on with"
        logger.info("%s: %s after epoch %d", path, done, len(self.losses))
        return True

    @torch.no_grad()
    def trained(self, rows: np.ndarray) -> Trained:
        """Predictions and results of the best states."""
        self.readout.eval()
        prediction = torch.empty(len(rows), self.targets.shape[1], dtype=torch.float64)
        attention, done = None, 0
        sums: dict[str, Tensor] = {}
        for part, batch in self.maps.batches(rows, self.batch_size):
            prediction[done : done + len(part)] = self._forward(batch).double().cpu()
            seen = self.readout.attention(batch)
            if seen is not None:
                summed = seen.double().sum(0).cpu()
                attention = summed if attention is None else attention + summed
            for key, values in self.readout.averages(batch).items():
                sums[key] = sums.get(key, 0) + values.double().sum(0).cpu()
            done += len(part)
        prediction = prediction * self.scale + self.centre
        prediction[:, ~self.usable] = torch.nan
        results = {key: np.array(value) for key, value in self.readout.results().items()}
        results |= {key: (values / max(len(rows), 1)).numpy() for key, values in sums.items()}
        if "layer_weight" not in results:
            results["layer_weight"] = self._layer_weight()
        for values in results.values():
            if values.dtype.kind == "f":
                values[..., ~self.usable.numpy()] = np.nan
        if attention is not None:
            attention = (attention / max(len(rows), 1)).numpy()
        losses = np.array(self.losses, dtype=float).reshape(-1, 2)
        return Trained(prediction.float().numpy(), results, attention, losses[:, 0], losses[:, 1])

    def _layer_weight(self) -> np.ndarray:
        """Share of each layer in the variance of the prediction over the training rows.

        The product measure: the covariance of a layer's contribution with the whole prediction,
        over the variance of the prediction (Hoffman 1960); shares below 0 count as 0.
        """
        mean = product = whole = 0.0
        for _, batch in self.maps.batches(self.train_rows, self.batch_size):
            added = self.readout.contributions(batch).double()
            both = added.sum(1, keepdim=True)
            mean, product = mean + added.sum(0), product + (added * both).sum(0)
            whole = whole + both.sum(0)
        count = len(self.train_rows)
        shared = (product / count - mean * whole / count**2).clamp_min(0).cpu()
        total = shared.sum(0)
        return torch.where(
            total > 0, shared / torch.where(total > 0, total, 1.0), torch.nan
        ).numpy()


def _join(parts: list[Trained], query: str) -> Trained:
    """Voxel batches side by side; losses are means over voxels of the batches still training."""
    sizes = np.array([part.prediction.shape[1] for part in parts])
    n_epochs = max(part.n_epochs for part in parts)

    def losses(name: str) -> np.ndarray:
        table = np.full((len(parts), n_epochs), np.nan)
        for row, part in zip(table, parts, strict=True):
            row[: part.n_epochs] = getattr(part, name)
        share = np.isfinite(table) * sizes[:, None]
        total = (np.nan_to_num(table) * sizes[:, None]).sum(0)
        return np.where(share.sum(0) > 0, total / np.maximum(share.sum(0), 1), np.nan)

    return Trained(
        np.concatenate([part.prediction for part in parts], axis=1),
        {
            key: np.concatenate([part.results[key] for part in parts], axis=-1)
            for key in parts[0].results
        },
        _join_attention([part.attention for part in parts], sizes, query),
        losses("training_loss"),
        losses("validation_loss"),
    )


def _join_attention(
    maps: list[np.ndarray | None], sizes: np.ndarray, query: str
) -> np.ndarray | None:
    """Queries of voxels one after another; queries of regions as the mean over batches."""
    if maps[0] is None:
        return None
    if query == "voxel":
        return np.concatenate(maps)
    # Regions are numbered alike, but the last may have no voxel in a batch
    n_queries = max(len(values) for values in maps)
    stacked = np.full((len(maps), n_queries, *maps[0].shape[1:]), np.nan)
    for whole, values in zip(stacked, maps, strict=True):
        whole[: len(values)] = values
    known = np.isfinite(stacked)
    share = sizes[:, None, None, None] * known
    total = (np.where(known, stacked, 0) * share).sum(0)
    return np.where(share.sum(0) > 0, total / np.maximum(share.sum(0), 1), np.nan)
