"""Models given as RDMs: which RDMs of a file are layers, and how the brain's rows find theirs."""

import numpy as np
import pytest
import xarray as xr
from rsatoolbox.rdm import RDMs
from scipy.io import savemat

from isocortex import store
from isocortex.errors import InputError
from isocortex.rsa import align_models, import_model_rdms, pair_labels, to_matrices, to_vectors

NAMES = ["dog", "ant", "cup", "bus", "elk"]
ORDER = np.argsort(NAMES)


@pytest.fixture
def vectors():
    return np.random.default_rng(0).random((4, 10))


def _h5(file, vectors, **descriptors):
    RDMs(vectors, rdm_descriptors=descriptors, pattern_descriptors={"stimulus": NAMES}).save(
        str(file), file_type="hdf5"
    )
    return file


def _sorted(vector):
    square = np.zeros((5, 5))
    square[np.triu_indices(5, 1)] = vector
    return to_vectors((square + square.T)[np.ix_(ORDER, ORDER)])


LAYERS = {"layer": ["a", "b", "c", "d"]}
MODELS = {"model": ["net", "net", "other", "other"], "layer": ["a", "b", "a", "b"]}


@pytest.mark.parametrize(
    ("descriptors", "layers", "rdms", "found"),
    [
        (LAYERS, [""], [""], {"a": 0, "b": 1, "c": 2, "d": 3}),
        (LAYERS, ["c"], [""], {"c": 2}),
        (LAYERS, ["", "own"], ["layer=b", "3"], {"b": 1, "own": 3}),
        (MODELS, [""], [""], {"a": 0, "b": 1}),
        (MODELS, ["b"], [""], {"b": 1}),
        (MODELS, ["x"], ["model=other;layer=b"], {"x": 3}),
        ({"name": ["V1", "net", "x", "y"]}, [""], [""], {"net": 1}),
        ({"name": ["V1", "V2", "x", "y"]}, [""], [""], {"V1": 0, "V2": 1, "x": 2, "y": 3}),
        ({}, [""], ["2"], {"net": 2}),
    ],
)
def test_layers_of_an_rsatoolbox_file(tmp_path, vectors, descriptors, layers, rdms, found):
    file, out = _h5(tmp_path / "m.h5", vectors, **descriptors), tmp_path / "m.zarr"
    import_model_rdms(files=[file] * len(layers), model="net", layers=layers, rdms=rdms, out=out)
    opened = store.open(out, "model_rdms")
    assert (opened.attrs["model"], opened.attrs["measure"]) == ("net", "given")
    assert opened["layer"].values.tolist() == list(found)
    for row, k in zip(opened["dissimilarity"].values, found.values()):
        np.testing.assert_allclose(row, _sorted(vectors[k]), atol=1e-12)
    assert opened["stimulus_i"].values[0] == "ant"


def test_a_model_of_files_of_several_kinds(tmp_path, vectors):
    """The layer of a file that does not name it is called as the model."""
    (tmp_path / "ids.txt").write_text("\n".join(NAMES))
    np.save(tmp_path / "a.npy", vectors[0])
    savemat(tmp_path / "b.mat", {"x": vectors[1], "y": vectors[2]})
    out = tmp_path / "m.zarr"
    import_model_rdms(
        files=[tmp_path / "a.npy", tmp_path / "b.mat"],
        stimuli=[tmp_path / "ids.txt"] * 2,
        layers=["", "late"],
        rdms=["", "y"],
        model="net",
        out=out,
    )
    opened = store.open(out, "model_rdms")
    assert opened["layer"].values.tolist() == ["net", "late"]
    wanted = [_sorted(vectors[0]), _sorted(vectors[2])]
    np.testing.assert_allclose(opened["dissimilarity"].values, wanted, atol=1e-12)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("nothing names them", "holds 4 RDMs, 4 of them possible: name one in the column rdm"),
        ("no such layer", "holds 4 RDMs, 0 of them with layer x: name one"),
        ("two fit", "holds 4 RDMs, 2 of them with layer a: name one"),
        ("no such model", "holds 4 RDMs, 0 of them with model net"),
        ("a layer twice", "layer a comes twice: name each in the column layer"),
        ("missing pair", "1 of 10 pairs of net are NaN, and a model needs all"),
        ("other stimuli", "has other stimuli than .*m.h5: give all layers"),
        ("no HDF5", "cannot be read"),
        ("no files", "0 files, 0 layers"),
    ],
)
def test_bad_models_are_refused_in_one_line(tmp_path, vectors, case, message):
    descriptors = {
        "nothing names them": {},
        "two fit": {"layer": ["a", "a", "b", "c"]},
        "no such model": {**LAYERS, "model": ["w", "x", "y", "z"]},
        "a layer twice": {"layer": ["a", "a", "b", "c"]},
    }.get(case, LAYERS)
    layers = {"no such layer": ["x"], "two fit": ["a"]}.get(case, [""])
    files = [_h5(tmp_path / "m.h5", vectors, **descriptors)]
    if case in ("missing pair", "other stimuli"):
        vectors[0, 3] = np.nan if case == "missing pair" else 0.5
        other = tmp_path / "n.npy"
        np.save(other, vectors[0])
        (tmp_path / "n_stimuli.txt").write_text("\n".join([*NAMES[:4], "fox"]))
        files = [other] if case == "missing pair" else [*files, other]
        layers = [""] * len(files)
    if case == "no HDF5":
        files[0].write_text("text")
    if case == "no files":
        files, layers = [], []
    with pytest.raises(InputError, match=message) as caught:
        import_model_rdms(files=files, layers=layers, model="net", out=tmp_path / "m.zarr")
    assert "\n" not in str(caught.value)
    assert "model net" in str(caught.value)


def _model(path, names, values):
    first, second = pair_labels(names)
    dataset = xr.Dataset(
        {"dissimilarity": (("layer", "pair"), np.array([values]))},
        coords={
            "layer": ("layer", np.array(["a"], object)),
            "stimulus_i": ("pair", first),
            "stimulus_j": ("pair", second),
        },
        attrs={"model": path.stem, "measure": "given"},
    )
    store.write(dataset, path, spec="model_rdms")
    return path


def test_conditions_are_the_models_own_or_the_means_of_their_stimuli(tmp_path):
    conditions = ["body", "face", "tool", "word"]
    groups = {name: [f"{name}1", f"{name}2"] for name in conditions}
    stimuli = [member for members in groups.values() for member in members]
    rng = np.random.default_rng(1)
    own, of_stimuli = rng.random(6), rng.random(28)
    direct = _model(tmp_path / "direct.zarr", conditions, own)
    averaged = _model(tmp_path / "averaged.zarr", stimuli, of_stimuli)
    asked = conditions[::-1]
    found = align_models([direct, averaged], asked, groups=groups).dissimilarity
    square = np.zeros((8, 8))
    square[np.triu_indices(8, 1)] = of_stimuli
    square += square.T
    means = square.reshape(4, 2, 4, 2).mean(axis=(1, 3))[::-1, ::-1]
    np.testing.assert_allclose(found[1], to_vectors(means), atol=1e-12)
    np.testing.assert_allclose(found[0], to_vectors(to_matrices(own)[::-1, ::-1]), atol=1e-12)
    fewer = _model(tmp_path / "fewer.zarr", [*conditions[:3], "toys"], own)
    with pytest.raises(InputError) as caught:
        align_models([fewer], asked, groups=groups)
    text = "model fewer lack 8 of 8 stimuli that subjects saw (body1, body2, face1)"
    assert text in str(caught.value)
    assert "or of all conditions (word, tool, face)" in str(caught.value)
    with pytest.raises(InputError, match=r"lack 1 of 4 .*\(word\); their ids are as in body"):
        align_models([fewer], conditions)
