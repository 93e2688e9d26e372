"""Contrast maps of conditions, fixed effects over runs, for quality control."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import dask
import nibabel as nib
import numpy as np
from nilearn.glm.contrasts import Contrast, expression_to_contrast_vector
from threadpoolctl import threadpool_limits

from isocortex import bids, parallel, provenance
from isocortex.errors import InputError
from isocortex.glm.design import make_trials
from isocortex.glm.estimate import RunModel
from isocortex.glm.halves import scaling_groups
from isocortex.glm.images import intersect_masks
from isocortex.glm.methods import nuisance_text
from isocortex.glm.prepare import PreparedRun, prepare_runs
from isocortex.glm.series import Series
from isocortex.jobs import working_folder

log = logging.getLogger(__name__)

ALL = "all"
"""Name, and expression, of the contrast of all conditions that get betas with the baseline."""
_NOTHING = "no_condition_"
"""Has weight in an expression that adds a number to conditions."""


def contrast_weights(expression: str, conditions: Sequence[str]) -> np.ndarray:
    """Return the weight of each condition in a contrast.

    Parameters
    ----------
    expression
        Sums, differences and multiples of conditions, as nilearn has them: ``face - house``,
        ``(face + body) / 2 - house``, or one condition.
    conditions
        Names of the conditions.

    Raises
    ------
    InputError
        Where the expression names what is no condition, or is no weighted sum.
    """
    known = f"conditions are {', '.join(conditions)}"
    written = "" if expression in conditions else expression
    for quoted, plain in re.findall(r"`([^`]+)`|(?<![\w.])([^\W\d]\w*)", written):
        word = quoted or plain
        if word not in conditions:
            near = difflib.get_close_matches(word, conditions, n=1)
            hint = "names that are no words go in backticks"
            if near:
                hint = f"did you mean {near[0] if near[0].isidentifier() else f'`{near[0]}`'}?"
            raise InputError(
                f"{expression!r} names {word!r}, which is no condition: {known}; {hint}"
            )
    try:
        weights = np.asarray(expression_to_contrast_vector(expression, [*conditions, _NOTHING]))
    except (ValueError, AttributeError, TypeError):
        weights = np.empty(0)
    if weights.shape != (len(conditions) + 1,) or weights.dtype.kind not in "if" or weights[-1]:
        raise InputError(
            f"{expression!r} is no sum of conditions: {known}; add and subtract them (face - "
            "house), put names that are no words in backticks"
        )
    weights = weights[:-1].astype(np.float64)
    if not np.isfinite(weights).all() or not weights.any():
        raise InputError(f"{expression!r} is 0 or not finite for some condition: {known}")
    return weights


def check_contrasts(contrasts: Mapping[str, str], tables: Mapping[Path, Sequence[str]]) -> None:
    """Refuse contrasts that no run can estimate.

    Parameters
    ----------
    contrasts
        Expressions by name.
    tables
        Conditions of each run, by its events table.

    Raises
    ------
    InputError
        Naming the contrast, and the conditions that there are.
    """
    conditions = list(dict.fromkeys(name for names in tables.values() for name in names))
    for name, expression in contrasts.items():
        if expression == ALL and ALL not in conditions:
            continue
        try:
            weights = contrast_weights(expression, conditions)
        except InputError as error:
            raise InputError(f"config: glm.contrasts.{name}: {error}") from None
        needed = {c for c, weight in zip(conditions, weights, strict=True) if weight}
        if not any(needed <= set(names) for names in tables.values()):
            raise InputError(
                f"config: glm.contrasts.{name} needs {', '.join(sorted(needed))} in one run, which "
                f"no run like {next(iter(tables)).name} has: compare conditions of a run"
            )


def conditions_of(rows: Sequence[Mapping[str, Any]], path: str | Path) -> list[str]:
    """Return the conditions of an events table, in the order in which they come.

    Raises
    ------
    InputError
        Where the table has no column ``trial_type``.
    """
    if any("trial_type" not in row for row in rows):
        raise InputError(f"{path} has no column trial_type: glm.contrasts compare its conditions")
    return list(dict.fromkeys(str(row["trial_type"]).strip() for row in rows))


def map_contrasts(
    *,
    bold: Sequence[str | Path],
    mask: Sequence[str | Path],
    sidecar: Sequence[str | Path],
    events: Sequence[str | Path],
    runs: Sequence[Mapping[str, str | None]],
    out: str | Path,
    manifest: str | Path,
    subject: str,
    task: str,
    space: str,
    contrasts: Mapping[str, str],
    confounds: Sequence[str | Path] = (),
    hrf: str = "glover",
    drift: str = "cosine",
    high_pass: float = 0.01,
    drift_order: int = 1,
    confound_columns: str | Sequence[str] = "motion6",
    trials: str = "single",
    stimulus_column: str = "auto",
    trial_types: Sequence[str] = ("*",),
    nuisance_types: Sequence[str] = (),
    noise_model: str = "ols",
    scaling: str = "run",
    code: str = "",
    threads: int = 1,
) -> Path:
    """Write maps of contrasts of conditions, with t and z, fixed effects over runs.

    Parameters
    ----------
    bold, mask, sidecar, events, runs, confounds, subject, task, space
        See `isocortex.glm.fit.fit_glm`.
    out
        Folder of the maps: for each contrast the effect (percent signal change), t and z as
        ``…_contrast-<name>_stat-<effect|t|z>_statmap.nii.gz``, each with a JSON beside it. Voxels
        that are not fitted are 0.
    manifest
        JSON that says what the folder holds.
    contrasts
        Expressions over conditions by name, see `contrast_weights`; ``all`` is added, the mean of
        all conditions that get betas.
    hrf, drift, high_pass, drift_order, confound_columns, noise_model, scaling
        See `isocortex.glm.fit.fit_glm`; all conditions are modelled, by one regressor each.
    trials, stimulus_column, trial_types, nuisance_types
        Which conditions get betas, see `isocortex.glm.fit.fit_glm`: those that ``all`` is of.
    code
        Code version, for the provenance.
    threads
        Cores to use; the results do not depend on it.

    Returns
    -------
    pathlib.Path
        The manifest.

    Raises
    ------
    InputError
        As `isocortex.glm.fit.fit_glm`, and where no run has a contrast's conditions.

    Notes
    -----
    The maps are those of nilearn's ``FirstLevelModel``: effects are means over runs, degrees of
    freedom add up. A run that lacks a condition of a contrast has no part in it.
    """
    prepared = prepare_runs(
        bold=bold,
        mask=mask,
        sidecar=sidecar,
        events=events,
        runs=runs,
        confounds=confounds,
        confound_columns=confound_columns,
        trial_options={
            "trials": "condition",
            "stimulus_column": "trial_type",
            "trial_types": ("*",),
            "nuisance_types": (),
        },
        design_options={
            "hrf": hrf,
            "drift": drift,
            "high_pass": high_pass,
            "drift_order": drift_order,
        },
    )
    # One table may be that of several runs
    conditions = [[trial.condition for trial in run.design.trials] for run in prepared]
    expressions = {ALL: ALL, **contrasts}
    check_contrasts(expressions, dict(zip(map(Path, events), conditions, strict=True)))
    weights = []
    for path, names in zip(events, conditions, strict=True):
        try:
            responses, _ = make_trials(
                bids.read_events(path),
                trials=trials,
                stimulus_column=stimulus_column,
                trial_types=trial_types,
                nuisance_types=nuisance_types,
            )
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        weights.append(_run_weights(expressions, names, {trial.condition for trial in responses}))
    shared, affine = intersect_masks(mask, bold)
    with working_folder("contrasts", out) as scratch:
        series = Series(
            scratch,
            bold,
            shared,
            groups=scaling_groups(prepared, [list(range(len(prepared)))], scaling=scaling),
            threads=threads,
        )
        effect, variance, dof = _fit(
            series, prepared, weights, noise_model=noise_model, threads=threads
        )
        usable = series.usable
    if not usable.any():
        raise InputError(
            f"no voxel in the mask of {bold[0]} and its fellow runs is usable: check the images"
        )
    taking = [
        [run.name for run, own in zip(prepared, weights, strict=True) if own[number].any()]
        for number in range(len(expressions))
    ]
    method = (
        f"Contrasts were estimated with one regressor for each condition, convolved with the {hrf} "
        f"haemodynamic response, "
        f"{nuisance_text(prepared, drift=drift, high_pass=high_pass, drift_order=drift_order)}, "
        f"by {_SQUARES[noise_model]}, and combined over runs as fixed effects (nilearn)."
    )
    folder = Path(out)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = provenance.temporary_beside(folder)
    temporary.mkdir()
    stem = f"sub-{subject}_task-{task}_space-{space}"
    for number, (name, expression) in enumerate(expressions.items()):
        part = Contrast(
            effect=effect[number, usable],
            variance=variance[number, usable],
            dof=float(dof[number]),
            stat_type="t",
        )
        maps = {"effect": part.effect, "t": part.stat(), "z": part.z_score()}
        for statistic, values in maps.items():
            path = temporary / f"{stem}_contrast-{name}_stat-{statistic}_statmap.nii.gz"
            volume = np.zeros(shared.shape, dtype=np.float32)
            volume[tuple(axis[usable] for axis in np.nonzero(shared))] = values
            image = nib.Nifti1Image(volume, affine)
            image.header.set_xyzt_units("mm")
            nib.save(image, path)
            provenance.write_json(
                path.with_name(path.name.replace(".nii.gz", ".json")),
                {
                    "Description": f"{_STATISTICS[statistic]} of {expression}",
                    "Contrast": expression,
                    "Units": "percent signal change" if statistic == "effect" else "arbitrary",
                    "DegreesOfFreedom": int(dof[number]),
                    "Runs": taking[number],
                },
            )
    digest = provenance.directory_digest(temporary)
    provenance.replace_with(temporary, folder)
    sources = [*bold, *mask, *confounds, *sidecar, *events]
    provenance.write_provenance(manifest, sources=sources, code=code)
    provenance.write_json(
        manifest,
        {
            "content": digest,
            "contrasts": expressions,
            "runs": dict(zip(expressions, taking, strict=True)),
            "degrees_of_freedom": dict(zip(expressions, map(int, dof), strict=True)),
            "n_voxels": int(usable.sum()),
            "methods": method,
        },
    )
    return Path(manifest)


_SQUARES = {"ols": "ordinary least squares", "ar1": "least squares after AR(1) prewhitening"}
_STATISTICS = {"effect": "Effect, mean over runs,", "t": "t", "z": "z"}


def _run_weights(
    expressions: Mapping[str, str], conditions: Sequence[str], with_betas: Collection[str]
) -> np.ndarray:
    """Return the weights of a run's conditions, 0 where the run lacks one of a contrast's."""
    rows = np.zeros((len(expressions), len(conditions)))
    for row, (name, expression) in zip(rows, expressions.items(), strict=True):
        if expression == ALL and ALL not in conditions:
            row[:] = np.isin(conditions, list(with_betas)) / len(with_betas)
            continue
        try:
            row[:] = contrast_weights(expression, conditions)
        except InputError:
            log.info("a run lacks conditions of contrast %s and has no part in it", name)
    return rows


def _fit(
    series: Series,
    runs: Sequence[PreparedRun],
    weights: Sequence[np.ndarray],
    *,
    noise_model: str,
    threads: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return effects, their variances and degrees of freedom of fixed effects over runs."""
    with threadpool_limits(limits=1):
        models = [RunModel(run.design, noise_model=noise_model) for run in runs]
    taking = np.array([own.any(axis=1) for own in weights])
    n_runs = taking.sum(axis=0)
    effect, variance = (np.zeros((taking.shape[1], series.n_voxels)) for _ in range(2))

    def fit_block(part: slice) -> None:
        for number, (model, own) in enumerate(zip(models, weights, strict=True)):
            chosen = np.flatnonzero(taking[number])
            if chosen.size:
                parts = model.fit_contrasts(series.read(number, part), own[chosen])
                effect[chosen, part] += parts[0]
                variance[chosen, part] += parts[1]

    with parallel.dask_workers(threads):
        dask.compute([dask.delayed(fit_block)(part) for part in series.blocks])
    dof = taking.T @ np.array([model.degrees_of_freedom for model in models])
    # nilearn's: the mean over the runs that take part
    return effect / n_runs[:, None], variance / n_runs[:, None] ** 2, dof
