"""Identification of the layers of a network across its seeds, with noise added to the RDMs.

The second experiment of Lin & Kriegeskorte (PNAS 2024): seeds of one architecture stand for
subjects and layers for regions; noise stands for what measurement does to a brain's RDMs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr

from isocortex import store
from isocortex.errors import InputError
from isocortex.rsa.rdms import align_models, n_stimuli, stimuli_of
from isocortex.topology.grid import (
    NESTED,
    Statistic,
    TopologyOptions,
    list_statistics,
    statistic_coords,
)
from isocortex.topology.identify import (
    DIMS,
    empty_outcome,
    identification_methods,
    identify,
    prepare,
)

NOISE = (0.0, 0.1, 0.2, 0.3, 0.4)
DRAWS = 5
_NAMES = {"subject": "seed", "region": "layer"}


@dataclass(frozen=True)
class SeedRDMs:
    """RDMs of the layers of several seeds of one network.

    Attributes
    ----------
    dissimilarity
        float64, shape (seed, layer, pair); NaN throughout where a seed lacks a layer.
    seeds, layers
        Names of the models and of their layers.
    measure
        The dissimilarity.
    """

    dissimilarity: np.ndarray
    seeds: tuple[str, ...]
    layers: tuple[str, ...]
    measure: str


def identify_layers(
    *,
    model_rdms: Sequence[str | Path],
    network: str,
    out: str | Path,
    noise: Sequence[float] = NOISE,
    draws: int = DRAWS,
    code: str = "",
    threads: int = 1,
    seed: int = 0,
    **options: object,
) -> None:
    """Identify left-out seeds' layers by each summary statistic; write `layer_identification`.

    Parameters
    ----------
    model_rdms
        ``model_rdms`` stores, one a seed.
    network
        Name of what the seeds are seeds of.
    out
        The ``layer_identification`` store.
    noise
        SDs of the noise, see `layer_dataset`.
    draws
        Draws of the noise that results are averaged over.
    code
        The rule's code version.
    threads
        Cores to use.
    seed
        Of the noise, the bootstrap samples and the permutations.
    **options
        The config section ``trsa``, see `TopologyOptions`.

    Raises
    ------
    InputError
        For stores that do not fit together, or options out of range.
    """
    chosen = TopologyOptions(seed=seed, **options)
    dataset = layer_dataset(
        load_seeds(model_rdms), chosen, network=network, noise=noise, draws=draws, threads=threads
    )
    store.write(dataset, out, spec="layer_identification", sources=list(model_rdms), code=code)


def load_seeds(paths: Sequence[str | Path]) -> SeedRDMs:
    """Read the RDMs of several seeds of a network, over the first one's stimuli.

    Parameters
    ----------
    paths
        ``model_rdms`` stores, one a seed.

    Raises
    ------
    InputError
        Where stores differ in measure, a model comes twice, or one lacks stimuli.
    """
    if not paths:
        raise InputError("no model RDMs were given: name at least one model in features.models")
    opened = [store.open(path, "model_rdms") for path in paths]
    for path, one in zip(paths, opened):
        if one.attrs["measure"] != opened[0].attrs["measure"]:
            raise InputError(
                f"measure is {one.attrs['measure']!r} in {path} and "
                f"{opened[0].attrs['measure']!r} in {paths[0]}: compare RDMs of one measure only"
            )
    rdms = align_models(paths, stimuli_of(opened[0]))
    seeds = tuple(dict.fromkeys(rdms.models))
    layers = tuple(dict.fromkeys(rdms.layers))
    found = np.full((len(seeds), len(layers), rdms.dissimilarity.shape[-1]), np.nan)
    for row, model, layer in zip(rdms.dissimilarity, rdms.models, rdms.layers):
        found[seeds.index(model), layers.index(layer)] = row
    return SeedRDMs(found, seeds, layers, str(opened[0].attrs["measure"]))


def with_noise(rdms: np.ndarray, level: float, *, draws: int, seed: int) -> np.ndarray:
    """Return draws of RDMs with Gaussian noise added to their entries, each RDM with its own.

    Parameters
    ----------
    rdms
        Dissimilarities, shape (..., pair).
    level
        SD of the noise over the SD of an RDM's entries. Draws of different levels are the same
        numbers times their level, so that levels differ by nothing else.
    draws
        How many; one is enough without noise.
    seed
        Of the random numbers.

    Returns
    -------
    numpy.ndarray
        Shape (draw, ..., pair).
    """
    if level < 0:
        raise ValueError(f"the noise is {level} SD: pass 0 or more")
    rng = np.random.default_rng(np.random.SeedSequence(seed).spawn(4)[3])
    spread = level * rdms.std(axis=-1, keepdims=True)
    return np.stack([rdms + spread * rng.standard_normal(rdms.shape) for _ in range(draws)])


def layer_dataset(
    rdms: SeedRDMs,
    options: TopologyOptions,
    *,
    network: str,
    noise: Sequence[float] = NOISE,
    draws: int = DRAWS,
    threads: int = 1,
) -> xr.Dataset:
    """Return the identification of layers at each level of noise, see `identify_layers`.

    Parameters
    ----------
    rdms
        The seeds' RDMs. With fewer than 2 seeds or layers there is nothing to identify: NaN, and
        the reason in the attribute ``flag``. Layers that some seed lacks are left out.
    options
        See `TopologyOptions`; subjects are seeds here.
    network
        Name of what the seeds are seeds of.
    noise
        SDs of the noise, in SDs of each RDM's entries.
    draws
        Draws of the noise; accuracies, their bootstrap samples and permutations are means of them.
    threads
        Cores to use.

    Raises
    ------
    InputError
        For options that do not fit the RDMs.
    """
    count = n_stimuli(rdms.dissimilarity.shape[-1])
    options.check_stimuli(count)
    prepared = prepare(
        rdms.dissimilarity,
        options,
        subjects=rdms.seeds,
        regions=rdms.layers,
        who="seeds",
        what="layer",
    )
    options, kept = prepared.options, rdms.dissimilarity[:, prepared.kept]
    statistics = list_statistics(options)
    layers = np.array([rdms.layers[r] for r in prepared.kept], dtype=object)
    names = [*(s.name for s in statistics), ""]
    outcomes, chosen, counts = [], [], []
    for level in noise:
        counts.append(draws if level > 0 else 1)
        if prepared.flag:
            outcomes.append(empty_outcome(len(statistics) + 1, len(rdms.seeds), len(layers)))
            chosen.append([""] * len(rdms.seeds))
            continue
        drawn = with_noise(kept, level, draws=counts[-1], seed=options.seed)
        outcome, choice = identify(drawn, statistics, options, threads=threads)
        outcomes.append(outcome)
        chosen.append([names[Counter(column).most_common(1)[0][0]] for column in choice.T])
    arrays = {}
    for name, dims in DIMS.items():
        key = "accuracy_seed" if name == "accuracy_subject" else name
        arrays[key] = (
            ("noise", *(_NAMES.get(dim, dim) for dim in dims)),
            np.stack([outcome[name] for outcome in outcomes]),
        )
    arrays["chosen"] = (("noise", "seed"), np.array(chosen, dtype=object))
    arrays["draws"] = (("noise",), np.array(counts, dtype=np.int32))
    methods = "" if prepared.flag else _methods(options, len(rdms.seeds), noise, draws)
    return xr.Dataset(
        arrays,
        coords={
            **statistic_coords([*statistics, Statistic(NESTED, "nested")]),
            "noise": np.array(noise, dtype=np.float64),
            "layer": layers,
            "predicted": layers,
            "seed": np.array(rdms.seeds, dtype=object),
        },
        attrs={
            **options.attrs,
            "network": network,
            "measure": rdms.measure,
            "n_stimuli": count,
            "chance": 1 / len(layers),
            "flag": prepared.flag,
            "flags": prepared.flags,
            "methods": methods,
            "layers_left_out": prepared.left_out,
        },
    )


def _methods(options: TopologyOptions, n_seeds: int, noise: Sequence[float], draws: int) -> str:
    levels = ", ".join(f"{level:g}" for level in noise)
    return (
        identification_methods(options, n_seeds, who="seed", what="layer")
        + f" Gaussian noise of {levels} SD of an RDM's entries was added to every seed's RDMs; "
        f"results are means over {draws} draws of it."
    )
