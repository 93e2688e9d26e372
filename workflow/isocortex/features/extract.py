"""The features stage: several layers of one model, in one pass over the stimuli."""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import psutil
import torch
import xarray as xr
from torch import nn
from tqdm import tqdm

from isocortex import provenance, store
from isocortex.device import deterministic, free_memory, is_out_of_memory, select_device
from isocortex.errors import InputError
from isocortex.feature_arrays import GivenLayer, array_files, check_arrays, open_arrays
from isocortex.features.architectures import Architecture, build_architecture, weights_digest
from isocortex.features.layers import LayerReader, match_layers, pool_activation, probe_layers
from isocortex.features.projection import SparseProjection
from isocortex.features.samples import Batch, Samples, Sampling, samples_of

logger = logging.getLogger(__name__)

DIMS = {1: ("unit",), 2: ("token", "unit"), 3: ("channel", "row", "column")}
BUFFER_BYTES = 1 << 30
"""What the outputs of one batch may take up where memory is plenty. Fixed, because results follow
the batch size in their last digits."""
LARGEST_BATCH = 64


class Reduction:
    """Pools and projects one layer's outputs.

    Parameters
    ----------
    layer
        Its name.
    shape
        Of one output.
    pool, grid
        See `pool_activation`.
    project
        Dimensions of a sparse random projection if there are more units; None: none.
    seed
        Of the projection.
    tokens
        Whether the outputs are those of texts, with any number of tokens.
    """

    def __init__(
        self,
        layer: str,
        shape: Sequence[int],
        *,
        pool: str = "none",
        grid: int = 4,
        project: int | None = None,
        seed: int = 0,
        tokens: torch.Tensor | None = None,
    ) -> None:
        self._pool, self._grid = pool, grid
        one = torch.zeros((1, *shape))
        if tokens is not None:
            tokens = tokens[:1].cpu()
        pooled = tuple(pool_activation(one, pool=pool, grid=grid, tokens=tokens).shape[1:])
        self._units = int(np.prod(pooled))
        self._projection = None
        self.shape = pooled or (1,)
        if project and self._units > project:
            self._projection = SparseProjection(self._units, project, seed=seed, layer=layer)
            self.shape = (project,)

    def __call__(
        self, value: torch.Tensor, *, tokens: torch.Tensor | None = None, batch: Batch | None = None
    ) -> torch.Tensor:
        """Reduce outputs, shape (inputs, ...), to (samples, ...).

        Raises
        ------
        ValueError
            If they have another shape than the layer was said to have.
        """
        value = pool_activation(value, pool=self._pool, grid=self._grid, tokens=tokens)
        if batch is not None:
            value = batch.average(value)
        if self._projection and value[0].numel() == self._units:
            return self._projection(value)
        value = value[:, None] if value.ndim == 1 else value
        if tuple(value.shape[1:]) != self.shape:
            raise ValueError(f"shape {tuple(value.shape[1:])}, not {self.shape}")
        return value


class Network:
    """Runs a network on batches of samples and reduces its layers' outputs.

    Parameters
    ----------
    made
        The network.
    layers
        Names and patterns of submodules, see `match_layers`.
    device
        Where it runs.
    name
        The model's key in the config, for messages.
    pool, grid
        See `pool_activation`.
    project
        Dimensions of a sparse random projection of layers with more units; None: none.
    seed
        Of the projection.

    Notes
    -----
    Outputs are copied inside the hook, so that a later operation in place cannot change them, to
    the processor's memory and into arrays that are used again for every second batch.
    """

    def __init__(
        self,
        made: Architecture,
        layers: Sequence[str],
        *,
        device: torch.device,
        name: str = "model",
        pool: str = "none",
        grid: int = 4,
        project: int | None = None,
        seed: int = 0,
    ) -> None:
        self.made, self.device, self.name = made, device, name
        self._options = {"pool": pool, "grid": grid, "project": project, "seed": seed}
        self._layers, self._everything = match_layers(made.module, layers, name=name)
        self._format = torch.contiguous_format
        self._reductions: dict[str, Reduction] = {}
        self._buffers: list[dict[str, torch.Tensor]] = [{}, {}]
        self._turn = 0
        self._tokens: torch.Tensor | None = None
        made.module.to(device)

    def probe(self, batch: Batch) -> None:
        """Run one sample, twice in a batch, to find the shapes of the layers' outputs.

        Raises
        ------
        InputError
            If a layer took no part in the pass, or gives no output per input.
        """
        inputs = batch.inputs
        twice = Batch(
            torch.cat([inputs[:1]] * 2) if torch.is_tensor(inputs) else [inputs[0]] * 2, (1, 1)
        )
        if sum(isinstance(part, nn.Conv2d) for part in self.made.module.modules()) > 1:
            # Convolutions are faster with the channels innermost
            self._format = torch.channels_last
            self.made.module.to(memory_format=self._format)
        try:
            outputs = self._probe(twice)
        except RuntimeError as error:
            if self._format is torch.contiguous_format or "view" not in str(error):
                raise
            # A module that takes its input's memory to lie in the usual order
            self._format = torch.contiguous_format
            self.made.module.to(memory_format=self._format)
            outputs = self._probe(twice)
        self._layers = {layer: self._layers[layer] for layer in outputs}
        for layer, value in outputs.items():
            self._reductions[layer] = Reduction(
                layer, value.shape[1:], tokens=self._tokens, **self._options
            )

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of a sample's reduced output, by layer; known after `probe`."""
        return {layer: reduction.shape for layer, reduction in self._reductions.items()}

    def _probe(self, batch: Batch) -> dict[str, torch.Tensor]:
        run = self._runner(batch)
        return probe_layers(run, self._layers, n=2, everything=self._everything, name=self.name)

    def _runner(self, batch: Batch) -> Callable[[], Any]:
        """Bring a batch's inputs to the device; return what runs the network on them."""
        self._tokens = None
        call = self.made.call or self.made.module
        if not torch.is_tensor(batch.inputs):
            if self.made.tokenize is None:
                raise ValueError(f"{self.name} takes text, but has no tokenizer")
            named, tokens = self.made.tokenize(batch.inputs)
            named = {key: value.to(self.device) for key, value in named.items()}
            self._tokens = tokens.to(self.device)
            return lambda: call(**named)
        inputs = batch.inputs.to(self.device, non_blocking=True)
        if inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=self._format)
        return lambda: call(inputs)

    def run(self, batch: Batch) -> dict[str, np.ndarray]:
        """Return the layers' outputs of a batch, float32; they hold until the batch after next.

        Raises
        ------
        InputError
            If a layer gives no output per input, another shape than before, or values that are
            not finite.
        """
        inputs = sum(batch.counts)
        kept: dict[str, torch.Tensor] = {}
        buffers = self._buffers[self._turn]
        self._turn = 1 - self._turn

        def receive(layer: str, value: torch.Tensor) -> None:
            if not value.ndim or len(value) != inputs:
                raise InputError(
                    f"layer {layer!r} in features.models.{self.name}.layers gives no output per "
                    "input in the forward pass: name another"
                )
            try:
                value = self._reductions[layer](value, tokens=self._tokens, batch=batch)
            except ValueError as error:
                raise InputError(
                    f"layer {layer!r} of features.models.{self.name} changes its shape between "
                    "stimuli: name another, or set pool"
                ) from error
            kept[layer] = self._copy(buffers, layer, value)

        run = self._runner(batch)
        with torch.inference_mode(), LayerReader(self._layers, receive):
            run()
            if self.device.type == "cuda":
                torch.cuda.current_stream(self.device).synchronize()
        if missing := [layer for layer in self._layers if layer not in kept]:
            raise InputError(
                f"layer {missing[0]!r} in features.models.{self.name}.layers gives no output per "
                "input in the forward pass: name another"
            )
        return {layer: kept[layer].numpy() for layer in self._layers}

    def _copy(
        self, buffers: dict[str, torch.Tensor], layer: str, value: torch.Tensor
    ) -> torch.Tensor:
        n = len(value)
        if layer not in buffers or len(buffers[layer]) < n:
            buffers[layer] = torch.empty(
                (n, *value.shape[1:]), dtype=torch.float32, pin_memory=self.device.type == "cuda"
            )
        return buffers[layer][:n].copy_(value, non_blocking=True)


def _batch_size(sample_bytes: int, *, device: torch.device) -> int:
    """Samples a batch, a power of two: as many as `BUFFER_BYTES` hold, fewer if memory is short.

    A sample's outputs are held twice, and the network's inner ones come to as much again.
    """
    wanted = LARGEST_BATCH
    while wanted > 1 and wanted * sample_bytes > BUFFER_BYTES:
        wanted //= 2
    fitting = wanted
    # Not a container's limit: files in its cache, written here, count against that one
    free = psutil.virtual_memory().available
    if device.type == "cuda":
        free = min(free, free_memory(device))
    while fitting > 1 and 4 * fitting * sample_bytes > free:
        fitting //= 2
    if fitting < wanted:
        logger.info("batches of %d instead of %d, as memory is short", fitting, wanted)
    return fitting


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
        if not Path(path).is_file():
            raise InputError(
                f"no stimulus file {path}: check events.tsv (stim_file) and the folder"
            )
    return dict(sorted(files.items()))


def _key(**parts: Any) -> str:
    """A digest of all that a store's content follows from."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _datasets(
    shapes: Mapping[str, tuple[int, ...]],
    ids: Sequence[str],
    coords: Mapping[str, np.ndarray],
    attrs: Mapping[str, Any],
) -> dict[str, xr.Dataset]:
    """Return the store's groups, of which the activations are yet to come."""
    groups = {}
    for layer, shape in shapes.items():
        own = DIMS.get(len(shape)) or tuple(f"axis{axis}" for axis in range(1, len(shape) + 1))
        blocks = dask.array.empty((len(ids), *shape), dtype=np.float32, chunks=-1)
        groups[layer] = xr.Dataset(
            {"activation": (("stimulus", *own), blocks)},
            coords={
                "stimulus": np.array(ids, dtype=object),
                **{key: ("stimulus", values) for key, values in coords.items()},
            },
            attrs={**attrs, "layer": layer},
        )
    return groups


def _fill(
    stream: store.Stream,
    ranges: Sequence[tuple[int, int]],
    load: Callable[[int, int], Any],
    run: Callable[[Any], dict[str, np.ndarray]],
    *,
    name: str,
) -> None:
    """Append ranges of samples to a stream: one loads and one is written while one is computed."""

    def write(values: Mapping[str, np.ndarray]) -> None:
        for layer, rows in values.items():
            # The sum is finite in all but broken cases, and needs no array of its own
            if not np.isfinite(rows.sum(dtype=np.float64)) and not np.isfinite(rows).all():
                raise InputError(
                    f"layer {layer!r} of features.models.{name} gives values that are not "
                    "finite: check mean, std and the weights"
                )
        stream.append(values)

    if not ranges:
        return
    with (
        ThreadPoolExecutor(1, thread_name_prefix="load") as loader,
        ThreadPoolExecutor(1, thread_name_prefix="write") as writer,
    ):
        ahead = loader.submit(load, *ranges[0])
        written: Future[None] | None = None
        for following in tqdm(
            [*ranges[1:], None], desc=f"features {name}", unit="batch", disable=None
        ):
            batch = ahead.result()
            if following:
                ahead = loader.submit(load, *following)
            values = run(batch)
            if written:
                written.result()
            written = writer.submit(write, values)
        if written:
            written.result()


def _fill_halving(stream: store.Stream, samples: Samples, network: Network, name: str) -> None:
    """Append all samples; where a batch does not fit the GPU's memory, go on with half of it."""
    while True:
        size = stream.notes["batch"]
        ranges = samples.ranges(size, stream.rows)
        try:
            _fill(stream, ranges, samples.load, network.run, name=name)
        except (RuntimeError, MemoryError) as error:
            if size == 1 or not is_out_of_memory(error):
                raise
            torch.cuda.empty_cache()
            stream.notes["batch"] = size // 2
            logger.info("%s: out of memory, batches of %d from here on", name, size // 2)
        else:
            return


def _extract_arrays(
    out: Path,
    *,
    model: str,
    files: str | Mapping[str, str],
    stimulus_list: str | None,
    layers: Sequence[str],
    wanted: Sequence[str],
    reduction: Mapping[str, Any],
    words: str,
    batch_size: int | str,
    code: str,
) -> Path:
    """Write the features store of a model given as arrays, its rows joined by stimulus id."""
    check_arrays(model, files, stimulus_list, wanted=wanted, layers=layers)
    opened = open_arrays(model, files, stimulus_list)
    opened = {layer: opened[layer] for layer in layers or opened}
    # Where the study has no stimulus files, the stimuli are those that all layers have
    ids = sorted(wanted or set.intersection(*(set(given.ids) for given in opened.values())))
    rows = {
        layer: np.array([{name: row for row, name in enumerate(given.ids)}[i] for i in ids])
        for layer, given in opened.items()
    }
    sources = array_files(files, stimulus_list)
    digests = [provenance.file_digest(path) for path in sources]
    attrs = {
        "model": model,
        "source": "arrays",
        "architecture": "",
        "weights": _key(files=digests),
        "weights_from": ", ".join(sorted({given.file.name for given in opened.values()})),
        "seed": reduction["seed"],
        "preprocessing": words,
    }
    reducers = {
        layer: Reduction(layer, given.shape[1:], **reduction) for layer, given in opened.items()
    }
    shapes = {layer: reducer.shape for layer, reducer in reducers.items()}

    def load(first: int, last: int) -> dict[str, np.ndarray]:
        return {layer: _rows(given, rows[layer][first:last]) for layer, given in opened.items()}

    def run(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {
            layer: reducers[layer](torch.from_numpy(part)).contiguous().numpy()
            for layer, part in values.items()
        }

    stream = store.Stream(
        out,
        spec="features",
        key=_key(
            attrs=attrs,
            ids=ids,
            layers=list(opened),
            # Which layer is read from which file: contents alone would not tell a swap
            files=files,
            reduction=reduction,
            batch=batch_size,
            code=code,
        ),
    )
    try:
        if not stream.begun:
            stream.begin(_datasets(shapes, ids, {}, attrs))
        sample = 4 * sum(int(np.prod(given.shape[1:])) for given in opened.values())
        size = batch_size
        if not isinstance(size, int):
            size = max(1, min(1024, BUFFER_BYTES // 8 // max(sample, 1)))
        starts = range(stream.rows, len(ids), size)
        ranges = [(first, min(first + size, len(ids))) for first in starts]
        _fill(stream, ranges, load, run, name=model)
    except InputError:
        stream.discard()
        raise
    return stream.finish(sources=sources, code=code)


def _rows(given: GivenLayer, rows: np.ndarray) -> np.ndarray:
    """Rows of an array in any order, float32; files give them in ascending order."""
    order = np.argsort(rows)
    values = np.empty((len(rows), *given.shape[1:]), np.float32)
    values[order] = given.read(rows[order].tolist())
    return values


def extract_features(
    *,
    stimuli: Sequence[Path],
    stimulus_ids: Sequence[str],
    out: Path,
    model: str,
    architecture: str = "",
    source: str = "builtin",
    weights: str = "none",
    seed: int = 0,
    tower: str = "image",
    tokenizer: str | None = None,
    folder: str = ".",
    files: str | Mapping[str, str] | None = None,
    stimulus_list: str | None = None,
    layers: Sequence[str] | str = (),
    image_size: int | None = None,
    fit: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    sampling: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    pool: str = "none",
    grid: int = 4,
    project: int | None = None,
    batch_size: int | str = "auto",
    device: str = "auto",
    threads: int = 1,
    code: str = "",
) -> Path:
    """Write the features store of one model.

    Parameters
    ----------
    stimuli
        Files of images, movies or texts.
    stimulus_ids
        Their ids, in the same order; the store is sorted by id.
    out
        The store.
    model
        The model's key in the config.
    architecture, source, weights, seed, tower, tokenizer, folder, image_size
        See `build_architecture`; with source `arrays` none of them.
    files, stimulus_list
        Of source `arrays`, see `isocortex.feature_arrays.open_arrays`.
    layers
        Names and patterns of submodules, see `match_layers`; none: the architecture's default
        set.
    fit, mean, std
        See `load_images`; None: the architecture's own.
    sampling
        How movies and words are cut, see `Sampling`.
    options
        A builtin's own, see `build_architecture`.
    pool, grid
        See `pool_activation`.
    project
        Dimensions of a sparse random projection of layers with more units, see
        `SparseProjection`; None: none.
    batch_size
        Images or texts a pass; `auto`: as many as their layers' outputs leave memory for.
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

    Notes
    -----
    Batches that are done lie in a hidden folder beside the store. If the process is killed, the
    next one that is asked for the same (model, weights, layers, preprocessing, stimuli, code)
    goes on behind them, and its store has the bytes of an undisturbed run.
    """
    where = select_device(device, key="features.device")
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    layers = [layers] if isinstance(layers, str) else list(layers)
    reduction = {"pool": pool, "grid": grid, "project": project, "seed": seed}
    words = f"pool {pool}{f' {grid} x {grid}' if pool == 'grid' else ''}"
    if project:
        words += f", sparse random projection to {project} (seed {seed})"
    with deterministic(threads):
        if source == "arrays":
            return _extract_arrays(
                out,
                model=model,
                files=files or "",
                stimulus_list=stimulus_list,
                layers=layers,
                wanted=stimulus_ids,
                reduction=reduction,
                words=words,
                batch_size=batch_size,
                code=code,
            )
        cut = Sampling(**(sampling or {}))
        made = build_architecture(
            model,
            source=source,
            architecture=architecture,
            weights=weights,
            seed=seed,
            image_size=image_size,
            tower=tower,
            tokenizer=tokenizer,
            folder=folder,
            options=options,
            sampling=cut,
        )
        center = list(made.mean if mean is None else mean)
        spread = list(made.std if std is None else std)
        fitted = fit or made.fit
        samples = samples_of(
            _by_stimulus(model, stimuli, stimulus_ids),
            takes=made.takes,
            model=model,
            sampling=cut,
            frame_rate=made.frame_rate,
            size=made.image_size,
            fit=fitted,
            resampling=made.resampling,
            mean=center,
            std=spread,
        )
        if made.takes == "text":
            shown = "texts as tokens, without those of no character, averaged unless pool is last"
        else:
            shown = (
                f"RGB, {fitted} to {made.image_size} x {made.image_size} pixels "
                f"({made.resampling}, antialiased), mean {center}, std {spread}"
            )
        attrs = {
            "model": model,
            "source": source,
            "architecture": architecture,
            "weights": weights_digest(made.module),
            "weights_from": weights if weights in ("hub", "none") else Path(weights).name,
            "seed": seed,
            "preprocessing": f"{shown}; {words}",
            **made.attrs,
        }
        if samples.skipped:
            attrs["skipped"] = ", ".join(f"{n} {kind}" for kind, n in samples.skipped.items())
        names = layers or list(made.layers)
        stream = store.Stream(
            out,
            spec="features",
            key=_key(
                attrs=attrs,
                origin=made.origin,
                layers=names,
                reduction=reduction,
                options=options,
                sampling=sampling,
                ids=samples.ids,
                stimuli=[provenance.file_digest(path) for path in samples.sources],
                batch_size=batch_size,
                device=where.type,
                versions=provenance.versions(),
                code=code,
            ),
        )
        try:
            network = Network(made, names, device=where, name=model, **reduction)
            network.probe(samples.load(0, 1))
            if not stream.begun:
                size = batch_size
                if size == "auto":
                    sample = 4 * sum(int(np.prod(shape)) for shape in network.shapes.values())
                    size = _batch_size(sample, device=where)
                coords = {}
                if samples.varying:
                    coords = {
                        "source": np.array(samples.source, dtype=object),
                        "time": samples.time,
                        "duration": samples.duration,
                    }
                stream.begin(
                    _datasets(network.shapes, samples.ids, coords, attrs), notes={"batch": size}
                )
            elif stream.rows:
                logger.info("%s: goes on behind %d of %d", model, stream.rows, len(samples))
            _fill_halving(stream, samples, network, model)
        except InputError:
            # What is wrong has to change, and with it the key of what is there
            stream.discard()
            raise
        logger.info(
            "%s: %d samples, layers %s",
            model,
            len(samples),
            ", ".join(f"{layer} {shape}" for layer, shape in network.shapes.items()),
        )
        return stream.finish(sources=samples.sources, code=code)
