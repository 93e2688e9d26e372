"""Putting a rule's files in place together, and BIDS URIs of their sources."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from isocortex import provenance


def put_all(
    made: Mapping[str, str | Path],
    outputs: Mapping[str, str | Path],
    *,
    sources: Sequence[str | Path],
    code: str,
    **extra: Any,
) -> None:
    """Copy every file beside its place, then rename all, then write the manifest.

    Parameters
    ----------
    made
        Name to finished file or folder in the working folder.
    outputs
        Name to final path, with the same names and ``manifest``.
    sources
        Inputs, for the manifest.
    code
        Digest of the code.
    **extra
        Further entries of the manifest.

    Raises
    ------
    ValueError
        The names of what was made and of what is wanted differ.
    """
    wanted = {name: Path(path) for name, path in outputs.items() if name != "manifest"}
    if set(wanted) != set(made):
        odd = ", ".join(sorted(set(wanted) ^ set(made)))
        raise ValueError(f"made and wanted outputs differ in: {odd}")
    manifest = Path(outputs["manifest"])
    manifest.unlink(missing_ok=True)
    waiting: list[tuple[Path, Path]] = []
    try:
        for name, final in wanted.items():
            final.parent.mkdir(parents=True, exist_ok=True)
            beside = provenance.temporary_beside(final)
            waiting.append((beside, final))
            if Path(made[name]).is_dir():
                shutil.copytree(made[name], beside)
            else:
                shutil.copyfile(made[name], beside)
        for beside, final in waiting:
            if final.is_dir():
                shutil.rmtree(final)
            beside.replace(final)
    except BaseException:
        for beside, _ in waiting:
            if beside.is_dir():
                shutil.rmtree(beside, ignore_errors=True)
            else:
                beside.unlink(missing_ok=True)
        raise
    provenance.write_manifest(
        manifest, outputs=wanted, sources=sources, code=code, spec="preprocess", **extra
    )


def spatial_reference(space: str, subject: str) -> str:
    """BIDS ``SpatialReference`` of an output space: the subject's T1w, or the template's name."""
    if space == "T1w":
        return f"bids::sub-{subject}/anat/sub-{subject}_desc-preproc_T1w.nii.gz"
    return space


def sources_of(paths: Sequence[str | Path], dataset: str = "raw") -> list[str]:
    """BIDS URIs of files: the part of each path from its subject's folder on.

    Parameters
    ----------
    paths
        Files inside a BIDS dataset.
    dataset
        Its name in ``DatasetLinks`` of dataset_description.json; "" is this dataset itself.
    """
    uris = []
    for path in map(Path, paths):
        parts = path.parts
        # the last one: a folder above the dataset may be named alike
        starts = [n for n, part in enumerate(parts[:-1]) if part.startswith("sub-")]
        start = starts[-1] if starts else len(parts) - 1
        uris.append(f"bids:{dataset}:" + "/".join(parts[start:]))
    return uris
