"""Voxelwise encoding of one subject from several feature spaces together."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from tqdm import tqdm

from isocortex import store
from isocortex.device import deterministic, select_device
from isocortex.encoding.banded import (
    HeldOut,
    Interpolation,
    JointSplit,
    dirichlet_candidates,
    held_out_targets,
    joint_from_features,
    joint_from_kernels,
    points_of,
    predict_spaces,
    refine_weights,
    search_weights,
)
from isocortex.encoding.design import (
    centre,
    choose_voxels,
    design_of,
    open_responses,
    scatter,
)
from isocortex.encoding.fit import ridge_penalties
from isocortex.encoding.folds import CrossValidation
from isocortex.encoding.maps import write_maps
from isocortex.encoding.ridge import Samples, Targets, gram, standardisation
from isocortex.encoding.scores import high_enough, normalise, pearson, r2
from isocortex.encoding.stacking import simplex_weights, stacking_weights
from isocortex.encoding.variance import product_measure, unique_variance
from isocortex.errors import InputError

logger = logging.getLogger(__name__)

METHODS = ("banded", "stacking")
VOXEL_BATCHES = 8  # so many batches of voxels share what is computed of the features
LEAST_WEIGHT = 1e-6  # of a space, in the mean of log weights over folds

Space = Callable[[], Sequence[np.ndarray]]


@dataclass(frozen=True)
class JointFit:
    """What joint models score, means over folds; NaN for voxels without a score.

    Parameters
    ----------
    score, r2
        Shape (voxels,): Pearson r and r2 of held-out samples.
    product_measure, unique, space_score, weight
        Shape (spaces, voxels): share of r2; r2 lost without the space (NaN where not asked for);
        r of the space's own part; log of its weight gamma, or its stacking weight.
    alpha
        Shape (voxels,), or (spaces, voxels) in stacking: penalty, geometric mean.
    """

    score: np.ndarray
    r2: np.ndarray
    product_measure: np.ndarray
    unique: np.ndarray
    space_score: np.ndarray
    weight: np.ndarray
    alpha: np.ndarray


@dataclass(frozen=True)
class _Made:
    """Held-out predictions of a block of voxels, without the intercept."""

    parts: torch.Tensor
    alone: torch.Tensor
    without: torch.Tensor | None
    weight: torch.Tensor
    log_alpha: torch.Tensor


def scaled_space(layers: Sequence[torch.Tensor], counts: torch.Tensor, rows: torch.Tensor):
    """Centre and scale of each layer of a space, so that layers count alike whatever their size.

    Parameters
    ----------
    layers
        Each of shape (all rows, units).
    counts
        Shape (training rows,): samples of each.
    rows
        Training rows.

    Returns
    -------
    list
        (centre, scale) of each layer: z-scores over the training samples, over the root of the
        number of units that vary and of the number of layers.
    """
    moments = [standardisation(layer[rows], counts) for layer in layers]
    return [(middle, scale / len(layers) ** 0.5) for middle, scale in moments]


class _Fold:
    """The joint ridges of one outer fold: inner splits, and the whole training set."""

    def __init__(self, spaces: Sequence[Sequence[torch.Tensor]], samples: Samples) -> None:
        self.samples = samples
        row = samples.row
        device = spaces[0][0].device
        train = torch.from_numpy(np.unique(row[samples.train])).to(device)
        counts = torch.from_numpy(samples.counts(samples.train)).to(device)[train]
        moments = [scaled_space(layers, counts, train) for layers in spaces]
        dual = sum(layer.shape[1] for layers in spaces for layer in layers) >= len(train)
        known = [
            self._products(layers, moment) if dual else self._scaled(layers, moment)
            for layers, moment in zip(spaces, moments, strict=True)
        ]
        self._known = torch.stack(known) if dual else known
        self.inner = [self._split(*pair) for pair in samples.inner]
        self.outer = self._split(samples.train, samples.test)
        del self._known
        _, position = np.unique(row[samples.test], return_inverse=True)
        self.position = torch.from_numpy(position)

    @staticmethod
    def _products(layers, moments) -> torch.Tensor:
        return sum(gram(layer, *moment) for layer, moment in zip(layers, moments, strict=True))

    @staticmethod
    def _scaled(layers, moments) -> torch.Tensor:
        scaled = [
            (layer.double() - middle) * scale
            for layer, (middle, scale) in zip(layers, moments, strict=True)
        ]
        return torch.cat(scaled, 1)

    def _split(self, train: np.ndarray, test: np.ndarray) -> JointSplit:
        rows = [torch.from_numpy(np.unique(self.samples.row[part])) for part in (train, test)]
        counts = [
            torch.from_numpy(self.samples.counts(part))[row]
            for part, row in zip((train, test), rows, strict=True)
        ]
        device = self._known[0].device
        rows, counts = ([part.to(device) for part in parts] for parts in (rows, counts))
        if isinstance(self._known, torch.Tensor):
            kernels = self._known
            inside = kernels[:, rows[0]][:, :, rows[0]]
            across = kernels[:, rows[1]][:, :, rows[0]]
            return joint_from_kernels(inside, across, *counts)
        inside = [space[rows[0]] for space in self._known]
        return joint_from_features(inside, [space[rows[1]] for space in self._known], *counts)

    def means(self, targets: Targets) -> tuple[torch.Tensor, list[tuple[torch.Tensor, ...]]]:
        """Means over each training row's samples; and train and test of the inner splits."""

        def mean(key: Any, chosen: np.ndarray) -> torch.Tensor:
            counts = self.samples.counts(chosen)
            sums = targets.sums(key)
            return sums / torch.from_numpy(counts[counts > 0]).to(sums)[:, None]

        inner = [
            (mean(("train", index), train), mean(("test", index), test))
            for index, (train, test) in enumerate(self.samples.inner)
        ]
        return mean("train", self.samples.train), inner


class _Banded:
    """One ridge with a penalty a space; without a space it is chosen anew."""

    def __init__(
        self,
        spaces: int,
        alphas: Sequence[float],
        *,
        candidates: int,
        concentrations: Sequence[float],
        gradient_steps: int,
        unique: bool,
        seed: int,
    ) -> None:
        self.spaces, self.unique, self.steps = spaces, unique, gradient_steps

        def points(number: int) -> torch.Tensor:
            drawn = dirichlet_candidates(
                candidates, number, concentrations=concentrations, seed=seed
            )
            return points_of(drawn, alphas)

        self.points = {number: points(number) for number in {spaces, spaces - 1}}
        self.subsets = [tuple(range(spaces))]
        if unique:
            self.subsets += [
                tuple(other for other in range(spaces) if other != space) for space in range(spaces)
            ]
        self.interpolations: dict[tuple[int, ...], Interpolation] = {}

    def start(self, fold: _Fold) -> None:
        """Place the nodes for all voxels of a fold."""
        self.interpolations = {
            subset: Interpolation.of(fold.inner[0].only(subset), self.points[len(subset)])
            for subset in self.subsets
        }

    def __call__(
        self, fold: _Fold, train: torch.Tensor, inner: Sequence[tuple[torch.Tensor, ...]]
    ) -> _Made:
        held_out = [
            held_out_targets(split, *pair) for split, pair in zip(fold.inner, inner, strict=True)
        ]
        made = [self._fit(fold, subset, train, held_out) for subset in self.subsets]
        weights, parts = made[0]
        size = torch.logsumexp(weights, 0)
        without = torch.stack([part.sum(0) for _, part in made[1:]]) if self.unique else None
        share = (weights - size).clamp(min=np.log(LEAST_WEIGHT))
        return _Made(parts, parts, without, share, -size[None])

    def _fit(
        self,
        fold: _Fold,
        subset: tuple[int, ...],
        train: torch.Tensor,
        held_out: Sequence[HeldOut],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        splits = [split.only(subset) for split in fold.inner]
        points = self.points[len(subset)]
        choice = search_weights(splits, held_out, points, interpolation=self.interpolations[subset])
        weights = points.to(choice.point.device)[choice.point].T.log()
        if self.steps:
            weights, _ = refine_weights(splits, held_out, weights, steps=self.steps)
        return weights, predict_spaces(fold.outer.only(subset), train, weights)


class _Stacking:
    """A ridge a space, predictions mixed by weights that out-of-fold predictions taught."""

    def __init__(self, spaces: int, alphas: Sequence[float], *, unique: bool) -> None:
        self.spaces, self.unique = spaces, unique
        self.points = points_of(np.ones((1, 1)), alphas)

    def start(self, fold: _Fold) -> None:
        """Nothing to prepare."""

    def __call__(
        self, fold: _Fold, train: torch.Tensor, inner: Sequence[tuple[torch.Tensor, ...]]
    ) -> _Made:
        held_out = [
            held_out_targets(split, *pair) for split, pair in zip(fold.inner, inner, strict=True)
        ]
        out_of_fold, alone, chosen = [], [], []
        for space in range(self.spaces):
            splits = [split.only([space]) for split in fold.inner]
            point = search_weights(splits, held_out, self.points, tolerance=0).point
            weights = self.points.to(point.device)[point].T.log()
            out_of_fold.append(
                torch.cat(
                    [
                        predict_spaces(split, rows, weights)[0] * split.root_share.to(rows)[:, None]
                        for split, (rows, _) in zip(splits, inner, strict=True)
                    ]
                )
            )
            alone.append(predict_spaces(fold.outer.only([space]), train, weights)[0])
            chosen.append(-weights[0])
        wanted = torch.cat([part.offset for part in held_out])
        predictions, alone = torch.stack(out_of_fold), torch.stack(alone)
        mix = stacking_weights(predictions, wanted)
        without = None
        if self.unique:
            residuals = (wanted - predictions).permute(2, 0, 1)
            products = residuals @ residuals.transpose(1, 2)
            without = torch.stack(
                [
                    torch.einsum(
                        "vs,srv->rv", simplex_weights(products[:, kept][:, :, kept]), alone[kept]
                    )
                    for kept in (
                        [other for other in range(self.spaces) if other != space]
                        for space in range(self.spaces)
                    )
                ]
            )
        return _Made(alone * mix[:, None], alone, without, mix, torch.stack(chosen))


def joint_scores(
    spaces: Sequence[Space],
    read_block: Callable[[int, int], np.ndarray],
    n_voxels: int,
    cv: CrossValidation,
    alphas: Sequence[float],
    *,
    method: str = "banded",
    candidates: int = 100,
    concentrations: Sequence[float] = (0.1, 1.0),
    gradient_steps: int = 0,
    unique: bool = True,
    voxel_batch: int = 8192,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> JointFit:
    """Held-out scores of a joint model of several feature spaces, and each space's share.

    Parameters
    ----------
    spaces
        Functions that load one space's layers each, shapes (rows of the design, units).
    read_block
        Gives the samples' responses of voxels first to last, shape (samples, last - first).
    n_voxels
        Number of voxels.
    cv
        The folds.
    alphas
        Penalties: of a whole model of unit weight in banded ridge, of each space in stacking.
    method
        `banded` or `stacking`.
    candidates, concentrations, gradient_steps
        Of banded ridge: see `dirichlet_candidates`, `refine_weights`.
    unique
        Fit without each space in turn, too.
    voxel_batch
        Voxels that are worked on together.
    device, dtype
        Where and in which precision; decompositions are float64.
    seed
        Of the candidates.

    Notes
    -----
    Features are z-scored, and penalties, weights and stacking weights chosen, within the training
    samples of each fold; responses are centred within a run as in `fit.fit_layers`.
    """
    device = torch.device(device)
    number = len(spaces)
    if method == "banded":
        model = _Banded(
            number,
            alphas,
            candidates=candidates,
            concentrations=concentrations,
            gradient_steps=gradient_steps,
            unique=unique,
            seed=seed,
        )
    else:
        model = _Stacking(number, alphas, unique=unique)
    loaded = [
        [torch.from_numpy(np.ascontiguousarray(layer)).to(device) for layer in load()]
        for load in spaces
    ]
    alpha_rows = 1 if method == "banded" else number
    totals = {
        "score": np.zeros((1, n_voxels)),
        "r2": np.zeros((1, n_voxels)),
        "product_measure": np.zeros((number, n_voxels)),
        "unique": np.zeros((number, n_voxels)),
        "space_score": np.zeros((number, n_voxels)),
        "weight": np.zeros((number, n_voxels)),
        "log_alpha": np.zeros((alpha_rows, n_voxels)),
    }
    count = np.zeros(n_voxels)
    for folds in tqdm(cv.folds, desc="joint encoding", unit="fold", disable=None):
        fold = _Fold(loaded, Samples.of_fold(cv, folds))
        model.start(fold)
        position = fold.position.to(device)
        for first in range(0, n_voxels, voxel_batch):
            part = slice(first, min(first + voxel_batch, n_voxels))
            values, usable = centre(read_block(part.start, part.stop), cv)
            block = torch.from_numpy(values).to(device, dtype)
            train, inner = fold.means(Targets(fold.samples, block))
            made = model(fold, train, inner)
            test = block[torch.from_numpy(fold.samples.test).to(device)]
            found = _scores(made, fold.outer.weights.to(train) @ train, position, test)
            scored = np.isfinite(found["score"][0]) & usable
            count[part] += scored
            for key, array in found.items():
                totals[key][:, part][:, scored] += array[:, scored]
    means = {key: total / np.where(count, count, np.nan) for key, total in totals.items()}
    alpha = np.exp(means.pop("log_alpha"))
    return JointFit(
        score=means.pop("score")[0],
        r2=means.pop("r2")[0],
        alpha=alpha[0] if method == "banded" else alpha,
        **means,
    )


def _scores(
    made: _Made, intercept: torch.Tensor, position: torch.Tensor, test: torch.Tensor
) -> dict[str, np.ndarray]:
    """Everything that one fold says of a block of voxels."""
    parts = made.parts[:, position]
    whole = parts.sum(0) + intercept
    shape = (len(parts), test.shape[1])
    unique = test.new_full(shape, torch.nan)
    if made.without is not None:
        unique = unique_variance(whole, made.without[:, position] + intercept, test)
    found = {
        "score": pearson(whole, test)[None],
        "r2": r2(whole, test)[None],
        "product_measure": product_measure(parts, test, intercept=intercept),
        "unique": unique,
        "space_score": torch.stack([pearson(part, test) for part in made.alone[:, position]]),
        "weight": made.weight,
        "log_alpha": made.log_alpha,
    }
    return {key: array.double().cpu().numpy() for key, array in found.items()}


def fit_joint(
    *,
    responses: Path,
    features: Mapping[str, Path],
    spaces: Mapping[str, str],
    out: Path,
    maps: Path,
    name: str,
    alphas: Sequence[float] | Mapping[str, Any],
    cross_validation: Mapping[str, Any],
    method: str = "banded",
    candidates: int = 100,
    concentrations: Sequence[float] = (0.1, 1.0),
    gradient_steps: int = 0,
    unique: bool = True,
    delays: Sequence[float] | None = None,
    resampling: str = "average",
    gap: float = 8.0,
    voxels: str = "all",
    regions: Path | None = None,
    region_labels: Path | None = None,
    min_ceiling: float = 0.05,
    voxel_batch: int = 1024,
    device: str = "auto",
    seed: int = 0,
    threads: int = 1,
    code: str = "",
) -> Path:
    """Write the store and the maps of one subject, task and joint model.

    Parameters
    ----------
    responses
        Betas or timeseries store.
    features
        Features store of each space.
    spaces
        What each space is: `<model>` (all of its layers side by side, each z-scored and scaled by
        its size) or `<model>/<layer>`.
    out
        The store.
    maps
        Folder for NIfTI maps: r, r over its noise ceiling, r2, each space's share of r2, and
        which space's is the largest (the JSON beside it names them).
    name
        Of the joint model in the config.
    alphas, cross_validation, min_ceiling, voxel_batch, device, seed, threads, code
        See `fit.fit_encoding`. Batches here are 8 times as large.
    method, candidates, concentrations, gradient_steps, unique
        See `joint_scores`.
    delays, resampling, gap
        Of volumes: see `volumes.volume_design`.
    voxels, regions, region_labels
        Which are fitted, see `design.choose_voxels`: the others have no score.

    Returns
    -------
    Path
        The manifest of the store.

    Raises
    ------
    InputError
        Where there are fewer than 2 spaces, a layer is not there, the method is unknown, a
        stimulus has no features or there is no such device.
    """
    where = select_device(device, key="encoding.device")
    key = f"encoding.joint.{name}"
    if method not in METHODS:
        raise InputError(f"unknown {key}.method {method!r}: write one of {', '.join(METHODS)}")
    if len(spaces) < 2:
        raise InputError(f"{key}.spaces has {len(spaces)}: a joint model needs at least 2")
    penalties = ridge_penalties(alphas)
    opened = choose_voxels(
        open_responses(responses),
        voxels,
        min_ceiling=min_ceiling,
        regions=regions,
        region_labels=region_labels,
        key=f"{key}.voxels",
    )
    designs = {}
    in_time = {"delays": delays, "resampling": resampling, "gap": gap}
    for space, source in spaces.items():
        layer = source.partition("/")[2]
        there = store.groups(features[space])
        if layer and layer not in there:
            raise InputError(
                f"{key}.spaces.{space} is {source!r}, but {features[space]} has the layers "
                f"{', '.join(there)}: name one of them"
            )
        designs[space] = design_of(
            opened,
            features[space],
            cross_validation=cross_validation,
            seed=seed,
            layers=[layer] if layer else None,
            **(in_time if opened.kind == "volumes" else {}),
        )
    cv = next(iter(designs.values())).cv
    loaders = [
        lambda design=design: [design.load(layer) for layer in design.layers]
        for design in designs.values()
    ]
    with deterministic(threads):
        fit = joint_scores(
            loaders,
            opened.read,
            opened.n_voxels,
            cv,
            penalties,
            method=method,
            candidates=candidates,
            concentrations=concentrations,
            gradient_steps=gradient_steps,
            unique=unique,
            voxel_batch=VOXEL_BATCHES * voxel_batch,
            device=where,
            seed=seed,
        )
    normalised = normalise(fit.score, opened.ceiling, min_ceiling=min_ceiling)
    above = int((normalised > 1).sum())
    by_voxel = {
        "score": fit.score,
        "r2": fit.r2,
        "score_normalised": normalised,
        "r2_normalised": normalise(fit.r2, opened.ceiling, power=2, min_ceiling=min_ceiling),
        "noise_ceiling": opened.ceiling,
    }
    by_space = {
        key: getattr(fit, key) for key in ("product_measure", "unique", "space_score", "weight")
    }
    if not unique:
        del by_space["unique"]
    (by_space if method == "stacking" else by_voxel)[
        "space_alpha" if method == "stacking" else "alpha"
    ] = fit.alpha
    result = xr.Dataset(
        {
            **{k: ("voxel", values.astype(np.float32)) for k, values in by_voxel.items()},
            **{
                k: (("space", "voxel"), values.astype(np.float32)) for k, values in by_space.items()
            },
        },
        coords={
            "space": np.array(list(spaces), dtype=object),
            "source": ("space", np.array(list(spaces.values()), dtype=object)),
            **{axis: ("voxel", opened.coords[axis]) for axis in "ijk"},
        },
        attrs={
            **{key: opened.attrs[key] for key in ("affine", "shape", "space")},
            "subject": opened.subject,
            "task": opened.task,
            "joint": name,
            "model": name,
            "kind": opened.kind,
            "method": method,
            "folds": cv.text,
            "seed": seed,
            "device": where.type,
            "alphas": penalties,
            "candidates": candidates if method == "banded" else 0,
            "gradient_steps": gradient_steps if method == "banded" else 0,
            "min_ceiling": min_ceiling,
            "n_trials": len(opened.used),
            "n_stimuli": len(cv.stimuli),
            "voxels": voxels,
            "n_voxels_left_out": opened.stored.n_voxels - opened.n_voxels,
            "n_voxels_without_score": int((~np.isfinite(fit.score)).sum()),
            "n_voxels_ceiling_too_low": int((~high_enough(opened.ceiling, min_ceiling)).sum()),
            "n_scores_above_ceiling": above,
            "warning": f"{above} normalised scores are over 1: their noise ceilings are uncertain"
            if above
            else "",
        },
    )
    if above:
        logger.warning("%s, joint model %s: %s", opened.name, name, result.attrs["warning"])
    result = scatter(result, [opened])
    _write_maps(Path(maps), result)
    logger.info(
        "%s, joint model %s: %s; %d voxels, %d left out",
        opened.name,
        name,
        cv.text,
        opened.n_voxels,
        opened.stored.n_voxels - opened.n_voxels,
    )
    sources = [responses, *dict.fromkeys(features.values())]
    if voxels == "regions":
        sources += [regions, region_labels]
    return store.write(result, out, spec="encoding_joint", sources=sources, code=code)


def _write_maps(folder: Path, result: xr.Dataset) -> None:
    attrs = result.attrs
    names = result["space"].values
    shares = result["product_measure"].values
    scored = np.isfinite(shares).all(0)
    most = np.where(scored, np.nan_to_num(shares).argmax(0) + 1, 0)
    maps = {
        "stat-r_statmap": result["score"].values,
        "stat-rnormalised_statmap": result["score_normalised"].values,
        "stat-r2_statmap": result["r2"].values,
        **{
            f"desc-{space}_stat-r2share_statmap": share
            for space, share in zip(names, shares, strict=True)
        },
        "desc-largestshare_dseg": most.astype(np.int16),
    }
    stem = f"sub-{attrs['subject']}_task-{attrs['task']}_joint-{attrs['joint']}"
    write_maps(folder, stem, maps, result, names=names)
