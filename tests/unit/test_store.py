"""The store writes what its spec says, whole or not at all, and the same bytes every time."""

import json

import numpy as np
import pytest
import xarray as xr

from isocortex import store
from isocortex.errors import InputError


def rdms(n_pairs: int = 6, *, lazy: bool = False) -> xr.Dataset:
    values = np.arange(2.0 * n_pairs).reshape(2, n_pairs)
    dataset = xr.Dataset(
        {"dissimilarity": (("region", "pair"), values)},
        coords={
            "region": ["V1", "PPA"],
            "stimulus_i": ("pair", [f"a{i}.png" for i in range(n_pairs)]),
            "stimulus_j": ("pair", [f"é{i}.png" for i in range(n_pairs)]),
        },
        attrs={
            "subject": "01",
            "task": "objects",
            "measure": "correlation",
            "noise_normalisation": "none",
            "cross_validation": "none",
        },
    )
    return dataset.chunk({"pair": 5}) if lazy else dataset


def features(shape: tuple[int, ...]) -> xr.Dataset:
    values = np.random.default_rng(0).standard_normal(shape).astype("f4")
    dims = ("stimulus", "channel", "y", "x")[: len(shape)]
    return xr.Dataset(
        {"activation": (dims, values)},
        coords={"stimulus": np.array([f"s{i}" for i in range(shape[0])], dtype=object)},
        attrs={"model": "m", "layer": "l", "weights": "none", "preprocessing": "none"},
    )


def test_round_trip_keeps_values_text_and_attributes(tmp_path):
    store.write(rdms(), tmp_path / "x.zarr", spec="rdms", sources=["b", "a"], code="c0de")
    back = store.open(tmp_path / "x.zarr", "rdms")
    np.testing.assert_array_equal(back.dissimilarity, rdms().dissimilarity)
    assert list(back.region.values) == ["V1", "PPA"]
    assert back.stimulus_j.values[3] == "é3.png"
    assert isinstance(back.stimulus_j.values[3], str)
    assert back.attrs["subject"] == "01"
    assert "dissimilarity" in back.dissimilarity.attrs["doc"]
    assert back.sel(region="PPA").dissimilarity.values[0] == 6
    manifest = store.manifest(tmp_path / "x.zarr")
    assert manifest["code"] == "c0de"
    assert manifest["sources"] == ["a", "b"]
    assert "zarr" in manifest["versions"]


def test_same_content_gives_the_same_manifest_whatever_made_it(tmp_path):
    texts = set()
    for name, code in (("a", "1"), ("b", "2")):
        path = store.write(rdms(), tmp_path / f"{name}.zarr", spec="rdms", code=code)
        texts.add(path.read_text())
    assert len(texts) == 1
    changed = rdms()
    changed["dissimilarity"] = changed.dissimilarity + 1e-12
    assert store.write(changed, tmp_path / "c.zarr", spec="rdms").read_text() not in texts


@pytest.mark.parametrize("n_voxels", [1, 7, 9_000])
def test_dask_blocks_that_do_not_line_up_are_written_right(tmp_path, monkeypatch, n_voxels):
    monkeypatch.setattr(store, "CHUNK_BYTES", 3_000)
    monkeypatch.setattr(store, "SHARD_BYTES", 12_000)
    spec = store.Spec(
        doc="for this test",
        block="voxel",
        arrays={
            "a": store.Array(("model", "voxel"), "f4", "blocked"),
            "b": store.Array(("voxel",), "i4", "blocked alone"),
            "c": store.Array(("model",), "f8", "whole"),
        },
    )
    monkeypatch.setitem(store.SPECS, "test", spec)
    values = np.random.default_rng(1).standard_normal((2, n_voxels)).astype("f4")
    dataset = xr.Dataset(
        {
            "a": (("model", "voxel"), values),
            "b": ("voxel", np.arange(n_voxels, dtype="i4")),
            "c": ("model", [1.0, 2.0]),
        }
    )
    store.write(dataset.chunk({"voxel": 611}), tmp_path / "g.zarr", spec="test")
    back = store.open(tmp_path / "g.zarr", "test").load()
    np.testing.assert_array_equal(back.a, values)
    np.testing.assert_array_equal(back.b, np.arange(n_voxels))
    np.testing.assert_array_equal(back.c, [1, 2])


def test_groups_keep_their_order_and_shapes(tmp_path):
    layers = {"z.conv": features((4, 3, 2, 2)), "a": features((4, 5))}
    store.write(layers, tmp_path / "f.zarr", spec="features")
    assert store.groups(tmp_path / "f.zarr") == ["z.conv", "a"]
    back = store.open(tmp_path / "f.zarr", "features", group="z.conv")
    np.testing.assert_array_equal(back.activation, layers["z.conv"].activation)
    with pytest.raises(InputError, match="no group 'b'"):
        store.open(tmp_path / "f.zarr", "features", group="b")


def test_empty_dimension_survives(tmp_path):
    group = features((0, 5))
    store.write({"a": group}, tmp_path / "f.zarr", spec="features")
    assert store.open(tmp_path / "f.zarr", "features", group="a").activation.shape == (0, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.drop_vars("dissimilarity"), "missing"),
        (lambda d: d.astype("f4"), "f8"),
        (lambda d: d.transpose(), "dims"),
        (lambda d: d.assign(extra=("region", [1, 2])), "not in spec"),
        (lambda d: d.drop_attrs(), "attribute"),
    ],
)
def test_what_does_not_fit_the_spec_is_refused_and_nothing_is_left(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        store.write(change(rdms()), tmp_path / "x.zarr", spec="rdms")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_store_and_no_pieces(tmp_path, monkeypatch):
    store.write(rdms(), tmp_path / "x.zarr", spec="rdms")
    before = store.provenance.directory_digest(tmp_path / "x.zarr")

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(xr.Dataset, "to_zarr", fail)
    with pytest.raises(OSError, match="disk full"):
        store.write(rdms(8), tmp_path / "x.zarr", spec="rdms")
    assert store.provenance.directory_digest(tmp_path / "x.zarr") == before
    # Without its manifest an old store does not count as a result of the new run.
    assert not (tmp_path / "x.json").exists()
    assert not [p for p in tmp_path.iterdir() if p.name.endswith(".tmp")]


def test_wrong_spec_version_and_missing_store_are_told_in_one_line(tmp_path):
    with pytest.raises(InputError, match="not a store"):
        store.open(tmp_path / "no.zarr", "rdms")
    store.write(rdms(), tmp_path / "x.zarr", spec="rdms")
    with pytest.raises(InputError, match="is a 'rdms' store, not 'betas'"):
        store.open(tmp_path / "x.zarr", "betas")
    meta = tmp_path / "x.zarr" / "zarr.json"
    content = json.loads(meta.read_text())
    content["attributes"]["spec_version"] = 0
    meta.write_text(json.dumps(content))
    with pytest.raises(InputError, match="version 0"):
        store.open(tmp_path / "x.zarr", "rdms")


def test_verify_sees_a_damaged_chunk(tmp_path):
    store.write(rdms(), tmp_path / "x.zarr", spec="rdms")
    assert store.verify(tmp_path / "x.zarr")
    chunks = (tmp_path / "x.zarr" / "dissimilarity" / "c").rglob("*")
    file = next(p for p in chunks if p.is_file())
    file.write_bytes(b"\0" + file.read_bytes()[1:])
    assert not store.verify(tmp_path / "x.zarr")


def test_every_array_of_every_spec_is_documented():
    for name, spec in store.SPECS.items():
        assert spec.doc, name
        for key, array in spec.arrays.items():
            assert array.doc, (name, key)
            assert array.kind in {"f4", "f8", "i2", "i4", "bool", "str"}, (name, key)
