"""Contrast maps against nilearn's first-level model, and betas as images."""

import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from nilearn.glm.first_level import FirstLevelModel

from isocortex import store
from isocortex.errors import InputError
from isocortex.glm import export_betas, fit_glm, import_betas, map_contrasts
from isocortex.glm.contrasts import check_contrasts, contrast_weights
from isocortex.provenance import directory_digest

SHAPE = (6, 5, 4)
TR = 2.0
LENGTHS = (70, 64, 70)
AFFINE = np.array([[-3.0, 0, 0, 9], [0, 3, 0.2, -6], [0, -0.2, 3, 4], [0, 0, 0, 1]])


@pytest.fixture
def study(tmp_path):
    """Three runs of different length, the last without houses; the keywords of `map_contrasts`."""
    rng = np.random.default_rng(4)
    inputs = {key: [] for key in ("bold", "mask", "confounds", "sidecar", "events", "runs")}
    for run, length in enumerate(LENGTHS, start=1):
        stem = tmp_path / f"sub-01_run-{run}"
        noise = rng.standard_normal((*SHAPE, length))
        for volume in range(1, length):
            noise[..., volume] += 0.4 * noise[..., volume - 1]
        image = nib.Nifti1Image((300 + 8 * noise).astype(np.float32), AFFINE)
        image.header.set_zooms((3, 3, 3, TR))
        image.header.set_xyzt_units("mm", "sec")
        image.to_filename(f"{stem}_bold.nii.gz")
        mask = np.ones(SHAPE, np.uint8)
        mask[0, :2] = 0
        nib.Nifti1Image(mask, AFFINE).to_filename(f"{stem}_mask.nii.gz")
        pd.DataFrame(rng.standard_normal((length, 2)), columns=["csf", "trans_x"]).to_csv(
            f"{stem}_confounds.tsv", sep="\t", index=False
        )
        (tmp_path / f"sub-01_run-{run}.json").write_text(json.dumps({"RepetitionTime": TR}))
        kinds = ["face", "tool", "face", "tool"] if run == 3 else ["face", "house", "tool", "house"]
        pd.DataFrame(
            {
                "onset": [3.0 + 10.7 * k + run for k in range(12)],
                "duration": 2.0,
                "trial_type": kinds * 3,
                "stim_file": [f"{k % 6}.png" for k in range(12)],
            }
        ).to_csv(f"{stem}_events.tsv", sep="\t", index=False)
        for key, ending in (
            ("bold", "_bold.nii.gz"),
            ("mask", "_mask.nii.gz"),
            ("confounds", "_confounds.tsv"),
            ("sidecar", ".json"),
            ("events", "_events.tsv"),
        ):
            inputs[key].append(f"{stem}{ending}")
        inputs["runs"].append({"session": None, "run": str(run)})
    return {
        **inputs,
        "subject": "01",
        "task": "objects",
        "space": "T1w",
        "confound_columns": ["csf", "trans_x"],
    }


def contrasts_of(study, tmp_path, **options):
    out = tmp_path / "glm" / "contrasts"
    map_contrasts(**study, out=out, manifest=out.with_suffix(".json"), **options)
    return out


def image(folder, name, statistic):
    return nib.load(
        folder / f"sub-01_task-objects_space-T1w_contrast-{name}_stat-{statistic}_statmap.nii.gz"
    )


@pytest.mark.parametrize(
    ("noise_model", "chosen"),
    [
        ("ols", {"faces": "face - tool", "mixed": "face + 0.5 * tool"}),
        ("ar1", {"houses": "house - face"}),  # which the third run does not have
    ],
)
def test_maps_equal_those_of_nilearn(study, tmp_path, noise_model, chosen):
    folder = contrasts_of(study, tmp_path, contrasts=chosen, noise_model=noise_model)
    # In double precision, as nilearn keeps the image's
    images = [nib.Nifti1Image(nib.load(path).get_fdata(), AFFINE) for path in study["bold"]]
    events = [pd.read_csv(path, sep="\t").drop(columns="stim_file") for path in study["events"]]
    confounds = [pd.read_csv(path, sep="\t") for path in study["confounds"]]
    n = 2 if "houses" in chosen else 3
    model = FirstLevelModel(
        t_r=TR, noise_model=noise_model, mask_img=study["mask"][0], signal_scaling=0
    ).fit(images[:n], events[:n], confounds[:n])
    for name, expression in chosen.items():
        peer = model.compute_contrast([expression] * n, output_type="all")
        for statistic, key in (("effect", "effect_size"), ("t", "stat"), ("z", "z_score")):
            ours = image(folder, name, statistic)
            np.testing.assert_allclose(ours.affine, AFFINE, atol=1e-6)
            theirs = peer[key].get_fdata()
            assert np.abs(theirs).max() > 0.1
            np.testing.assert_allclose(ours.get_fdata(), theirs, rtol=1e-6, atol=1e-6)


def test_all_conditions_come_along(study, tmp_path):
    chosen = {"mean": "(face + house) / 2"}
    folder = contrasts_of(study, tmp_path, contrasts=chosen, nuisance_types=["tool"])
    manifest = json.loads((tmp_path / "glm/contrasts.json").read_text())
    assert manifest["contrasts"] == {"all": "all", "mean": "(face + house) / 2"}
    assert manifest["runs"] == {"all": ["1", "2", "3"], "mean": ["1", "2"]}
    assert manifest["content"] == directory_digest(folder)
    assert len(list(folder.glob("*_statmap.nii.gz"))) == len(list(folder.glob("*.json"))) == 6
    sidecar = json.loads(
        (folder / "sub-01_task-objects_space-T1w_contrast-mean_stat-t_statmap.json").read_text()
    )
    assert sidecar["DegreesOfFreedom"] == manifest["degrees_of_freedom"]["mean"]
    assert not image(folder, "all", "z").get_fdata()[0, 0].any()  # outside of the mask


def test_all_leaves_out_what_gets_no_beta(study, tmp_path):
    """Events without a stimulus are modelled, but are no trials; runs may share one table."""
    table = pd.read_csv(study["events"][0], sep="\t")
    table["stim_file"] = table["stim_file"].where(table["trial_type"] != "tool")
    table.to_csv(study["events"][0], sep="\t", index=False, na_rep="n/a")
    study["events"] = study["events"][:1] * 3
    folder = contrasts_of(study, tmp_path, contrasts={"same": "(face + house) / 2", "t": "tool"})
    for statistic in ("effect", "t", "z"):
        np.testing.assert_allclose(
            image(folder, "all", statistic).get_fdata(),
            image(folder, "same", statistic).get_fdata(),
            atol=1e-6,
        )
    assert json.loads((tmp_path / "glm/contrasts.json").read_text())["runs"]["t"] == list("123")


def test_maps_depend_on_no_threads(study, tmp_path):
    digests = {
        directory_digest(
            contrasts_of(
                study, tmp_path, contrasts={"f": "face"}, noise_model="ar1", threads=threads
            )
        )
        for threads in (1, 3)
    }
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("face - hose", "'face - hose' names 'hose', which is .*house, tool; did you mean house"),
        ("1e3 * face + fear", "names 'fear', which is no condition"),
        ("face > house", "is no sum of conditions"),
        ("face - face", "is 0 or not finite"),
        ("face / house", "is no sum of conditions"),
        ("face * house", "is 0 or not finite"),
        ("1", "is no sum of conditions"),
        ("face + 1", "is no sum of conditions"),
        ("face -", "is no sum of conditions"),
    ],
)
def test_expressions_that_are_no_contrasts_are_refused(expression, message):
    with pytest.raises(InputError, match=message) as caught:
        contrast_weights(expression, ["face", "house", "tool"])
    assert len(str(caught.value).splitlines()) == 1


def test_names_that_are_no_words_are_taken(tmp_path):
    names = ["2-back", "0-back"]
    assert contrast_weights("2-back", names).tolist() == [1, 0]
    assert contrast_weights("`2-back` - `0-back`", names).tolist() == [1, -1]


def test_conditions_that_no_run_has_together_are_refused(tmp_path):
    tables = {tmp_path / "1.tsv": ["face"], tmp_path / "2.tsv": ["house"]}
    check_contrasts({"f": "face", "h": "house", "all": "all"}, tables)
    with pytest.raises(InputError, match=r"glm.contrasts.x needs face, house in one run.*1.tsv"):
        check_contrasts({"x": "face - house"}, tables)
    with pytest.raises(InputError, match=r"config: glm.contrasts.y: 'tool' names 'tool'"):
        check_contrasts({"y": "tool"}, tables)


# Betas as images


def test_images_of_betas_can_be_read_again(study, tmp_path):
    fit_glm(**study, out=tmp_path / "betas.zarr")
    folder = tmp_path / "glm" / "images"
    export_betas(betas=tmp_path / "betas.zarr", out=folder, manifest=folder.with_suffix(".json"))
    stem = "sub-01_task-objects_space-T1w_stat-"
    series = nib.load(folder / f"{stem}effect_statmap.nii.gz")
    betas = store.open(tmp_path / "betas.zarr", "betas").load()
    assert series.shape == (*SHAPE, 36)
    np.testing.assert_allclose(series.affine, AFFINE, atol=1e-6)
    data = series.get_fdata(dtype=np.float32)
    voxels = tuple(betas[axis].values for axis in "ijk")
    np.testing.assert_array_equal(data[voxels].T, betas.beta.values)
    assert not data[0, :2].any()
    table = pd.read_csv(folder / f"{stem}effect_trials.tsv", sep="\t")
    assert list(table.stimulus) == list(betas.stimulus.values)
    np.testing.assert_allclose(table.onset, betas.onset.values)
    r2 = nib.load(folder / f"{stem}r2_statmap.nii.gz").get_fdata()
    np.testing.assert_allclose(r2[voxels], betas.r2.values, rtol=1e-6)
    assert len(list(folder.glob("*.json"))) == len(list(folder.glob("*.nii.gz"))) == 3

    import_betas(
        image=folder / f"{stem}effect_statmap.nii.gz",
        events=folder / f"{stem}effect_trials.tsv",
        out=tmp_path / "again.zarr",
        subject="01",
        task="objects",
        space="T1w",
    )
    again = store.open(tmp_path / "again.zarr", "betas").load()
    for name in ("beta", "stimulus", "condition", "run", "noise_ceiling", "i"):
        np.testing.assert_array_equal(again[name].values, betas[name].values)


def test_images_have_the_same_bytes_each_time(study, tmp_path):
    fit_glm(**study, out=tmp_path / "betas.zarr", repeats="average")
    digests = set()
    for number in range(2):
        folder = tmp_path / f"images{number}"
        export_betas(
            betas=tmp_path / "betas.zarr", out=folder, manifest=folder.with_suffix(".json")
        )
        digests.add(directory_digest(folder))
    assert len(digests) == 1
    table = pd.read_csv(next(folder.glob("*_trials.tsv")), sep="\t")
    assert table["n_repeats"].sum() == 36
    assert set(table["run"]) == {"all"}
