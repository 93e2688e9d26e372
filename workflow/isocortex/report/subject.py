"""The report of one subject."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import xarray as xr

import isocortex
from isocortex import bids, store
from isocortex.errors import InputError
from isocortex.report.absence import ENTRY_TEXT, absence_table
from isocortex.report.brain import PACKAGED_MESH, Backdrop, Grid, Vertices, backdrop, mosaic
from isocortex.report.comparison import comparison_name
from isocortex.report.drawing import (
    QUALITATIVE,
    category_colours,
    new_figure,
    raster_uri,
    read_thumbnails,
    report_style,
)
from isocortex.report.encoding_regions import read_regions
from isocortex.report.maps import LayerMaps, layer_pictures
from isocortex.report.matrices import order_stimuli, rdm_figure, square
from isocortex.report.options import ReportOptions
from isocortex.report.page import (
    Heading,
    Note,
    Paragraph,
    Picture,
    Section,
    Table,
    count,
    join,
    number,
    render,
)
from isocortex.report.quality import (
    confounds_figure,
    confounds_table,
    figure_blocks,
    read_confounds,
)
from isocortex.report.sources import (
    package_versions,
    provenance_table,
    read_manifests,
    versions_table,
)
from isocortex.report.subject_encoding import encoding_blocks
from isocortex.report.wording import radius_text, voxel_reason

log = logging.getLogger(__name__)


def report_subject(
    *,
    subject: str,
    study: str,
    out: Path | str,
    options: Mapping[str, Any],
    entry: str = "bids",
    figures: Sequence[Path | str] = (),
    confounds: Sequence[Path | str] = (),
    betas: Sequence[Path | str] = (),
    regions: Sequence[Path | str] = (),
    region_labels: Sequence[Path | str] = (),
    rdms: Sequence[Path | str] = (),
    searchlight: Sequence[Path | str] = (),
    searchlight_surface: Sequence[Path | str] = (),
    encoding: Sequence[Path | str] = (),
    joint: Sequence[Path | str] = (),
    readouts: Sequence[Path | str] = (),
    anatomy: Mapping[str, Path | str] | None = None,
    stimuli: Mapping[str, Path | str] | None = None,
    manifests: Sequence[Path | str] = (),
    code: str = "",
) -> Path:
    """Write the report of one subject, one HTML file that is complete in itself.

    Parameters
    ----------
    subject
        Label without ``sub-``.
    study
        Name of the study.
    out
        HTML file to write.
    options
        The ``report`` section of the configuration.
    entry
        Where the study enters the chain: ``bids``, ``derivatives``, ``betas`` or ``rdms``; says
        why a part is absent.
    figures
        Figures directories of preprocessing: the anatomy's, then each run's.
    confounds
        Confounds tables, one a run.
    betas
        Betas stores, one a task.
    regions, region_labels
        Label images (NIfTI) on the grid of the betas and their tables (index, name), one a task.
    rdms
        RDM stores, one a task and measure.
    searchlight, searchlight_surface
        Searchlight stores of the volume and of the surface, one a task.
    encoding
        Encoding stores, one a task and model.
    joint, readouts
        Stores of joint encoding models and of readouts, one a task and model or readout.
    anatomy
        NIfTI image to draw maps on by space name; MNI spaces have nilearn's template without.
    stimuli
        Image file by stimulus id.
    manifests
        Further manifests for the provenance table (preprocessing's, regions').
    code
        Digest of the report's code.

    Returns
    -------
    pathlib.Path
        `out`.

    Raises
    ------
    InputError
        If an input cannot be read, or belongs to another subject.
    """
    choices = ReportOptions.from_config(options)
    subject = str(subject)
    with report_style():
        opened = [_own(path, "betas", subject) for path in betas]
        matrices = [_own(path, "rdms", subject) for path in rdms]
        tasks = list(dict.fromkeys(str(ds.attrs["task"]) for ds in [*opened, *matrices]))
        grounds = _Grounds(anatomy)
        parts = [
            (
                "preprocess",
                Section("preprocessing", "Preprocessing and registration", _preprocessing(figures)),
            ),
            ("confounds", Section("motion", "Motion and confounds", _confounds(confounds))),
            ("glm", Section("design", "Design", _design(opened))),
            ("glm", Section("responses", "Responses", _responses(opened, grounds, choices))),
            (
                "regions",
                Section(
                    "regions",
                    "Regions",
                    _regions(opened, regions, region_labels, rdms, subject, grounds, choices),
                ),
            ),
            (
                "rdms",
                Section(
                    "rdms",
                    "Dissimilarity matrices",
                    _rdms(rdms, opened, subject, stimuli or {}, choices),
                ),
            ),
            (
                "searchlight",
                Section(
                    "searchlight",
                    "Searchlight",
                    _searchlight(searchlight, searchlight_surface, subject, anatomy, choices),
                ),
            ),
            (
                "encoding",
                Section(
                    "encoding",
                    "Encoding models",
                    encoding_blocks(
                        [_own(path, "encoding", subject) for path in encoding],
                        [_own(path, "encoding_joint", subject) for path in joint],
                        [_own(path, "readout", subject) for path in readouts],
                        read_regions(regions, region_labels) if joint or readouts else {},
                        anatomy=anatomy,
                        choices=choices,
                    ),
                ),
            ),
        ]
        sections = [section for _, section in parts if section.blocks]
        if left_out := [(part.title, stage) for stage, part in parts if not part.blocks]:
            sections.append(Section("notes", "Left out", [absence_table(left_out, entry)]))
        found = read_manifests(
            [
                *(*manifests, *betas, *rdms, *searchlight, *searchlight_surface),
                *(*encoding, *joint, *readouts),
            ]
        )
        versions = package_versions(found)
        last: list[Any] = [provenance_table(found)] if found else [Note("No manifest was given.")]
        sections.append(Section("provenance", "Provenance", [*last, versions_table(versions)]))
    facts = {
        "Study": study,
        "Subject": subject,
        "Tasks": join(tasks) if tasks else "–",
        "Started from": ENTRY_TEXT.get(entry, entry),
        "isocortex": isocortex.__version__,
        "Report code": code[:16] or "not recorded",
    }
    path = render(
        out,
        title=f"Subject {subject}",
        subtitle=f"{study} · subject report",
        facts=facts,
        sections=sections,
    )
    log.info("wrote %s (%.1f MB)", path, path.stat().st_size / 1e6)
    return path


class _Grounds:
    """Backdrops by space and grid, made once."""

    def __init__(self, anatomy: Mapping[str, Path | str] | None) -> None:
        self.anatomy = anatomy
        self.made: dict[tuple[Any, ...], Backdrop] = {}

    def of(self, grid: Grid) -> Backdrop:
        key = (grid.space, grid.shape, grid.affine.tobytes())
        if key not in self.made:
            self.made[key] = backdrop(grid, self.anatomy)
        return self.made[key]


def _own(path: Path | str, spec: str, subject: str) -> xr.Dataset:
    dataset = store.open(path, spec)
    if str(dataset.attrs["subject"]) != subject:
        raise InputError(
            f"{path} belongs to subject {dataset.attrs['subject']}, not {subject}: give the "
            "subject's own store"
        )
    return dataset


def _preprocessing(figures: Sequence[Path | str]) -> list[Any]:
    return [block for directory in figures for block in figure_blocks(directory)]


def _confounds(confounds: Sequence[Path | str]) -> list[Any]:
    if not confounds:
        return []
    runs = [read_confounds(path) for path in confounds]
    return [confounds_table(runs), confounds_figure(runs)]


def _design(opened: Sequence[xr.Dataset]) -> list[Any]:
    blocks: list[Any] = []
    for dataset in opened:
        task = str(dataset.attrs["task"])
        if len(opened) > 1:
            blocks.append(Heading(f"Task {task}"))
        if dataset.attrs.get("methods"):
            blocks.append(Paragraph(str(dataset.attrs["methods"])))
        blocks.append(_design_table(dataset))
        blocks.append(_design_figure(dataset))
    return blocks


def _run_names(dataset: xr.Dataset) -> list[str]:
    return list(dict.fromkeys(str(name) for name in dataset["run"].values))


def _design_table(dataset: xr.Dataset) -> Table:
    told = dataset.attrs.get("design") or []
    told = {str(run["run"]): run for run in told if isinstance(run, Mapping) and "run" in run}
    stimuli = np.asarray(dataset["stimulus"].values).astype(str)
    runs = np.asarray(dataset["run"].values).astype(str)
    onsets = np.asarray(dataset["onset"].values, dtype=float)
    volumes = np.asarray(dataset["time_run"].values).astype(str)
    rows = []
    for name in _run_names(dataset):
        inside = runs == name
        gaps = np.diff(np.sort(onsets[inside]))
        info = told.get(name, {})
        rows.append(
            [
                name,
                info.get("n_volumes", int((volumes == name).sum()) or "n/a"),
                int(inside.sum()),
                len(set(stimuli[inside])),
                number(float(np.median(gaps)) if gaps.size else np.nan, 2),
                info.get("n_regressors", "n/a"),
                len(info["confounds"]) if "confounds" in info else "n/a",
                info.get("degrees_of_freedom", "n/a"),
                number(info.get("condition_number", np.nan), 1),
            ]
        )
    repeats = np.unique(stimuli, return_counts=True)[1]
    shown = count(int(repeats.min()), "time")
    if repeats.min() != repeats.max():
        shown = f"{repeats.min()} to {repeats.max()} times"
    return Table(
        f"Design of task {dataset.attrs['task']}",
        (
            "Run",
            "Volumes",
            "Trials",
            "Stimuli",
            "Median onset gap, s",
            "Regressors",
            "Confounds",
            "Residual d.f.",
            "Condition number",
        ),
        rows,
        f"{len(repeats)} stimuli, each shown {shown} over all runs; "
        f"{float(dataset.attrs['TR']):g} s a volume.",
    )


def _design_figure(dataset: xr.Dataset) -> Picture | Note:
    """Draw when the trials of each run were, and the design matrix of the first run."""
    if not np.isfinite(dataset["onset"].values).any():
        return Note("The responses came without onsets, so the trials are not drawn.")
    runs = _run_names(dataset)
    run = np.asarray(dataset["run"].values).astype(str)
    onset = np.asarray(dataset["onset"].values, dtype=float)
    duration = np.asarray(dataset["duration"].values, dtype=float)
    names = np.asarray(dataset["stimulus"].values).astype(str)
    condition = dict(zip(names, np.asarray(dataset["condition"].values).astype(str)))
    order = order_stimuli(names, condition)
    group = (
        dict(zip(order.names, order.categories))
        if order.categories
        else dict.fromkeys(names, "trial")
    )
    colours = category_colours([group[name] for name in order.names])
    figure = new_figure(11.0, max(3.6, 1.2 + 0.3 * min(len(runs), 24)))
    # Responses made elsewhere come without a design matrix.
    if dataset["design"].size:
        left, right = figure.subplots(1, 2, width_ratios=(1.45, 1))
    else:
        left, right = figure.subplots(), None
    shown = runs[:24]
    for row, name in enumerate(shown):
        for category, colour in colours.items():
            inside = (run == name) & np.array([group[stimulus] == category for stimulus in names])
            width = np.maximum(duration[inside], 0.4)
            left.broken_barh(
                list(zip(onset[inside], width)), (row - 0.36, 0.72), facecolors=colour, linewidth=0
            )
    left.set_yticks(range(len(shown)), [f"run {name}" for name in shown])
    left.set_ylim(len(shown) - 0.4, -0.6)
    left.tick_params(axis="y", length=0)
    left.set_xlabel("time in the run, s")
    left.set_title("Trials")
    if len(colours) <= 12 and len(colours) > 1:
        handles = [
            left.scatter([], [], marker="s", color=colour, label=name)
            for name, colour in colours.items()
        ]
        figure.legend(
            handles=handles, loc="outside lower left", ncols=min(len(colours), 8), handlelength=1
        )
    matrix = np.asarray(dataset["design"].values, dtype=float)
    more = f" The first 24 of {len(runs)} runs are shown." if len(runs) > 24 else ""
    trials = (
        f"onset and duration of {len(onset)} trials in {count(len(runs), 'run')}"
        + (f", coloured by category ({order.source})" if order.categories else "")
        + f".{more}"
    )
    if right is None:
        return Picture(
            [raster_uri(figure)],
            f"Bars mark {len(onset)} trials in {len(runs)} runs.",
            "Trials",
            f"{trials[0].upper()}{trials[1:]}",
        )
    times = np.asarray(dataset["frame_time"].values, dtype=float)
    peak = np.abs(matrix).max(axis=0)
    drawn = right.imshow(
        matrix / np.where(peak > 0, peak, 1),
        aspect="auto",
        cmap="RdBu_r",
        vmin=-1,
        vmax=1,
        interpolation="nearest",
        extent=(0.5, matrix.shape[1] + 0.5, times[-1], times[0]),
    )
    right.set_xlabel("regressor")
    right.set_ylabel("time, s")
    right.set_title(f"Design matrix, run {runs[0]}")
    bar = figure.colorbar(drawn, ax=right, fraction=0.04, pad=0.02)
    bar.set_label("share of the regressor's peak")
    bar.outline.set_visible(False)
    n_trials = int((run == runs[0]).sum())
    return Picture(
        [raster_uri(figure)],
        f"Left: bars mark {len(onset)} trials in {len(runs)} runs. Right: design matrix of "
        f"{matrix.shape[0]} volumes and {matrix.shape[1]} regressors.",
        "Trials and design matrix",
        f"Left: {trials} Right: the design matrix of run {runs[0]}, {matrix.shape[0]} volumes by "
        f"{matrix.shape[1]} regressors (the {n_trials} trials, then confounds, drift and "
        "constant), each scaled to its peak.",
    )


def trial_z(dataset: xr.Dataset) -> np.ndarray:
    """Stimulus against rest: one-sample t of the single-trial betas, as z.

    Parameters
    ----------
    dataset
        Betas store.

    Returns
    -------
    numpy.ndarray
        Shape (voxel,). Trials are taken as independent, so z describes and does not test.
    """
    from scipy.stats import norm, t

    beta = dataset["beta"]
    n = beta.sizes["trial"]
    if n < 2:
        return np.full(beta.sizes["voxel"], np.nan)
    mean = beta.mean("trial").values.astype(float)
    spread = beta.std("trial", ddof=1).values.astype(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic = mean / (spread / np.sqrt(n))
    # Log tails keep z finite where the p-value underflows.
    tail = t.logsf(np.abs(statistic), n - 1)
    z = -norm.ppf(np.exp(np.clip(tail, -700, 0)))
    return np.where(np.isfinite(statistic), np.sign(statistic) * z, np.nan)


def _responses(
    opened: Sequence[xr.Dataset], grounds: _Grounds, choices: ReportOptions
) -> list[Any]:
    blocks: list[Any] = []
    for dataset in opened:
        if len(opened) > 1:
            blocks.append(Heading(f"Task {dataset.attrs['task']}"))
        grid = Grid.of(dataset)
        ground = grounds.of(grid)
        z = np.asarray(dataset["z_stimulus"].values, dtype=float)
        fitted = bool(np.isfinite(z).any())
        if not fitted:
            z = trial_z(dataset)
        n_trials = dataset.sizes["trial"]
        measures: list[tuple[str, np.ndarray, str, str, tuple[float, float] | None, str]] = [
            (
                "Temporal signal-to-noise ratio",
                dataset["tsnr"].values,
                "tSNR",
                "magma",
                None,
                "Mean over standard deviation of each voxel's time series without drift.",
            ),
            (
                "Response to stimuli against rest",
                np.where(np.abs(z) >= 3.1, z, np.nan),
                "z, stimulus against rest",
                "RdBu_r",
                None,
                (
                    f"Mean response to {n_trials} trials, fixed effects over runs, as z"
                    if fitted
                    else f"One-sample t over {n_trials} single-trial responses, as z (trials taken "
                    "as independent: the map describes and does not test)"
                )
                + f", shown where |z| ≥ 3.1 ({int((np.abs(z) >= 3.1).sum()):,} voxels).",
            ),
            (
                "Variance explained by the design",
                dataset["r2"].values,
                "R²",
                "viridis",
                None,
                "Share of the variance left by drift and confounds that the trials explain, within "
                "the runs that the design was fitted to.",
            ),
            (
                "Noise-ceiling signal-to-noise ratio",
                dataset["ncsnr"].values,
                "ncsnr",
                "viridis",
                None,
                "Standard deviation of the signal over that of the noise of a single trial, from "
                "repeats of a stimulus (Allen et al. 2022).",
            ),
            (
                "Noise ceiling",
                100 * dataset["noise_ceiling"].values,
                "% of variance",
                "viridis",
                None,
                "Share of the variance of the mean over repeats that any model could explain.",
            ),
        ]
        rows = []
        pictures: list[Any] = []
        for title, values, label, cmap, limits, caption in measures:
            values = np.asarray(values, dtype=float)
            finite = values[np.isfinite(values)]
            whole = z[np.isfinite(z)] if label.startswith("z") else finite
            if whole.size:
                rows.append(
                    [
                        title,
                        label,
                        *(number(v, 2) for v in np.percentile(whole, [5, 50, 95])),
                        number(float(whole.max()), 2),
                        f"{whole.size:,}",
                    ]
                )
            if not finite.size:
                reason = (
                    "no voxel passes the threshold"
                    if label.startswith("z") and whole.size
                    else "no stimulus repeats"
                    if label in ("ncsnr", "% of variance")
                    else "the store holds no value"
                )
                pictures.append(Note(f"{title}: no map, because {reason}."))
                continue
            if label.startswith("z"):
                reach = max(float(np.percentile(np.abs(finite), 98)), 3.2)
                limits = (-reach, reach)
            pictures.append(
                Picture(
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
                    f"Axial slices of {label}: median {number(float(np.median(finite)))}, highest "
                    f"{number(float(finite.max()))} in {finite.size:,} voxels.",
                    title,
                    f"{caption} {finite.size:,} voxels, axial slices in {grid.space} space on "
                    f"{ground.name}, z in mm, left is left; colours span the 2nd to 98th "
                    "percentile.",
                )
            )
        left_out = {
            key: int(value)
            for key, value in dataset.attrs.items()
            if key.startswith("n_voxels_") and key != "n_voxels_mask"
        }
        words = [f"{value:,} {voxel_reason(key)}" for key, value in left_out.items()]
        blocks.append(
            Table(
                f"Responses of task {dataset.attrs['task']}",
                ("Measure", "Unit", "5%", "Median", "95%", "Highest", "Voxels"),
                rows,
                f"Over {dataset.sizes['voxel']:,} voxels. Voxels left out: "
                + (join(words) if words else "none recorded")
                + ".",
            )
        )
        blocks += pictures
    return blocks


def _regions(
    opened: Sequence[xr.Dataset],
    regions: Sequence[Path | str],
    region_labels: Sequence[Path | str],
    rdms: Sequence[Path | str],
    subject: str,
    grounds: _Grounds,
    choices: ReportOptions,
) -> list[Any]:
    if not regions:
        return []
    if len(regions) != len(region_labels):
        raise InputError(
            f"{len(regions)} region images and {len(region_labels)} label tables of subject "
            f"{subject}: give one table an image"
        )
    used: dict[str, dict[str, int]] = {}
    for path in rdms:
        dataset = _own(path, "rdms", subject)
        if "n_voxels" in dataset:
            counts = {
                str(r): int(n) for r, n in zip(dataset["region"].values, dataset["n_voxels"].values)
            }
            used.setdefault(str(dataset.attrs["task"]), counts)
    blocks: list[Any] = []
    spaces = {Grid.of(ds).shape: Grid.of(ds).space for ds in opened}
    for path, table in zip(regions, region_labels):
        try:
            image = nib.load(path)
            data = np.rint(np.asarray(image.dataobj)).astype(int)
        except Exception as error:
            raise InputError(f"{path} cannot be read as NIfTI ({error}): make it again") from error
        labels = {
            int(key): str(name) for key, name in bids.read_labels(table).items() if int(key) != 0
        }
        task = bids.entities(Path(path).name)[0].get("task", "")
        space = spaces.get(data.shape, "")
        voxels = np.stack(np.nonzero(np.isin(data, list(labels))))
        volume_ml = abs(np.linalg.det(image.affine[:3, :3])) / 1000
        rows = []
        for key, name in labels.items():
            size = int((data == key).sum())
            rows.append(
                [
                    name,
                    f"{size:,}",
                    number(size * volume_ml, 2),
                    used.get(task, {}).get(name, "n/a"),
                ]
            )
        blocks.append(
            Table(
                "Region sizes" + (f", task {task}" if task and len(regions) > 1 else ""),
                ("Region", "Voxels on the grid", "Volume, ml", "Voxels analysed"),
                rows,
                "Analysed: voxels inside the brain mask of all runs with a usable response.",
            )
        )
        if not voxels.size:
            blocks.append(Note("No voxel of the grid belongs to a region, so there is no figure."))
            continue
        grid = Grid(np.asarray(image.affine), data.shape, voxels, space)
        names = list(labels.values())
        keys = list(labels)
        values = np.array([keys.index(value) for value in data[tuple(voxels)]], dtype=float)
        palette = {name: QUALITATIVE[i % len(QUALITATIVE)] for i, name in enumerate(names)}
        ground = grounds.of(grid)
        blocks.append(
            Picture(
                [
                    mosaic(
                        grid,
                        values,
                        ground=ground,
                        slices=choices.slices,
                        label="region",
                        colours=palette,
                    )
                ],
                f"Axial slices with {len(names)} regions in colour on {ground.name}.",
                "Regions on the anatomy",
                f"{count(len(names), 'region')} on the grid of the responses, "
                f"{voxels.shape[1]:,} voxels, drawn on "
                f"{ground.name}, z in mm, left is left.",
            )
        )
    return blocks


def _rdms(
    rdms: Sequence[Path | str],
    opened: Sequence[xr.Dataset],
    subject: str,
    stimuli: Mapping[str, Path | str],
    choices: ReportOptions,
) -> list[Any]:
    conditions: dict[str, str] = {}
    for dataset in opened:
        conditions.update(zip(dataset["stimulus"].values, dataset["condition"].values))
    blocks: list[Any] = []
    # Images with the first measure of a task suffice: the order is the same in all.
    with_images: set[str] = set()
    for path in rdms:
        dataset = _own(path, "rdms", subject)
        first, second = dataset["stimulus_i"].values, dataset["stimulus_j"].values
        order = order_stimuli([*first, *second], conditions)
        names = [str(name) for name in dataset["region"].values]
        shown = names[: choices.max_regions_shown]
        values = np.asarray(dataset["dissimilarity"].values)
        matrices = {
            name: square(values[index], first, second, order.names)
            for index, name in enumerate(shown)
        }
        matrices = {
            name: matrix
            for name, matrix in matrices.items()
            if np.isfinite(matrix).sum() > len(matrix)
        }
        measure = str(dataset.attrs["measure"])
        if not matrices:
            blocks.append(Note(f"RDMs by {measure}: no region has a finite dissimilarity."))
            continue
        task = str(dataset.attrs["task"])
        thumbnails = {}
        if (
            choices.thumbnails
            and task not in with_images
            and len(order.names) <= choices.max_thumbnails
        ):
            thumbnails = read_thumbnails(stimuli, order.names)
            with_images.add(task)
        notes = {}
        if "n_voxels" in dataset:
            notes = {
                name: f"({int(n):,} voxels)" for name, n in zip(names, dataset["n_voxels"].values)
            }
        more = (
            f" The first {len(shown)} of {len(names)} regions are shown."
            if len(names) > len(shown)
            else ""
        )
        blocks.append(
            Picture(
                [rdm_figure(matrices, order, thumbnails=thumbnails, notes=notes)],
                f"Dissimilarity matrices of {join(list(matrices))} over {len(order.names)} "
                "stimuli.",
                f"RDMs of task {dataset.attrs['task']} by {measure}",
                f"Dissimilarity of {len(order.names)} stimuli ({measure}; noise normalisation: "
                f"{dataset.attrs['noise_normalisation'] or 'none'}; cross-validation: "
                f"{dataset.attrs['cross_validation'] or 'none'}) in percentiles within each region"
                + (f", ordered by category ({order.source})" if order.categories else "")
                + f". One subject.{more}",
            )
        )
    return blocks


def _searchlight(
    volume: Sequence[Path | str],
    surface: Sequence[Path | str],
    subject: str,
    anatomy: Mapping[str, Path | str] | None,
    choices: ReportOptions,
) -> list[Any]:
    blocks: list[Any] = []
    stores = [(path, "searchlight") for path in volume]
    stores += [(path, "searchlight_surface") for path in surface]
    for path, spec in stores:
        dataset = _own(path, spec, subject)
        on_surface = spec == "searchlight_surface"
        sizes = np.asarray(dataset["n_voxels"].values)
        radius = radius_text(dataset.attrs["radius"])
        place = f"on the {dataset.attrs['mesh']} surface" if on_surface else "in the volume"
        blocks.append(
            Paragraph(
                f"Task {dataset.attrs['task']}, {place}: {sizes.size:,} centres, radius {radius}, "
                f"{int(np.median(sizes))} {'vertices' if on_surface else 'voxels'} in the median "
                "neighbourhood; RDMs compared with the models' by "
                f"{comparison_name(str(dataset.attrs['comparison']))}."
            )
        )
        if on_surface and str(dataset.attrs["mesh"]) != PACKAGED_MESH:
            blocks.append(Note(f"Maps on {dataset.attrs['mesh']} are beside the store as GIFTI."))
            continue
        grid = Vertices.of(dataset) if on_surface else Grid.of(dataset)
        predictors = [str(name) for name in dataset["predictor"].values]
        blocks += layer_pictures(
            LayerMaps(grid, predictors, np.asarray(dataset["score"].values), 1),
            what="Surface searchlight RSA" if on_surface else "Searchlight RSA",
            score=comparison_name(str(dataset.attrs["comparison"])),
            threshold=choices.searchlight_threshold,
            slices=choices.slices,
            anatomy=anatomy,
            who=f"subject {subject}",
        )
    return blocks
