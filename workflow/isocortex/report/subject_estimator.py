"""What the optimised estimator chose for one subject: responses, noise components, fractions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import xarray as xr

from isocortex.hrf_library import HRFLibrary
from isocortex.report.brain import Grid, Grounds, mosaic
from isocortex.report.drawing import ACCENT, MUTED, RULE, WARM, new_figure, raster_uri
from isocortex.report.options import ReportOptions
from isocortex.report.page import Heading, Note, Picture, Table, capital, count, number

COLOURS = "viridis"
_MANY_AT_THE_EDGE = 0.3
"""Share of voxels with the first or last response that is pointed out: 0.1 of 20 by chance."""
_FEWEST_RESPONSES = 4
_LONGEST = 28.0
_STEP = 0.1


@dataclass(frozen=True)
class Choices:
    """What was chosen in all runs, or in one half of them; arrays have an entry a voxel.

    Attributes
    ----------
    name
        Empty, or "half 1" and "half 2".
    attrs
        The estimator's attributes.
    hrf
        Number of each voxel's response.
    explained
        Cross-validated R²; NaN where a single run leaves nothing to hold out.
    fraction
        Chosen length of the regularised responses over that without a penalty.
    pool
        Whether the voxel is in the noise pool.
    """

    name: str
    attrs: Mapping[str, Any]
    hrf: np.ndarray
    explained: np.ndarray
    fraction: np.ndarray
    pool: np.ndarray

    @property
    def responsive(self) -> np.ndarray:
        """Voxels whose choices the data decide: R² above 0, or all where there is none."""
        known = np.isfinite(self.explained)
        return self.explained > 0 if known.any() else np.ones(len(self.hrf), bool)

    @property
    def of_name(self) -> str:
        """For titles: empty, or ", half 1"."""
        return f", {self.name}" if self.name else ""


def read_choices(dataset: xr.Dataset) -> list[Choices]:
    """Return what the optimised estimator chose; nothing for other estimators.

    Parameters
    ----------
    dataset
        Betas store.

    Returns
    -------
    list of Choices
        One, or one a half.
    """
    attrs = dataset.attrs
    if "hrf_peak" in attrs:
        parts = [("", "", attrs)]
    else:
        halves = [half for half in attrs.get("halves") or [] if "hrf_peak" in half]
        parts = [(f"half {n}", f"_{n}", half) for n, half in enumerate(halves, start=1)]
    found = []
    for name, ending, own in parts:

        def values(key: str, fill: Any, ending: str = ending) -> np.ndarray:
            if f"{key}{ending}" in dataset:
                return np.asarray(dataset[f"{key}{ending}"].values)
            return np.full(dataset.sizes["voxel"], fill)

        hrf = f"hrf_index{ending}" if f"hrf_index{ending}" in dataset else "hrf_index"
        found.append(
            Choices(
                name,
                own,
                np.asarray(dataset[hrf].values, int),
                values("r2_cross_validated", np.nan).astype(float),
                values("fraction", np.nan).astype(float),
                values("noise_pool", False).astype(bool),
            )
        )
    return found


def estimator_blocks(
    opened: Sequence[xr.Dataset], grounds: Grounds, choices: ReportOptions
) -> list[Any]:
    """Show what the optimised estimator chose, of each task; empty for other estimators."""
    blocks: list[Any] = []
    for dataset in opened:
        parts = read_choices(dataset)
        if not parts:
            continue
        if len(opened) > 1:
            blocks.append(Heading(f"Task {dataset.attrs['task']}"))
        blocks.append(_table(dataset, parts))
        library = HRFLibrary(
            np.asarray(parts[0].attrs["hrf_peak"], float),
            np.asarray(parts[0].attrs["hrf_width"], float),
        )
        if len(library) > 1:
            blocks += [_responses(part, library) for part in parts]
            edge = max(_at_the_edge(part, len(library)) for part in parts)
            if len(library) > _FEWEST_RESPONSES and edge > _MANY_AT_THE_EDGE:
                blocks.append(
                    Note(
                        f"{100 * edge:.0f}% of the voxels have the first or the last response of "
                        "the library: look whether onsets and volumes are on one clock (slice "
                        "timing, StartTime, dummy volumes), and whether stimuli are long or dense, "
                        "so that the data hardly tell responses apart."
                    )
                )
            blocks += [_map(dataset, part, library, grounds, choices) for part in parts]
        blocks += _noise_and_fractions(parts)
        for part in parts:
            blocks += _voxel_maps(dataset, part, grounds, choices)
    return blocks


def _table(dataset: xr.Dataset, parts: Sequence[Choices]) -> Table:
    """One row a choice, one column for all runs or each half."""

    def spread(values: np.ndarray, digits: int) -> str:
        values = values[np.isfinite(values)]
        if not values.size:
            return "n/a"
        low, middle, high = np.percentile(values, [5, 50, 95])
        return (
            f"{number(middle, digits)} [{number(low, digits)}, {number(high, digits)}]"
            if high > low
            else number(middle, digits)
        )

    rows: list[list[Any]] = [
        ["Voxels", *(f"{len(p.hrf):,}" for p in parts)],
        [
            "Voxels with cross-validated R² above 0",
            *(
                f"{int(p.responsive.sum()):,}" if np.isfinite(p.explained).any() else "n/a"
                for p in parts
            ),
        ],
        [
            "Cross-validated R² of these, median [5%, 95%]",
            *(spread(p.explained[p.responsive], 3) for p in parts),
        ],
        [
            "Time to peak of these voxels' responses, s, median [5%, 95%]",
            *(
                spread(np.asarray(p.attrs["hrf_peak"], float)[p.hrf[p.responsive]], 1)
                for p in parts
            ),
        ],
        ["Voxels in the noise pool", *(f"{int(p.attrs['noise_pool_voxels']):,}" for p in parts)],
        [
            "Noise components a run: chosen, of at most",
            *(
                f"{p.attrs['noise_components']} of {len(p.attrs['noise_components_r2']) - 1}"
                for p in parts
            ),
        ],
        [
            "Fraction of these voxels, median [5%, 95%]",
            *(spread(p.fraction[p.responsive], 2) for p in parts),
        ],
    ]
    caption = (
        "R²: share of a held-out run's variance, drift and confounds taken out, that responses "
        "estimated from the other runs predict. Fraction: length of a voxel's regularised "
        "responses over that without a penalty (1: no regularisation)."
    )
    if len(parts) == 2:
        both = parts[0].responsive & parts[1].responsive
        if both.sum() > 2:
            peak = [np.asarray(p.attrs["hrf_peak"], float)[p.hrf[both]] for p in parts]
            if all(p.std() > 0 for p in peak):
                r = float(np.corrcoef(*peak)[0, 1])
                caption += (
                    f" The halves share nothing: their times to peak correlate at r = {number(r)} "
                    f"over {int(both.sum()):,} voxels with R² above 0 in both."
                )
    return Table(
        f"What the estimator chose, task {dataset.attrs['task']}",
        ("Choice", *(p.name.capitalize() or "All runs" for p in parts)),
        rows,
        caption,
    )


def response_curves(library: HRFLibrary) -> tuple[np.ndarray, np.ndarray]:
    """Responses of a library to a brief stimulus, their peak at 1.

    Returns
    -------
    time, curve : numpy.ndarray, shapes (n_times,) and (n_hrfs, n_times)
        Seconds after the stimulus, and the response.
    """
    edges = np.arange(0, _LONGEST + _STEP, _STEP)
    curve = np.diff(library.area(edges), axis=1)
    return (edges[1:] + edges[:-1]) / 2, curve / curve.max(axis=1, keepdims=True)


def _at_the_edge(part: Choices, n_hrfs: int) -> float:
    """Share of the responsive voxels that have the first or the last response."""
    chosen = part.hrf[part.responsive]
    return float(np.isin(chosen, (0, n_hrfs - 1)).mean()) if chosen.size else 0.0


def _responses(part: Choices, library: HRFLibrary) -> Picture:
    """The library, each response as opaque as it is frequent, and how many voxels have each."""
    n = len(library)
    inside = part.responsive
    chosen = np.bincount(part.hrf[inside], minlength=n)
    others = np.bincount(part.hrf[~inside], minlength=n)
    colours = matplotlib.colormaps[COLOURS](np.linspace(0.0, 0.94, n))
    time, curve = response_curves(library)
    figure = new_figure(11.0, 3.0)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
    for index in range(n):
        frequent = chosen[index] / max(chosen.max(), 1)
        left.plot(
            time,
            curve[index],
            color=colours[index] if chosen[index] else RULE,
            linewidth=0.7 + 2.0 * frequent,
            zorder=2 + frequent if chosen[index] else 1,
        )
    left.axhline(0, color=MUTED, linewidth=0.6)
    left.set(xlabel="time after a brief stimulus, s", ylabel="response, peak at 1")
    left.set_title(f"Library of {n} responses")
    left.margins(x=0)
    # In percent: those that respond may be few among the others.
    share = 100 * chosen / max(chosen.sum(), 1)
    right.bar(np.arange(n), share, color=colours, width=0.84)
    known = np.isfinite(part.explained).any()
    outline = ""
    if known and others.any():
        rest = 100 * others / others.sum()
        right.plot(
            np.repeat(np.arange(n + 1) - 0.5, 2)[1:-1],
            np.repeat(rest, 2),
            color=MUTED,
            linewidth=0.9,
            label="voxels with R² of 0 or less",
        )
        right.legend(loc="upper right")
        right.set_ylim(0, 1.18 * max(share.max(), rest.max()))
        outline = f" (outline: of the other {int(others.sum()):,} voxels)"
    step = -(-n // 10)
    right.set_xticks(np.arange(n)[::step], [f"{peak:.1f}" for peak in library.peak[::step]])
    right.set(xlabel="time to peak of the chosen response, s", ylabel="% of the voxels")
    right.set_title("Chosen")
    right.margins(x=0.01)
    who = "with cross-validated R² above 0" if known else "(one run: R² cannot be cross-validated)"
    n_used = int((chosen > 0).sum())
    n_voxels = f"{int(inside.sum()):,} voxels {who}"
    edge = _at_the_edge(part, n)
    return Picture(
        [raster_uri(figure)],
        f"Left: curves of {n} haemodynamic responses. Right: bars of how many voxels have each; "
        f"the most frequent peaks after {library.peak[chosen.argmax()]:.1f} s.",
        f"Haemodynamic responses that were chosen{part.of_name}",
        "Left: the library, from early and short to late and long; lines are as thick as the "
        f"response is frequent, grey where no voxel has it. Right: which share of {n_voxels} has "
        f"each{outline}. {n_used} of {n} occur; {100 * edge:.0f}% of the voxels have the first or "
        "the last one.",
    )


def _drawn(
    dataset: xr.Dataset,
    values: np.ndarray,
    grounds: Grounds,
    choices: ReportOptions,
    *,
    title: str,
    label: str,
    caption: str,
    cmap: str = COLOURS,
    limits: tuple[float, float] | None = None,
) -> Picture | Note:
    grid = Grid.of(dataset)
    finite = values[np.isfinite(values)]
    if not finite.size:
        return Note(f"{title}: no map, because no voxel has cross-validated R² above 0.")
    ground = grounds.of(grid)
    colours = "" if limits else " Colours span the 2nd to 98th percentile."
    return Picture(
        [
            mosaic(
                grid,
                values,
                ground=ground,
                slices=choices.slices,
                label=label,
                cmap=cmap,
                limits=limits,
            )
        ],
        f"Axial slices of {label}: median {number(float(np.median(finite)))} in {finite.size:,} "
        "voxels.",
        title,
        f"{caption} {finite.size:,} of {values.size:,} voxels, axial slices in {grid.space} space "
        f"on {ground.name}, z in mm, left is left.{colours}",
    )


def _map(
    dataset: xr.Dataset,
    part: Choices,
    library: HRFLibrary,
    grounds: Grounds,
    choices: ReportOptions,
) -> Picture | Note:
    known = np.isfinite(part.explained).any()
    return _drawn(
        dataset,
        np.where(part.responsive, library.peak[part.hrf], np.nan),
        grounds,
        choices,
        title=f"Time to peak of the chosen response{part.of_name}",
        label="time to peak, s",
        caption="Of each voxel's haemodynamic response"
        + (", where its cross-validated R² is above 0." if known else "."),
        limits=(float(library.peak[0]), float(library.peak[-1])),
    )


def _noise_and_fractions(parts: Sequence[Choices]) -> list[Any]:
    """The curve that noise components were chosen by, and how many voxels have each fraction."""
    with_curve = [p for p in parts if len(p.attrs["noise_components_r2"]) > 1]
    with_fraction = [p for p in parts if (p.fraction[p.responsive] < 1).any()]
    blocks: list[Any] = []
    if not with_curve:
        blocks.append(
            Note(
                "No noise components were looked for: the config asks for none, or a single run "
                "leaves nothing to choose them by."
            )
        )
    if not with_fraction:
        blocks.append(
            Note(
                "No voxel's responses are regularised: its fraction is 1 everywhere (no stimulus "
                "is in several runs to say how much would serve, or none is gained by it)."
            )
        )
    panels = [
        panel for panel, there in (("curve", with_curve), ("fraction", with_fraction)) if there
    ]
    if not panels:
        return blocks
    figure = new_figure(11.0 if len(panels) == 2 else 5.6, 3.0)
    axes = dict(zip(panels, np.atleast_1d(figure.subplots(1, len(panels)))))
    colours = (ACCENT, WARM)
    said = []
    if with_curve:
        axis = axes["curve"]
        for part, colour, style in zip(with_curve, colours, ("o-", "o--")):
            curve = np.asarray(part.attrs["noise_components_r2"], float)
            chosen = int(part.attrs["noise_components"])
            axis.plot(curve, style, color=colour, markersize=3.5, linewidth=1.2, zorder=2)
            axis.plot(
                [chosen],
                [curve[chosen]],
                "o",
                color="white",
                markeredgecolor=colour,
                markeredgewidth=1.8,
                markersize=9,
                zorder=3,
                label=f"chosen{part.of_name}: {chosen}",
            )
        axis.set(xlabel="noise components a run", ylabel="R², median over voxels")
        axis.set_title("Cross-validated R²")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.margins(y=0.18)
        axis.legend(loc="best")
        pool = " and ".join(f"{int(p.attrs['noise_pool_voxels']):,}" for p in with_curve)
        said.append(
            "median over the voxels that any number of components lets respond (noise pool aside) "
            "of the share of held-out runs' variance that responses predict, by the number of "
            f"principal components of the noise pool ({pool} bright voxels that do not respond) "
            "that are taken out of each run. The ring marks the number that was chosen: the least "
            "that reaches 95% of the highest gain, or none where held-out runs do not agree on a "
            "gain (mean over 3 standard errors)"
        )
    if with_fraction:
        axis = axes["fraction"]
        steps = np.unique(np.concatenate([p.fraction[p.responsive] for p in with_fraction]))
        steps = steps[np.isfinite(steps)]
        width = (np.diff(steps).min() if len(steps) > 1 else 0.05) * 0.9 / len(with_fraction)
        for number_, (part, colour) in enumerate(zip(with_fraction, colours)):
            own = part.fraction[part.responsive]
            axis.bar(
                steps + (number_ - (len(with_fraction) - 1) / 2) * width,
                [(own == step).sum() for step in steps],
                width=width,
                color=colour,
                label=part.name or None,
            )
        axis.set(xlabel="fraction of the unpenalised length", ylabel="voxels")
        axis.set_title("Fractional ridge")
        axis.set_xlim(0, 1.05)
        if with_fraction[0].name:
            axis.legend(loc="best")
        n = " and ".join(f"{int(p.responsive.sum()):,}" for p in with_fraction)
        said.append(
            f"how many of {n} voxels with cross-validated R² above 0 have each fraction; 1 is no "
            "regularisation"
        )
    sides = ("Left: ", "Right: ") if len(panels) == 2 else ("",)
    text = " ".join(f"{side}{words}." for side, words in zip(sides, said))
    title = {
        ("curve", "fraction"): "Noise components and regularisation",
        ("curve",): "Noise components",
        ("fraction",): "Regularisation",
    }[tuple(panels)]
    counts = ", ".join(
        f"{count(int(p.attrs['noise_components']), 'noise component')}{p.of_name}"
        for p in with_curve
    )
    blocks.append(
        Picture(
            [raster_uri(figure)],
            f"{title}: {counts or 'bars of fractions'}.",
            title,
            capital(text),
            narrow=len(panels) == 1,
        )
    )
    return blocks


def _voxel_maps(
    dataset: xr.Dataset, part: Choices, grounds: Grounds, choices: ReportOptions
) -> list[Any]:
    blocks: list[Any] = []
    if np.isfinite(part.explained).any():
        blocks.append(
            _drawn(
                dataset,
                np.where(part.responsive, part.explained, np.nan),
                grounds,
                choices,
                title=f"Cross-validated variance explained{part.of_name}",
                label="R², cross-validated",
                caption="Share of held-out runs' variance that responses from the other runs "
                "predict, where it is above 0.",
            )
        )
    if (part.fraction[part.responsive] < 1).any():
        blocks.append(
            _drawn(
                dataset,
                np.where(part.responsive, part.fraction, np.nan),
                grounds,
                choices,
                title=f"Fraction of the unpenalised length{part.of_name}",
                label="fraction",
                caption="How much of the length of a voxel's responses fractional ridge "
                "regression keeps, where cross-validated R² is above 0; 1 is no regularisation.",
                limits=(0.0, 1.0),
            )
        )
    return blocks
