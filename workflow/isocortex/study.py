"""A study: its config, its files and what follows from both, for the Snakefile.

Only the standard library is imported at module level, because the Snakefile imports this module.
"""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from isocortex import bids
from isocortex.config import check_config
from isocortex.confound_strategy import parse_strategy
from isocortex.derivatives import index_derivatives, made_by, on_mni152, parse_space
from isocortex.early_checks import check_own_confounds, check_recording, check_same_tr, check_trials
from isocortex.errors import InputError
from isocortex.feature_arrays import array_files, check_arrays
from isocortex.fieldmaps_index import (
    add_fieldmaps,
    check_fieldmaps,
    warn_of_unused,
    without_fieldmaps,
)
from isocortex.provenance import function_files

TEMPLATE = "MNI152NLin2009aSym"
"""The template that preprocessing here registers to."""

ENTRIES = ("rdms", "betas", "timeseries", "derivatives", "bids", "stimuli")
COMPARISONS = (
    "pearson",
    "spearman",
    "corr_cov",
    "rho_a",
    "cosine",
    "cosine_cov",
    "tau_a",
    "tau_b",
    "bures",
    "riemann",
)
"""Comparisons of RDMs, as `isocortex.rsa.compare` has them."""
_TRANSFORMS = {
    "rank": 0,
    "unit": 0,
    "sigmoid": 0,
    "sigmoid(a,b)": 2,
    "rgtm(l,u)": 2,
    "adjacency(t)": 1,
    "rgdm(l,u)": 2,
    "rgdm(p_shortest,p)": 1,
    "rgdm(p_nearest,p)": 1,
    "rgdm(k_nearest,k)": 1,
}


MODEL_RDM_COLUMNS = ("model", "file", "layer", "stimuli", "rdm")


@dataclass(frozen=True)
class GivenRDM:
    """A row of the table of models given as RDMs.

    Parameters
    ----------
    file
        Of one or more RDMs.
    layer
        The layer's name; empty where a file of rsatoolbox may name it.
    stimuli
        The list of stimulus ids; None where the file carries them or one lies beside it.
    rdm
        Which RDM of the file is meant, empty where the table does not say.
    """

    file: Path
    layer: str = ""
    stimuli: Path | None = None
    rdm: str = ""


@dataclass(frozen=True)
class Study:
    """What the rules need to know of a study.

    Parameters
    ----------
    config
        The checked config, defaults filled in.
    entry
        Where the study enters the chain: ``bids``, ``derivatives``, ``betas``, ``timeseries``,
        ``rdms``, or ``stimuli`` where there is no brain.
    subjects
        The index by subject label; empty where there is no brain.
    stimuli
        Stimulus files by id, sorted; empty where no model needs them.
    given_models
        The models that are given as RDMs, by name.
    """

    config: Mapping[str, Any]
    entry: str
    subjects: Mapping[str, bids.Subject]
    stimuli: Mapping[str, Path]
    given_models: Mapping[str, tuple[GivenRDM, ...]] = field(default_factory=dict)

    @property
    def tasks(self) -> list[str]:
        """All tasks of the study, sorted."""
        return sorted({task for subject in self.subjects.values() for task in subject.tasks()})

    @property
    def continuous_tasks(self) -> list[str]:
        """Tasks whose volumes are predicted in place of trials, sorted."""
        if self.entry == "timeseries":
            return self.tasks
        return sorted(set(self.config["glm"]["continuous_tasks"]) & set(self.tasks))

    @property
    def trial_tasks(self) -> list[str]:
        """Tasks that have trials, sorted."""
        return [task for task in self.tasks if task not in self.continuous_tasks]

    @property
    def models(self) -> list[str]:
        """Names of the models that have features, in the config's order."""
        return list(self.config["features"]["models"])

    @property
    def compared_models(self) -> list[str]:
        """Names of all models that are compared with the brain: by features, then given."""
        return [*self.models, *self.given_models]

    @property
    def measures(self) -> list[str]:
        """The dissimilarities of the brain's RDMs."""
        if not self.trial_tasks:
            return []
        return ["given"] if self.entry == "rdms" else list(self.config["rsa"]["measures"])

    @property
    def families(self) -> dict[str, list[str]]:
        """The models of each family of seeds, by the family's name."""
        families = self.config["trsa"]["layer_identification"]["families"]
        return {name: list(family["models"]) for name, family in families.items()}

    @property
    def space(self) -> str:
        """The space of the betas."""
        return self.config["glm"]["space"]

    @property
    def made_by(self) -> str:
        """What made the derivatives that the study starts from; empty where nobody says."""
        given = self.config["input"]
        return made_by(given["derivatives"]) if self.entry == "derivatives" else ""

    def region_route(self, subject: str) -> list[tuple[str, str]]:
        """Return the transforms that carry a subject's atlas into the space of the betas.

        Each is a pair of from and to, as in ``from-A_to-B_mode-image_xfm``; the first one is the
        first that points of the betas' grid go through. Templates are joined by way of T1w.

        Raises
        ------
        InputError
            Where there is no such way.
        """
        if self.entry not in ("bids", "derivatives") or not self.config.get("regions"):
            return []
        there = self.subjects[subject].transforms
        if self.entry == "bids":
            own = ((TEMPLATE, "T1w"), ("T1w", TEMPLATE))
            there = {f"{a}-{b}" for a, b in own if self.subjects[subject].t1w}
        start, end = parse_space(self.config["regions"]["space"]).label, self.space
        if start == end:
            return []
        for route in ([(start, end)], [("T1w", end), (start, "T1w")]):
            if all(f"{a}-{b}" in there for a, b in route):
                return route
        found = f"there are {', '.join(sorted(there))}" if there else "there is none"
        raise InputError(
            f"regions are in {start} and sub-{subject}'s data in {end}, and no transforms "
            f"(from-…_to-…_mode-image_xfm.h5) lead from one to the other ({found}): give the "
            f"atlas in {end}"
        )

    def with_task(self, task: str) -> list[str]:
        """Return the subjects that have a task."""
        return [label for label, subject in self.subjects.items() if task in subject.tasks()]

    def run(self, subject: str, stem: str) -> bids.Run:
        """Return a run by the workflow's ``run`` wildcard."""
        return next(run for run in self.subjects[subject].runs if run.stem == stem)

    def atlas(self, subject: str) -> Path:
        """Return the atlas of a subject."""
        return Path(self.config["regions"]["atlas"].replace("{subject}", subject))


def check_spaces(spaces: Sequence[str], analysed: str) -> None:
    """Check the output spaces of preprocessing, and the one that is analysed.

    Parameters
    ----------
    spaces
        ``preprocess.spaces``.
    analysed
        ``glm.space``.

    Raises
    ------
    InputError
        The first space is a surface, or the one that is analysed is, or is not made.
    """
    if spaces[0] in bids.SURFACES:
        raise InputError(
            f"config: preprocess.spaces starts with {spaces[0]}, a surface: name a volume first "
            "(T1w or MNI152NLin2009aSym)"
        )
    if analysed in bids.SURFACES:
        raise InputError(
            f"config: glm.space is {analysed}, a surface: name a volume of preprocess.spaces; "
            "surface searchlights and maps take their values from the template's volume"
        )
    label, colon, _ = analysed.partition(":")
    if colon and label in spaces:
        raise InputError(
            f"config: glm.space is {analysed!r}: write {label}; preprocess.resolution is the voxel "
            "size, and what follows a colon is for derivatives"
        )
    if analysed not in spaces:
        raise InputError(
            f"config: glm.space is {analysed!r}, which preprocess.spaces "
            f"({', '.join(spaces)}) does not make: add it there"
        )


def load_study(config: Mapping[str, Any]) -> Study:
    """Check a config and index its study.

    Listings of folders are read, and the input table of betas, time series or RDMs; no image is
    opened.

    Raises
    ------
    InputError
        In one line: what is wrong, where, what to do.
    """
    checked = check_config(config)
    given = checked["input"]
    entry = next((name for name in ENTRIES if name in given), "")
    if not entry:
        raise InputError(f"config: input needs one of {', '.join(reversed(ENTRIES))}")
    if sum(name in given for name in ("rdms", "betas", "timeseries", "derivatives")) > 1:
        raise InputError(
            "config: input takes one of derivatives, betas, timeseries and rdms: remove the others"
        )
    for key in ("subjects", "tasks"):
        if isinstance(checked[key], str) and checked[key] != "all":
            raise InputError(f"config: {key} is {checked[key]!r}: write all, or a list")
    parse_strategy(checked["glm"]["confound_columns"])
    chosen = {
        "subjects": checked["subjects"],
        "tasks": checked["tasks"],
        "exclude": checked["exclude"],
    }
    if entry == "bids":
        subjects = bids.index_raw(given["bids"], **chosen)
        if checked["preprocess"]["distortion"]["correct"]:
            subjects = add_fieldmaps(given["bids"], subjects)
        else:
            subjects = without_fieldmaps(subjects)
        check_own_confounds(checked["glm"]["confound_columns"])
        check_spaces(checked["preprocess"]["spaces"], checked["glm"]["space"])
    elif entry == "derivatives":
        if "bids" not in given:
            raise InputError("config: input.bids is missing: the dataset that holds the events")
        space = checked["glm"]["space"]
        subjects = index_derivatives(
            given["derivatives"], space=space, events=given["bids"], **chosen
        )
        # From here on a space is a space: its resolution only said which files are meant.
        label = parse_space(space).label
        checked = checked | {"glm": checked["glm"] | {"space": label}}
    elif entry == "stimuli":
        _check_brainless(checked)
        subjects = {}
    else:
        subjects = _index_table(Path(given[entry]), entry, chosen)
    if entry not in ("rdms", "timeseries", "stimuli") and "regions" not in checked:
        raise InputError(
            "config: regions is missing: name an atlas, its labels and its space (see "
            "config/README.md)"
        )
    given_models = {}
    if "model_rdms" in given:
        given_models = _index_model_rdms(
            Path(given["model_rdms"]), taken=checked["features"]["models"]
        )
    study = Study(checked, entry, subjects, _stimuli(checked, given), given_models)
    _check_choices(study)
    return study


def model_files(name: str, model: Mapping[str, Any]) -> list[Path]:
    """Return the local files that a model's features follow from, sorted.

    Its checkpoint or saved folder, its tokenizer, the package of a user's function, or arrays.

    Parameters
    ----------
    name
        The model's name, for messages.
    model
        Its entry in the config.

    Raises
    ------
    InputError
        Where the package of a user's function is nowhere to be found.
    """
    source = model.get("source", "builtin")
    if source == "arrays":
        return array_files(model["files"], model.get("stimulus_list"))
    found: set[Path] = set()
    if source == "python":
        key = f"features.models.{name}.architecture"
        found |= set(function_files(model["architecture"], model.get("folder", "."), key=key))
    places = [model.get("weights", "none"), model.get("tokenizer") or "none"]
    if source == "transformers":
        places.append(model["architecture"])
    for place in map(Path, places):
        if place.is_dir():
            found |= {file for file in place.rglob("*") if file.is_file()}
        elif place.is_file():
            found.add(place)
    return sorted(found)


BUILTINS = (
    "pixels",
    "gabor",
    "luminance",
    "colour",
    "gist",
    "motion-energy",
    "contrast-energy",
    "words",
    "convnet",
    "resnet20-cifar",
    "all-cnn-c",
)
"""Names of builtin models, told here so that most configs are checked without importing torch."""
_OF_SOURCE = {
    "options": ("builtin", {}),
    "tower": ("transformers", "image"),
    "tokenizer": ("transformers", None),
    "folder": ("python", "."),
    "files": ("arrays", None),
    "stimulus_list": ("arrays", None),
}
"""Keys of a model that one source alone reads: the source, and what stands for not given."""
_OF_NETWORKS = ("architecture", "weights", "image_size", "fit", "mean", "std")


def _check_model_keys(name: str, model: Mapping[str, Any]) -> None:
    """Refuse keys of a model that its source does not read."""
    source = model.get("source", "builtin")
    ignored = [
        (key, owner)
        for key, (owner, empty) in _OF_SOURCE.items()
        if source != owner and model.get(key, empty) != empty
    ]
    if source == "arrays":
        ignored += [
            (key, "another")
            for key in _OF_NETWORKS
            if model.get(key) is not None and model[key] != "none"
        ]
    for key, owner in ignored:
        raise InputError(
            f"config: features.models.{name}.{key} is for source {owner}, and the model's source "
            f"is {source}: remove it, or correct source"
        )


def _check_builtin(name: str, model: Mapping[str, Any]) -> None:
    """Refuse a builtin model that there is not, or options that it does not have."""
    if model["architecture"] in BUILTINS and not model["options"]:
        return
    features = importlib.import_module("isocortex.features.architectures")
    samples = importlib.import_module("isocortex.features.samples")
    features.build_architecture(
        name,
        architecture=model["architecture"],
        image_size=model["image_size"],
        options=model["options"],
        sampling=samples.Sampling(**model["sampling"]),
    )


def _check_brainless(checked: Mapping[str, Any]) -> None:
    """Refuse a study of stimuli alone without features, or with what a brain is needed for."""
    if not checked["features"]["models"]:
        raise InputError(
            "config: input has stimuli alone and features.models names no model: add models, or "
            "brain data"
        )
    for key, empty in (("subjects", "all"), ("tasks", "all"), ("exclude", {})):
        if checked[key] != empty:
            raise InputError(f"config: {key} is given, and input.stimuli has no brain: remove it")
    if "model_rdms" in checked["input"]:
        raise InputError(
            "config: input.model_rdms is given, and there is no brain to compare it with: remove "
            "it, or add brain data to input"
        )


def _stimuli(checked: Mapping[str, Any], given: Mapping[str, str]) -> dict[str, Path]:
    if not checked["features"]["models"]:
        return {}
    folder = given.get("stimuli") or (
        str(Path(given["bids"]) / "stimuli") if "bids" in given else ""
    )
    if not folder:
        models = checked["features"]["models"].values()
        if all(model.get("source") == "arrays" for model in models):
            return {}
        raise InputError("config: input.stimuli is missing: the folder of stimuli for the models")
    return bids.find_stimuli(folder)


def _index_table(table: Path, entry: str, chosen: Mapping[str, Any]) -> dict[str, bids.Subject]:
    """Index a study that enters as a table of betas, time series or RDMs: one run a row."""
    needed = {
        "betas": ("subject", "image", "events"),
        "timeseries": ("subject", "file", "run", "task", "tr", "events"),
        "rdms": ("subject", "region", "file"),
    }[entry]
    rows = bids.read_table(table)
    missing = [column for column in needed if not rows or column not in rows[0]]
    if missing:
        raise InputError(f"{table} needs the columns {', '.join(needed)}: add {missing[0]}")
    labels: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        labels.setdefault(bids.plain_label(row["subject"]), []).append(row)
    out = {bids.plain_label(label) for label in chosen["exclude"]}
    wanted = (
        sorted(labels)
        if chosen["subjects"] == "all"
        else [bids.plain_label(label) for label in chosen["subjects"]]
    )
    for label in [*wanted, *out]:
        if label not in labels:
            raise InputError(f"subject {label!r} is not in {table}: it has {', '.join(labels)}")
    found = {}
    for label in sorted(set(wanted) - out):
        runs = []
        for row in labels[label]:
            task = row.get("task") or "all"
            if chosen["tasks"] != "all" and task not in chosen["tasks"]:
                continue
            file = table.parent / row["image" if entry == "betas" else "file"]
            if not file.is_file():
                raise InputError(f"{table}: {file} of subject {label} is missing: correct the path")
            if entry == "rdms":
                bids.check_rdm_file(file, f"{table}: {file} of subject {label}")
            beside = {
                key: table.parent / row[key]
                for key in ("events", "stimuli", "mask")
                if row.get(key)
            }
            for path in beside.values():
                if not path.is_file():
                    raise InputError(
                        f"{table}: {path} of subject {label} is missing: correct the path"
                    )
            if entry == "timeseries":
                runs.append(_series_run(row, label, file, beside, table))
                continue
            runs.append(
                bids.Run(
                    label,
                    "",
                    task,
                    row.get("region", ""),
                    f"{task}/{file.stem}",
                    file,
                    (),
                    beside.get("events" if entry == "betas" else "stimuli"),
                    beside.get("mask"),
                    rdm=(row.get("rdm") or "").strip(),
                )
            )
        if not runs:
            raise InputError(f"{table}: subject {label} has no row of the chosen tasks")
        keys = [(run.task, run.label) for run in runs]
        for key in keys:
            if keys.count(key) > 1:
                kind = {"rdms": "region", "timeseries": "run"}.get(entry)
                what = f", {kind} {key[1]}" if kind else ""
                raise InputError(f"{table}: subject {label}{what} is there twice: remove one row")
        found[label] = bids.Subject(label, (), tuple(runs))
    if not found:
        raise InputError("no subject is left: change subjects or exclude in the config")
    return found


def _series_run(
    row: Mapping[str, str], label: str, file: Path, beside: Mapping[str, Path], table: Path
) -> bids.Run:
    """Return a run of the table of time series."""
    task, run = row["task"].strip(), row["run"].strip()
    for key, value in (("task", task), ("run", run)):
        if not re.fullmatch(r"[A-Za-z0-9]+", value):
            raise InputError(
                f"{table}: {key} {value!r} of subject {label} is no label: use letters and digits "
                "only"
            )
    if not file.name.lower().endswith(bids.SERIES_FILES):
        raise InputError(
            f"{table}: {file} of subject {label} is of a kind that is not read: save one of "
            f"{', '.join(bids.SERIES_FILES)}"
        )
    if "events" not in beside:
        raise InputError(f"{table}: subject {label}, run {run} has no events: fill the column in")
    try:
        tr = float(row["tr"])
    except ValueError:
        tr = 0.0
    if not 0 < tr < 100:
        raise InputError(
            f"{table}: tr of subject {label}, run {run} is {row['tr']!r}: write seconds, above 0"
        )
    return bids.Run(
        label,
        "",
        task,
        run,
        f"func/sub-{label}_task-{task}_run-{run}",
        file,
        (),
        beside["events"],
        beside.get("mask"),
        tr=tr,
    )


def _index_model_rdms(table: Path, *, taken: Iterable[str]) -> dict[str, tuple[GivenRDM, ...]]:
    """Index the table of models given as RDMs: one or more rows a model."""
    rows = bids.read_table(table)
    if not rows:
        raise InputError(f"{table} names no model: add a row, or remove input.model_rdms")
    for column in rows[0]:
        if column not in MODEL_RDM_COLUMNS:
            near = difflib.get_close_matches(column, MODEL_RDM_COLUMNS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "remove it"
            raise InputError(
                f"{table} has a column {column!r}, known are {', '.join(MODEL_RDM_COLUMNS)}: {hint}"
            )
    for column in MODEL_RDM_COLUMNS[:2]:
        if column not in rows[0]:
            raise InputError(f"{table} needs the columns model and file: add {column}")
    found: dict[str, list[GivenRDM]] = {}
    for number, row in enumerate(rows, start=2):
        cells = {column: text.strip() for column, text in row.items()}
        model, where = cells["model"], f"{table}, line {number}"
        if not re.fullmatch(r"[A-Za-z0-9]+", model):
            raise InputError(f"{where}: model {model!r} is no name: use letters and digits only")
        if model in taken:
            raise InputError(
                f"{where}: model {model} is in features.models, too: rename one of them"
            )
        file = table.parent / cells["file"]
        bids.check_rdm_file(file, f"{where}: {file} of model {model}")
        listed = table.parent / cells["stimuli"] if cells.get("stimuli") else None
        if listed and not listed.is_file():
            raise InputError(f"{where}: {listed} of model {model} is missing: correct the path")
        layer = cells.get("layer") or ("" if file.suffix.lower() in (".h5", ".hdf5") else model)
        if layer and layer in [other.layer for other in found.get(model, [])]:
            raise InputError(
                f"{where}: layer {layer} of model {model} is there twice: name each in the column "
                "layer"
            )
        found.setdefault(model, []).append(GivenRDM(file, layer, listed, cells.get("rdm", "")))
    return {model: tuple(rows) for model, rows in found.items()}


def _check_partition(study: Study) -> None:
    """Refuse a partition of one model, or of models and layers that are not in the study."""
    chosen = study.config["rsa"]["partition"]["models"]
    if len(chosen) == 1:
        raise InputError(
            f"config: rsa.partition.models has {chosen[0]} alone: name 2 to 4, or none for no "
            "partition"
        )
    for name in chosen:
        model, _, layer = name.partition("/")
        models = study.config["features"]["models"]
        if model in study.given_models:
            layers = [given.layer for given in study.given_models[model]]
            where = f"input.model_rdms, of {model},"
            # The files may name some layers, which only the jobs read.
            layers = layers if all(layers) else []
        elif model in models:
            layers = models[model].get("layers")
            if "all" in layers or any(set("*?[") & set(name) for name in layers):
                layers = []  # which a pattern stands for, only the job finds out
            where = f"features.models.{model}.layers"
        else:
            key = "features.models and input.model_rdms have"
            key = key if study.given_models else "features.models has"
            raise InputError(
                f"config: rsa.partition.models has {name!r}, but {key} "
                f"{', '.join(study.compared_models) or 'none'}: name a model or model/layer"
            )
        if layer and isinstance(layers, list) and layers and layer not in layers:
            raise InputError(
                f"config: rsa.partition.models has {name!r}, but {where} "
                f"has {', '.join(map(str, layers))}: name one of them"
            )


def check_comparison(text: str, *, key: str = "rsa.comparisons") -> None:
    """Check the text of a comparison, ``pearson`` or ``pearson:rgtm(0.2,0.8)``.

    Parameters
    ----------
    text
        A comparison, a colon and a transform after it or not.
    key
        Of the config, for the error.

    Raises
    ------
    InputError
        Where the comparison, the transform or its numbers are none.
    """
    name, colon, transform = re.sub(r"\s", "", text).partition(":")
    if name not in COMPARISONS:
        near = difflib.get_close_matches(name, COMPARISONS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(COMPARISONS)}"
        raise InputError(f"config: {key} has {text!r}: {hint}")
    if not colon:
        return
    form = re.fullmatch(r"([a-z]+)(?:\((.+)\))?", transform)
    kind, inside = form.groups() if form else ("", "")
    parts = inside.split(",") if inside else []
    graph = parts.pop(0) if parts and parts[0] in ("p_shortest", "p_nearest", "k_nearest") else ""
    if kind == "rgdm" and not graph and parts[:1] == ["twostep"]:
        parts.pop(0)
    forms = [known for known in _TRANSFORMS if re.split(r"[(,]", known)[0] == kind]
    forms = [known for known in forms if not graph or graph in known]
    if kind == "rgdm" and not graph:
        forms = ["rgdm(l,u)"]
    fits = bool(kind) and len(parts) in [_TRANSFORMS[name] for name in forms]
    try:
        values = [float(part) for part in parts]
    except ValueError:
        fits = False
    if not fits:
        raise InputError(
            f"config: {key} has {text!r}: a transform is one of {', '.join(_TRANSFORMS)}"
        )
    if kind == "sigmoid":
        able = not values or (0 < values[0] < float("inf") and abs(values[1]) < float("inf"))
        wanted = "a slope above 0 and a finite centre"
    elif graph == "k_nearest":
        able, wanted = values[0] >= 1 and values[0].is_integer(), "a whole number from 1"
    else:
        able = all(0 <= value <= 1 for value in values) and values == sorted(values)
        able, wanted = able and (not graph or values[0] > 0), "quantiles in 0 to 1, the lower first"
    if not able:
        raise InputError(f"config: {key} has {text!r}: {kind} needs {wanted}")


def _check_continuous(study: Study) -> None:
    """Refuse continuous tasks that are not there, or have no time series or no grid."""
    tasks = study.config["glm"]["continuous_tasks"]
    if tasks and study.entry not in ("bids", "derivatives"):
        raise InputError(
            f"config: glm.continuous_tasks names {tasks[0]!r}, and input.{study.entry} has no runs "
            "to clean: remove it"
        )
    for task in tasks:
        # Other subjects or a choice of tasks may leave one out; a misspelt name must not pass.
        chosen = study.config["tasks"]
        if task not in study.tasks and (chosen == "all" or task in chosen):
            near = difflib.get_close_matches(task, study.tasks, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(study.tasks)}"
            raise InputError(
                f"config: glm.continuous_tasks names {task!r}, which the study has not: {hint}"
            )
    if study.entry != "timeseries":
        return
    for subject in study.subjects.values():
        for task in subject.tasks():
            runs = subject.of(task)
            for run in runs:
                where = f"{study.config['input']['timeseries']}: subject {subject.label}, {task}"
                if abs(run.tr - runs[0].tr) > 1e-6:
                    raise InputError(
                        f"{where}: runs {runs[0].label} and {run.label} have different tr: give "
                        "them different task names"
                    )
                gridded = run.bold.name.endswith((".nii", ".nii.gz"))
                if "regions" in study.config and not gridded:
                    raise InputError(
                        f"{where}: {run.bold.name} has no grid that regions could be on: remove "
                        "regions from the config, or give NIfTI files"
                    )


def _check_glm(study: Study) -> None:
    """Refuse choices of the GLM that the study's runs cannot serve."""
    glm = study.config["glm"]
    fitted = study.entry in ("bids", "derivatives")
    for key in ("contrasts", "split_half"):
        if glm[key] and not fitted:
            raise InputError(
                f"config: glm.{key} is given, and input.{study.entry} has no runs to fit: remove it"
            )
    if "all" in glm["contrasts"]:
        raise InputError(
            "config: glm.contrasts.all is the mean of all conditions, which comes along by itself: "
            "give yours another name"
        )
    if glm["nifti"] and not (fitted or study.entry == "betas"):
        raise InputError(
            f"config: glm.nifti is true, and input.{study.entry} has no betas: set it to false"
        )
    if not fitted:
        return
    if glm["estimator"] == "optimised":
        fractions = glm["optimised"]["fractions"]
        if fractions != sorted(fractions):
            raise InputError(
                f"config: glm.optimised.fractions {fractions} do not ascend: put them in order"
            )
        if glm["noise_model"] != "ols":
            raise InputError(
                f"config: glm.noise_model is {glm['noise_model']}, and glm.estimator optimised has "
                "no prewhitening: set the one to ols, or the other to lsa or lss"
            )
    for label, subject in study.subjects.items():
        for task in set(subject.tasks()) & set(study.trial_tasks):
            runs = subject.of(task)
            if glm["split_half"] and len(runs) < 2:
                raise InputError(
                    f"config: glm.split_half needs two runs, and sub-{label} has one of task "
                    f"{task}: set it to false, or exclude the subject"
                )
            folds = len({run.session for run in runs}) * (1 + glm["split_half"])
            lights = study.config["searchlight"]
            asked = {*study.measures, *([lights["measure"]] if lights["run"] else [])}
            crossvalidated = {"crossnobis", "poissoncv"} & asked
            if glm["repeats"] == "average" and folds < 2 and crossvalidated:
                raise InputError(
                    f"config: glm.repeats is average, which leaves sub-{label} one part of task "
                    f"{task}, and {sorted(crossvalidated)[0]} needs two: keep the repeats, or "
                    "choose another measure"
                )


def _check_contrasts(study: Study) -> None:
    """Refuse contrasts of conditions that a subject's events do not have."""
    contrasts = study.config["glm"]["contrasts"]
    if not contrasts:
        return
    glm = importlib.import_module("isocortex.glm.contrasts")
    for subject in study.subjects.values():
        for task in subject.tasks():
            if task in study.trial_tasks:
                tables = {run.events: bids.read_events(run.events) for run in subject.of(task)}
                glm.check_contrasts(
                    contrasts,
                    {path: glm.conditions_of(rows, path) for path, rows in tables.items()},
                )


def _check_choices(study: Study) -> None:
    """Refuse choices that the study's files cannot serve."""
    _check_continuous(study)
    _check_glm(study)
    for text in study.config["rsa"]["comparisons"]:
        check_comparison(text)
    _check_partition(study)
    _check_readouts(study)
    _check_universal(study)
    _check_joint(study)
    _check_voxels(study)
    lights = study.config["searchlight"]
    if lights["transform"]:
        check_comparison(
            f"{lights['comparison']}:{lights['transform']}", key="searchlight.transform"
        )
    if lights["run"] and lights["surface"]["run"] and not on_mni152(study.space):
        raise InputError(
            f"config: searchlight.surface.run is true, but the betas are in {study.space} space: "
            "set glm.space to an MNI152 template, or searchlight.surface.run to false"
        )
    regions = study.config.get("regions", {})
    encoding = study.config["encoding"]
    if not regions and (encoding["alpha_per"] == "region" or encoding["bootstrap"]):
        key = "bootstrap" if encoding["bootstrap"] else "alpha_per: region"
        raise InputError(f"config: encoding.{key} needs regions: add regions, or take it out")
    if encoding["cross_validation"]["over"] == "condition" and study.continuous_tasks:
        raise InputError(
            "config: encoding.cross_validation.over is condition, which volumes of continuous "
            "tasks do not have: choose run or session"
        )
    needed: dict[Path, str] = {}
    if regions:
        needed[Path(regions["labels"])] = "regions.labels"
        needed |= dict.fromkeys(map(study.atlas, study.subjects), "regions.atlas")
    if lights["run"] and lights["mask"]:
        needed[Path(lights["mask"])] = "searchlight.mask"
    for name, model in study.config["features"]["models"].items():
        saved = model.get("source") == "transformers" and Path(model["weights"]).is_dir()
        if model.get("weights", "none") not in ("hub", "none") and not saved:
            needed[Path(model["weights"])] = f"features.models.{name}.weights"
        _check_model_keys(name, model)
        model_files(name, model)
    for family, models in study.families.items():
        for model in models:
            if model not in study.models:
                near = difflib.get_close_matches(model, study.models, n=1)
                raise InputError(
                    f"config: trsa.layer_identification.families.{family}.models names {model!r}, "
                    f"which is not in features.models"
                    + (f": did you mean {near[0]!r}?" if near else ": add it there")
                )
    for path, key in needed.items():
        if not path.is_file():
            raise InputError(f"config: {key} is {str(path)!r}, which is missing: correct the path")
    _check_encoding_summary(study)
    if study.entry == "bids" and "T1w" in study.config["preprocess"]["spaces"]:
        for label, subject in study.subjects.items():
            if not subject.t1w:
                raise InputError(
                    f"sub-{label} has no T1w in {study.config['input']['bids']}: add it, take T1w "
                    "out of preprocess.spaces, or name the subject under exclude in the config"
                )
    _check_measures(study, study.measures, "rsa.measures")
    if lights["run"] and study.entry not in ("rdms", "stimuli"):
        _check_measures(study, [lights["measure"]], "searchlight.measure")
    for label in study.subjects:
        study.region_route(label)


def _check_encoding_summary(study: Study) -> None:
    """Refuse a hierarchy of regions, and families of models, that the study does not have."""
    summary = study.config["encoding"]["summary"]
    if hierarchy := summary["hierarchy"]:
        key = "encoding.summary.hierarchy"
        if not study.config.get("regions"):
            raise InputError(f"config: {key} needs regions: add regions, or take it out")
        names = list(bids.read_labels(Path(study.config["regions"]["labels"])).values())
        for name in hierarchy:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(names)}"
                raise InputError(
                    f"config: {key} names {name!r}, which is not in regions.labels: {hint}"
                )
        if len(hierarchy) < 3:
            raise InputError(f"config: {key} needs three regions or more: add some, or take it out")
    for factor, values in summary["families"].items():
        key = f"encoding.summary.families.{factor}"
        for model in values:
            if model not in study.models:
                near = difflib.get_close_matches(model, study.models, n=1)
                hint = f"did you mean {near[0]!r}?" if near else "add it there"
                raise InputError(
                    f"config: {key} names {model!r}, which is not in features.models: {hint}"
                )
        if len(set(values.values())) < 2:
            raise InputError(f"config: {key} is the same for all models: correct it, or remove it")


def _check_readouts(study: Study) -> None:
    """Refuse readouts of models that are not there, or with queries of regions that are not."""
    for name, readout in study.config["encoding"]["readouts"].items():
        key = f"encoding.readouts.{name}"
        _check_model_of(study, key, readout)
        if readout["options"].get("queries") == "region" and not study.config.get("regions"):
            raise InputError(
                f"config: {key}.options.queries is region, and there are none: add regions, or "
                "choose other queries"
            )


def _check_model_of(study: Study, key: str, entry: Mapping[str, Any]) -> None:
    """Refuse an entry whose model, or a layer of it, is not among the features."""
    model = entry["model"]
    if model not in study.models:
        near = difflib.get_close_matches(model, study.models, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "add it there"
        raise InputError(
            f"config: {key}.model is {model!r}, which is not in features.models: " + hint
        )
    of_model = study.config["features"]["models"][model]["layers"]
    listed = isinstance(of_model, list) and not any(
        set(layer) & set("*?[") or layer == "all" for layer in of_model
    )
    for layer in entry["layers"] or ():
        if listed and of_model and layer not in of_model:
            raise InputError(
                f"config: {key}.layers names {layer!r}, which is not in features.models."
                f"{model}.layers: add it there"
            )


def _check_voxels(study: Study) -> None:
    """Refuse models that keep to regions where there are none."""
    for section in ("readouts", "universal", "joint"):
        for name, entry in study.config["encoding"][section].items():
            if entry["voxels"] == "regions" and not study.config.get("regions"):
                raise InputError(
                    f"config: encoding.{section}.{name}.voxels is regions, and there are none: "
                    "add regions, or write responsive or all"
                )


def _check_universal(study: Study) -> None:
    """Refuse universal encoders that have nothing to read, to predict or to train on."""
    for name, entry in study.config["encoding"]["universal"].items():
        key = f"encoding.universal.{name}"
        _check_model_of(study, key, entry)
        if not study.trial_tasks:
            raise InputError(
                f"config: {key} predicts trials, and no task has any: remove it, or take a task "
                "out of glm.continuous_tasks"
            )
        for subject in entry["new_subjects"]:
            if subject not in study.subjects:
                raise InputError(
                    f"config: {key}.new_subjects names {subject!r}, which is no subject of the "
                    f"study: choose from {', '.join(study.subjects)}"
                )
        for task in study.trial_tasks:
            if not set(study.with_task(task)) - set(entry["new_subjects"]):
                raise InputError(
                    f"config: {key}.new_subjects names all subjects of task {task}: leave at least "
                    "one to train the network on"
                )
        if entry["width"] % entry["heads"]:
            raise InputError(
                f"config: {key}.width ({entry['width']}) is no multiple of heads "
                f"({entry['heads']}): change one"
            )


def _check_joint(study: Study) -> None:
    """Refuse joint models of models or layers that are not there, or of one space twice."""
    for name, joint in study.config["encoding"]["joint"].items():
        taken: dict[str, str] = {}
        for space, source in joint["spaces"].items():
            key = f"encoding.joint.{name}.spaces.{space}"
            model, _, layer = source.partition("/")
            if model not in study.models:
                near = difflib.get_close_matches(model, study.models, n=1)
                hint = f"did you mean {near[0]!r}?" if near else "add it there"
                raise InputError(
                    f"config: {key} is {source!r}, but {model!r} is not in features.models: {hint}"
                )
            layers = study.config["features"]["models"][model].get("layers")
            # Patterns stand for layers that only the jobs know.
            listed = isinstance(layers, list) and not any(
                set(entry) & set("*?[") or entry == "all" for entry in layers
            )
            if layer and listed and layers and layer not in layers:
                near = difflib.get_close_matches(layer, layers, n=1)
                hint = f"did you mean {near[0]!r}?" if near else "name one of them"
                raise InputError(
                    f"config: {key} is {source!r}, but features.models.{model}.layers has "
                    f"{', '.join(layers)}: {hint}"
                )
            if source in taken:
                raise InputError(
                    f"config: {key} is {source!r}, as is {taken[source]}: remove one of them"
                )
            taken[source] = space


def _check_readout_options(study: Study) -> None:
    """Refuse options that the kind of a readout does not have.

    The kinds know their options; they need torch, which only jobs and this check load.
    """
    readouts = study.config["encoding"]["readouts"]
    if readouts:
        kinds = importlib.import_module("isocortex.encoding.readouts").KINDS
        for name, readout in readouts.items():
            key, kind = f"encoding.readouts.{name}", kinds[readout["kind"]]
            kind.complete(readout["options"], key=f"{key}.options")
            pool = study.config["features"]["models"][readout["model"]]["pool"]
            if kind.needs != "any" and pool in ("mean", "last"):
                raise InputError(
                    f"config: {key} needs layers with {kind.needs}, and features.models."
                    f"{readout['model']}.pool is {pool}: give it a model entry without pooling"
                )


def _check_measures(study: Study, measures: list[str], key: str) -> None:
    """Refuse dissimilarities that need runs or an estimate of the noise where there is none.

    ``key`` of the config is where they are from; the noise normalisation is in its section.
    """
    section = key.split(".")[0]
    crossvalidated = [name for name in ("crossnobis", "poissoncv") if name in measures]
    if study.entry in ("bids", "derivatives") and crossvalidated:
        for label, subject in study.subjects.items():
            for task in subject.tasks():
                if task not in study.continuous_tasks and len(subject.of(task)) < 2:
                    raise InputError(
                        f"sub-{label} has one run of task {task}, and {crossvalidated[0]} needs "
                        f"two: take {crossvalidated[0]} out of {key}, or exclude the subject"
                    )
    source = study.config[section]["noise_normalisation"]["source"]
    if source == "none" and "mahalanobis" in measures:
        raise InputError(
            f"config: {section}.noise_normalisation.source is none, and mahalanobis is in units of "
            f"the noise: choose euclidean in {key}, or another source"
        )
    whitened = {"mahalanobis", "crossnobis"} & set(measures)
    if study.entry == "betas" and source == "residuals" and whitened:
        raise InputError(
            f"config: {section}.noise_normalisation.source is residuals, and betas come without "
            f"them: for {sorted(whitened)[0]} set it to betas or none"
        )


def check_inputs(study: Study) -> None:
    """Check what can be known before any job starts: headers, sidecars, events, atlas, devices.

    Raises
    ------
    InputError
        For the first thing that is wrong.
    """
    config = study.config
    regions = config.get("regions")
    if regions:
        labels = bids.read_labels(regions["labels"])
        if not labels:
            raise InputError(f"{regions['labels']} names no region: add one")
        for path in sorted({study.atlas(label) for label in study.subjects}):
            bids.check_atlas(path)
    rates = [model["sampling"]["frame_rate"] for model in config["features"]["models"].values()]
    for path in study.stimuli.values():
        bids.check_stimulus(path, frame_rate=next(filter(None, rates), None))
    warn_of_unused(study.subjects)
    if study.entry in ("bids", "derivatives"):
        known = study.stimuli or None
        for subject in study.subjects.values():
            check_fieldmaps(subject)
            for path in subject.t1w:
                bids.check_t1w(path)
            for task in subject.tasks():
                checked = [
                    (
                        run,
                        bids.check_run(
                            run,
                            stimulus_column=config["glm"]["stimulus_column"],
                            stimuli=known,
                        ),
                    )
                    for run in subject.of(task)
                ]
                check_same_tr(checked)
                if study.entry == "bids":
                    for run, header in checked:
                        check_recording(run, header.shape, config["preprocess"])
                if task not in study.continuous_tasks:
                    check_trials(subject.of(task), config["glm"])
                if study.entry == "derivatives":
                    bids.check_grids(checked)
                    for run, _ in checked:
                        _check_confounds(run, config["glm"]["confound_columns"])
    _check_contrasts(study)
    if study.entry == "timeseries":
        for subject in study.subjects.values():
            for run in subject.runs:
                bids.check_series(
                    run,
                    stimulus_column=config["glm"]["stimulus_column"],
                    stimuli=study.stimuli if study.models else None,
                )
    for name, model in config["features"]["models"].items():
        if model.get("source") == "arrays":
            check_arrays(
                name,
                model["files"],
                model.get("stimulus_list"),
                wanted=list(study.stimuli),
                layers=model.get("layers") or (),
            )
        elif model.get("source", "builtin") == "builtin":
            _check_builtin(name, model)
    _check_readout_options(study)
    if "cuda" in set(_devices(config)):
        _check_cuda()


def _check_confounds(run: bids.Run, wanted: str | list[str]) -> None:
    """Refuse a confounds table that lacks what the chosen strategy takes."""
    strategy = parse_strategy(wanted)
    if strategy.is_empty:
        return
    beside = run.confounds.with_suffix(".json")
    with run.confounds.open(encoding="utf-8-sig") as stream:
        header = stream.readline().rstrip("\r\n").split("\t")
    described = bids.read_json(beside) if beside.is_file() else None
    strategy.columns(header, described, where=str(run.confounds))


def _devices(config: Mapping[str, Any]) -> Iterator[str]:
    for section in ("features", "encoding"):
        if "device" in config[section]:
            yield config[section]["device"]


def _check_cuda() -> None:
    import torch

    if not torch.cuda.is_available():
        raise InputError(
            "config: device is cuda, but there is no usable CUDA GPU here: choose auto or cpu"
        )
