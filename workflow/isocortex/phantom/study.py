"""Write the demo study: a BIDS dataset, an atlas of regions, and the truth behind both."""

from __future__ import annotations

import gzip
import io
import json
import logging
import multiprocessing
import os
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image
from threadpoolctl import threadpool_limits

from isocortex import provenance
from isocortex.errors import InputError
from isocortex.phantom import scanner
from isocortex.phantom.anatomy import Anatomy, apply_affine, grid_points, make_t1w, sample
from isocortex.phantom.regions import REGIONS, make_atlas, region_index
from isocortex.phantom.responses import (
    FINE_STEP_S,
    MEAN_RESPONSE,
    RESPONSE_DEVIATION,
    plant_responses,
    response_curve,
)
from isocortex.phantom.stimuli import make_images

log = logging.getLogger(__name__)

SPACE = "MNI152NLin2009aSym"
TASK = "objects"
STIMULUS_DURATION_S = 1.0
FIRST_ONSET_S = 4.0
# The intervals between images take these values in equal shares, 3.2 s on the mean. Equal
# intervals would leave the responses to single images hard to tell apart; of so many random
# orders each run takes the one that separates them best.
INTERVALS_S = (2.5, 2.5, 2.5, 2.5, 6.0)
ORDERS_TRIED = 60
REST_AFTER_S = 14.0


@dataclass(frozen=True)
class Settings:
    """Everything that one subject's files depend on, besides the subject's own number."""

    n_runs: int
    n_images: int
    voxel_size: float
    t1w_voxel_size: float
    noise: float
    motion: float
    seed: int

    def check(self) -> None:
        """Raise `InputError` for a value that makes no study."""
        for name, low, high in (
            ("n_runs", 1, 99),
            ("n_images", 2, 600),
            ("voxel_size", 1.0, 8.0),
            ("t1w_voxel_size", 1.0, 6.0),
            ("noise", 0.0, 100.0),
            ("motion", 0.0, 20.0),
            ("seed", 0, 2**63 - 1),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise InputError(f"{name} is {value}: choose a value from {low:g} to {high:g}")


def _write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; leave one that already holds the same alone."""
    if path.is_file() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _tsv(rows: list[Mapping[str, Any]]) -> bytes:
    lines = ["\t".join(rows[0])] + ["\t".join(str(v) for v in row.values()) for row in rows]
    return ("\n".join(lines) + "\n").encode()


def _nifti(
    data: np.ndarray,
    affine: np.ndarray,
    *,
    code: int = 1,
    slope: float = 1.0,
    repetition_time: float | None = None,
    slices: bool = False,
    level: int = 1,
) -> bytes:
    """Return a gzipped NIfTI-1 file without a time stamp; integers are stored as they are."""
    image = nib.Nifti1Image(data, affine)
    header = image.header
    header.set_xyzt_units("mm", "sec")
    image.set_sform(affine, code=code)
    image.set_qform(affine, code=code)
    if repetition_time is not None:
        header["pixdim"][4] = repetition_time
    if slices:
        header.set_dim_info(freq=0, phase=1, slice=2)
    header["scl_slope"], header["scl_inter"] = slope, 0
    header["vox_offset"] = 352
    raw = header.binaryblock + b"\0" * 4 + np.asarray(data).tobytes(order="F")
    return gzip.compress(raw, compresslevel=level, mtime=0)


def _numpy_archive(**arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def n_volumes(n_images: int) -> int:
    """Return the number of volumes of a run, the same for all runs of a study."""
    shown = FIRST_ONSET_S + np.resize(INTERVALS_S, n_images - 1).sum() + REST_AFTER_S
    return int(np.ceil(shown / scanner.REPETITION_TIME))


def _onsets(n_images: int, rng: np.random.Generator) -> np.ndarray:
    best, least = None, np.inf
    for _ in range(ORDERS_TRIED):
        intervals = rng.permutation(np.resize(INTERVALS_S, n_images - 1))
        onsets = FIRST_ONSET_S + np.concatenate([[0.0], np.cumsum(intervals)])
        variance = scanner.beta_variance(
            onsets,
            np.arange(n_images),
            n_images,
            n_volumes=n_volumes(n_images),
            duration=STIMULUS_DURATION_S,
        )[0].mean()
        # Rounded, so that the choice is the same with every linear algebra library.
        if round(variance, 6) < least:
            best, least = onsets, round(variance, 6)
    return best


def _code() -> str:
    """Return a digest of the code that a subject's files depend on."""
    here = Path(__file__).resolve().parent
    files = [*sorted(here.glob("*.py")), here.parent / "features" / "convnet.py"]
    return provenance.digest_bytes(b"\0".join(file.read_bytes() for file in files))


def _record_path(out: Path, label: str) -> Path:
    return out / "truth" / f"sub-{label}" / f"sub-{label}_record.json"


def _record(settings: Settings, code: str) -> dict[str, Any]:
    return {"settings": asdict(settings), "code": code}


def _complete(out: Path, label: str, settings: Settings, code: str) -> bool:
    """Whether a subject's files are all there and as they were written with these settings."""
    path = _record_path(out, label)
    if not path.is_file():
        return False
    record = json.loads(path.read_text())
    files = record.pop("files")
    return record == _record(settings, code) and all(
        provenance.fingerprint(out / name) == sign for name, sign in files.items()
    )


# The products are small: more threads only wait for one another, and sum in another order.
@threadpool_limits.wrap(limits=1, user_api="blas")
def make_subject(
    out: Path,
    number: int,
    settings: Settings,
    features: Mapping[str, np.ndarray],
    stimuli: list[tuple[str, str]],
    code: str,
) -> None:
    """Write one subject's part of the dataset and its truth.

    Parameters
    ----------
    number
        From 1; with the seed it gives all of the subject's random numbers.
    features
        Layer name to activations (image, channel, height, width).
    stimuli
        File name and category of each image.
    """
    label = f"{number:02d}"
    written: list[Path] = []

    def write(path: str, content: bytes) -> None:
        _write(out / path, content)
        written.append(out / path)

    seeds = np.random.SeedSequence([settings.seed, number]).spawn(4 + settings.n_runs)
    anatomy_rng, response_rng, t1w_rng, session_rng, *run_rngs = map(np.random.default_rng, seeds)
    raw, truth = f"bids/sub-{label}", f"truth/sub-{label}/sub-{label}"

    anatomy = Anatomy(anatomy_rng)
    shape, affine = anatomy.t1w_grid(settings.t1w_voxel_size)
    points = grid_points(shape, affine)
    tissues = anatomy.tissues(points)
    t1w = make_t1w(anatomy, tissues, points, t1w_rng, noise=settings.noise)
    write(f"{raw}/anat/sub-{label}_T1w.nii.gz", _nifti(t1w, affine))
    write(
        f"{raw}/anat/sub-{label}_T1w.json",
        _json({"Modality": "MR", "MagneticFieldStrength": 3, "Manufacturer": "Simulated"}),
    )
    there = anatomy.to_template(points)
    regions = region_index(there)
    brain = tissues["gm"] + tissues["wm"] + tissues["csf"]
    write(
        f"{truth}_from-T1w_to-{SPACE}_coordinates.nii.gz", _nifti(there.astype(np.float32), affine)
    )
    write(f"{truth}_space-T1w_desc-regions_dseg.nii.gz", _nifti(regions, affine))
    write(
        f"{truth}_space-T1w_desc-brain_mask.nii.gz", _nifti((brain > 0.5).astype(np.uint8), affine)
    )
    for name in ("gm", "wm", "csf"):
        write(
            f"{truth}_space-T1w_label-{name.upper()}_probseg.nii.gz",
            _nifti(np.round(tissues[name] * 200).astype(np.uint8), affine, slope=1 / 200),
        )

    responses = plant_responses(anatomy, features, response_rng, spacing=settings.voxel_size)
    grid, session = scanner.make_session(anatomy, session_rng, voxel_size=settings.voxel_size)
    epi = scanner.epi_coefficients(anatomy, tissues, affine, voxel_size=settings.voxel_size)
    duration, volumes = STIMULUS_DURATION_S, n_volumes(settings.n_images)
    variances, first_pose = [], None
    for run, rng in enumerate(run_rngs, start=1):
        stem = f"sub-{label}_task-{TASK}_run-{run:02d}"
        images = rng.permutation(settings.n_images)
        onsets = _onsets(settings.n_images, rng)
        scan = scanner.make_run(
            anatomy,
            epi,
            affine,
            grid,
            session,
            responses,
            onsets,
            images,
            rng,
            n_volumes=volumes,
            duration=duration,
            noise=settings.noise,
            motion=settings.motion,
        )
        variances.append(
            scanner.beta_variance(
                onsets, images, settings.n_images, n_volumes=volumes, duration=duration
            )
        )
        first_pose = scan.poses[0] if first_pose is None else first_pose
        write(
            f"{raw}/func/{stem}_bold.nii.gz",
            _nifti(
                scan.data,
                grid.affine,
                slope=scanner.SLOPE,
                repetition_time=scanner.REPETITION_TIME,
                slices=True,
            ),
        )
        write(
            f"{raw}/func/{stem}_bold.json",
            _json({"SliceTiming": grid.slice_times.tolist(), "SliceEncodingDirection": "k"}),
        )
        write(
            f"{raw}/func/{stem}_events.tsv",
            _tsv(
                [
                    {
                        "onset": f"{onset:.3f}",
                        "duration": f"{duration:.3f}",
                        "trial_type": stimuli[image][1],
                        "stim_file": stimuli[image][0],
                    }
                    for onset, image in zip(onsets, images)
                ]
            ),
        )
        back = np.linalg.inv(scan.poses[0])
        write(
            f"{truth}_task-{TASK}_run-{run:02d}_motion.json",
            _json(
                {
                    "from_first": (scan.poses @ back).tolist(),
                    "t1w_to_scanner": scan.poses.tolist(),
                    "parameters": scan.parameters.tolist(),
                    "centre": anatomy.centre.tolist(),
                }
            ),
        )
        log.info("sub-%s run %d of %d is made", label, run, settings.n_runs)

    # Maps on the BOLD grid, with the head as it lay in the first volume of the first run.
    points = apply_affine(np.linalg.inv(first_pose), grid_points(grid.shape, grid.affine))
    tissues = anatomy.tissues(points)
    signal = np.maximum(sample(epi, affine, points), 0)
    noise = scanner.noise_variance(tissues, signal, noise=settings.noise)
    total = sum(noise.values())
    brain = tissues["gm"] + tissues["wm"] + tissues["csf"] > 0.5
    tsnr = np.where(brain & (total > 0), 1 / np.sqrt(np.maximum(total, 1e-12)), 0)
    regions = region_index(anatomy.to_template(points))
    planted = regions > 0
    betas = scanner.interpolate_betas(responses, points[planted])
    white, coloured = (np.mean([v[k] for v in variances]) for k in (0, 1))
    spread = betas.var(axis=1)
    single = 1e4 * (
        (noise["thermal"] + noise["physiological"])[planted] * white
        + noise["autocorrelated"][planted] * coloured
    )
    ceilings = {}
    for repeats, name in ((1, "single"), (settings.n_runs, "mean")):
        values = spread / np.maximum(spread + single / repeats, 1e-12)
        image = np.zeros(grid.shape, dtype=np.float32)
        image[planted] = values
        write(f"{truth}_space-boldref_desc-{name}_noiseceiling.nii.gz", _nifti(image, grid.affine))
        ceilings[name] = {
            spec.name: round(float(values[regions[planted] == k].mean()), 4)
            for k, spec in enumerate(REGIONS, start=1)
            if (regions == k).any()
        }
    write(
        f"{truth}_space-boldref_desc-tsnr_statmap.nii.gz",
        _nifti(tsnr.astype(np.float32), grid.affine),
    )
    write(f"{truth}_space-boldref_desc-regions_dseg.nii.gz", _nifti(regions, grid.affine))
    grey = brain & (tissues["gm"] > 0.8) & ~planted
    write(
        f"{truth}_responses.npz",
        _numpy_archive(
            xyz=responses.points,
            region=responses.region,
            beta=responses.beta,
            field=responses.field,
            image=np.array([name for name, _ in stimuli]),
        ),
    )
    write(
        f"{truth}_truth.json",
        _json(
            {
                "affine_to_template": anatomy.affine.tolist(),
                "bspline_knots_affine": anatomy.knots.tolist(),
                "bspline_displacement_mm": anatomy.displacement.tolist(),
                "centre": anatomy.centre.tolist(),
                "session": session.tolist(),
                "bold_shape": list(grid.shape),
                "bold_affine": grid.affine.tolist(),
                "n_volumes": volumes,
                "t1_contrast": anatomy.t1_contrast,
                "epi_contrast": anatomy.epi_contrast,
                "tsnr_grey_matter": round(float(np.median(tsnr[grey])), 3) if grey.any() else None,
                "noise_ceiling_single_trial": ceilings["single"],
                "noise_ceiling_mean_of_runs": ceilings["mean"],
                "voxels": {
                    spec.name: int((responses.region == k).sum())
                    for k, spec in enumerate(REGIONS, start=1)
                },
            }
        ),
    )
    files = {
        path.relative_to(out).as_posix(): provenance.fingerprint(path) for path in sorted(written)
    }
    record = _record_path(out, label)
    if record.is_file():
        # Runs that other settings made do not belong to this study.
        for name in set(json.loads(record.read_text())["files"]) - set(files):
            (out / name).unlink(missing_ok=True)
    _write(record, _json(_record(settings, code) | {"files": files}))


README = """isocortex demo study

Simulated: nobody was scanned. Heads are smooth warps of the MNI152 template, pictures are crops
of the photographs in the scikit-image package. In every run each picture is shown once for 1 s,
in random order. Six regions along the visual stream respond with mixtures of the features of a
small convolutional network; the noise, the head motion and the anatomy are random but known.
"""


def _study_files(
    out: Path, settings: Settings, images: list[tuple[str, str, np.ndarray]], n_subjects: int
) -> None:
    """Write what belongs to no subject."""
    bids = out / "bids"
    for name, _, pixels in images:
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, format="PNG")
        _write(bids / "stimuli" / name, stream.getvalue())
    _write(bids / "README", README.encode())
    _write(bids / "LICENSE", b"Simulated recordings, dedicated to the public domain (CC0).\n")
    _write(
        bids / "dataset_description.json",
        _json(
            {
                "Name": "isocortex demo study",
                "BIDSVersion": "1.10.0",
                "DatasetType": "raw",
                "License": "CC0",
                "Authors": ["isocortex", "phantom"],
                "Acknowledgements": "Template: MNI152 2009a symmetric, from nilearn. "
                "Photographs: scikit-image.",
                "HowToAcknowledge": "Simulated data: nothing to acknowledge.",
                "Funding": ["none"],
                "EthicsApprovals": ["none needed: simulated"],
                "ReferencesAndLinks": ["https://nilearn.github.io", "https://scikit-image.org"],
                "GeneratedBy": [{"Name": "isocortex.phantom"}],
            }
        ),
    )
    rows = []
    for number in range(1, n_subjects + 1):
        rng = np.random.default_rng([settings.seed, number, 7])
        sex = "FM"[int(rng.integers(2))]
        rows.append(
            {"participant_id": f"sub-{number:02d}", "age": int(rng.integers(20, 36)), "sex": sex}
        )
    _write(bids / "participants.tsv", _tsv(rows))
    _write(
        bids / "participants.json",
        _json(
            {
                "age": {"Description": "Invented age", "Units": "year"},
                "sex": {"Description": "Invented sex", "Levels": {"F": "female", "M": "male"}},
            }
        ),
    )
    _write(
        bids / f"task-{TASK}_bold.json",
        _json(
            {
                "TaskName": TASK,
                "TaskDescription": "Passive viewing of photographs, each once a run",
                "RepetitionTime": scanner.REPETITION_TIME,
                "EchoTime": 0.03,
                "FlipAngle": 75,
                "MagneticFieldStrength": 3,
                "Manufacturer": "Simulated",
                "PhaseEncodingDirection": "j-",
                "EffectiveEchoSpacing": 0.0005,
                "TotalReadoutTime": 0.035,
                "MultibandAccelerationFactor": scanner.MULTIBAND,
                "Instructions": "Look at the pictures.",
            }
        ),
    )
    _write(
        bids / f"task-{TASK}_events.json",
        _json(
            {
                "onset": {"Description": "When the picture appears", "Units": "s"},
                "duration": {"Description": "How long it stays", "Units": "s"},
                "trial_type": {
                    "Description": "Category of the picture",
                    "Levels": {
                        name: f"Picture of category {name}"
                        for name in sorted({category for _, category, _ in images})
                    },
                },
                "stim_file": {"Description": "The picture, a file in stimuli/"},
            }
        ),
    )
    atlas = make_atlas()
    regions = out / "regions"
    _write(
        regions / f"atlas-visual_space-{SPACE}_res-2_dseg.nii.gz",
        _nifti(np.asarray(atlas.dataobj), atlas.affine, code=4),
    )
    _write(
        regions / f"atlas-visual_space-{SPACE}_res-2_dseg.tsv",
        _tsv([{"index": k, "name": spec.name} for k, spec in enumerate(REGIONS, start=1)]),
    )
    _write(
        out / "truth" / "truth.json",
        _json(
            {
                "settings": asdict(settings),
                "region_layer": {spec.name: spec.layer for spec in REGIONS},
                "regions": [asdict(spec) for spec in REGIONS],
                "model": {"name": "convnet", "seed": 0},
                "images": {name: category for name, category, _ in images},
                "hrf": {
                    "model": "glover",
                    "stimulus_duration_s": STIMULUS_DURATION_S,
                    "step_s": FINE_STEP_S,
                    "response": np.round(response_curve(STIMULUS_DURATION_S), 8).tolist(),
                },
                "mean_response_percent": MEAN_RESPONSE,
                "response_deviation_percent": RESPONSE_DEVIATION,
                "repetition_time_s": scanner.REPETITION_TIME,
                "grey_level": scanner.GREY_LEVEL,
                "noise_fractions_at_1": {
                    "thermal": scanner.THERMAL,
                    "autocorrelated": scanner.AUTOCORRELATED,
                    "autocorrelation": scanner.AUTOCORRELATION,
                    "respiration": scanner.RESPIRATION,
                    "pulse_fluid": scanner.PULSE_FLUID,
                    "pulse_tissue": scanner.PULSE_TISSUE,
                    "drift": scanner.DRIFT,
                },
            }
        ),
    )


def model_features(paths: list[Path]) -> dict[str, np.ndarray]:
    """Return the planted model's activations, layer name to (image, channel, height, width)."""
    # Imported here, because the processes that make the subjects need no torch.
    import torch

    from isocortex.features.convnet import convnet, preprocess_images

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in one order on every machine
    try:
        with torch.no_grad():
            x, features = preprocess_images(paths) - 0.5, {}
            for name, layer in convnet(0).named_children():
                x = layer(x)
                features[name] = x.numpy().copy()
    finally:
        torch.set_num_threads(threads)
    return features


def make_study(
    out: str | Path,
    *,
    n_subjects: int = 3,
    n_runs: int = 3,
    n_images: int = 60,
    voxel_size: float = 3.0,
    t1w_voxel_size: float = 2.0,
    noise: float = 1.0,
    motion: float = 1.0,
    seed: int = 0,
    processes: int | None = None,
) -> Path:
    """Make the demo study, or what is missing of it.

    Parameters
    ----------
    out
        Folder; gets ``bids/``, ``regions/`` and ``truth/`` (the package's docstring says what
        is in each).
    n_subjects
        Subjects that are there already are left alone when their number grows.
    n_runs
        A subject; each shows every image once.
    n_images
        Of six categories in turn.
    voxel_size, t1w_voxel_size
        Of the BOLD and the T1w images, mm.
    noise
        Multiplies all noise, drift included; 0 gives none.
    motion
        Multiplies head motion within and between runs; 0 gives none.
    seed
        Gives every random number; a subject's depend on the seed and its own number alone.
    processes
        Subjects made at the same time; by default as many as there are processors, 4 at most.

    Returns
    -------
    Path
        The BIDS dataset.

    Raises
    ------
    InputError
        If a value makes no study.
    """
    out = Path(out)
    settings = Settings(n_runs, n_images, voxel_size, t1w_voxel_size, noise, motion, seed)
    settings.check()
    if not 1 <= n_subjects <= 99:
        raise InputError(f"n_subjects is {n_subjects}: choose a value from 1 to 99")
    images = make_images(n_images)
    _study_files(out, settings, images, n_subjects)
    code = _code()
    missing = [
        number
        for number in range(1, n_subjects + 1)
        if not _complete(out, f"{number:02d}", settings, code)
    ]
    if missing:
        names = [(name, category) for name, category, _ in images]
        features = model_features([out / "bids" / "stimuli" / name for name, _ in names])
        jobs = [(out, number, settings, features, names, code) for number in missing]
        available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        workers = min(processes or min(available, 4), len(jobs))
        if workers == 1:
            for job in jobs:
                make_subject(*job)
        else:
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(workers, mp_context=context) as pool:
                for result in [pool.submit(make_subject, *job) for job in jobs]:
                    result.result()
    log.info("the demo study is in %s", out)
    return out / "bids"
