"""Small but complete stores for the report's tests: a study with known answers."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import nibabel as nib
import numpy as np
import xarray as xr
from nilearn import datasets
from PIL import Image

from isocortex import store

REGIONS = ("V1", "V2", "V4", "LO", "FFA", "PPA")
CENTRES = ((8, -92, 2), (14, -84, 8), (28, -76, -12), (42, -74, -2), (40, -52, -20), (26, -44, -10))
LAYERS = {"convnet": [f"layer{n}" for n in range(1, 7)], "gabor": ["energy"], "pixels": ["rgb"]}
PREDICTORS = [f"{model}/{layer}" for model, layers in LAYERS.items() for layer in layers]
BEST = dict(zip(REGIONS, PREDICTORS[:6]))
CATEGORIES = ("animal", "face", "food", "house", "tool", "vehicle")


def default_options() -> dict:
    """The defaults of the report section, out of its schema."""
    schema = Path(__file__).parents[2] / "workflow" / "schemas" / "config" / "report.json"
    return {
        key: entry["default"] for key, entry in json.loads(schema.read_text())["properties"].items()
    }


@dataclass
class StudyFiles:
    """Paths by what they are; lists hold all subjects'."""

    root: Path
    subjects: list[str]
    stimuli: dict[str, Path]
    by_kind: dict[str, list[Path]] = field(default_factory=dict)

    def of(self, kind: str, subject: str | None = None) -> list[Path]:
        """Paths of a kind, of one subject if given."""
        found = self.by_kind.get(kind, [])
        return found if subject is None else [p for p in found if f"sub-{subject}" in str(p)]


def brain_grid(resolution: int) -> tuple[np.ndarray, nib.Nifti1Image]:
    """Voxel indices inside nilearn's MNI brain mask, and the mask."""
    mask = datasets.load_mni152_brain_mask(resolution=resolution)
    return np.stack(np.nonzero(np.asarray(mask.dataobj) > 0)).astype(np.int32), mask


def make_study(
    root: Path, *, n_subjects: int = 3, n_stimuli: int = 60, resolution: int = 4, seed: int = 0
) -> StudyFiles:
    """Write every store, table and figure that the reports read.

    Region r's best predictor is the r-th layer of convnet by every view.
    """
    rng = np.random.default_rng(seed)
    subjects = [f"{n:02d}" for n in range(1, n_subjects + 1)]
    names = [
        f"{CATEGORIES[n % len(CATEGORIES)]}{n // len(CATEGORIES) + 1:02d}.png"
        for n in range(n_stimuli)
    ]
    files = StudyFiles(root, subjects, {})
    folder = root / "stimuli"
    folder.mkdir(parents=True)
    for position, name in enumerate(names):
        hue = rng.integers(40, 230, 3)
        y, x = np.mgrid[:48, :64]
        wave = np.sin(x / (3 + position % 6)) * np.cos(y / (2 + position % 5))
        picture = np.clip(hue + 60 * wave[..., None], 0, 255).astype(np.uint8)
        Image.fromarray(picture).save(folder / name)
        files.stimuli[name] = folder / name
    indices, mask = brain_grid(resolution)
    n_voxels = indices.shape[1]
    world = nib.affines.apply_affine(mask.affine, indices.T)
    region_of = np.full(n_voxels, -1)
    for index, (x, y, z) in enumerate(CENTRES):
        for side in (-1, 1):
            near = np.linalg.norm(world - (side * x, y, z), axis=1) < 11
            region_of[near & (region_of < 0)] = index
    geometry = {
        "affine": mask.affine.tolist(),
        "shape": list(mask.shape),
        "space": "MNI152NLin2009aSym",
    }
    voxels = {axis: ("voxel", indices[i]) for i, axis in enumerate("ijk")}
    pairs = list(combinations(sorted(names), 2))
    first = np.array([a for a, _ in pairs], dtype=object)
    second = np.array([b for _, b in pairs], dtype=object)
    same = np.array([a[:3] == b[:3] for a, b in pairs])
    base = {region: rng.gamma(4, 0.2, len(pairs)) - 0.35 * same for region in REGIONS}
    predictor = np.array(PREDICTORS, dtype=object)
    model = np.array([p.split("/")[0] for p in PREDICTORS], dtype=object)
    layer = np.array([p.split("/")[1] for p in PREDICTORS], dtype=object)
    rows = {"predictor": predictor, "model": ("predictor", model), "layer": ("predictor", layer)}
    distance = np.array(
        [
            [abs(p - r) if p < 6 else 4.0 + r * 0.2 for r in range(len(REGIONS))]
            for p in range(len(PREDICTORS))
        ]
    )
    truth = 0.45 * np.exp(-distance / 3)

    def put(kind: str, dataset: xr.Dataset, path: str, spec: str) -> Path:
        dataset = _complete(dataset, spec)
        target = root / path
        store.write(dataset, target, spec=spec, sources=[root / "raw.nii.gz"], code="c0de" * 4)
        files.by_kind.setdefault(kind, []).append(target)
        return target

    for subject in subjects:
        _write_subject(files, put, subject, rng, names, geometry, voxels, region_of, n_voxels)
        for measure in ("correlation", "crossnobis"):
            values = np.stack([base[r] + 0.3 * rng.standard_normal(len(pairs)) for r in REGIONS])
            put(
                f"rdms_{measure}",
                xr.Dataset(
                    {
                        "dissimilarity": (("region", "pair"), values),
                        "n_voxels": (
                            "region",
                            np.bincount(region_of[region_of >= 0], minlength=6).astype(np.int32),
                        ),
                    },
                    coords={
                        "region": np.array(REGIONS, dtype=object),
                        "stimulus_i": ("pair", first),
                        "stimulus_j": ("pair", second),
                    },
                    attrs={
                        "subject": subject,
                        "task": "objects",
                        "measure": measure,
                        "noise_normalisation": "residual shrinkage covariance",
                        "cross_validation": "runs" if measure == "crossnobis" else "none",
                        "n_voxels_dropped": 0,
                    },
                ),
                f"rsa/sub-{subject}_task-objects_measure-{measure}_rdms.zarr",
                "rdms",
            )
        inside = region_of >= 0
        noise = 0.03 * rng.standard_normal((len(PREDICTORS), n_voxels))
        score = (noise + np.where(inside, truth[:, region_of], 0)).astype(np.float32)
        put(
            "searchlight",
            xr.Dataset(
                {
                    "score": (("predictor", "voxel"), score),
                    "n_voxels": ("voxel", np.full(n_voxels, 93, np.int32)),
                },
                coords={**rows, **voxels},
                attrs={**geometry, "subject": subject, "task": "objects"}
                | {"comparison": "pearson", "radius": "10 mm"},
            ),
            f"searchlight/sub-{subject}_task-objects_searchlight.zarr",
            "searchlight",
        )
        for name, layers in LAYERS.items():
            wanted = [PREDICTORS.index(f"{name}/{entry}") for entry in layers]
            part = score[wanted]
            put(
                "encoding",
                xr.Dataset(
                    {
                        "score": (("layer", "voxel"), part),
                        "score_normalised": (("layer", "voxel"), part / np.float32(0.7)),
                        "alpha": (("layer", "voxel"), np.full_like(part, 10.0)),
                        "best_layer": ("voxel", part.argmax(0).astype(np.int16)),
                        "noise_ceiling": ("voxel", np.full(n_voxels, 0.7, np.float32)),
                    },
                    coords={"layer": np.array(layers, dtype=object), **voxels},
                    attrs={**geometry, "subject": subject, "task": "objects", "model": name}
                    | {"folds": "3 runs, leave one out", "device": "cpu"},
                ),
                f"encoding/sub-{subject}_task-objects_model-{name}_encoding.zarr",
                "encoding",
            )
    _write_group(files, put, rng, rows, truth, geometry, voxels, region_of, n_voxels)
    return files


def _complete(dataset: xr.Dataset, spec: str) -> xr.Dataset:
    """Add what the spec asks for and the report does not read, as zeros."""
    out = dataset.copy()
    for name, array in store.SPECS[spec].arrays.items():
        if name not in out.variables and array.required:
            shape = tuple(out.sizes.get(dim, 4) for dim in array.dims if dim is not ...)
            kind = object if array.kind == "str" else array.kind
            out[name] = (
                array.dims[: len(shape)],
                np.full(shape, "" if kind is object else 0, dtype=kind),
            )
    out.attrs = {**dict.fromkeys(store.SPECS[spec].attrs, ""), **out.attrs}
    return out


def _design_matrix(n_volumes: int, n_trials: int, tr: float) -> np.ndarray:
    times = tr * np.arange(n_volumes)[:, None]
    bumps = np.exp(-0.5 * ((times - 11 - 3.2 * np.arange(n_trials)) / 2.5) ** 2)
    return np.hstack([bumps, np.cos(times / 60), np.cos(times / 30), times**0]).astype(np.float32)


def _write_subject(files, put, subject, rng, names, geometry, voxels, region_of, n_voxels):
    runs, n_volumes, tr = ("01", "02", "03"), 110, 2.0
    order = [rng.permutation(names) for _ in runs]
    stimulus = np.concatenate(order).astype(object)
    onset = np.concatenate([6 + 3.2 * np.arange(len(names)) for _ in runs])
    run = np.repeat(np.array(runs, dtype=object), len(names))
    inside = region_of >= 0
    beta = rng.standard_normal((len(stimulus), n_voxels)).astype(np.float32)
    beta += np.where(inside, 0.8, 0).astype(np.float32)
    put(
        "betas",
        xr.Dataset(
            {
                "beta": (("trial", "voxel"), beta),
                "r2": ("voxel", (0.15 + 0.3 * inside + 0.02 * rng.random(n_voxels)).astype("f4")),
                "noise_ceiling": (
                    "voxel",
                    (0.05 * rng.random(n_voxels) + 0.4 * inside).astype("f4"),
                ),
                "ncsnr": ("voxel", (0.1 * rng.random(n_voxels) + 0.6 * inside).astype("f4")),
                "z_stimulus": (
                    "voxel",
                    (rng.standard_normal(n_voxels) + 9 * inside).astype("f4"),
                ),
                "design": (("volume", "regressor"), _design_matrix(n_volumes, len(names), tr)),
                "tsnr": ("voxel", (60 + 10 * rng.standard_normal(n_voxels)).astype("f4")),
                "hrf_index": ("voxel", np.zeros(n_voxels, np.int16)),
                "residual": (
                    ("time", "voxel"),
                    np.zeros((n_volumes * len(runs), n_voxels), np.float32),
                ),
            },
            coords={
                "regressor": np.array([f"r{n}" for n in range(len(names) + 3)], dtype=object),
                "frame_time": ("volume", tr * np.arange(n_volumes)),
                "stimulus": ("trial", stimulus),
                "condition": (
                    "trial",
                    np.array([s.rstrip("0123456789.png") for s in stimulus], object),
                ),
                "session": ("trial", np.full(len(stimulus), "", dtype=object)),
                "run": ("trial", run),
                "onset": ("trial", onset),
                "duration": ("trial", np.full(len(stimulus), 1.0)),
                "time_run": ("time", np.repeat(np.array(runs, dtype=object), n_volumes)),
                **voxels,
            },
            attrs={
                **geometry,
                "subject": subject,
                "task": "objects",
                "TR": tr,
                "estimator": "least squares, all trials of a run at once",
                "hrf": "spm",
                "n_voxels_mask": n_voxels + 7,
                "n_voxels_nan": 4,
                "n_voxels_constant": 3,
                "degrees_of_freedom": 120,
                "design": [
                    {
                        "run": name,
                        "n_volumes": n_volumes,
                        "n_trials": len(names),
                        "n_regressors": len(names) + 12,
                        "confounds": ["trans_x", "trans_y"],
                        "degrees_of_freedom": 40,
                        "condition_number": 12.5,
                    }
                    for name in runs
                ],
                "methods": "Responses were estimated run by run by ordinary least squares.",
            },
        ),
        f"glm/sub-{subject}_task-objects_betas.zarr",
        "betas",
    )
    labels = np.zeros(geometry["shape"], dtype=np.int16)
    where = tuple(voxels[axis][1][inside] for axis in "ijk")
    labels[where] = region_of[inside] + 1
    folder = files.root / "regions"
    folder.mkdir(exist_ok=True)
    image = folder / f"sub-{subject}_task-objects_dseg.nii.gz"
    nib.save(nib.Nifti1Image(labels, np.array(geometry["affine"])), image)
    table = folder / f"sub-{subject}_task-objects_dseg.tsv"
    lines = [f"{index}\t{name}" for index, name in enumerate(REGIONS, start=1)]
    table.write_text("index\tname\n" + "\n".join(lines) + "\n")
    files.by_kind.setdefault("regions", []).append(image)
    files.by_kind.setdefault("region_labels", []).append(table)
    base = files.root / "preprocess" / f"sub-{subject}"
    for part in ("anat", *(f"func/sub-{subject}_task-objects_run-{name}" for name in runs[:1])):
        figures = base / "figures" / part
        figures.mkdir(parents=True)
        for name, level in (("fixed.png", 90), ("moving.png", 150)):
            picture = np.full((120, 400, 3), level, np.uint8)
            picture[30:90, 100:300] = 220
            Image.fromarray(picture).save(figures / name)
        (figures / "outline.svg").write_text(
            '<svg xmlns="http://www.w3.org/2000/svg" width="600" height="120">'
            '<rect width="600" height="120" fill="#eef"/><circle cx="80" cy="60" r="40"/></svg>'
        )
        listing = [
            {"file": "outline.svg", "title": "Brain mask", "caption": "Outline of the mask."},
            {
                "file": ["fixed.png", "moving.png"],
                "labels": ["template", "T1w"],
                "title": "Registration to the template",
                "caption": "The T1w image in template space.",
            },
        ]
        (figures / "figures.json").write_text(json.dumps(listing))
        (figures / "qc.json").write_text(json.dumps({"dice": 0.91, "fd": {"mean": 0.12}}))
        files.by_kind.setdefault("figures", []).append(figures)
    for name in runs:
        path = (
            base / "func" / f"sub-{subject}_task-objects_run-{name}_desc-confounds_timeseries.tsv"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        motion = np.cumsum(0.02 * rng.standard_normal((n_volumes, 6)), axis=0)
        motion[:, 3:] /= 60
        displacement = np.abs(np.diff(motion, axis=0)).sum(axis=1)
        columns = ["trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z"]
        header = [*columns, "framewise_displacement", "std_dvars", "motion_outlier_00"]
        text = ["\t".join(header)]
        for volume in range(n_volumes):
            cells = [f"{value:.5f}" for value in motion[volume]]
            if volume == 0:
                cells += ["n/a", "n/a"]
            else:
                cells += [
                    f"{displacement[volume - 1]:.5f}",
                    f"{1 + 0.1 * rng.standard_normal():.4f}",
                ]
            text.append("\t".join([*cells, "1" if volume == 40 else "0"]))
        path.write_text("\n".join(text) + "\n")
        files.by_kind.setdefault("confounds", []).append(path)


def _write_group(files, put, rng, rows, truth, geometry, voxels, region_of, n_voxels):
    subjects = np.array(files.subjects, dtype=object)
    n = len(subjects)
    regions = np.array(REGIONS, dtype=object)
    few = n < 5
    for measure in ("correlation", "crossnobis"):
        comparisons = np.array(["pearson", "spearman", "corr_cov"], dtype=object)
        score = truth[None, :, :, None] + 0.03 * rng.standard_normal((3, *truth.shape, n))
        mean = score.mean(-1)
        put(
            "scores",
            xr.Dataset(
                {
                    "score": (("comparison", "predictor", "region", "subject"), score),
                    "mean": (("comparison", "predictor", "region"), mean),
                    "interval_low": (("comparison", "predictor", "region"), mean - 0.05),
                    "interval_high": (("comparison", "predictor", "region"), mean + 0.05),
                    "p": (
                        ("comparison", "predictor", "region"),
                        np.full(mean.shape, np.nan if few else 0.004),
                    ),
                    "p_corrected": (
                        ("comparison", "predictor", "region"),
                        np.full(mean.shape, np.nan if few else 0.03),
                    ),
                    "ceiling_low": (("comparison", "region"), np.full((3, 6), 0.5)),
                    "ceiling_high": (("comparison", "region"), np.full((3, 6), 0.6)),
                    "best_predictor": (
                        ("comparison", "region"),
                        rows["predictor"][mean.argmax(1)],
                    ),
                },
                coords={"comparison": comparisons, "region": regions, "subject": subjects, **rows},
                attrs={"measure": measure, "task": "objects", "bootstrap": "both"}
                | {"n_bootstrap": 1000, "seed": 0, "interval_level": 0.95, "correction": "holm"},
            ),
            f"rsa/task-objects_measure-{measure}_scores.zarr",
            "scores",
        )
    steps = np.round(np.arange(0, 1.001, 0.125), 3)
    cells = list(combinations(steps, 2))
    names = ["rdm", "rank_rdm", "unit_rdm", "rgdm(0.20,0.80)", "rgtm(nested)"]
    names += [f"rgtm({low:.2f},{high:.2f})" for low, high in cells]
    lower = np.array([np.nan] * 3 + [0.2, np.nan] + [low for low, _ in cells])
    upper = np.array([np.nan] * 3 + [0.8, np.nan] + [high for _, high in cells])
    hits = np.clip(rng.normal(0.78, 0.06, (len(names), n)), 0, 1)
    hits = np.round(hits * 6) / 6
    accuracy = hits.mean(1)
    confusion = np.zeros((len(names), 6, 6), np.int32)
    for s in range(len(names)):
        right = round(accuracy[s] * 6 * n)
        for case in range(6 * n):
            region = case % 6
            confusion[s, region, region if case < right else (region + 1) % 6] += 1
    put(
        "identification",
        xr.Dataset(
            {
                "accuracy": ("statistic", accuracy),
                "accuracy_low": ("statistic", accuracy - 0.1),
                "accuracy_high": ("statistic", np.minimum(accuracy + 0.1, 1)),
                "p": ("statistic", np.full(len(names), np.nan if few else 0.001)),
                "accuracy_subject": (("statistic", "subject"), hits),
                "confusion": (("statistic", "region", "predicted"), confusion),
                "ratio": ("statistic", np.full(len(names), 0.8)),
                "family": ("statistic", np.array(["global"] * len(names), dtype=object)),
                "lower": ("statistic", lower),
                "upper": ("statistic", upper),
            },
            coords={
                "statistic": np.array(names, dtype=object),
                "region": regions,
                "predicted": regions,
                "subject": subjects,
            },
            attrs={"scale": "rank", "threshold": "quantile", "pool": "rdm", "geodesic": "twostep"}
            | {"chance": 1 / 6, "measure": "correlation", "task": "objects"}
            | {"interval_level": 0.9, "options": {"resample": "both"}},
        ),
        "trsa/task-objects_measure-correlation_identification.zarr",
        "identification",
    )
    kept = names[:5]
    score = truth[None, :, :, None] + 0.02 * rng.standard_normal((len(kept), *truth.shape, n))
    mean = score.mean(-1)
    put(
        "topology",
        xr.Dataset(
            {
                "score": (("statistic", "predictor", "region"), mean),
                "score_subject": (("statistic", "predictor", "region", "subject"), score),
                "interval_low": (("statistic", "predictor", "region"), mean - 0.05),
                "interval_high": (("statistic", "predictor", "region"), mean + 0.05),
                "p": (("statistic", "predictor", "region"), np.full(mean.shape, np.nan)),
                "best_predictor": (("statistic", "region"), rows["predictor"][mean.argmax(1)]),
            },
            coords={"statistic": np.array(kept, object), "region": regions, "subject": subjects}
            | rows,
            attrs={"scale": "rank", "threshold": "quantile", "pool": "rdm", "geodesic": "twostep"}
            | {"measure": "correlation", "task": "objects", "interval_level": 0.9},
        ),
        "trsa/task-objects_measure-correlation_topology.zarr",
        "topology",
    )
    score = truth[..., None] + 0.02 * rng.standard_normal((*truth.shape, n))
    mean = score.mean(-1)
    put(
        "encoding_summary",
        xr.Dataset(
            {
                "score": (("predictor", "region", "subject"), score),
                "score_normalised": (("predictor", "region", "subject"), score / 0.7),
                "mean": (("predictor", "region"), mean),
                "interval_low": (("predictor", "region"), mean - 0.04),
                "interval_high": (("predictor", "region"), mean + 0.04),
                "p": (("predictor", "region"), np.full(mean.shape, np.nan if few else 0.01)),
                "p_corrected": (
                    ("predictor", "region"),
                    np.full(mean.shape, np.nan if few else 0.04),
                ),
                "best_predictor": ("region", rows["predictor"][mean.argmax(0)]),
                "n_voxels": (("region", "subject"), np.full((6, n), 80, np.int32)),
            },
            coords={"region": regions, "subject": subjects, **rows},
            attrs={"task": "objects", "interval_level": 0.8, "correction": "fdr over 54 tests"}
            | {"responsive_ceiling": 0.1, "subjects_without_ceiling": ["02"] if n > 1 else []},
        ),
        "encoding/task-objects_summary.zarr",
        "encoding_summary",
    )
    inside = region_of >= 0
    group = (
        0.02 * rng.standard_normal((len(PREDICTORS), n_voxels))
        + np.where(inside, truth[:, region_of], 0)
    ).astype(np.float32)
    put(
        "searchlight_group",
        xr.Dataset(
            {
                "mean": (("predictor", "voxel"), group),
                "t": (("predictor", "voxel"), group * 10),
                "n_subjects": ("voxel", np.full(n_voxels, n, np.int32)),
            },
            coords={**rows, **voxels},
            attrs={**geometry, "task": "objects", "comparison": "pearson", "radius": "10 mm"},
        ),
        "searchlight/task-objects_searchlight.zarr",
        "searchlight_group",
    )
