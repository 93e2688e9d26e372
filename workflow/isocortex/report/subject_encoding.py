"""Encoding in one subject's report: linear models, joint models and readouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from isocortex.report.brain import Grid, backdrop, mosaic
from isocortex.report.encoding_figures import (
    MAX_MAPS,
    attention_figure,
    beside_figure,
    coverage_figure,
    losses_figure,
    shares_figure,
    space_colours,
)
from isocortex.report.encoding_regions import (
    EVERYWHERE,
    RegionImage,
    best_layer,
    counted,
    largest_share,
    masks_of,
    mean_over,
    samples_of,
    which_voxels,
)
from isocortex.report.maps import LayerMaps, layer_pictures
from isocortex.report.options import ReportOptions
from isocortex.report.page import (
    Heading,
    Note,
    Paragraph,
    Picture,
    Table,
    capital,
    count,
    join,
    number,
    percent,
)

SIGNIFICANT = 0.05


def encoding_blocks(
    encoding: Sequence[xr.Dataset],
    joint: Sequence[xr.Dataset],
    readouts: Sequence[xr.Dataset],
    regions: Mapping[tuple[str, str], RegionImage],
    *,
    anatomy: Mapping[str, Path | str] | None,
    choices: ReportOptions,
) -> list[Any]:
    """Show what encoding found in one subject.

    Parameters
    ----------
    encoding, joint, readouts
        Opened stores of the subject, all tasks.
    regions
        Label images by subject and task.
    anatomy
        NIfTI image to draw maps on by space name.
    choices
        Options of the report.

    Returns
    -------
    list
        Blocks; none where nothing was fitted.
    """
    headed = bool(joint or readouts)
    blocks: list[Any] = []
    if encoding:
        blocks += [Heading("Linear models")] if headed else []
        blocks += _linear(encoding, anatomy, choices)
    for dataset in joint:
        blocks += _joint(dataset, encoding, regions, anatomy, choices)
    if readouts:
        blocks += _readouts(readouts, encoding, regions, anatomy, choices)
    return blocks


def _top(dataset: xr.Dataset) -> np.ndarray:
    """Score of each voxel's best layer, -inf where there is none."""
    scores = np.asarray(dataset["score"].values)
    return np.where(np.isfinite(scores), scores, -np.inf).reshape(-1, scores.shape[-1]).max(axis=0)


def _reach(dataset: xr.Dataset, choices: ReportOptions) -> list[str]:
    """Cells of a table: voxels, those over the threshold, high scores."""
    top = _top(dataset)
    top = top[np.isfinite(top)]
    return [
        f"{top.size:,}",
        f"{int((top >= choices.encoding_threshold).sum()):,}",
        number(float(np.percentile(top, 95)) if top.size else np.nan, 3),
        number(float(top.max()) if top.size else np.nan, 3),
    ]


def _reach_header(choices: ReportOptions) -> tuple[str, ...]:
    above = f"Voxels with r ≥ {number(choices.encoding_threshold)}"
    return ("Voxels", above, "95th percentile of r", "Highest r")


def _held_out(datasets: Sequence[xr.Dataset]) -> str:
    return " or ".join(dict.fromkeys(samples_of(dataset.attrs) for dataset in datasets))


def _linear(
    encoding: Sequence[xr.Dataset],
    anatomy: Mapping[str, Path | str] | None,
    choices: ReportOptions,
) -> list[Any]:
    rows = []
    for dataset in encoding:
        layers = [str(name) for name in dataset["layer"].values]
        best = np.asarray(dataset["best_layer"].values)
        best = best[(_top(dataset) >= choices.encoding_threshold) & (best >= 0)]
        favourite = layers[int(np.bincount(best).argmax())] if best.size else "none"
        explained = np.nan
        if "r2" in dataset:
            values = np.asarray(dataset["r2"].values, dtype=float)
            values = np.where(np.isfinite(values), values, -np.inf).max(axis=0)
            values = values[np.isfinite(values)]
            explained = float(np.percentile(values, 95)) if values.size else np.nan
        rows.append(
            [
                str(dataset.attrs["task"]),
                str(dataset.attrs["model"]),
                len(layers),
                *_reach(dataset, choices),
                number(explained, 3),
                favourite,
            ]
        )
    with_r2 = any("r2" in dataset for dataset in encoding)
    header = [
        *("Task", "Model", "Layers"),
        *_reach_header(choices),
        "95th percentile of r²",
        "Most frequent best layer there",
    ]
    if not with_r2:
        header = [*header[:-2], header[-1]]
        rows = [[*row[:-2], row[-1]] for row in rows]
    blocks: list[Any] = [
        Table(
            "Encoding models",
            header,
            rows,
            "r: Pearson correlation of predicted and measured responses in held-out "
            f"{_held_out(encoding)}, of each voxel's best layer."
            + (" r²: coefficient of determination there." if with_r2 else ""),
        )
    ]
    if tested := [dataset for dataset in encoding if "p_fwe" in dataset]:
        blocks.append(_tests_table(tested))
    for dataset in encoding:
        model = str(dataset.attrs["model"])
        scores = np.asarray(dataset["score"].values)
        significant, test = None, ""
        if "p_fwe" in dataset:
            significant = np.asarray(dataset["p_fwe"].values) < SIGNIFICANT
            significant &= np.isfinite(scores)
            test = f"p < {SIGNIFICANT:g}, largest r over voxels and layers"
        blocks += layer_pictures(
            LayerMaps(
                Grid.of(dataset),
                [f"{model}/{layer}" for layer in dataset["layer"].values],
                scores,
                1,
                significant,
                test,
            ),
            what=f"Encoding by {model}",
            score="held-out correlation r",
            threshold=choices.encoding_threshold,
            slices=choices.slices,
            anatomy=anatomy,
            who=f"subject {dataset.attrs['subject']}, task {dataset.attrs['task']}",
        )
    return blocks


def _tests_table(tested: Sequence[xr.Dataset]) -> Table:
    """Share of voxels that each correction leaves above chance."""
    rows = []
    for dataset in tested:
        finite = np.isfinite(dataset["p"].values)
        known = finite.any(axis=0)

        def share(
            key: str,
            dataset: xr.Dataset = dataset,
            finite: np.ndarray = finite,
            known: np.ndarray = known,
        ) -> str:
            passed = ((dataset[key].values < SIGNIFICANT) & finite).any(axis=0)
            return percent(passed.sum() / known.sum(), 1) if known.any() else "n/a"

        rows.append(
            [
                str(dataset.attrs["task"]),
                str(dataset.attrs["model"]),
                dataset.attrs.get("permutations") or "n/a",
                f"{int(known.sum()):,}",
                *(share(key) for key in ("p", "p_fdr", "p_fwe")),
            ]
        )
    return Table(
        "Voxels predicted above chance",
        (
            "Task",
            "Model",
            "Permutations",
            "Voxels",
            "p < 0.05",
            "False discovery rate < 0.05",
            "Family-wise p < 0.05",
        ),
        rows,
        "Share of voxels that at least one layer predicts above chance, one-sided, by permuting "
        "responses and fitting again. Uncorrected p counts once a layer and is listed for "
        "comparison; the false discovery rate is over a layer's voxels, the family-wise p over "
        "voxels and layers (largest r). Maps show the last.",
    )


def _counted_masks(
    dataset: xr.Dataset, regions: Mapping[tuple[str, str], RegionImage]
) -> dict[str, np.ndarray]:
    """Voxels of each region that count, where there are any."""
    use = counted(dataset)
    masks = {key: mask & use for key, mask in masks_of(dataset, regions).items()}
    return {key: mask for key, mask in masks.items() if mask.any()}


def _joint(
    dataset: xr.Dataset,
    encoding: Sequence[xr.Dataset],
    regions: Mapping[tuple[str, str], RegionImage],
    anatomy: Mapping[str, Path | str] | None,
    choices: ReportOptions,
) -> list[Any]:
    attrs = dataset.attrs
    name, task = str(attrs["joint"]), str(attrs["task"])
    spaces = [str(space) for space in dataset["space"].values]
    sources = [str(source) for source in dataset["source"].values]
    models = {source.partition("/")[0] for source in sources}
    single = [
        ds for ds in encoding if str(ds.attrs["task"]) == task and str(ds.attrs["model"]) in models
    ]
    masks = _counted_masks(dataset, regions)
    blocks: list[Any] = [
        Heading(f"Joint model {name}, task {task}"),
        Paragraph(
            f"{count(len(spaces), 'feature space')} together ({attrs['method']}): "
            + ", ".join(
                space if space == source else f"{space} ({source})"
                for space, source in zip(spaces, sources, strict=True)
            )
            + "."
        ),
    ]
    if not masks:
        blocks.append(Note("No voxel has a score that counts, so there is no split by region."))
    else:
        shares = np.stack([mean_over(dataset["product_measure"].values, m) for m in masks.values()])
        unique = None
        if "unique" in dataset:
            unique = np.stack([mean_over(dataset["unique"].values, m) for m in masks.values()])
        rows, words = [], []
        for index, (region, mask) in enumerate(masks.items()):
            layer, r = best_layer(single, dataset, mask)
            if np.isfinite(shares[index]).any():
                words.append(f"{region}: {largest_share(spaces, shares[index])}")
            cells = [
                number(share, 3)
                + (f" ({number(unique[index, column], 3)})" if unique is not None else "")
                for column, share in enumerate(shares[index])
            ]
            rows.append(
                [
                    region,
                    f"{int(mask.sum()):,}",
                    number(float(mean_over(dataset["score"].values, mask)), 3),
                    f"{number(r, 3)} ({layer})" if layer else "n/a",
                    number(float(mean_over(dataset["r2"].values, mask)), 3),
                    *cells,
                ]
            )
        blocks.append(Paragraph(f"Largest share of r²: {'; '.join(words)}."))
        blocks.append(
            Table(
                f"Joint model {name} by region",
                ("Region", "Voxels", "r", "r of the best layer alone", "r²", *spaces),
                rows,
                f"Means over {which_voxels(dataset)}, held-out {samples_of(attrs)}. Columns of "
                "feature spaces: their share of r² (product measure; the shares sum to r²)"
                + (", in brackets the r² that is lost without them." if unique is not None else ".")
                + " The best layer is chosen by the same scores, so its r is a little too high.",
            )
        )
        shown = list(masks)[: choices.max_regions_shown]
        n = len(shown)
        blocks.append(
            Picture(
                [
                    shares_figure(
                        shown, spaces, shares[:n].T, None if unique is None else unique[:n].T
                    )
                ],
                f"Stacked bars of the share of {len(spaces)} feature spaces in r² by region; the "
                f"largest is {'; '.join(words[:n])}.",
                f"Joint model {name}: variance by feature space",
                "Mean share of each feature space in held-out r² (product measure); the full bars "
                "sum to r², shares below 0 hang down."
                + (
                    " Hatched: r² that is lost without the space, its unique part."
                    if unique is not None
                    else ""
                ),
                narrow=n <= 6,
            )
        )
    grid = Grid.of(dataset)
    who = f"subject {attrs['subject']}, task {task}"
    blocks += _score_map(dataset, f"Joint model {name}", who, anatomy, choices)
    shares = np.asarray(dataset["product_measure"].values, dtype=float)
    # A share that is not above 0 explains nothing, however it compares with the others.
    seen = np.isfinite(shares).all(axis=0) & (np.nan_to_num(shares).max(axis=0) > 0)
    seen &= _top(dataset) >= choices.encoding_threshold
    if seen.any() and grid.space != "none":
        strongest = np.where(seen, np.nan_to_num(shares).argmax(axis=0), np.nan)
        ground = backdrop(grid, anatomy)
        most = np.bincount(strongest[seen].astype(int), minlength=len(spaces))
        blocks.append(
            Picture(
                [
                    mosaic(
                        grid,
                        strongest,
                        ground=ground,
                        slices=choices.slices,
                        label="feature space with the largest share",
                        colours=space_colours(spaces),
                    )
                ],
                "Axial slices coloured by the feature space with the largest share of r²; "
                f"{spaces[int(most.argmax())]} is the most frequent with {most.max():,} of "
                f"{int(seen.sum()):,} voxels.",
                f"Joint model {name}: strongest feature space at each voxel",
                f"{capital(who)}; {int(seen.sum()):,} voxels with r ≥ "
                f"{number(choices.encoding_threshold)} and a share above 0. Axial slices in "
                f"{grid.space} space on {ground.name}, z in mm, left is left.",
            )
        )
    return blocks


def _score_map(
    dataset: xr.Dataset,
    what: str,
    who: str,
    anatomy: Mapping[str, Path | str] | None,
    choices: ReportOptions,
) -> list[Any]:
    """Map of the one score that each voxel has."""
    scores = np.asarray(dataset["score"].values)[None]
    return layer_pictures(
        LayerMaps(Grid.of(dataset), [f"{what}/score"], scores, 1),
        what=what,
        score="held-out correlation r",
        threshold=choices.encoding_threshold,
        slices=choices.slices,
        anatomy=anatomy,
        who=who,
    )


def _readouts(
    readouts: Sequence[xr.Dataset],
    encoding: Sequence[xr.Dataset],
    regions: Mapping[tuple[str, str], RegionImage],
    anatomy: Mapping[str, Path | str] | None,
    choices: ReportOptions,
) -> list[Any]:
    blocks: list[Any] = [Heading("Readouts")]
    rows = []
    for dataset in readouts:
        epochs = np.asarray(dataset["n_epochs"].values)
        layers = [str(name) for name in dataset["layer"].values]
        preferred = np.asarray(dataset["preferred_layer"].values)
        preferred = preferred[(_top(dataset) >= choices.encoding_threshold) & (preferred >= 0)]
        rows.append(
            [
                str(dataset.attrs["name"]),
                str(dataset.attrs["kind"]),
                str(dataset.attrs["task"]),
                str(dataset.attrs["model"]),
                *_reach(dataset, choices),
                f"{epochs.min()}"
                if epochs.min() == epochs.max()
                else f"{epochs.min()} – {epochs.max()}",
                layers[int(np.bincount(preferred).argmax())] if preferred.size else "none",
            ]
        )
    blocks.append(
        Table(
            "Readouts",
            (
                *("Readout", "Kind", "Task", "Model"),
                *_reach_header(choices),
                "Epochs",
                "Most frequent preferred layer there",
            ),
            rows,
            "r: Pearson correlation of predicted and measured responses in held-out "
            f"{_held_out(readouts)}. Epochs: those trained before validation loss stopped each "
            "fold. Preferred layer: the one with the largest share in the prediction.",
        )
    )
    for task in dict.fromkeys(str(dataset.attrs["task"]) for dataset in readouts):
        own = [dataset for dataset in readouts if str(dataset.attrs["task"]) == task]
        linear = [dataset for dataset in encoding if str(dataset.attrs["task"]) == task]
        for model in dict.fromkeys(str(dataset.attrs["model"]) for dataset in own):
            blocks += _beside_linear(
                [dataset for dataset in own if str(dataset.attrs["model"]) == model],
                [dataset for dataset in linear if str(dataset.attrs["model"]) == model],
                regions,
                model,
                task,
                choices,
            )
    curves = {
        f"{dataset.attrs['name']}"
        + (f", {dataset.attrs['task']}" if len({d.attrs["task"] for d in readouts}) > 1 else ""): (
            np.asarray(dataset["training_loss"].values),
            np.asarray(dataset["validation_loss"].values),
        )
        for dataset in readouts
    }
    blocks.append(
        Picture(
            [losses_figure(curves)],
            f"Training and validation loss of {count(len(curves), 'readout')} by epoch.",
            "Training of the readouts",
            "Mean squared error of standardised responses by epoch, one line a fold; training "
            "stops when the validation loss no longer falls, and keeps its best state.",
            narrow=len(curves) <= 2,
        )
    )
    for dataset in readouts:
        blocks += _readout_maps(dataset, anatomy, choices)
    return blocks


def _beside_linear(
    readouts: Sequence[xr.Dataset],
    linear: Sequence[xr.Dataset],
    regions: Mapping[tuple[str, str], RegionImage],
    model: str,
    task: str,
    choices: ReportOptions,
) -> list[Any]:
    """Readouts of a model beside its best layer by region."""
    # Readouts need not have the same voxels: some are trained on those of the regions alone.
    own = [_counted_masks(dataset, regions) for dataset in readouts]
    masks = own[0]
    if not masks:
        return [Note(f"No voxel has a score that counts, so readouts of {model} have no regions.")]
    scores: dict[str, np.ndarray] = {}
    best = [best_layer(linear, readouts[0], mask) for mask in masks.values()]
    if linear:
        scores["best linear layer"] = np.array([r for _, r in best])
    for dataset, its in zip(readouts, own, strict=True):
        values = np.asarray(dataset["score"].values)
        scores[str(dataset.attrs["name"])] = np.array(
            [float(mean_over(values, its[key])) if key in its else np.nan for key in masks]
        )
    rows = [
        [
            region,
            f"{int(mask.sum()):,}",
            *([best[index][0].partition("/")[2] or "n/a"] if linear else []),
            *(number(values[index], 3) for values in scores.values()),
        ]
        for index, (region, mask) in enumerate(masks.items())
    ]
    names = [str(dataset.attrs["name"]) for dataset in readouts]
    blocks: list[Any] = []
    if linear:
        reference = scores["best linear layer"]
        if list(masks) == [EVERYWHERE]:
            words = [
                f"{name} {number(scores[name][0], 3)} against {number(reference[0], 3)}"
                for name in names
            ]
            text = f"mean r of readouts against that of the best linear layer: {join(words)}"
        else:
            words = [
                f"{name} in {int((scores[name] > reference).sum())} of {len(masks)}"
                for name in names
            ]
            text = f"regions where a readout is above the best linear layer: {join(words)}"
        blocks.append(Paragraph(f"{model}, task {task}, {text}."))
    shown = list(masks)[: choices.max_regions_shown]
    caption = f"Mean held-out r over {which_voxels(readouts[0])}, task {task}" + (
        "; the linear layer is the best of the region, chosen by the same scores, so its r is "
        "a little too high."
        if linear
        else "."
    )
    blocks.append(
        Table(
            f"Readouts of {model} by region",
            (
                "Region",
                "Voxels",
                *(["Best layer"] if linear else []),
                *(f"r, {name}" for name in scores),
            ),
            rows,
            caption,
        )
    )
    blocks.append(
        Picture(
            [beside_figure(shown, {k: v[: len(shown)] for k, v in scores.items()})],
            f"Bars of the mean r of {', '.join(scores)} in {count(len(shown), 'region')}.",
            f"Readouts of {model} by region",
            caption,
            narrow=len(shown) * len(scores) <= 12,
        )
    )
    return blocks


def _readout_maps(
    dataset: xr.Dataset, anatomy: Mapping[str, Path | str] | None, choices: ReportOptions
) -> list[Any]:
    attrs = dataset.attrs
    name = str(attrs["name"])
    who = f"subject {attrs['subject']}, task {attrs['task']}"
    blocks: list[Any] = [Heading(f"Readout {name} ({attrs['kind']}), task {attrs['task']}")]
    blocks += _score_map(dataset, f"Readout {name}", who, anatomy, choices)
    grid = Grid.of(dataset)
    seen = _top(dataset) >= choices.encoding_threshold
    if "x" in dataset and "y" in dataset:
        fields = {
            key: np.asarray(dataset[key].values, dtype=float)
            for key in ("x", "y", "size")
            if key in dataset
        }
        seen &= np.all([np.isfinite(values) for values in fields.values()], axis=0)
        if not seen.any():
            blocks.append(
                Note(
                    f"Receptive fields are shown of voxels with r ≥ "
                    f"{number(choices.encoding_threshold)}; there is none."
                )
            )
        else:
            blocks += _field_pictures(dataset, fields, seen, grid, anatomy, choices)
    if "attention" in dataset:
        attention = np.asarray(dataset["attention"].values, dtype=float)
        queries = [str(query) for query in dataset["query"].values]
        known = np.flatnonzero(np.isfinite(attention).all(axis=(1, 2)))
        chosen = known[np.linspace(0, len(known) - 1, min(len(known), MAX_MAPS)).astype(int)]
        if not chosen.size:
            return [*blocks, Note(f"Readout {name} has no finite attention map.")]
        row, column = np.unravel_index(
            int(attention[chosen].mean(axis=0).argmax()), attention.shape[1:]
        )
        blocks.append(
            Picture(
                [attention_figure([queries[i] for i in chosen], attention[chosen])],
                f"Mean attention over the image of {len(chosen)} queries; on "
                f"average it is highest in row {row + 1} of {attention.shape[1]} and column "
                f"{column + 1} of {attention.shape[2]}.",
                f"Readout {name}: attention",
                f"Mean attention over held-out {samples_of(attrs)} and folds, as a multiple of "
                f"even attention over the {attention.shape[1]} × {attention.shape[2]} places; one "
                "colour scale"
                + (
                    f"; {len(chosen)} of {len(queries)} queries, evenly over all."
                    if len(chosen) < len(queries)
                    else "."
                ),
                narrow=len(chosen) <= 4,
            )
        )
    return blocks


def _field_pictures(
    dataset: xr.Dataset,
    fields: Mapping[str, np.ndarray],
    seen: np.ndarray,
    grid: Grid,
    anatomy: Mapping[str, Path | str] | None,
    choices: ReportOptions,
) -> list[Any]:
    attrs = dataset.attrs
    name, units = str(attrs["name"]), str(attrs["field_units"])
    short = "°" if units.startswith("degrees") else "of image width"
    shown = {key: values[seen] for key, values in fields.items()}
    eccentricity = np.hypot(shown["x"], shown["y"])
    n = int(seen.sum())
    view = attrs.get("field_of_view")
    half = float(view) / 2 if view else (0.5 if not units.startswith("degrees") else None)
    right = float((shown["x"] > 0).mean())
    over = "" if n <= 1500 else " (1,500 of them drawn)"
    blocks: list[Any] = [
        Picture(
            [
                coverage_figure(
                    shown["x"], shown["y"], shown.get("size"), units=short, half_width=half
                )
            ],
            f"Centres of {n:,} receptive fields, {percent(right)} of them right of the middle; "
            f"median eccentricity {number(float(np.median(eccentricity)))} {short}.",
            f"Readout {name}: receptive fields",
            f"Centres (y up, 0 is the image's centre) and sizes of {n:,} voxels with r ≥ "
            f"{number(choices.encoding_threshold)}{over}, in {units}; median eccentricity "
            f"{number(float(np.median(eccentricity)))}"
            + (f", median size {number(float(np.median(shown['size'])))}" * ("size" in shown))
            + "."
            + (" Dashed: the image." if half is not None else ""),
            narrow=True,
        )
    ]
    if grid.space == "none":
        return blocks
    ground = backdrop(grid, anatomy)
    names = {"x": "centre to the right", "y": "centre upwards", "size": "size"}
    for key, values in fields.items():
        inside = values[seen]
        reach = max(float(np.percentile(np.abs(inside), 98)), 1e-6)
        blocks.append(
            Picture(
                [
                    mosaic(
                        grid,
                        np.where(seen, values, np.nan),
                        ground=ground,
                        slices=choices.slices,
                        label=f"{names[key]}, {short}",
                        cmap="viridis" if key == "size" else "RdBu_r",
                        limits=(0, reach) if key == "size" else (-reach, reach),
                    )
                ],
                f"Axial slices coloured by the receptive field's {names[key]}: median "
                f"{number(float(np.median(inside)))} {short} in {n:,} voxels.",
                f"Readout {name}: receptive field, {names[key]}",
                f"{capital(names[key])} in {units}, {n:,} voxels with r ≥ "
                f"{number(choices.encoding_threshold)}. Axial slices in {grid.space} space on "
                f"{ground.name}, z in mm, left is left.",
            )
        )
    return blocks
