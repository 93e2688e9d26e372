"""Joint models, readouts and universal encoders in the study's report, beside linear models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from isocortex.report.encoding_figures import beside_figure, losses_figure, shares_figure
from isocortex.report.encoding_regions import (
    EVERYWHERE,
    RegionImage,
    best_layer,
    counted,
    largest_share,
    masks_of,
    mean_over,
    samples_of,
)
from isocortex.report.options import ReportOptions
from isocortex.report.page import Heading, Paragraph, Picture, Table, count, join, number
from isocortex.report.study_findings import Finding

LINEAR = "best linear layer"


@dataclass
class Split:
    """A joint model's split of r2, mean over subjects, shape (region, space)."""

    spaces: list[str]
    method: str
    shares: np.ndarray
    unique: np.ndarray | None


@dataclass
class Person:
    """One subject of a universal encoder: r of the own best layers and of the encoder."""

    subject: str
    n_voxels: int
    n_trials: int | None
    new: bool
    own: float
    universal: float


@dataclass
class Universal:
    """A universal encoder by subject."""

    name: str
    model: str
    people: list[Person]
    training: np.ndarray
    validation: np.ndarray


@dataclass
class TaskScores:
    """Scores of one task by region and subject.

    Parameters
    ----------
    task
        Name.
    samples
        "trials" or "volumes".
    regions, subjects
        Names.
    layers
        Linear predictors: r by "model/layer", shape (region, subject), NaN where there is none.
    joint, readouts
        The same by the name of the joint model or readout.
    splits
        Split of r2 by the name of the joint model.
    universal
        Universal encoders.
    least
        Explainable share of variance from which a voxel counts.
    """

    task: str
    samples: str
    regions: list[str]
    subjects: list[str]
    layers: dict[str, np.ndarray] = field(default_factory=dict)
    joint: dict[str, np.ndarray] = field(default_factory=dict)
    readouts: dict[str, np.ndarray] = field(default_factory=dict)
    splits: dict[str, Split] = field(default_factory=dict)
    universal: list[Universal] = field(default_factory=list)
    least: float = 0.0

    def linear(self) -> tuple[list[str], np.ndarray]:
        """Best layer of each region by its mean over subjects, and its r (region, subject)."""
        names = list(self.layers)
        best, values = [], np.full((len(self.regions), len(self.subjects)), np.nan)
        if not names:
            return [""] * len(self.regions), values
        means = np.stack([over_subjects(self.layers[name]) for name in names])
        for index, column in enumerate(means.T):
            if not np.isfinite(column).any():
                best.append("")
                continue
            best.append(names[int(np.nanargmax(column))])
            values[index] = self.layers[best[-1]][index]
        return best, values


def over_subjects(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of Fisher z, as r; NaN where no subject has a score."""
    z = np.arctanh(np.clip(np.asarray(values, dtype=float), -1 + 1e-9, 1 - 1e-9))
    known = np.isfinite(z)
    n = known.sum(axis=-1)
    mean = np.where(known, z, 0).sum(axis=-1) / np.maximum(n, 1)
    return np.where(n > 0, np.tanh(mean), np.nan)


def scores_by_task(
    opened: Mapping[str, Sequence[xr.Dataset]], images: Mapping[tuple[str, str], RegionImage]
) -> list[TaskScores]:
    """Bring joint models, readouts and universal encoders together with linear models.

    Parameters
    ----------
    opened
        Stores by the argument of `report_study`.
    images
        Label images by subject and task.

    Returns
    -------
    list of TaskScores
        One a task that has more than linear models; means are over the voxels that the summary of
        linear models takes, too.
    """
    more = [*opened["joint"], *opened["readouts"], *opened["universal"]]
    summaries = {str(ds.attrs["task"]): ds for ds in opened["encoding_summary"]}
    out = []
    for task in dict.fromkeys(str(ds.attrs["task"]) for ds in more):

        def of_task(kind: str, task: str = task) -> list[xr.Dataset]:
            return [ds for ds in opened[kind] if str(ds.attrs["task"]) == task]

        linear = of_task("encoding")
        by_subject = [*of_task("joint"), *of_task("readouts"), *linear]
        summary = summaries.get(task)
        least = float(summary.attrs["responsive_ceiling"]) if summary is not None else None
        subjects = list(dict.fromkeys(str(ds.attrs["subject"]) for ds in by_subject))
        regions = list(dict.fromkeys(n for ds in by_subject for n in masks_of(ds, images)))
        scores = TaskScores(
            task,
            samples_of((by_subject or of_task("universal"))[0].attrs),
            regions,
            subjects,
            least=0.0 if least is None else least,
        )

        def by_region(
            ds: xr.Dataset,
            values: np.ndarray,
            regions: Sequence[str] = regions,
            least: float | None = least,
        ) -> np.ndarray:
            masks, use = masks_of(ds, images), counted(ds, least)
            empty = np.full(values.shape[:-1], np.nan)
            means = [mean_over(values, masks[r] & use) if r in masks else empty for r in regions]
            return np.stack(means, axis=-1)

        shape = (len(regions), len(subjects))
        for ds in linear:
            column = subjects.index(str(ds.attrs["subject"]))
            means = by_region(ds, np.asarray(ds["score"].values))
            for layer, row in zip(ds["layer"].values, means, strict=True):
                name = f"{ds.attrs['model']}/{layer}"
                scores.layers.setdefault(name, np.full(shape, np.nan))[:, column] = row
        for kind, key, put in (
            ("joint", "joint", scores.joint),
            ("readouts", "name", scores.readouts),
        ):
            for ds in of_task(kind):
                column = subjects.index(str(ds.attrs["subject"]))
                name = str(ds.attrs[key])
                row = by_region(ds, np.asarray(ds["score"].values))
                put.setdefault(name, np.full(shape, np.nan))[:, column] = row
        for name in scores.joint:
            own = [ds for ds in of_task("joint") if str(ds.attrs["joint"]) == name]
            split = {}
            for key in ("product_measure", "unique"):
                if all(key in ds for ds in own):
                    values = [by_region(ds, np.asarray(ds[key].values)).T for ds in own]
                    stacked = np.moveaxis(np.stack(values), 0, -1)
                    split[key] = mean_over(stacked, np.ones(stacked.shape[-1], bool))
            spaces = [str(space) for space in own[0]["space"].values]
            scores.splits[name] = Split(
                spaces, str(own[0].attrs["method"]), split["product_measure"], split.get("unique")
            )
        for ds in of_task("universal"):
            scores.universal.append(_universal(ds, linear, images, least))
        out.append(scores)
    return out


def _universal(
    dataset: xr.Dataset,
    linear: Sequence[xr.Dataset],
    images: Mapping[tuple[str, str], RegionImage],
    least: float | None,
) -> Universal:
    attrs = dataset.attrs
    model = str(attrs["model"])
    whose = np.asarray(dataset["subject"].values).astype(str)
    people = []
    for subject in (str(label) for label in attrs["subjects"]):
        own = dataset.isel(location=np.flatnonzero(whose == subject))
        own = own.drop_vars("subject").rename(location="voxel")
        # As one subject's store: the geometry is that of the subject.
        own = own.assign_attrs(
            subject=subject, affine=attrs["affine"][subject], shape=attrs["shape"][subject]
        )
        use = counted(own, least)
        masks = [mask & use for mask in masks_of(own, images).values()]
        use &= np.any(masks, axis=0)
        same = [
            ds
            for ds in linear
            if str(ds.attrs["subject"]) == subject and str(ds.attrs["model"]) == model
        ]
        # Each region by its own best layer, as the encoder has all of them at hand.
        size = np.array([mask.sum() for mask in masks])
        alone = np.array([best_layer(same, own, mask)[1] for mask in masks])
        known = np.isfinite(alone) & (size > 0)
        r = float((alone * size)[known].sum() / size[known].sum()) if known.any() else np.nan
        n_trials = attrs.get("n_trials")
        people.append(
            Person(
                subject,
                int(use.sum()),
                int(n_trials[subject]) if isinstance(n_trials, Mapping) else None,
                subject in [str(label) for label in attrs["new_subjects"]],
                r,
                float(mean_over(own["score"].values, use)),
            )
        )
    return Universal(
        str(attrs["name"]),
        model,
        people,
        np.asarray(dataset["training_loss"].values),
        np.asarray(dataset["validation_loss"].values),
    )


def predictor_blocks(tasks: Sequence[TaskScores], choices: ReportOptions) -> list[Any]:
    """Show joint models and readouts beside the best linear layer, and universal encoders.

    Parameters
    ----------
    tasks
        Out of `scores_by_task`.
    choices
        Options of the report.
    """
    blocks: list[Any] = []
    for scores in tasks:
        if scores.joint or scores.readouts:
            blocks += _all_predictors(scores, choices)
        for name, split in scores.splits.items():
            blocks += _split(name, split, scores, choices)
        for universal in scores.universal:
            blocks += _universal_blocks(universal, scores)
    return blocks


def _kinds(scores: TaskScores) -> str:
    """What there is besides linear layers."""
    there = [
        word
        for word, part in (("joint models", scores.joint), ("readouts", scores.readouts))
        if part
    ]
    return join(there)


def _which(scores: TaskScores) -> str:
    if not scores.least:
        return "voxels with a score"
    return (
        f"voxels of which at least {100 * scores.least:g}% of the variance can be explained (all, "
        "where that is not known)"
    )


def _all_predictors(scores: TaskScores, choices: ReportOptions) -> list[Any]:
    """All predictors by region in a table, and the best linear layer beside the others."""
    best, linear = scores.linear()
    groups = {"linear": scores.layers, "joint": scores.joint, "readout": scores.readouts}
    everything = [
        (kind, name, values) for kind, part in groups.items() for name, values in part.items()
    ]
    rows = [
        [name, kind, *(number(r, 3) for r in over_subjects(values))]
        for kind, name, values in everything
    ]
    who = f"mean over {count(len(scores.subjects), 'subject')}"
    what = f"Pearson r of predicted and measured responses in held-out {scores.samples}"
    blocks: list[Any] = [Heading(f"{_kinds(scores).capitalize()} by region, task {scores.task}")]
    further = {**scores.joint, **scores.readouts}
    if scores.layers:
        reference = over_subjects(linear)
        words = [
            f"{name} in {int((over_subjects(values) > reference).sum())}"
            for name, values in further.items()
        ]
        blocks.append(
            Paragraph(
                f"Above the best linear layer, of {count(len(scores.regions), 'region')}: "
                f"{join(words)}. The linear layer is the best of each region by the same scores, "
                "so its r is a little too high."
            )
        )
    index = list(range(min(len(scores.regions), choices.max_regions_shown)))
    shown = {LINEAR: linear} if scores.layers else {}
    drawn = {name: values[index] for name, values in {**shown, **further}.items()}
    regions = [scores.regions[i] for i in index]
    blocks.append(
        Picture(
            [beside_figure(regions, drawn)],
            "Bars of the mean r by region; the best linear layers are "
            + "; ".join(f"{scores.regions[i]}: {best[i] or 'none'}" for i in index)
            + ".",
            "Predictors side by side",
            f"{what}, {who}, over {_which(scores)}; white dots: subjects.",
        )
    )
    blocks.append(
        Table(
            f"All predictors by region, task {scores.task}",
            ("Predictor", "Kind", *(f"{region}" for region in scores.regions)),
            rows,
            f"{what}, {who} (of Fisher z), over {_which(scores)}.",
            collapsed=len(rows) > 20,
        )
    )
    return blocks


def _split(name: str, split: Split, scores: TaskScores, choices: ReportOptions) -> list[Any]:
    regions = scores.regions[: choices.max_regions_shown]
    n = len(regions)
    words = _strongest(split, scores.regions)
    unique = None if split.unique is None else split.unique[:n].T
    return [
        Picture(
            [shares_figure(regions, split.spaces, split.shares[:n].T, unique)],
            f"Stacked bars of the share of {join(split.spaces)} in r² by region; the largest is "
            f"{'; '.join(words[:n])}.",
            f"Joint model {name}: variance by feature space",
            f"Mean over {count(len(scores.subjects), 'subject')} and {_which(scores)} of each "
            f"feature space's share in held-out r² (product measure, {split.method}); full bars "
            "sum to r², shares below 0 hang down."
            + (
                " Hatched: r² that is lost without the space, its unique part."
                if unique is not None
                else ""
            ),
            narrow=n <= 6,
        )
    ]


def _strongest(split: Split, regions: Sequence[str]) -> list[str]:
    """Name the space with the largest share of each region that has one."""
    return [
        f"{region}: {largest_share(split.spaces, row)}"
        for region, row in zip(regions, split.shares, strict=True)
        if np.isfinite(row).any()
    ]


def _universal_blocks(universal: Universal, scores: TaskScores) -> list[Any]:
    people = universal.people
    compared = [person for person in people if np.isfinite(person.own)]
    rows = [
        [
            person.subject + (" (new)" if person.new else ""),
            person.n_trials if person.n_trials is not None else "n/a",
            f"{person.n_voxels:,}",
            number(person.own, 3),
            number(person.universal, 3),
            number(person.universal - person.own, 3),
        ]
        for person in people
    ]
    text = _universal_text(universal)
    caption = (
        f"Pearson r in held-out {scores.samples}, mean over {_which(scores)}, all regions "
        "together. Own: the "
        f"subject's ridge from each region's best layer of {universal.model}, chosen by the same "
        "scores. "
        "Universal folds hold out the same stimuli for all subjects, own folds the subject's own."
        + (
            " New: not in the network's training; only the embeddings were fitted."
            if any(person.new for person in people)
            else ""
        )
    )
    blocks: list[Any] = [
        Heading(f"Universal encoder {universal.name}, task {scores.task}"),
        Paragraph(text),
        Table(
            f"Universal encoder {universal.name} by subject",
            (
                "Subject",
                "Trials",
                "Voxels",
                "r, own",
                "r, universal",
                "Difference",
            ),
            rows,
            caption,
        ),
    ]
    if compared:
        values = {
            "own best layers": np.array([person.own for person in compared]),
            "universal": np.array([person.universal for person in compared]),
        }
        blocks.append(
            Picture(
                [beside_figure([f"sub-{person.subject}" for person in compared], values)],
                f"Bars of r by subject for the own encoder and the universal one. {text}",
                f"Universal encoder {universal.name} against own encoders",
                f"Pearson r in held-out {scores.samples} as in the table.",
                narrow=len(compared) <= 8,
            )
        )
    blocks.append(
        Picture(
            [losses_figure({universal.name: (universal.training, universal.validation)})],
            "Training and validation loss of the universal encoder by epoch.",
            f"Training of universal encoder {universal.name}",
            "Mean squared error of standardised responses by epoch, one line a fold; the last "
            "training has all stimuli.",
            narrow=True,
        )
    )
    return blocks


def _universal_text(universal: Universal) -> str:
    compared = [p for p in universal.people if np.isfinite(p.own) and np.isfinite(p.universal)]
    if not compared:
        return "There is no encoder of the subjects' own from the same model to compare with."
    differences = [p.universal - p.own for p in compared]
    above = sum(difference > 0 for difference in differences)
    return (
        f"Universal encoder {universal.name} predicts better than the subject's own encoder in "
        f"{above} of {count(len(compared), 'subject')}; r differs by "
        f"{number(float(np.mean(differences)), 3)} on average."
    )


def predictor_findings(tasks: Sequence[TaskScores]) -> list[Finding]:
    """Say what joint models, readouts and universal encoders of the first task that has them found.

    Parameters
    ----------
    tasks
        Out of `scores_by_task`.

    Returns
    -------
    list of Finding
        None for what was not fitted.
    """
    findings = []
    with_joint = next((scores for scores in tasks if scores.splits), None)
    if with_joint is not None:
        findings.append(_joint_finding(with_joint))
    with_readouts = next((scores for scores in tasks if scores.readouts), None)
    if with_readouts is not None:
        findings.append(_readout_finding(with_readouts))
    with_universal = next((scores for scores in tasks if scores.universal), None)
    if with_universal is not None:
        universal = with_universal.universal[0]
        findings.append(
            Finding(
                "universal",
                "One encoder for all subjects",
                _universal_text(universal),
                f"Held-out correlation r, {universal.model}; trained on "
                f"{count(sum(not p.new for p in universal.people), 'subject')}.",
                {
                    "task": with_universal.task,
                    "name": universal.name,
                    "subjects": [
                        {"subject": p.subject, "own": p.own, "universal": p.universal, "new": p.new}
                        for p in universal.people
                    ],
                },
            )
        )
    return findings


def _joint_finding(scores: TaskScores) -> Finding:
    name, split = next(iter(scores.splits.items()))
    words = _strongest(split, scores.regions)
    return Finding(
        "joint",
        "Strongest feature space (joint encoding)",
        f"{'; '.join(words)}." if words else "No region has a score.",
        f"Share of held-out r² in joint model {name} ({join(split.spaces)}), mean over "
        f"{count(len(scores.subjects), 'subject')}.",
        {
            "task": scores.task,
            "name": name,
            "spaces": split.spaces,
            "regions": [
                {"region": region, "shares": row.tolist()}
                for region, row in zip(scores.regions, split.shares, strict=True)
            ],
        },
        lines=[tuple(word.split(": ", 1)) for word in words],  # type: ignore[misc]
    )


def _readout_finding(scores: TaskScores) -> Finding:
    best, linear = scores.linear()
    reference = over_subjects(linear)
    means = {name: over_subjects(values) for name, values in scores.readouts.items()}
    stacked = np.stack(list(means.values()))
    values, words = [], []
    for index, region in enumerate(scores.regions):
        column = stacked[:, index]
        if not np.isfinite(column).any():
            continue
        first = list(means)[int(np.nanargmax(column))]
        highest = float(np.nanmax(column))
        words.append(
            f"{region}: {first}, {number(highest)} against {number(float(reference[index]))}"
        )
        values.append(
            {
                "region": region,
                "readout": first,
                "score": highest,
                "linear": float(reference[index]),
                "layer": best[index],
            }
        )
    over = EVERYWHERE if scores.regions == [EVERYWHERE] else "regions"
    return Finding(
        "readouts",
        "Best readout against the best linear layer",
        f"{'; '.join(words)}." if words else "No region has a score.",
        f"Held-out correlation r over {over}, mean over "
        f"{count(len(scores.subjects), 'subject')}; both are the best of several by the same "
        "scores, no test.",
        {"task": scores.task, "regions": values},
        lines=[tuple(word.split(": ", 1)) for word in words],  # type: ignore[misc]
    )
