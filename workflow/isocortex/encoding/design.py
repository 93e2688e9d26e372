"""What is predicted and from what: one subject's responses, one model's features, the folds.

Everything that predicts responses reads them through `open_responses` and `design_of`, whether
they are single trials (a betas store) or volumes (a timeseries store).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from isocortex import bids, store
from isocortex.encoding.folds import CrossValidation, cross_validation_folds
from isocortex.encoding.maps import regions_of_voxels
from isocortex.encoding.scores import ceiling_correlation, high_enough
from isocortex.errors import InputError

RESIDENT_BYTES = 1 << 30  # responses up to this size are read once and kept
FINITE_BLOCK = 4096  # voxels whose responses are looked through at a time
SPECS = {"betas": "trials", "timeseries": "volumes"}
VOXELS = ("responsive", "regions", "all")


class _Blocks:
    """Blocks of voxels of a store, each part of which is read from disk once if asked in order.

    A store is cut into shards of voxels, and any voxel of a shard costs the whole shard to read;
    the shard that was read last is kept. Of some voxels (`chosen`, ascending) only their part is.
    """

    def __init__(self, array: xr.DataArray, chosen: np.ndarray | None = None) -> None:
        self.array = array.transpose(..., "voxel")
        sizes = self.array.variable.chunksizes.get("voxel", (array.sizes["voxel"],))
        stored = np.cumsum((0, *sizes))
        if array.nbytes <= RESIDENT_BYTES:
            stored = stored[[0, -1]]
        self.chosen, self.stored = chosen, stored
        self.edges = stored if chosen is None else np.searchsorted(chosen, stored)
        self.number, self.values = -1, np.empty((0, 0), np.float32)

    def _shard(self, number: int) -> np.ndarray:
        if number != self.number:
            self.values = np.empty((0, 0), np.float32)  # never two at a time
            part = slice(int(self.stored[number]), int(self.stored[number + 1]))
            values = np.asarray(self.array.isel(voxel=part).values)
            if self.chosen is not None:
                mine = self.chosen[self.edges[number] : self.edges[number + 1]]
                values = values[:, mine - part.start]
            self.values = values
            self.number = number
        return self.values

    def __call__(self, first: int, last: int, rows: np.ndarray) -> np.ndarray:
        low = int(np.searchsorted(self.edges, first, side="right")) - 1
        parts = []
        while first < last:
            start, stop = int(self.edges[low]), min(int(self.edges[low + 1]), last)
            if stop > first:  # no voxel of a shard may be chosen
                parts.append(self._shard(low)[:, first - start : stop - start][rows])
            first, low = stop, low + 1
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
        return whole.astype(np.float32, copy=False)


@dataclass(frozen=True)
class Responses:
    """Responses of one subject and task, read in blocks of voxels.

    Attributes
    ----------
    path
        The store.
    kind
        ``trials`` (betas) or ``volumes`` (timeseries).
    subject, task, attrs
        Whose; affine, shape, space, TR and what else the store says.
    used
        Indices of the samples that take part: trials with a stimulus, or all volumes.
    n_samples
        Samples in the store, used or not.
    n_voxels
        Number of voxels.
    ceiling
        Shape (voxels,): highest correlation to be expected with a single sample, NaN unknown
        (see `isocortex.encoding.scores`).
    coords
        Voxel indices i, j, k.
    samples
        What is known of each used sample: run and session; of trials also stimulus, condition
        and onset; of volumes time (s).
    whole, chosen
        Of what `only` gives: the responses of all voxels, and the indices of these among them.
    """

    path: Path
    kind: str
    subject: str
    task: str
    attrs: Mapping[str, Any]
    used: np.ndarray
    n_samples: int
    n_voxels: int
    ceiling: np.ndarray
    coords: Mapping[str, np.ndarray]
    samples: Mapping[str, np.ndarray]
    blocks: _Blocks = field(repr=False)
    whole: Responses | None = field(default=None, repr=False)
    chosen: np.ndarray | None = field(default=None, repr=False)

    @property
    def voxels(self) -> np.ndarray:
        """Index of each voxel in the store, shape (voxels,)."""
        return np.arange(self.n_voxels) if self.chosen is None else self.chosen

    @property
    def stored(self) -> Responses:
        """The responses of all voxels of the store."""
        return self.whole or self

    def only(self, mask: np.ndarray) -> Responses:
        """Responses of the voxels of a mask, shape (voxels,), read from the same shards.

        What was computed of them goes back to its place with `scatter`.
        """
        kept = np.flatnonzero(mask)
        chosen, whole = self.voxels[kept], self.stored
        return replace(
            self,
            n_voxels=len(kept),
            ceiling=self.ceiling[kept],
            coords={axis: values[kept] for axis, values in self.coords.items()},
            blocks=_Blocks(whole.blocks.array, chosen),
            whole=whole,
            chosen=chosen,
        )

    def finite(self) -> np.ndarray:
        """Which voxels have finite responses to all samples, shape (voxels,)."""
        found = np.empty(self.n_voxels, bool)
        blocks = _Blocks(self.blocks.array, self.chosen)  # nothing of it stays in memory
        for first in range(0, self.n_voxels, FINITE_BLOCK):
            last = min(first + FINITE_BLOCK, self.n_voxels)
            found[first:last] = np.isfinite(blocks(first, last, self.used)).all(0)
        return found

    @property
    def name(self) -> str:
        """Whose responses these are, for messages."""
        return f"subject {self.subject}, task {self.task}"

    def read(self, first: int, last: int) -> np.ndarray:
        """Responses of voxels first to last, shape (samples used, last - first), float32.

        Memory is that of the block and of the store's shard that it lies in (or of the whole
        store where that is small).
        """
        return self.blocks(first, last, self.used)


@dataclass(frozen=True)
class Design:
    """Folds over the samples, and a model's features in the order of their rows.

    Attributes
    ----------
    cv
        Unique rows (`cv.stimuli`), the row of each sample (`cv.stimulus`), groups of runs, and
        folds with nested inner splits.
    layers
        Names, in the order of the features store.
    load
        Gives a layer's features, shape (rows, units), float32: flattened, for volumes also
        resampled in time and delayed.
    load_maps
        Gives them unflattened: (rows, channel, row, column), (rows, token, unit), (rows, unit).
    model
        Name of the model.
    attrs
        Attributes of the first layer's group of the features store.
    """

    cv: CrossValidation
    layers: tuple[str, ...]
    load: Callable[[str], np.ndarray]
    load_maps: Callable[[str], np.ndarray]
    model: str
    attrs: Mapping[str, Any]


def open_responses(path: str | Path) -> Responses:
    """Open a betas or a timeseries store as responses.

    Raises
    ------
    InputError
        Where it is another kind of store, or no trial has a stimulus.
    """
    path = Path(path)
    spec = store.spec_of(path)
    if spec not in SPECS:
        raise InputError(
            f"{path} is a {spec!r} store: encoding predicts betas or timeseries, pass one of these"
        )
    data = store.open(path, spec)
    subject, task = str(data.attrs["subject"]), str(data.attrs["task"])
    if spec == "betas":
        shown = np.array([str(value) for value in data["stimulus"].values])
        used = np.flatnonzero(~np.isin(shown, ["", "n/a"]))
        if not len(used):
            raise InputError(
                f"no trial of subject {subject}, task {task} has a stimulus in {path}: check "
                "events.tsv"
            )
        values = data["beta"]
        labels = ("stimulus", "condition", "session", "run", "onset")
        ceiling = ceiling_correlation(data["ncsnr"].values)
    else:
        values = data["signal"]
        used = np.arange(values.sizes["volume"])
        labels = ("session", "run", "time")
        share = data.get("noise_ceiling")
        ceiling = (
            np.full(values.sizes["voxel"], np.nan)
            if share is None
            else np.sqrt(np.clip(share.values.astype(float), 0, 1))
        )
    samples = {}
    for label in labels:
        found = np.asarray(data[label].values)[used]
        samples[label] = found.astype(str) if found.dtype.kind in "OUT" else found
    return Responses(
        path=path,
        kind=SPECS[spec],
        subject=subject,
        task=task,
        attrs=dict(data.attrs),
        used=used,
        n_samples=values.shape[0],
        n_voxels=values.sizes["voxel"],
        ceiling=ceiling,
        coords={axis: data[axis].values for axis in "ijk"},
        samples=samples,
        blocks=_Blocks(values),
    )


def choose_voxels(
    responses: Responses,
    voxels: str,
    *,
    min_ceiling: float,
    regions: str | Path | None = None,
    region_labels: str | Path | None = None,
    key: str = "voxels",
) -> Responses:
    """Leave out the voxels that a fit is not worth its time for.

    Parameters
    ----------
    responses
        Of `open_responses`.
    voxels
        ``responsive``: an explainable share of the variance of single samples of at least
        `min_ceiling`, or all finite voxels where no voxel's share is known. ``regions``: those
        with a label of the table. ``all``.
    min_ceiling
        Share, 0 to 1.
    regions, region_labels
        Label image on the grid of the responses and its table of index and name.
    key
        Of the config, for messages.

    Raises
    ------
    InputError
        Where there is no such choice, regions are missing or on another grid, or no voxel is left.

    Notes
    -----
    Noise ceilings tell how alike the responses to the same stimulus are, in test samples too. No
    feature and no prediction has part in them: responses without relation to the features still
    score around 0 in the voxels that are kept.
    """
    if voxels not in VOXELS:
        raise InputError(f"unknown {key} {voxels!r}: write one of {', '.join(VOXELS)}")
    if voxels == "all":
        return responses
    if voxels == "regions":
        if regions is None or region_labels is None:
            raise InputError(f"{key} is regions, and there are none: add regions, or write all")
        label = regions_of_voxels(regions, responses.coords, responses.attrs, where=responses.name)
        mask = np.isin(label, list(bids.read_labels(region_labels)))
        lacks = "lies in a region: correct the atlas"
    elif np.isfinite(responses.ceiling).any():
        mask = high_enough(responses.ceiling, min_ceiling)
        lacks = f"reaches encoding.min_ceiling ({min_ceiling:g}): lower it"
    else:
        mask = responses.finite()
        lacks = "has finite responses throughout: correct the data"
    if not mask.any():
        raise InputError(f"no voxel of {responses.name} {lacks}, or set {key} to all")
    return responses if mask.all() else responses.only(mask)


def scatter(result: xr.Dataset, opened: Sequence[Responses], *, dim: str = "voxel") -> xr.Dataset:
    """Put results of the voxels that were kept in their places among all voxels of the stores.

    Parameters
    ----------
    result
        Has the voxels of `opened`, one subject after another, along `dim`.
    opened
        What `choose_voxels` gave.
    dim
        Of voxels.

    Returns
    -------
    xarray.Dataset
        Voxels left out are NaN, -1 in integers and empty in text, but for i, j, k and
        ``noise_ceiling``, which are known of all; what has no such dimension is as it was.
    """
    wholes = [of.stored for of in opened]
    first = np.cumsum([0, *(whole.n_voxels for whole in wholes)])
    places = np.concatenate([low + of.voxels for low, of in zip(first[:-1], opened, strict=True)])
    if len(places) == first[-1]:
        return result
    variables = {}
    for name, variable in result.variables.items():
        if dim in variable.dims:
            moved = variable.transpose(..., dim)
            fill = {"f": np.nan, "i": -1}.get(moved.dtype.kind, "")
            values = np.full((*moved.shape[:-1], first[-1]), fill, moved.dtype)
            values[..., places] = moved.values
            variable = xr.Variable(moved.dims, values, variable.attrs).transpose(*variable.dims)
        variables[name] = variable
    of_all = {axis: np.concatenate([whole.coords[axis] for whole in wholes]) for axis in "ijk"}
    of_all["noise_ceiling"] = np.concatenate([whole.ceiling for whole in wholes])
    for name, values in of_all.items():
        variables[name] = xr.Variable((dim,), values.astype(variables[name].dtype))
    coords = {name: variables.pop(name) for name in result.coords}
    return xr.Dataset(variables, coords=coords, attrs=result.attrs)


def design_of(
    responses: Responses,
    features: str | Path,
    *,
    cross_validation: Mapping[str, Any],
    seed: int = 0,
    delays: Sequence[float] | Mapping[str, Any] | None = None,
    layers: Sequence[str] | None = None,
    **options: Any,
) -> Design:
    """Fold a subject's responses and join them to a model's features by stimulus id.

    Parameters
    ----------
    responses
        Of `open_responses`.
    features
        Features store.
    cross_validation
        ``over`` (run, session or, of trials, condition) and the options of
        `cross_validation_folds`.
    seed
        Of the order in which stimuli are dealt to folds: the study's.
    delays
        Of volumes: see `isocortex.encoding.volumes.volume_design`. Trials take none.
    layers
        Only these, in this order; all of the store where None.
    options
        Further options of `volume_design`.

    Raises
    ------
    InputError
        Where a stimulus has no features, a layer is not there, or there are too few stimuli.
    """
    features = Path(features)
    if responses.kind == "volumes":
        from isocortex.encoding.volumes import volume_design

        return volume_design(
            responses,
            features,
            cross_validation=cross_validation,
            seed=seed,
            delays=delays,
            layers=layers,
            **options,
        )
    over = cross_validation.get("over", "run")
    cv = cross_validation_folds(
        responses.samples["stimulus"],
        responses.samples[over],
        seed=seed,
        where=responses.name,
        **{key: value for key, value in cross_validation.items() if key != "over"},
    )
    names = tuple(layers) if layers else tuple(store.groups(features))
    opened = {layer: store.open(features, "features", group=layer) for layer in names}
    rows = {
        layer: rows_of_stimuli(data, cv.stimuli, features, responses.name)
        for layer, data in opened.items()
    }

    def load_maps(layer: str) -> np.ndarray:
        return np.asarray(opened[layer]["activation"].values, np.float32)[rows[layer]]

    def load(layer: str) -> np.ndarray:
        return load_maps(layer).reshape(len(cv.stimuli), -1)

    attrs = dict(opened[names[0]].attrs)
    return Design(cv, names, load, load_maps, str(attrs["model"]), attrs)


def rows_of_stimuli(data: xr.Dataset, stimuli: Sequence[str], path: Path, where: str) -> list[int]:
    """Row of each stimulus in a layer of a features store."""
    row = {stimulus: index for index, stimulus in enumerate(data["stimulus"].values)}
    missing = [stimulus for stimulus in stimuli if stimulus not in row]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(
            f"stimulus {missing[0]!r}{more} of {where} has no features in {path}: put its image "
            "into the stimulus folder under that name"
        )
    return [row[stimulus] for stimulus in stimuli]


def centre(values: np.ndarray, cv: CrossValidation) -> tuple[np.ndarray, np.ndarray]:
    """Centre responses within each group of runs, and find the voxels that can be used.

    Parameters
    ----------
    values
        Shape (samples, voxels).
    cv
        Whose `group` is centred within.

    Returns
    -------
    values
        float64, same shape; voxels with a value that is not finite are all 0.
    usable
        Shape (voxels,): False for those.

    Notes
    -----
    A held-out group shares no sample with the training groups, and with one group all samples are
    shifted alike, which the intercept takes up: neither tells the training of the test.
    """
    values = np.asarray(values, np.float64)
    of_group = np.zeros((len(cv.groups), len(values)))
    of_group[cv.group, np.arange(len(values))] = 1
    of_group /= np.maximum(of_group.sum(1, keepdims=True), 1)
    with np.errstate(invalid="ignore"):
        values = values - (of_group @ values)[cv.group]
    usable = np.isfinite(values).all(0)
    return np.where(usable, values, 0.0), usable
