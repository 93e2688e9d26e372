"""RDMs made elsewhere: every format, and what is refused."""

import h5py
import numpy as np
import pytest
from rsatoolbox.rdm import RDMs
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


def _write_mat73(file, **arrays):
    """As MATLAB -v7.3 has it: HDF5 after a header, columns first, text as numbers, references."""
    with h5py.File(file, "w", userblock_size=512) as opened:
        for name, values in arrays.items():
            opened[name] = np.atleast_2d(values).T
            opened[name].attrs["MATLAB_class"] = np.bytes_("double")
        opened["title"] = np.frombuffer(b"a title", np.uint8).astype(np.uint16)[:, None]
        opened["title"].attrs["MATLAB_class"] = np.bytes_("char")
        opened["scalar"] = np.array([[3.0]])
        opened.create_group("#refs#")["a"] = np.zeros((4, 4))
    with file.open("r+b") as stream:
        stream.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")


def _write_h5(file, square, *, n=1, **descriptors):
    """RDMs of several regions and subjects as rsatoolbox saves them; the k-th is the first + k."""
    patterns = descriptors.pop("patterns", {"stimulus": NAMES})
    vectors = to_vectors(square) + np.arange(n)[:, None]
    RDMs(vectors, rdm_descriptors=descriptors, pattern_descriptors=patterns).save(
        str(file), file_type="hdf5"
    )
    return file


def _write(folder, name, values, *, names=True, header=False, index=False):
    file = folder / name
    if name.endswith(".npy"):
        np.save(file, values)
    elif name.endswith("7.3.mat"):
        _write_mat73(file, RDM=values)
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
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("ending", ["npy", "mat", "-7.3.mat", "csv", "tsv", "txt", "h5"])
def test_every_format_gives_the_same_store(tmp_path, square, ending, shape, missing):
    """A pair that was not measured is NaN and stays so."""
    if missing:
        square[1, 3] = square[3, 1] = np.nan
    values = square if shape == "square" else to_vectors(square)
    if ending == "h5":
        file = _write_h5(tmp_path / "V1.h5", square)
    else:
        file = _write(tmp_path, f"V1.{ending}", values)
    import_rdms(files=[file], regions=["V1"], subject="07", out=tmp_path / "r.zarr")
    brain = load_rdms([tmp_path / "r.zarr"])
    assert brain.stimuli == tuple(sorted(NAMES))
    order = np.argsort(NAMES)
    wanted = to_vectors(square[np.ix_(order, order)])
    np.testing.assert_allclose(brain.dissimilarity[0, 0], wanted, atol=1e-12)
    attrs = store.open(tmp_path / "r.zarr", "rdms").attrs
    assert (attrs["measure"], attrs["n_pairs_missing"]) == ("given", int(missing))


FOUR = {"roi": ["V1", "IT", "V1", "IT"], "subject": ["sub-01", "sub-01", "sub-02", "sub-02"]}


@pytest.mark.parametrize(
    ("descriptors", "regions", "subject", "rdms", "found"),
    [
        (FOUR, ["V1", "IT"], "01", (), [0, 1]),
        (FOUR, ["IT", "V1"], "02", (), [3, 2]),
        ({**FOUR, "subject": [1, 1, 2, 2]}, ["V1", "IT"], "02", (), [2, 3]),
        ({"region": ["a", "b", "c", "d"]}, ["c", "b"], "02", (), [2, 1]),
        (FOUR, ["early", "late"], "x", ["0", "3"], [0, 3]),
        (FOUR, ["early", "late"], "x", ["roi=V1; subject=02", "subject=sub-01;roi=IT"], [2, 1]),
    ],
)
def test_one_file_holds_the_rdms_of_all(
    tmp_path, square, descriptors, regions, subject, rdms, found
):
    file = _write_h5(tmp_path / "all.h5", square, n=4, **descriptors)
    out = tmp_path / "r.zarr"
    import_rdms(files=[file] * 2, regions=regions, subject=subject, rdms=rdms, out=out)
    brain = load_rdms([out])
    assert brain.regions == tuple(regions)
    order = np.argsort(NAMES)
    wanted = to_vectors(square[np.ix_(order, order)])
    for row, k in zip(brain.dissimilarity[0], found):
        np.testing.assert_allclose(row, wanted + k, atol=1e-12)


def test_one_of_several_arrays_of_a_mat(tmp_path, square):
    for name, write in (("old.mat", savemat), ("new.mat", lambda f, a: _write_mat73(f, **a))):
        write(tmp_path / name, {"a": square, "b": 2 * square})
        (tmp_path / f"{name[:3]}_stimuli.txt").write_text("\n".join(NAMES))
        for rdm, factor in (("a", 1), ("b", 2)):
            found = read_rdm(tmp_path / name, rdm=rdm)[0]
            np.testing.assert_allclose(found, factor * square, atol=1e-12)


def test_stimulus_ids_of_rsatoolbox(tmp_path, square):
    """Numbers are ids, a position is none; another text than those known serves if alone."""
    numbers = {"conds": np.arange(10, 15), "index": np.arange(5)}
    assert read_rdm(_write_h5(tmp_path / "a.h5", square, patterns=numbers))[1] == list(
        map(str, range(10, 15))
    )
    other = {"what": NAMES, "index": np.arange(5)}
    assert read_rdm(_write_h5(tmp_path / "b.h5", square, patterns=other))[1] == NAMES
    listed = tmp_path / "ids.txt"
    listed.write_text("\n".join(reversed(NAMES)))
    both = {"what": NAMES, "other": NAMES}
    file = _write_h5(tmp_path / "c.h5", square, patterns=both)
    assert read_rdm(file, stimuli=listed)[1] == NAMES[::-1]
    with pytest.raises(InputError, match="descriptors other, what: call the one"):
        read_rdm(file)
    file = _write_h5(tmp_path / "d.h5", square, patterns={"index": np.arange(5)})
    with pytest.raises(InputError, match="comes without stimulus ids"):
        read_rdm(file)


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
    if case == "nan on one side":
        square[1, 3] = np.nan
    if case == "nan throughout":
        square[:] = np.nan
    if case == "infinite":
        square[1, 3] = square[3, 1] = np.inf
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
        ("nan on one side", "is not symmetric .NaN on one side only"),
        ("nan throughout", "is NaN throughout"),
        ("infinite", "holds 2 infinite entries"),
        ("not square", "is 4 x 5: give a square matrix"),
        ("length", "holds 9 numbers"),
        ("cube", "is 3 x 3 x 3"),
        ("no ids", "comes without stimulus ids"),
        ("wrong number of ids", "5 stimuli but 4 ids"),
        ("repeated id", "dog comes twice"),
        ("missing list", "stimulus list .* is missing"),
        ("missing file", "is missing: correct the path"),
        ("pickle", r"holds a pickle .* numpy.save\('V1.npy', matrix\)"),
        ("pickle of rsatoolbox", r"is a pickle.*rdms.save\('V1.h5', file_type='hdf5'\)"),
        ("two arrays", r"holds 2 arrays of numbers \(a, b\): name one in the column rdm"),
        ("no such array", "has no array c of numbers.*it has a, b"),
        ("one RDM", "holds one RDM: empty the column rdm"),
        ("ending", "files ending in '.xlsx'"),
        ("other HDF5", "holds no RDMs of rsatoolbox"),
        ("no HDF5", "cannot be read"),
        ("several", "holds 4 RDMs, 0 of them with roi V1 and subject 07: name one"),
        ("two fit", "holds 4 RDMs, 2 of them with roi V1: name one in the column rdm"),
        ("nothing to choose by", "holds 4 RDMs, 4 of them possible"),
        ("position", "4 in the column rdm of the table should be 0 to 3"),
        ("descriptor", "'area=V1' in the column rdm .* its RDM descriptors are index, roi"),
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
    if case == "pickle of rsatoolbox":
        file = tmp_path / "V1.pkl"
        RDMs(to_vectors(square)).save(str(file), file_type="pkl")
    if case in ("two arrays", "no such array"):
        file = tmp_path / "V1.mat"
        savemat(file, {"a": square, "b": square})
    if case == "ending":
        file = file.rename(tmp_path / "V1.xlsx")
    if case in ("words", "ragged"):
        file = tmp_path / "V1.tsv"
        file.write_text("0\tx\nx\t0\n" if case == "words" else "0\t1\t2\n1\t0\n")
    if case == "other HDF5":
        file = tmp_path / "V1.h5"
        with h5py.File(file, "w") as opened:
            opened["x"] = square
    if case == "no HDF5":
        file = file.rename(tmp_path / "V1.h5")
    rdm = {
        "no such array": "c",
        "one RDM": "0",
        "two fit": "roi=V1",
        "position": "4",
        "descriptor": "area=V1",
    }.get(case, "")
    if case in ("several", "two fit", "nothing to choose by", "position", "descriptor"):
        descriptors = {
            "several": FOUR,
            "nothing to choose by": {},
        }.get(case, {"roi": FOUR["roi"]})
        file = _write_h5(tmp_path / "V1.h5", square, n=4, **descriptors)
    with pytest.raises(InputError, match=message) as caught:
        import_rdms(
            files=[file],
            regions=["V1"],
            stimuli=[listed],
            rdms=[rdm],
            subject="07",
            out=tmp_path / "r.zarr",
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
