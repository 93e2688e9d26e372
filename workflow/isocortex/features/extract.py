"""The features stage: several layers of one model, in one pass over the stimuli."""

import difflib
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import torch
import xarray as xr
from torch import nn
from tqdm import tqdm

from isocortex import store
from isocortex.device import deterministic, select_device
from isocortex.errors import InputError
from isocortex.features.architectures import build_architecture, weights_digest
from isocortex.features.images import load_images

logger = logging.getLogger(__name__)

DIMS = {1: ("unit",), 2: ("token", "unit"), 3: ("channel", "row", "column")}


def _first_tensor(output: Any) -> torch.Tensor:
    """The tensor of a layer's output: itself, or the first of a tuple or of a named output."""
    while not torch.is_tensor(output):
        output = next(iter(output.values() if isinstance(output, Mapping) else output))
    return output


def pool_activation(activation: torch.Tensor, *, pool: str, grid: int) -> torch.Tensor:
    """Pool one layer's activation over space (n, channel, row, column) or tokens (n, token, unit).

    `none` leaves it; `mean` averages; `grid` averages over grid x grid cells where the rows and
    columns are more. Activations without space are left alone.
    """
    if pool == "mean" and activation.ndim == 4:
        return activation.mean((2, 3))
    if pool == "mean" and activation.ndim == 3:
        return activation.mean(1)
    if pool == "grid" and activation.ndim == 4:
        cells = (min(grid, activation.shape[2]), min(grid, activation.shape[3]))
        return nn.functional.adaptive_avg_pool2d(activation, cells)
    return activation


def layer_activations(
    module: nn.Module,
    batches: Sequence[Callable[[], torch.Tensor]],
    layers: Sequence[str],
    receive: Callable[[str, int, np.ndarray], None],
    *,
    device: torch.device,
    pool: str = "none",
    grid: int = 4,
    name: str = "model",
) -> None:
    """Run a model once over all batches and hand over the outputs of several layers.

    Parameters
    ----------
    module
        The network, in evaluation mode.
    batches
        Functions that load one batch of inputs each, shape (n, 3, height, width).
    layers
        Names of submodules.
    receive
        Called as `receive(layer, first, values)` with values of shape (n, ...), float32, whose
        first row belongs to input number `first`.
    device
        Where the network runs.
    pool, grid
        See `pool_activation`.
    name
        The model's key in the config, for messages.

    Raises
    ------
    InputError
        If there is no such layer, or it took no part in the pass.

    Notes
    -----
    Outputs are copied inside the hook, so that a later operation in place cannot change them.
    The output of a layer that runs several times in one pass is that of its last run.
    """
    modules = dict(module.named_modules())
    for layer in layers:
        if layer not in modules or not layer:
            close = difflib.get_close_matches(layer, modules, n=3, cutoff=0.4)
            hint = f"did you mean {' or '.join(close)}?" if close else "it has no such submodule"
            raise InputError(f"unknown layer {layer!r} in features.models.{name}.layers: {hint}")
    seen: dict[str, np.ndarray] = {}

    def hook(layer: str) -> Callable[..., None]:
        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            pooled = pool_activation(_first_tensor(output), pool=pool, grid=grid)
            seen[layer] = pooled.to("cpu", torch.float32).numpy(force=True).copy()

        return keep

    handles = [modules[layer].register_forward_hook(hook(layer)) for layer in layers]
    try:
        module.to(device)
        first = 0
        with torch.inference_mode():
            for load in tqdm(batches, desc=f"features {name}", unit="batch", disable=None):
                images = load().to(device)
                seen.clear()
                module(images)
                for layer in layers:
                    if layer not in seen or len(seen[layer]) != len(images):
                        raise InputError(
                            f"layer {layer!r} in features.models.{name}.layers gives no output "
                            "per image in the forward pass: name another"
                        )
                    receive(layer, first, seen[layer])
                first += len(images)
    finally:
        for handle in handles:
            handle.remove()


def _by_stimulus(name: str, stimuli: Sequence[Path], ids: Sequence[str]) -> dict[str, Path]:
    """Files by stimulus id, sorted by id: the store does not depend on the order of the files."""
    if len(stimuli) != len(ids):
        raise InputError(
            f"{len(stimuli)} stimulus files but {len(ids)} ids for features.models.{name}: "
            "give one id a file"
        )
    if not stimuli:
        raise InputError(f"no stimuli for features.models.{name}: check the stimulus folder")
    files: dict[str, Path] = {}
    for stimulus, path in zip(ids, stimuli, strict=True):
        if files.setdefault(stimulus, Path(path)) != Path(path):
            raise InputError(
                f"stimulus id {stimulus!r} stands for two files, {files[stimulus]} and {path}: "
                "rename one"
            )
    return dict(sorted(files.items()))


def extract_features(
    *,
    stimuli: Sequence[Path],
    stimulus_ids: Sequence[str],
    out: Path,
    model: str,
    architecture: str,
    source: str = "builtin",
    weights: str = "none",
    seed: int = 0,
    layers: Sequence[str] = (),
    image_size: int | None = None,
    fit: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    pool: str = "none",
    grid: int = 4,
    batch_size: int = 32,
    device: str = "auto",
    threads: int = 1,
    code: str = "",
) -> Path:
    """Write the features store of one model.

    Parameters
    ----------
    stimuli
        Image files.
    stimulus_ids
        Their ids, in the same order; the store is sorted by id.
    out
        The store.
    model
        The model's key in the config.
    architecture, source, weights, seed, image_size
        See `build_architecture`.
    layers
        Names of submodules; none: the architecture's default set.
    fit, mean, std
        See `load_images`; None: the architecture's own.
    pool, grid
        See `pool_activation`.
    batch_size
        Images a pass. It bounds the memory; all layers go to disk batch by batch.
    device
        `auto`, `cpu` or `cuda`.
    threads
        Cores.
    code
        Code version, for the manifest.

    Returns
    -------
    Path
        The manifest of the store.

    Raises
    ------
    InputError
        For anything wrong with the stimuli, the model, its weights or layers, or the device.
    """
    where = select_device(device, key="features.device")
    files = _by_stimulus(model, stimuli, stimulus_ids)
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with deterministic(threads), tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        made = build_architecture(
            model,
            source=source,
            architecture=architecture,
            weights=weights,
            seed=seed,
            image_size=image_size,
        )
        digest = weights_digest(made.module)
        names = list(layers) or list(made.layers)
        center = tuple(made.mean if mean is None else mean)
        spread = tuple(made.std if std is None else std)
        fitted = fit or made.fit
        paths = list(files.values())

        def batch(first: int) -> Callable[[], torch.Tensor]:
            return lambda: load_images(
                paths[first : first + batch_size],
                size=made.image_size,
                fit=fitted,
                resampling=made.resampling,
                mean=center,
                std=spread,
            )

        kept: dict[str, np.memmap] = {}

        def receive(layer: str, first: int, values: np.ndarray) -> None:
            if layer not in kept:
                file = Path(scratch) / f"{len(kept)}.npy"
                shape = (len(paths), *values.shape[1:])
                kept[layer] = np.lib.format.open_memmap(file, "w+", np.float32, shape)
            if values.shape[1:] != kept[layer].shape[1:]:
                raise InputError(
                    f"layer {layer!r} of features.models.{model} changes its shape between "
                    "images: name another"
                )
            kept[layer][first : first + len(values)] = values

        batches = [batch(first) for first in range(0, len(paths), batch_size)]
        layer_activations(
            made.module, batches, names, receive, device=where, pool=pool, grid=grid, name=model
        )
        attrs = {
            "model": model,
            "source": source,
            "architecture": architecture,
            "weights": digest,
            "weights_from": weights if weights in ("hub", "none") else Path(weights).name,
            "seed": seed,
            "preprocessing": f"RGB, {fitted} to {made.image_size} x {made.image_size} pixels "
            f"({made.resampling}, antialiased), mean {list(center)}, std {list(spread)}; "
            f"pool {pool}{f' {grid} x {grid}' if pool == 'grid' else ''}",
        }
        groups = {}
        for layer in names:
            if not np.isfinite(kept[layer]).all():
                raise InputError(
                    f"layer {layer!r} of features.models.{model} gives values that are not "
                    "finite: check mean, std and the weights"
                )
            own = DIMS.get(kept[layer].ndim - 1) or tuple(
                f"axis{axis}" for axis in range(1, kept[layer].ndim)
            )
            values = kept[layer]
            if values.ndim == 1:
                values, own = values[:, None], ("unit",)
            rows = max(1, (32 << 20) // max(values[:1].nbytes, 1))
            blocks = dask.array.from_array(values, chunks=(rows, *values.shape[1:]), name=False)
            groups[layer] = xr.Dataset(
                {"activation": (("stimulus", *own), blocks)},
                coords={"stimulus": np.array(list(files), dtype=object)},
                attrs=attrs | {"layer": layer},
            )
        logger.info(
            "%s: %d stimuli, layers %s",
            model,
            len(paths),
            ", ".join(f"{layer} {kept[layer].shape[1:]}" for layer in names),
        )
        return store.write(groups, out, spec="features", sources=paths, code=code)
