"""What the sidecars of fieldmaps and runs must say for a distortion to be corrected.

Only the standard library is imported at module level, because the Snakefile imports this module.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isocortex import bids
from isocortex.bids import Fieldmap
from isocortex.errors import InputError

_UNITS = ("Hz", "rad/s", "T")


@dataclass(frozen=True)
class PhaseEncoding:
    """How an echo-planar image was encoded.

    Parameters
    ----------
    axis
        Of the array, 0 to 2.
    sign
        -1 where the direction ends in "-", else +1.
    total_readout_time
        Effective, s.
    """

    axis: int
    sign: int
    total_readout_time: float


def fieldmap_as_dict(fieldmap: Fieldmap) -> dict[str, Any]:
    """Return a fieldmap as plain text and lists, for a rule's params."""
    return {
        "id": fieldmap.id,
        "stem": fieldmap.stem,
        "kind": fieldmap.kind,
        "files": [str(path) for path in fieldmap.files],
        "sidecars": [[str(path) for path in files] for files in fieldmap.sidecars],
        "magnitudes": [str(path) for path in fieldmap.magnitudes],
    }


def fieldmap_from_dict(content: Mapping[str, Any]) -> Fieldmap:
    """Return what `fieldmap_as_dict` described."""
    paths = {key: tuple(map(Path, content[key])) for key in ("files", "magnitudes")}
    sidecars = tuple(tuple(map(Path, files)) for files in content["sidecars"])
    return Fieldmap(content["id"], content["stem"], content["kind"], sidecars=sidecars, **paths)


def phase_encoding(
    path: str | Path, sidecar: Mapping[str, Any], shape: Sequence[int] | None = None
) -> PhaseEncoding:
    """Return how an echo-planar image was encoded.

    The readout time is ``TotalReadoutTime``, or ``EffectiveEchoSpacing`` times one less than the
    lines along the axis (``ReconMatrixPE``, or the array's), as BIDS and FSL define it.

    Parameters
    ----------
    path
        The image, for messages and, without a shape, for its header.
    sidecar
        Its metadata.
    shape
        Of its array.

    Raises
    ------
    InputError
        Where the direction or the readout time is missing, no usable value, or told twice with
        more than a tenth of difference.
    """
    direction = sidecar.get("PhaseEncodingDirection")
    hint = "or set preprocess.distortion.correct to false"
    if direction not in ("i", "j", "k", "i-", "j-", "k-"):
        what = "is missing" if direction is None else f"is {direction!r}"
        raise InputError(
            f"PhaseEncodingDirection {what} for {path}: write i, j, k, i-, j- or k- into its "
            f"sidecar, {hint}"
        )
    axis = "ijk".index(direction[0])
    told = _seconds(path, sidecar, "TotalReadoutTime")
    spacing = _seconds(path, sidecar, "EffectiveEchoSpacing")
    lines = sidecar.get("ReconMatrixPE")
    if spacing is not None:
        if lines is None:
            lines = (shape or bids.read_header(path).shape)[axis]
        if not isinstance(lines, int | float) or not lines > 1:
            raise InputError(
                f"ReconMatrixPE is {lines!r} for {path}: write the number of lines, or remove it"
            )
        made = spacing * (lines - 1)
        if told is not None and abs(made - told) > 0.1 * told:
            raise InputError(
                f"TotalReadoutTime is {told:g} s for {path}, but EffectiveEchoSpacing makes it "
                f"{made:g} s: correct the wrong one, or remove it"
            )
        told = made if told is None else told
    if told is None:
        raise InputError(
            f"TotalReadoutTime is missing for {path}, and EffectiveEchoSpacing, too: write one "
            f"into its sidecar, in seconds, {hint}"
        )
    return PhaseEncoding(axis, -1 if direction.endswith("-") else 1, told)


def echo_times(fieldmap: Fieldmap) -> tuple[float, float]:
    """Return both echo times (s) of a phase difference or of two phases, the shorter first.

    Raises
    ------
    InputError
        Where one is missing, no usable number, or both are the same.
    """
    if fieldmap.kind == "phases":
        metas = [bids.metadata(files) for files in fieldmap.sidecars]
        found = [(path, "EchoTime", meta) for path, meta in zip(fieldmap.files, metas)]
    else:
        path, meta = fieldmap.files[0], bids.metadata(fieldmap.sidecars[0])
        found = [(path, "EchoTime1", meta), (path, "EchoTime2", meta)]
    times = [_seconds(path, meta, key) for path, key, meta in found]
    for (path, key, _), time in zip(found, times):
        if time is None:
            raise InputError(f"{key} is missing for {path}: write it into its sidecar, in seconds")
    if not times[0] < times[1] < 0.2:
        names = " and ".join(f"{key} {time:g}" for (_, key, _), time in zip(found, times))
        raise InputError(
            f"{names} s of {found[0][0]}: the second echo must come after the first, both in "
            "seconds; correct the sidecars"
        )
    return times[0], times[1]


def units_of(fieldmap: Fieldmap) -> str:
    """Return the units of a measured field: Hz, rad/s or T.

    Raises
    ------
    InputError
        Where its sidecar tells none, or others.
    """
    units = bids.metadata(fieldmap.sidecars[0]).get("Units")
    if units not in _UNITS:
        what = "missing" if units is None else repr(units)
        raise InputError(
            f"Units is {what} for {fieldmap.files[0]}: write {', '.join(_UNITS)} into its sidecar"
        )
    return units


def opposite_groups(fieldmap: Fieldmap) -> list[tuple[PhaseEncoding, list[Path]]]:
    """Return the echo-planar images of both directions: the first file's, then the opposite.

    Raises
    ------
    InputError
        Where there are not two directions that are opposite, or readout times differ in one.
    """
    groups: dict[int, tuple[PhaseEncoding, list[Path]]] = {}
    for path, sidecars in zip(fieldmap.files, fieldmap.sidecars):
        encoding = phase_encoding(path, bids.metadata(sidecars))
        first = next(iter(groups.values()))[0] if groups else encoding
        if encoding.axis != first.axis:
            raise InputError(
                f"{path} and {fieldmap.files[0].name} are encoded along different axes: give them "
                "B0FieldIdentifier of their own, or opposite directions"
            )
        known, paths = groups.setdefault(encoding.sign, (encoding, []))
        if abs(known.total_readout_time - encoding.total_readout_time) > 1e-4:
            raise InputError(
                f"{path} and {paths[0].name} have one direction and different readout times: give "
                "them B0FieldIdentifier of their own"
            )
        paths.append(path)
    if len(groups) < 2:
        raise InputError(
            f"{', '.join(path.name for path in fieldmap.files)} in {fieldmap.files[0].parent} "
            "have one phase-encoding direction: add the opposite one, correct "
            "PhaseEncodingDirection, or set preprocess.distortion.correct to false"
        )
    return list(groups.values())


def _seconds(path: str | Path, sidecar: Mapping[str, Any], key: str) -> float | None:
    value = sidecar.get(key)
    if value is None:
        return None
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    if not plain or not math.isfinite(value) or not 0 < value < 1:
        raise InputError(f"{key} is {value!r} for {path}: write seconds, above 0 and below 1")
    return float(value)
