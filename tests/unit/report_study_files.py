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
from isocortex.rsa import transforms

REGIONS = ("V1", "V2", "V4", "LO", "FFA", "PPA")
CENTRES = ((8, -92, 2), (14, -84, 8), (28, -76, -12), (42, -74, -2), (40, -52, -20), (26, -44, -10))
LAYERS = {"convnet": [f"layer{n}" for n in range(1, 7)], "gabor": ["energy"], "pixels": ["rgb"]}
PREDICTORS = [f"{model}/{layer}" for model, layers in LAYERS.items() for layer in layers]
KINDS = ["fixed"] * len(PREDICTORS)
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


def write_predictors(files: StudyFiles, *, seed: int = 1) -> None:
    """Add joint models, readouts, permutation tests, a universal encoder and model comparisons.

    Of the joint model `mix` the space `edges` has the largest share in V1, V2 and V4 and `objects`
    in the others. Readout `field` is .05 above the scores of the best layer of convnet, `route` .05
    below. The universal encoder is above the own encoder in all subjects but the last, who is new.
    """
    rng = np.random.default_rng(seed)
    parts: dict[str, list] = {}
    of_convnet = [path for path in files.of("encoding") if "model-convnet" in path.name]
    for subject, path, image in zip(files.subjects, of_convnet, files.of("regions"), strict=True):
        dataset = store.open(path, "encoding").load()
        score = dataset["score"].values
        n = score.shape[1]
        voxels = {axis: ("voxel", dataset[axis].values) for axis in "ijk"}
        geometry = {key: dataset.attrs[key] for key in ("affine", "shape", "space")}
        attrs = geometry | {"subject": subject, "task": "objects", "min_ceiling": 0.05}
        attrs |= {"folds": "3 runs, leave one out", "device": "cpu"}
        label = np.asarray(nib.load(image).dataobj)[tuple(v for _, v in voxels.values())]
        early = (label > 0) & (label <= 3)
        top = score.max(axis=0)
        # A region's best layer by its mean, which readouts are compared with.
        best = top.copy()
        for value in np.unique(label[label > 0]):
            inside = label == value
            best[inside] = score[score[:, inside].mean(axis=1).argmax()][inside]

        def keep(kind: str, made: xr.Dataset, name: str, spec: str) -> None:
            target = files.root / "more" / name
            store.write(_complete(made, spec), target, spec=spec, code="c0de" * 4)
            files.by_kind.setdefault(kind, []).append(target)

        p = np.clip(0.5 - score, 1e-4, 1).astype("f4")
        tests = {"p": p / 4, "p_fdr": p / 3, "p_fwe": np.where(score > 0.3, 0.01, 0.9)}
        keep(
            "encoding_tested",
            dataset.assign({k: (("layer", "voxel"), v.astype("f4")) for k, v in tests.items()})
            .assign(r2=(("layer", "voxel"), score**2))
            .assign_attrs(permutations=200, kind="volumes", delays=[2.0, 4.0], pca=20),
            f"sub-{subject}_task-objects_model-convnet_encoding.zarr",
            "encoding",
        )
        full = np.maximum(top, 0) ** 2
        shares = np.stack([np.where(early, 0.7, 0.2) * full, np.where(early, 0.3, 0.8) * full])
        shares[:, label == 0] = 0.01 * rng.standard_normal((2, int((label == 0).sum())))
        alone = {"score": top, "r2": full, "score_normalised": top / 0.7}
        alone |= {"noise_ceiling": np.full(n, 0.7)}
        alone = {key: ("voxel", values.astype("f4")) for key, values in alone.items()}
        keep(
            "joint",
            xr.Dataset(
                {
                    **alone,
                    "product_measure": (("space", "voxel"), shares.astype("f4")),
                    "unique": (("space", "voxel"), (0.6 * shares).astype("f4")),
                },
                coords={
                    "space": np.array(["edges", "objects"], dtype=object),
                    "source": ("space", np.array(["gabor", "convnet/layer6"], dtype=object)),
                    **voxels,
                },
                attrs=attrs
                | {"model": "mix", "joint": "mix", "method": "banded", "candidates": 100},
            ),
            f"sub-{subject}_task-objects_joint-mix.zarr",
            "encoding_joint",
        )
        loss = 1 / np.arange(1, 9) + np.array([[0.0], [0.1]])
        loss[1, 6:] = np.nan
        for name, kind, gain in (("field", "gaussian", 0.05), ("route", "routing", -0.05)):
            more = {}
            if kind == "gaussian":
                angle = rng.uniform(0, 2 * np.pi, n)
                reach = rng.uniform(0, 4, n)
                more = {"x": reach * np.cos(angle), "y": reach * np.sin(angle)}
                more["size"] = 0.4 + 0.3 * reach
                more = {key: ("voxel", values.astype("f4")) for key, values in more.items()}
            else:
                maps = rng.gamma(2, 1, (len(REGIONS), 7, 7))
                maps /= maps.sum(axis=(1, 2), keepdims=True)
                more["attention"] = (("query", "row", "column"), maps.astype("f4"))
                more["query"] = ("query", np.array(REGIONS, dtype=object))
            weight = np.full((2, n), 0.5, "f4")
            keep(
                "readouts",
                xr.Dataset(
                    {
                        **alone,
                        **more,
                        "score": ("voxel", (best + gain).astype("f4")),
                        "layer_weight": (("layer", "voxel"), weight),
                        "preferred_layer": ("voxel", np.ones(n, np.int16)),
                        "training_loss": (("fold", "epoch"), loss),
                        "validation_loss": (("fold", "epoch"), loss + 0.1),
                        "n_epochs": ("fold", np.array([8, 6], np.int32)),
                    },
                    coords={"layer": np.array(["layer5", "layer6"], dtype=object), **voxels},
                    attrs=attrs
                    | {"model": "convnet", "name": name, "kind": kind, "samples": "trials"}
                    | {"field_units": "degrees of visual angle", "field_of_view": 8.0},
                ),
                f"sub-{subject}_task-objects_readout-{name}.zarr",
                "readout",
            )
        inside = np.isin(label, np.arange(1, 7))
        own = score[score[:, inside].mean(axis=1).argmax()]
        new = subject == files.subjects[-1]
        parts.setdefault("score", []).append(own + (-0.04 if new else 0.02))
        parts.setdefault("subject", []).append(np.full(n, subject, dtype=object))
        for axis in "ijk":
            parts.setdefault(axis, []).append(voxels[axis][1])
    joined = {key: np.concatenate(values) for key, values in parts.items()}
    total = len(joined["score"])
    keep(
        "universal",
        xr.Dataset(
            {
                "score": ("location", joined["score"].astype("f4")),
                "noise_ceiling": ("location", np.full(total, 0.7, "f4")),
                "embedding": (("component", "location"), np.zeros((2, total), "f4")),
                "training_loss": (("fold", "epoch"), loss),
                "validation_loss": (("fold", "epoch"), loss + 0.1),
            },
            coords={
                "layer": np.array(["layer5", "layer6"], dtype=object),
                **{key: ("location", joined[key]) for key in ("subject", *"ijk")},
            },
            attrs={
                "space": geometry["space"],
                **{k: dict.fromkeys(files.subjects, geometry[k]) for k in ("affine", "shape")},
                **{"task": "objects", "model": "convnet", "name": "crowd", "min_ceiling": 0.05},
                **{"subjects": files.subjects, "new_subjects": files.subjects[-1:]},
                **{"n_trials": dict.fromkeys(files.subjects, 72), "folds": "3 folds"},
            },
        ),
        "task-objects_universal-crowd.zarr",
        "universal",
    )
    summary = store.open(files.of("encoding_summary")[0], "encoding_summary").load()
    models = list(LAYERS)
    pairs = ("candidate", "other", "region")
    height = np.array([0.3, 0.2, 0.1])
    gap = np.repeat((height[:, None] - height[None])[:, :, None], len(REGIONS), axis=2)
    p = np.where(np.abs(gap) > 0.15, 0.001, 0.2)
    p[np.eye(3, dtype=bool)] = gap[np.eye(3, dtype=bool)] = np.nan
    spatial = np.array([[0.9, 0.8, 0.7], [0.1, 0.0, -0.1], [np.nan] * 3])
    by_subject = np.broadcast_to(height[:, None, None], (3, len(REGIONS), len(files.subjects)))
    slope = np.full((1, len(REGIONS)), 0.1)
    keep(
        "summary_compared",
        summary.assign(
            {
                "model_score": (("candidate", "region", "subject"), by_subject),
                "r2": (("predictor", "region", "subject"), summary["score"].values ** 2),
                "spatial_score": (("candidate", "subject"), spatial),
                "spatial_mean": ("candidate", np.array([0.8, 0.0, np.nan])),
                "spatial_low": ("candidate", np.array([0.6, -0.2, np.nan])),
                "spatial_high": ("candidate", np.array([1.0, 0.2, np.nan])),
                "spatial_p": ("candidate", np.array([0.002, 0.5, np.nan])),
                "spatial_p_corrected": ("candidate", np.array([0.004, 0.5, np.nan])),
                "difference": (pairs, gap),
                "difference_low": (pairs, gap - 0.05),
                "difference_high": (pairs, gap + 0.05),
                **{f"difference_{key}": (pairs, p) for key in ("p", "p_fdr", "p_fwe")},
                "family_slope": (("factor", "region"), slope),
                "family_rho": (("factor", "region"), np.full_like(slope, 0.5)),
                "family_p": (("factor", "region"), np.where(np.arange(6) < 2, 0.01, 0.4)[None]),
                "family_value": (("factor", "candidate"), np.array([[1e6, 1e5, 1e4]])),
            }
        ).assign_coords(
            candidate=np.array(models, dtype=object),
            other=np.array(models, dtype=object),
            factor=np.array(["parameters"], dtype=object),
        ),
        "task-objects_summary.zarr",
        "encoding_summary",
    )


def _families(lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """Families of threshold pairs as the topology stage names them."""
    return np.array(
        [
            transforms.family(low, high) if np.isfinite([low, high]).all() else ""
            for low, high in zip(lower, upper)
        ],
        dtype=object,
    )


def _rates(confusion: np.ndarray, dims: tuple[str, ...]) -> dict:
    """Sensitivity and specificity of confusions, shape (..., true, predicted)."""
    found = np.einsum("...ii->...i", confusion)
    true, taken = confusion.sum(axis=-1), confusion.sum(axis=-2)
    others = confusion.sum(axis=(-1, -2))[..., None] - true
    return {
        "sensitivity": (dims, found / true),
        "specificity": (dims, 1 - (taken - found) / others),
    }


def _score_tests(mean: np.ndarray, few: bool) -> dict:
    """What a scores store holds of tests; NaN where there are too few subjects."""
    n_comparisons, n, n_regions = mean.shape
    cube = ("comparison", "predictor", "region")
    pairs = mean[:, :, None] - mean[:, None]
    p = np.where(np.abs(pairs) > 0.2, 0.01, 0.4)
    p[:, np.arange(n), np.arange(n)] = np.nan
    tests = {
        "p": (cube, np.where(mean > 0.1, 0.004, 0.3)),
        "p_corrected": (cube, np.where(mean > 0.1, 0.03, 0.9)),
        "p_fdr": (cube, np.where(mean > 0.1, 0.02, 0.4)),
        "p_fwe": (cube, np.where(mean > 0.1, 0.03, 0.9)),
        "p_permutation": (cube, np.where(mean > 0.1, 0.001, 0.5)),
        "p_ceiling": (cube, np.where(mean < 0.4, 0.01, 0.6)),
        "difference": (("comparison", "predictor", "other", "region"), pairs),
    }
    for name in ("difference_p", "difference_p_fdr", "difference_p_fwe"):
        tests[name] = (("comparison", "predictor", "other", "region"), p.copy())
    if few:
        tests = {key: (dims, np.full_like(values, np.nan)) for key, (dims, values) in tests.items()}
    ends = (
        ("low", "low", 0.44),
        ("low", "high", 0.56),
        ("high", "low", 0.55),
        ("high", "high", 0.66),
    )
    for end, side, value in ends:
        values = np.full((n_comparisons, n_regions), np.nan if few else value)
        tests[f"ceiling_{end}_{side}"] = (("comparison", "region"), values)
    for end, value in (("low", 0.48), ("high", 0.58)):
        tests[f"ceiling_cv_{end}"] = (
            ("comparison", "region"),
            np.full((n_comparisons, n_regions), value),
        )
    tests["kind"] = ("predictor", np.array(KINDS, dtype=object))
    return tests


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
                    **_score_tests(mean, few),
                    "ceiling_low": (("comparison", "region"), np.full((3, 6), 0.5)),
                    "ceiling_high": (("comparison", "region"), np.full((3, 6), 0.6)),
                    "best_predictor": (
                        ("comparison", "region"),
                        rows["predictor"][mean.argmax(1)],
                    ),
                },
                coords={"comparison": comparisons, "region": regions, "subject": subjects, **rows}
                | {"other": rows["predictor"]},
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
                **_rates(confusion, ("statistic", "region")),
                "family": ("statistic", _families(lower, upper)),
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
                **_searchlight_tests(group, "voxel", few),
                "n_subjects": ("voxel", np.full(n_voxels, n, np.int32)),
            },
            coords={**rows, **voxels},
            attrs={**geometry, "task": "objects", "comparison": "pearson", "radius": "10 mm"},
        ),
        "searchlight/task-objects_searchlight.zarr",
        "searchlight_group",
    )
    _write_surface(files, put, rows, truth, n)
    _write_model_rdms(put, rng, list(files.stimuli))
    _write_partition(put, rng, subjects, regions)
    _write_dependence(put, rng, rows, subjects, regions)
    _write_persistence(put, rng, subjects, regions)
    put(
        "layers",
        layer_identification(),
        "trsa/family-net_measure-correlation_layers.zarr",
        "layer_identification",
    )


def _searchlight_tests(mean: np.ndarray, point: str, few: bool) -> dict:
    """p-values of a group map that follow its scores; NaN where there are too few subjects."""
    none = np.full_like(mean, np.nan)
    strict = np.where(mean > 0.25, 0.01, 0.5).astype(np.float32)
    lenient = np.where(mean > 0.15, 0.02, 0.6).astype(np.float32)
    return {
        "p_corrected": (("predictor", point), none if few else strict),
        "p_tfce": (("predictor", point), none if few else lenient),
    }


def _write_surface(files, put, rows, truth, n):
    """Searchlights on fsaverage5: the score falls off from each region's place on the sphere."""
    mesh = datasets.fetch_surf_fsaverage("fsaverage5")
    parts = []
    for side in ("left", "right"):
        points = nib.load(mesh[f"pial_{side}"]).darrays[0].data
        near = np.stack(
            [
                np.exp(-np.sum((np.abs(points * [1, 0, 0]) + points * [0, 1, 1] - c) ** 2, 1) / 300)
                for c in CENTRES
            ]
        )
        parts.append(truth @ near)
    mean = np.concatenate(parts, axis=1).astype(np.float32)
    mean[:, :9] = np.nan  # a medial wall
    n_vertices = parts[0].shape[1]
    coords = rows | {
        "hemisphere": ("vertex", np.repeat(np.array(["left", "right"], object), n_vertices)),
        "index": ("vertex", np.tile(np.arange(n_vertices, dtype=np.int32), 2)),
    }
    attrs = {"mesh": "fsaverage5", "n_vertices": n_vertices, "task": "objects"}
    attrs |= {"comparison": "pearson", "radius": "10 mm"}
    for subject in files.subjects:
        put(
            "searchlight_surface",
            xr.Dataset(
                {
                    "score": (("predictor", "vertex"), mean),
                    "n_voxels": ("vertex", np.full(2 * n_vertices, 60, np.int32)),
                },
                coords=coords,
                attrs=attrs | {"subject": subject},
            ),
            f"searchlight/sub-{subject}_task-objects_surface.zarr",
            "searchlight_surface",
        )
    put(
        "searchlight_surface_group",
        xr.Dataset(
            {
                "mean": (("predictor", "vertex"), mean),
                "t": (("predictor", "vertex"), mean * 10),
                **_searchlight_tests(mean, "vertex", n < 5),
                "n_subjects": ("vertex", np.where(np.isfinite(mean[0]), n, 0).astype(np.int32)),
            },
            coords=coords,
            attrs=attrs,
        ),
        "searchlight/task-objects_surface.zarr",
        "searchlight_surface_group",
    )


def _write_model_rdms(put, rng, stimuli):
    """RDMs of the models' layers on the stimuli that the betas name."""
    pairs = list(combinations(sorted(stimuli), 2))
    for model, layers in LAYERS.items():
        put(
            "model_rdms",
            xr.Dataset(
                {
                    "dissimilarity": (
                        ("layer", "pair"),
                        rng.gamma(4, 0.2, (len(layers), len(pairs))),
                    )
                },
                coords={
                    "layer": np.array(layers, object),
                    "stimulus_i": ("pair", np.array([a for a, _ in pairs], object)),
                    "stimulus_j": ("pair", np.array([b for _, b in pairs], object)),
                },
                attrs={"model": model, "measure": "correlation"},
            ),
            f"rsa/model-{model}_measure-correlation_rdms.zarr",
            "model_rdms",
        )


def _write_partition(put, rng, subjects, regions):
    models = ["convnet", "gabor/energy", "pixels/rgb"]
    parts = ["+".join(part) for size in (1, 2, 3) for part in combinations(models, size)]
    shape = (len(parts), len(regions), len(subjects))
    centre = np.array([0.2, 0.03, 0.05, 0.06, 0.04, -0.02, 0.1])[:, None, None]
    variance = centre + 0.02 * rng.standard_normal(shape)
    mean = variance.mean(-1)
    partial = 0.3 * rng.random((len(models), len(regions), 1)) + 0.02 * rng.standard_normal(
        (len(models), *shape[1:])
    )
    put(
        "partition",
        xr.Dataset(
            {
                "variance": (("part", "region", "subject"), variance),
                "mean": (("part", "region"), mean),
                "interval_low": (("part", "region"), mean - 0.03),
                "interval_high": (("part", "region"), mean + 0.03),
                "chance": (("part", "region"), np.full(mean.shape, 0.01)),
                **{name: (("part", "region"), np.full(mean.shape, 0.2)) for name in ("p", "p_fdr")},
                "p_fwe": (("part", "region"), np.where(mean > 0.08, 0.01, 0.5)),
                "partial": (("model", "region", "subject"), partial),
                "partial_mean": (("model", "region"), partial.mean(-1)),
                "partial_low": (("model", "region"), partial.mean(-1) - 0.05),
                "partial_high": (("model", "region"), partial.mean(-1) + 0.05),
                "partial_p_fwe": (
                    ("model", "region"),
                    np.where(partial.mean(-1) > 0.15, 0.01, 0.5),
                ),
                "total": (("region", "subject"), variance.sum(0)),
                "total_mean": (("region",), mean.sum(0)),
            },
            coords={"part": np.array(parts, object), "model": np.array(models, object)}
            | {"region": regions, "subject": subjects},
            attrs={"measure": "correlation", "task": "objects", "comparison": "spearman"}
            | {"bootstrap": "both", "n_bootstrap": 1000, "seed": 0, "flags": []}
            | {"interval_level": 0.95},
        ),
        "rsa/task-objects_measure-correlation_partition.zarr",
        "partition",
    )


def _write_dependence(put, rng, rows, subjects, regions):
    shape = (len(PREDICTORS), len(regions))
    mean = 0.2 + 0.4 * rng.random(shape)
    bounds = {"lower": 0.14, "upper": 0.86}
    put(
        "dependence",
        xr.Dataset(
            {
                "mean": (("predictor", "region"), mean),
                "null_mean": (("predictor", "region"), np.full(shape, 0.31)),
                "p": (("predictor", "region"), np.where(mean > 0.4, 0.001, 0.3)),
                "p_corrected": (("predictor", "region"), np.where(mean > 0.4, 0.02, 0.9)),
                **{
                    f"{end}_{side}": (("predictor", "region"), np.full(shape, value))
                    for end, value in bounds.items()
                    for side in ("brain", "model")
                },
            },
            coords={"region": regions, "subject": subjects, **rows},
            attrs={"scale": "rank", "threshold": "quantile", "levels": 8, "permutations": 999}
            | {"measure": "correlation", "task": "objects", "flags": []},
        ),
        "trsa/task-objects_measure-correlation_dependence.zarr",
        "dependence",
    )


def _write_persistence(put, rng, subjects, regions):
    threshold = np.linspace(0, 1, 41)
    n, r = len(subjects), len(regions)
    pace = 4 + np.arange(r)[None, :, None] + rng.random((1, r, n))
    components = 1 + 59 * np.exp(-pace * threshold[:, None, None])
    loops = 12 * np.exp(-(((threshold[:, None, None] - 0.2 - 1 / pace) / 0.12) ** 2))
    distance = np.abs(np.arange(r)[:, None] - np.arange(r)) * np.array([1.0, 0.2])[:, None, None]
    summaries = {
        key: (("dimension", "region", "subject"), 1 + rng.random((2, r, n)))
        for key in ("total_persistence", "longest", "entropy", "n_bars")
    }
    put(
        "persistence",
        xr.Dataset(
            {
                "betti": (
                    ("dimension", "threshold", "region", "subject"),
                    np.stack([components, loops]),
                ),
                **summaries,
                "distance": (("dimension", "region", "other"), distance),
                "accuracy": ("dimension", np.array([0.5, 0.3])),
                "accuracy_low": ("dimension", np.array([0.3, 0.1])),
                "accuracy_high": ("dimension", np.array([0.7, 0.5])),
                "p": ("dimension", np.array([0.001, 0.04])),
                "p_corrected": ("dimension", np.array([0.002, 0.06])),
                "ratio": ("dimension", np.array([0.8, 0.95])),
            },
            coords={"dimension": np.array(["H0", "H1"], object), "threshold": threshold}
            | {"region": regions, "other": regions, "subject": subjects},
            attrs={"filtration": "rank", "distance": "wasserstein", "measure": "correlation"}
            | {"task": "objects", "chance": 1 / r, "flag": "", "interval_level": 0.95},
        ),
        "trsa/task-objects_measure-correlation_persistence.zarr",
        "persistence",
    )


def layer_identification(n_layers: int = 9, n_seeds: int = 10) -> xr.Dataset:
    """Layer identification of one network whose accuracy falls with the noise."""
    rng = np.random.default_rng(1)
    noise = np.array([0.0, 0.2, 0.4])
    steps = np.round(np.arange(0, 1.001, 0.1), 3)
    cells = list(combinations(steps, 2))
    names = ["rdm", "rank_rdm", "unit_rdm", "rgdm(0.00,0.80)", "rgtm(nested)"]
    names += [f"rgtm({low:.2f},{high:.2f})" for low, high in cells]
    lower = np.array([np.nan] * 3 + [0.0, np.nan] + [low for low, _ in cells])
    upper = np.array([np.nan] * 3 + [0.8, np.nan] + [high for _, high in cells])
    ability = np.r_[0.9, 0.95, 0.92, 0.7, 0.96, 0.6 + 0.35 * (upper[5:] - lower[5:])]
    accuracy = np.clip(
        ability[None] - noise[:, None] * (1 + 0.6 * (np.array(names) == "rdm")), 0.15, 1
    )
    shape = accuracy.shape
    confusion = np.zeros((*shape, n_layers, n_layers), np.int32)
    cases = rng.random((*shape, n_layers, n_seeds)) < accuracy[..., None, None]
    hits = cases.sum(-1)
    layers = np.arange(n_layers)
    confusion[..., layers, layers] = hits
    confusion[..., layers, (layers + 1) % n_layers] += n_seeds - hits
    text = np.array([f"layer{n}" for n in range(1, n_layers + 1)], dtype=object)
    dataset = xr.Dataset(
        {
            "accuracy": (("noise", "statistic"), accuracy),
            "accuracy_low": (("noise", "statistic"), accuracy - 0.06),
            "accuracy_high": (("noise", "statistic"), np.minimum(accuracy + 0.06, 1)),
            "p": (("noise", "statistic"), np.full(shape, 0.001)),
            "p_corrected": (("noise", "statistic"), np.full(shape, 0.001)),
            "gain": (("noise", "statistic"), accuracy - accuracy[:, [1]]),
            "ratio": (("noise", "statistic"), np.full(shape, 0.7)),
            **_rates(confusion, ("noise", "statistic", "layer")),
            "confusion": (("noise", "statistic", "layer", "predicted"), confusion),
            "family": ("statistic", _families(lower, upper)),
            "lower": ("statistic", lower),
            "upper": ("statistic", upper),
            "draws": ("noise", np.array([1, 20, 20], np.int32)),
        },
        coords={"noise": noise, "statistic": np.array(names, object), "layer": text}
        | {"predicted": text, "seed": np.array([f"net{n}" for n in range(n_seeds)], object)},
        attrs={"network": "net", "scale": "rank", "threshold": "quantile", "pool": "rdm"}
        | {"geodesic": "twostep", "chance": 1 / n_layers, "measure": "correlation", "flag": ""}
        | {"flags": [], "layers_left_out": {}, "interval_level": 0.95},
    )
    return _complete(dataset, "layer_identification")
