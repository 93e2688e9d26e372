"""Features that were computed elsewhere: arrays on disk, joined by stimulus id.

Only the standard library is imported at module level, because the Snakefile has them checked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isocortex.bids import stimuli_beside
from isocortex.errors import InputError

IDS = ("stimulus", "stimuli", "stimulus_id", "stimulus_ids", "ids", "file_names")
"""Names of an array of ids inside HDF5 and Zarr files."""
LISTS = ("stimuli.txt", "file_names.txt")
"""Names of a list of ids in a folder of arrays."""


@dataclass(frozen=True)
class GivenLayer:
    """One layer of a model given as arrays.

    Parameters
    ----------
    file
        Where it is.
    ids
        Stimulus id of each row.
    shape
        Of the array, rows first.
    read
        Returns the rows of some indices, ascending, as a numpy array.
    """

    file: Path
    ids: tuple[str, ...]
    shape: tuple[int, ...]
    read: Callable[[Sequence[int]], Any]


def array_files(files: str | Mapping[str, str], stimulus_list: str | None) -> list[Path]:
    """Return all files that a model given as arrays is read from, sorted."""
    found: set[Path] = {Path(stimulus_list)} if stimulus_list else set()
    for path in map(Path, [files] if isinstance(files, str) else files.values()):
        if path.is_dir() and path.suffix != ".zarr":
            found |= {file for file in path.iterdir() if file.suffix == ".npy"}
            found |= {path / name for name in LISTS if (path / name).is_file()}
        elif path.is_dir():
            found |= {file for file in path.rglob("*") if file.is_file()}
        else:
            found.add(path)
            if stimuli_beside(path).is_file():
                found.add(stimuli_beside(path))
    return sorted(found)


def open_arrays(
    model: str, files: str | Mapping[str, str], stimulus_list: str | None = None
) -> dict[str, GivenLayer]:
    """Open a model given as arrays; no values are read.

    Parameters
    ----------
    model
        The model's key in the config, for messages.
    files
        An .npy file, a folder of them (one a layer), an HDF5 file, a Zarr folder (both with one
        array a layer, groups joined by dots), or files by layer.
    stimulus_list
        A text file of stimulus ids, one a line, for all layers; None: the ids are in the file
        (HDF5, Zarr), beside it (`<name>_stimuli.txt`), or in the folder (`stimuli.txt`).

    Raises
    ------
    InputError
        Where a file is missing or unreadable, or ids are missing, twice there, or not one a row.
    """
    key = f"features.models.{model}.files"
    listed = _read_list(Path(stimulus_list)) if stimulus_list else None
    layers: dict[str, GivenLayer] = {}
    if isinstance(files, str):
        for layer, opened in _open(Path(files), key, listed).items():
            layers[layer] = opened
    else:
        for layer, file in files.items():
            inside = _open(Path(file), key, listed)
            chosen = inside.get(layer) or (
                next(iter(inside.values())) if len(inside) == 1 else None
            )
            if chosen is None:
                raise InputError(
                    f"{file} has no array {layer!r} in {key}: it has {', '.join(inside)}"
                )
            layers[layer] = chosen
    if not layers:
        raise InputError(f"{files} holds no array in {key}: correct the path")
    for layer, given in layers.items():
        if len(given.ids) != given.shape[0]:
            raise InputError(
                f"{given.file}: layer {layer} has {given.shape[0]} rows and {len(given.ids)} "
                f"stimulus ids in {key}: give one id a row"
            )
        if len(set(given.ids)) != len(given.ids):
            twice = next(name for name in given.ids if given.ids.count(name) > 1)
            raise InputError(
                f"{given.file}: stimulus id {twice!r} of layer {layer} is there twice in {key}: "
                "give each row its own"
            )
    return layers


def check_arrays(
    model: str,
    files: str | Mapping[str, str],
    stimulus_list: str | None,
    *,
    wanted: Sequence[str],
    layers: Sequence[str] | str = (),
) -> None:
    """Raise `InputError` where arrays lack a layer or a stimulus of the study."""
    layers = [layers] if isinstance(layers, str) else layers
    opened = open_arrays(model, files, stimulus_list)
    for layer, given in opened.items():
        if missing := sorted(set(wanted) - set(given.ids)):
            raise InputError(
                f"{given.file}: layer {layer} of features.models.{model} has no row for "
                f"{len(missing)} of {len(wanted)} stimuli ({', '.join(missing[:3])}"
                f"{', ...' if len(missing) > 3 else ''}): add them, or correct the ids "
                f"(it has {', '.join(given.ids[:3])}, ...)"
            )
    for layer in layers:
        if layer not in opened:
            raise InputError(
                f"unknown layer {layer!r} in features.models.{model}.layers: the arrays have "
                f"{', '.join(opened)}"
            )


def _read_list(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        raise InputError(f"no list of stimulus ids {path}: correct the path")
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    return tuple(line.strip() for line in lines if line.strip())


def _ids(file: Path, key: str, listed: tuple[str, ...] | None, *beside: Path) -> tuple[str, ...]:
    if listed is not None:
        return listed
    for path in beside:
        if path.is_file():
            return _read_list(path)
    raise InputError(
        f"{file} has no stimulus ids in {key}: name a list of them, one a line, in stimulus_list, "
        f"or put it into {beside[0].name} beside it"
    )


def _open(path: Path, key: str, listed: tuple[str, ...] | None) -> dict[str, GivenLayer]:
    """Return the layers of one file or folder, by name."""
    if path.is_dir() and ((path / "zarr.json").is_file() or (path / ".zgroup").is_file()):
        return _open_zarr(path, key, listed)
    if path.is_dir():
        return {
            file.stem: _open_npy(file, key, listed, *(path / name for name in LISTS))
            for file in sorted(path.glob("*.npy"))
        }
    if not path.is_file():
        raise InputError(f"no file {path} in {key}: correct the path")
    if path.suffix == ".npy":
        return {path.stem: _open_npy(path, key, listed, stimuli_beside(path))}
    if path.suffix.lower() in (".h5", ".hdf5"):
        return _open_hdf5(path, key, listed)
    raise InputError(
        f"{path} in {key} is none of .npy, .h5, .hdf5, .zarr or a folder of .npy: convert it"
    )


def _open_npy(file: Path, key: str, listed: tuple[str, ...] | None, *beside: Path) -> GivenLayer:
    import numpy as np

    try:
        array = np.load(file, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise InputError(f"{file} in {key} cannot be read ({error}): save it with numpy") from error
    _check_numbers(file, key, array.dtype.kind, array.ndim)

    def read(rows: Sequence[int]) -> Any:
        # Opened anew, so that pages of earlier rows are not held
        return np.load(file, mmap_mode="r")[list(rows)]

    return GivenLayer(file, _ids(file, key, listed, *beside), array.shape, read)


def _check_numbers(file: Path, key: str, kind: str, ndim: int) -> None:
    if kind not in "fiub" or ndim < 1:
        raise InputError(f"{file} in {key} holds no array of real numbers: save float32 arrays")


def _open_hdf5(path: Path, key: str, listed: tuple[str, ...] | None) -> dict[str, GivenLayer]:
    import h5py

    shapes: dict[str, tuple[int, ...]] = {}
    inside: tuple[str, ...] | None = None

    def visit(name: str, item: Any) -> None:
        nonlocal inside
        if not isinstance(item, h5py.Dataset):
            return
        if name.split("/")[-1] in IDS and item.ndim == 1:
            text = item.asstr() if h5py.check_string_dtype(item.dtype) else item
            inside = tuple(str(entry) for entry in text[:])
        elif item.dtype.kind in "fiub" and item.ndim:
            shapes[name] = item.shape

    try:
        with h5py.File(path, "r") as file:
            file.visititems(visit)
    except OSError as error:
        raise InputError(f"{path} in {key} cannot be read ({error}): restore the file") from error

    def reader(name: str) -> Callable[[Sequence[int]], Any]:
        def read(rows: Sequence[int]) -> Any:
            with h5py.File(path, "r") as file:
                return file[name][list(rows)]

        return read

    ids = listed or inside or _ids(path, key, None, stimuli_beside(path))
    return {
        name.replace("/", "."): GivenLayer(path, ids, shape, reader(name))
        for name, shape in shapes.items()
    }


def _open_zarr(path: Path, key: str, listed: tuple[str, ...] | None) -> dict[str, GivenLayer]:
    import dask.array
    import numpy as np

    from isocortex import store

    def reader(array: Any) -> Callable[[Sequence[int]], Any]:
        return lambda rows: np.asarray(array[list(rows)])

    layers: dict[str, GivenLayer] = {}
    root = path / "zarr.json"
    attrs = json.loads(root.read_text()).get("attributes", {}) if root.is_file() else {}
    if attrs.get("spec") == "features":
        for layer in store.groups(path):
            dataset = store.open(path, "features", group=layer)
            array = dataset["activation"].data
            ids = tuple(dataset["stimulus"].values)
            layers[layer] = GivenLayer(path, ids, array.shape, reader(array))
        return layers
    arrays = {}
    for file in sorted([*path.rglob("zarr.json"), *path.rglob(".zarray")]):
        if file.name == ".zarray" or json.loads(file.read_text()).get("node_type") == "array":
            name = file.parent.relative_to(path).as_posix()
            arrays[name] = dask.array.from_zarr(str(path), component=None if name == "." else name)
    inside = next(
        (
            tuple(str(entry) for entry in array.compute())
            for name, array in arrays.items()
            if name.split("/")[-1] in IDS and array.ndim == 1
        ),
        None,
    )
    ids = listed or inside or _ids(path, key, None, stimuli_beside(path))
    for name, array in arrays.items():
        if name.split("/")[-1] not in IDS and array.dtype.kind in "fiub" and array.ndim:
            layer = path.stem if name == "." else name.replace("/", ".")
            layers[layer] = GivenLayer(path, ids, array.shape, reader(array))
    return layers
