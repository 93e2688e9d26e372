"""RDMs made elsewhere: every format, and what is refused."""

import numpy as np
import pytest
from scipy.io import savemat

from isocortex import store
from isocortex.errors import InputError
from isocortex.rsa import import_rdms, load_rdms, read_rdm, to_vectors

NAMES = ["dog", "ant", "cup", "bus", "elk"]


@pytest.fixture
def square():
    x = np.random.default_rng(0).random((5, 5))
    x = x + x.T
    np.fill_diagonal(x, 0)
    return x


def _write(folder, name, values, *, names=True, header=False, index=False):
    file = folder / name
    if name.endswith(".npy"):
        np.save(file, values)
    elif name.endswith(".mat"):
        savemat(file, {"RDM": values})
    else:
        mark = {"csv": ",", "tsv": "\t", "txt": " "}[name[-3:]]
        rows = [[repr(float(v)) for v in row] for row in np.atleast_2d(values)]
        if index:
            rows = [[n, *row] for n, row in zip(NAMES, rows)]
        if header:
            rows.insert(0, [""] * index + NAMES)
        file.write_text("\n".join(mark.join(row) for row in rows) + "\n")
    if names:
        file.with_name(f"{file.stem}_stimuli.txt").write_text("\n".join(NAMES) + "\n")
    return file


@pytest.mark.parametrize("shape", ["square", "vector"])
@pytest.mark.parametrize("ending", ["npy", "mat", "csv", "tsv", "txt"])
def test_every_format_gives_the_same_store(tmp_path, square, ending, shape):
    values = square if shape == "square" else to_vectors(square)
    file = _write(tmp_path, f"V1.{ending}", values)
    import_rdms(files=[file], regions=["V1"], subject="07", out=tmp_path / "r.zarr")
    brain = load_rdms([tmp_path / "r.zarr"])
    assert brain.stimuli == tuple(sorted(NAMES))
    order = np.argsort(NAMES)
    wanted = to_vectors(square[np.ix_(order, order)])
    np.testing.assert_allclose(brain.dissimilarity[0, 0], wanted, atol=1e-12)
    assert store.open(tmp_path / "r.zarr", "rdms").attrs["measure"] == "given"


@pytest.mark.parametrize("index", [False, True])
def test_ids_in_the_first_row_or_in_a_named_list(tmp_path, square, index):
    file = _write(tmp_path, "V1.csv", square, names=False, header=True, index=index)
    found, names = read_rdm(file)
    assert names == NAMES
    np.testing.assert_allclose(found, square, atol=1e-12)
    listed = tmp_path / "ids.txt"
    listed.write_text("\n".join(reversed(NAMES)))
    assert read_rdm(file, stimuli=listed)[1] == NAMES[::-1]


def _spoil(case, square):
    if case == "asymmetric":
        square[1, 3] += 0.1
    if case == "nan":
        square[1, 3] = square[3, 1] = np.nan
    if case == "not square":
        return square[:4]
    if case == "length":
        return np.arange(9.0)
    if case == "cube":
        return np.zeros((3, 3, 3))
    if case == "few":
        return square[:3, :3]
    return square


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("asymmetric", "is not symmetric"),
        ("nan", "2 entries that are NaN"),
        ("not square", "is 4 x 5: give a square matrix"),
        ("length", "holds 9 numbers"),
        ("cube", "is 3 x 3 x 3"),
        ("no ids", "comes without stimulus ids"),
        ("wrong number of ids", "5 stimuli but 4 ids"),
        ("repeated id", "dog comes twice"),
        ("missing list", "stimulus list .* is missing"),
        ("missing file", "is missing: correct the path"),
        ("pickle", "cannot be read"),
        ("two arrays", "holds 2 arrays"),
        ("ending", "files ending in '.xlsx'"),
        ("words", "cannot be read"),
        ("ragged", "row 2 has 2 cells"),
        ("few", "at least 4"),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path, square, case, message):
    listed = ""
    file = _write(tmp_path, "V1.npy", _spoil(case, square), names=case != "no ids")
    beside = tmp_path / "V1_stimuli.txt"
    if case == "wrong number of ids":
        beside.write_text("\n".join(NAMES[:4]))
    if case == "repeated id":
        beside.write_text("\n".join([*NAMES[:4], "dog"]))
    if case == "few":
        beside.write_text("\n".join(NAMES[:3]))
    if case == "missing list":
        listed = tmp_path / "nowhere.txt"
    if case == "missing file":
        file.unlink()
    if case == "pickle":
        np.save(file, np.array([{"a": 1}], dtype=object))
    if case == "two arrays":
        file = tmp_path / "V1.mat"
        savemat(file, {"a": square, "b": square})
    if case == "ending":
        file = file.rename(tmp_path / "V1.xlsx")
    if case in ("words", "ragged"):
        file = tmp_path / "V1.tsv"
        file.write_text("0\tx\nx\t0\n" if case == "words" else "0\t1\t2\n1\t0\n")
    with pytest.raises(InputError, match=message) as caught:
        import_rdms(
            files=[file], regions=["V1"], stimuli=[listed], subject="07", out=tmp_path / "r.zarr"
        )
    assert "\n" not in str(caught.value)
    assert "sub-07, region V1" in str(caught.value)


def test_regions_with_other_stimuli_are_refused(tmp_path, square):
    first = _write(tmp_path, "V1.npy", square)
    second = _write(tmp_path, "V2.npy", square)
    (tmp_path / "V2_stimuli.txt").write_text("\n".join([*NAMES[:4], "fox"]))
    with pytest.raises(InputError, match="other stimuli than"):
        import_rdms(
            files=[first, second], regions=["V1", "V2"], subject="1", out=tmp_path / "r.zarr"
        )
