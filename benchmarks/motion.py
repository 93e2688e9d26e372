"""Rigid head motion and its correction: seconds a volume, temporal SNR and residual."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd

from benchmarks.measure import CORES, Disagreement, side_by_side
from isocortex.phantom import scanner
from isocortex.phantom.anatomy import Anatomy
from isocortex.phantom.regions import REGIONS
from isocortex.phantom.responses import plant_responses
from isocortex.preprocess.images import as_image, read_series
from isocortex.preprocess.masks import epi_mask
from isocortex.preprocess.motion import estimate_motion, reference_volume
from isocortex.preprocess.registration import to_ants
from isocortex.preprocess.resampling import resample_series
from isocortex.preprocess.transforms import AffineTransform, centre_of_grid, grid_points

_LPS = np.array([-1.0, -1.0, 1.0])
_RECORDED = "studyforrest-localizer"
_THREADS = 2
_PEER_VOLUMES = 24


@dataclass(frozen=True)
class PhantomRun:
    """A run of the phantom with its truth.

    Attributes
    ----------
    scan, grid
        As from `scanner.make_run` and `scanner.make_session`.
    centre
        Of the head, scanner mm.
    tsnr
        Median over grey matter of the signal over the noise that was put in.
    """

    scan: scanner.Scan
    grid: scanner.Grid
    centre: np.ndarray
    tsnr: float


def make_phantom_run(
    *, voxel_size: float, n_volumes: int, noise: float = 1.6, seed: int = 4
) -> PhantomRun:
    """Slices at their own times, interleaved, responses, physiology, drift; tSNR below 50."""
    rngs = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(4)]
    anatomy = Anatomy(rngs[0])
    shape, affine = anatomy.t1w_grid(3.0)
    tissues = anatomy.tissues(scanner.grid_points(shape, affine))
    images = np.arange(max(n_volumes // 4, 4))
    features = {spec.layer: rngs[1].standard_normal((len(images), 3, 6, 6)) for spec in REGIONS}
    responses = plant_responses(anatomy, features, rngs[1], spacing=voxel_size)
    grid, session = scanner.make_session(anatomy, rngs[2], voxel_size=voxel_size)
    epi = scanner.epi_coefficients(anatomy, tissues, affine, voxel_size=voxel_size)
    scan = scanner.make_run(
        anatomy,
        epi,
        affine,
        grid,
        session,
        responses,
        4.0 * scanner.REPETITION_TIME * images,
        images,
        rngs[3],
        n_volumes=n_volumes,
        duration=2.0,
        noise=noise,
        motion=1.0,
    )
    points = scanner.grid_points(grid.shape, grid.affine).reshape(-1, 3)
    there = anatomy.tissues(AffineTransform(np.linalg.inv(scan.poses[0])).apply(points))
    grey = there["gm"] > 0.7
    contrast = sum(anatomy.epi_contrast[name] * there[name] for name in there)
    variance = scanner.noise_variance(there, contrast, noise=noise)
    total = sum(np.broadcast_to(part, grey.shape)[grey] for part in variance.values())
    centre = AffineTransform(session).apply(anatomy.centre[None])[0]
    return PhantomRun(scan, grid, centre, float(np.median(total**-0.5)))


def run(*, small: bool = False) -> dict[str, Any]:
    """A recorded run where there is one, the phantom else; the peer takes some of the volumes."""
    recorded = Path(os.environ.get("ISOCORTEX_DATA", "")) / _RECORDED
    if small or not recorded.is_dir():
        voxel_size, n_volumes = (6.0, 8) if small else (3.0, 40)
        phantom = make_phantom_run(voxel_size=voxel_size, n_volumes=n_volumes)
        image = as_image(phantom.scan.data.astype(np.float32), phantom.grid.affine)
        source = "the phantom"
    else:
        image = read_series(next(recorded.glob("sub-*/func/*_bold.nii.gz")))
        source = _RECORDED
    series, affine, shape = np.asarray(image.dataobj), image.affine, image.shape[:3]
    n_volumes = series.shape[3]
    few = np.unique(np.linspace(0, n_volumes - 1, min(_PEER_VOLUMES, n_volumes)).astype(int))
    mask, centre = epi_mask(series[..., few].mean(axis=-1)), centre_of_grid(image)
    options = {"mask": mask, "centre": centre, "threads": min(_THREADS, CORES)}
    reference = reference_volume(series, affine, **options)
    points = grid_points(shape, affine)
    head = points[mask.ravel()][::200]
    fixed, part = _for_ants(image, reference, few)
    resampling = {"points": points, "shape": shape, "threads": options["threads"]}

    def ours() -> tuple[np.ndarray, np.ndarray]:
        matrices, _ = estimate_motion(series, affine, reference=reference, **options)
        moved, _ = resample_series(series, affine, matrices, **resampling)
        return matrices[few], moved[..., few]

    def peer() -> tuple[np.ndarray, np.ndarray]:
        import ants

        made = ants.motion_correction(part, fixed=fixed, random_seed=1)
        matrices = np.array([_matrix(paths) for paths in made["motion_parameters"]])
        return matrices, made["motion_corrected"].numpy()

    found: dict[str, tuple[float, float]] = {}

    def difference(mine: tuple[np.ndarray, ...], theirs: tuple[np.ndarray, ...]) -> float:
        """The largest one of the head's points; refuses poses that align less well.

        The peer's linear interpolation smooths, which raises temporal SNR whatever the poses: that
        is compared with both poses resampled alike, the residual with the peer's own volumes too.
        """
        moved = {"ours, cubic": mine[1], "peer's, linear": theirs[1]}
        taken = (series[..., few], affine)
        moved["ours, linear"], _ = resample_series(*taken, mine[0], order=1, **resampling)
        moved["peer's, cubic"], _ = resample_series(*taken, theirs[0], **resampling)
        inner = mask & np.all([(one > 0).all(axis=-1) for one in moved.values()], axis=0)
        for name, volumes in moved.items():
            found[name] = _quality(volumes[inner], reference[inner])
        (snr, rms), (peers_snr, peers_rms) = found["ours, cubic"], found["peer's, cubic"]
        largest = min(peers_rms, found["peer's, linear"][1])
        # a share of 0.002 is equal
        if snr < 0.998 * peers_snr or rms > 1.002 * largest:
            raise Disagreement(f"aligned less well than by antspyx ({_said(found)})")
        places = [[AffineTransform(m).apply(head) for m in one[0]] for one in (mine, theirs)]
        return float(np.linalg.norm(np.subtract(*places), axis=-1).max())

    def note(mine: tuple[np.ndarray, ...], theirs: tuple[np.ndarray, ...]) -> str:
        return (
            f"seconds a volume for poses and resampling; {source}, {' x '.join(map(str, shape))} "
            f"voxels, ours all {n_volumes} volumes with {options['threads']} threads and cubic, "
            f"the peer {len(few)} of them (motion_correction with its defaults, linear, on ours' "
            f"reference); inside the mask over those {len(few)}, median temporal SNR and mean RMS "
            f"difference to the reference: {_said(found)}; the difference is the largest of any "
            "point of the head, mm"
        )

    return side_by_side(
        ours,
        peer,
        difference=difference,
        tolerance=1.0,
        package="antspyx",
        note=note,
        ours_units=n_volumes,
        peer_units=len(few),
    )


def _said(found: dict[str, tuple[float, float]]) -> str:
    return "; ".join(f"{name} {snr:.2f} and {rms:.2f}" for name, (snr, rms) in found.items())


def _quality(values: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """Median temporal SNR over voxels, and mean over volumes of the RMS to the reference."""
    values = values.astype(np.float64)
    residual = np.sqrt(np.square(values - reference[:, None]).mean(axis=0)).mean()
    spread = values.std(axis=1)
    return float(np.median(values.mean(axis=1)[spread > 0] / spread[spread > 0])), float(residual)


def _for_ants(image: nib.Nifti1Image, reference: np.ndarray, few: np.ndarray) -> tuple[Any, Any]:
    import ants

    # the preprocessing holds ITK to one thread, which motion_correction does not
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(CORES)
    fixed = to_ants(as_image(reference, image.affine))
    direction = np.eye(4)
    direction[:3, :3] = fixed.direction
    part = ants.from_numpy(
        np.ascontiguousarray(np.asarray(image.dataobj)[..., few]),
        spacing=(*fixed.spacing, 1.0),
        origin=(*fixed.origin, 0.0),
        direction=direction,
    )
    return fixed, part


def _matrix(paths: list[str]) -> np.ndarray:
    """The 4 x 4 matrix, RAS mm, of what antspyx keeps of one volume."""
    import ants

    corners = np.vstack([np.zeros(3), np.eye(3) * 100])
    table = pd.DataFrame(corners * _LPS, columns=["x", "y", "z"])
    moved = ants.apply_transforms_to_points(3, table, paths)[["x", "y", "z"]].to_numpy() * _LPS
    matrix = np.eye(4)
    matrix[:3, :3] = (moved[1:] - moved[0]).T / 100
    matrix[:3, 3] = moved[0]
    return matrix
