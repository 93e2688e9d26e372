"""Reports of joint models, readouts, universal encoders and comparisons of encoding models."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from isocortex import store
from isocortex.errors import InputError
from isocortex.report import encoding_figures as figures
from isocortex.report.drawing import report_style
from isocortex.report.encoding_regions import (
    counted,
    largest_share,
    masks_of,
    mean_over,
    read_regions,
)
from isocortex.report.methods import methods_blocks
from isocortex.report.page import number
from isocortex.report.study import KINDS
from isocortex.report.study_encoding import encoding_section
from isocortex.report.study_predictors import over_subjects, scores_by_task


def _sibling(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


report = _sibling("test_report")
REGIONS = report.files_of.REGIONS
NOT_ENCODING = dict.fromkeys(
    ["figures", "confounds", "betas", "rdms", "searchlight", "searchlight_surface"], ()
)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    made = report.files_of.make_study(
        tmp_path_factory.mktemp("made"), n_stimuli=6, resolution=9, seed=3
    )
    report.files_of.write_predictors(made)
    return made


def _subject(files, out, **changes):
    given = {key: files.of(key, "01") for key in ("joint", "readouts")}
    given |= {"encoding": files.of("encoding_tested", "01")}
    return report._subject(files, out, **(NOT_ENCODING | given | changes))


def _study(files, out, **changes):
    kinds = ("joint", "readouts", "universal", "regions", "region_labels")
    given = {key: files.of(key) for key in kinds}
    given |= {"encoding": files.of("encoding_tested")}
    given |= {"encoding_summary": files.of("summary_compared")}
    return report._study(files, out, **(report.NOTHING | given | changes))


@pytest.fixture(scope="module")
def subject_page(files):
    return report.Page(_subject(files, files.root / "report" / "sub-01.html"))


@pytest.fixture(scope="module")
def study_page(files):
    return report.Page(_study(files, files.root / "report" / "study.html"))


@pytest.fixture(scope="module")
def findings(files, study_page):
    summary = json.loads((files.root / "report" / "study_summary.json").read_text())
    return {finding["name"]: finding for finding in summary["findings"]}


def _masks(dataset, files):
    images = read_regions(files.of("regions"), files.of("region_labels"))
    use = counted(dataset)
    return {name: mask & use for name, mask in masks_of(dataset, images).items()}


def test_joint_model_is_split_by_region_as_the_store_says(files, subject_page):
    dataset = store.open(files.of("joint", "01")[0], "encoding_joint").load()
    text = subject_page.section("encoding")
    for region, mask in _masks(dataset, files).items():
        shares = dataset["product_measure"].values[:, mask].mean(axis=1)
        largest = "edges" if REGIONS.index(region) < 3 else "objects"
        assert f"{region}: {largest} {number(shares.max(), 3)}" in text
        cells = [f"{number(share, 3)} ({number(0.6 * share, 3)})" for share in shares]
        assert " ".join(cells) in text
    assert "unique part" in text
    assert "strongest feature space at each voxel" in text


def test_a_space_that_explains_nothing_is_not_the_strongest():
    assert largest_share(["edges", "net"], np.array([-0.2, -0.1])) == "none above 0"
    assert largest_share(["edges", "net"], np.array([np.nan, 0.1])) == "net 0.100"


def test_readouts_stand_beside_the_best_linear_layer(files, subject_page):
    text = subject_page.section("encoding")
    assert f"field in {len(REGIONS)} of {len(REGIONS)} and route in 0 of {len(REGIONS)}" in text
    linear = store.open(files.of("encoding_tested", "01")[0], "encoding").load()
    for region, mask in _masks(linear, files).items():
        means = linear["score"].values[:, mask].mean(axis=1)
        best = str(linear["layer"].values[means.argmax()])
        cells = [number(means.max() + gain, 3) for gain in (0, 0.05, -0.05)]
        assert f"{region} {int(mask.sum())} {best} {' '.join(cells)}" in text
    for words in ("receptive field, size", "Readout route: attention", "Training of the readouts"):
        assert words in text


def test_a_better_layer_of_another_model_is_not_compared_with(files, tmp_path):
    """Readouts are compared with layers of their own model."""
    path = files.of("encoding_tested", "01")[0]
    other = store.open(path, "encoding").load()
    other["score"] = other["score"] + 0.3
    other.attrs["model"] = "oracle"
    store.write(other, tmp_path / "other.zarr", spec="encoding")
    given = {"encoding": [path, tmp_path / "other.zarr"], "joint": ()}
    given["readouts"] = files.of("readouts", "01")[:1]
    given["options"] = report.OPTIONS | {"slices": 1, "encoding_threshold": 2.0}
    page = report.Page(_subject(files, tmp_path / "a.html", **given))
    assert f"field in {len(REGIONS)} of {len(REGIONS)}" in page.section("encoding")


def test_significant_voxels_are_counted_and_mapped(files, subject_page):
    dataset = store.open(files.of("encoding_tested", "01")[0], "encoding").load()
    passed = (dataset["p_fwe"].values < 0.05).any(axis=0)
    text = subject_page.section("encoding")
    assert f"{number(100 * passed.mean(), 1)}%" in text
    assert f"{passed.sum():,} of {passed.size:,} voxels are above 0" in text
    fdr = (dataset["p_fdr"].values < 0.05).any(axis=0)
    uncorrected = (dataset["p"].values < 0.05).any(axis=0)
    shares = [f"{number(100 * share.mean(), 1)}%" for share in (uncorrected, fdr, passed)]
    assert " ".join(shares) in text


def test_volumes_are_not_called_trials(files, subject_page, study_page, tmp_path):
    linear = subject_page.section("encoding").split("Joint model")[0]
    assert "held-out volumes" in linear
    assert "trial" not in linear
    methods = study_page.section("methods")
    assert "on held-out volumes" in methods
    assert "at 2 and 4 s" in methods
    assert "single-volume variance" in study_page.section("encoding")


def test_study_has_all_predictors_by_region(files, study_page, findings):
    text = study_page.section("encoding")
    opened = {name: [] for name in KINDS}
    opened["encoding_summary"] = [store.open(files.of("summary_compared")[0], "encoding_summary")]
    for name, kind in (("encoding", "encoding_tested"), ("joint", "joint"), ("readouts",) * 2):
        opened[name] = [store.open(path, KINDS[name]).load() for path in files.of(kind)]
    images = read_regions(files.of("regions"), files.of("region_labels"))
    (scores,) = scores_by_task(opened, images)
    assert scores.regions == list(REGIONS)
    for name, part in (("mix", scores.joint), ("field", scores.readouts)):
        kind = "joint" if name == "mix" else "readout"
        cells = [number(r, 3) for r in over_subjects(part[name])]
        assert f"{name} {kind} {' '.join(cells)}" in text
    for index, dataset in enumerate(opened["readouts"][::2]):
        masks = _masks(dataset, files)
        mine = [mean_over(dataset["score"].values, masks[region]) for region in REGIONS]
        np.testing.assert_allclose(scores.readouts["field"][:, index], mine, rtol=1e-6)
    best, _ = scores.linear()
    assert best == [report.files_of.BEST[region] for region in REGIONS]
    for value, region in zip(findings["readouts"]["values"]["regions"], REGIONS, strict=True):
        assert value["readout"] == "field"
        assert value["score"] - value["linear"] == pytest.approx(0.05, abs=2e-3)
        assert value["layer"] == report.files_of.BEST[region]
    for value in findings["joint"]["values"]["regions"]:
        first, second = value["shares"]
        assert (first > second) == (REGIONS.index(value["region"]) < 3)


def test_universal_encoder_against_own_encoders(files, study_page, findings):
    people = findings["universal"]["values"]["subjects"]
    assert [person["new"] for person in people] == [False, False, True]
    assert "only the embeddings were fitted" in study_page.section("encoding")
    for person, path in zip(people, files.of("encoding_tested"), strict=True):
        linear = store.open(path, "encoding").load()
        masks = _masks(linear, files)
        scores = linear["score"].values
        size = np.array([mask.sum() for mask in masks.values()])
        best = np.array([scores[:, mask].mean(axis=1).max() for mask in masks.values()])
        assert person["own"] == pytest.approx((best * size).sum() / size.sum(), abs=1e-6)
        inside = np.any(list(masks.values()), axis=0)
        gain = -0.04 if person["new"] else 0.02
        layer = scores[:, inside].mean(axis=1).max()
        assert person["universal"] == pytest.approx(layer + gain, abs=1e-6)
    above = sum(person["universal"] > person["own"] for person in people)
    assert f"in {above} of 3 subjects" in findings["universal"]["text"]


def test_models_are_compared_as_the_summary_says(study_page):
    text = study_page.section("encoding")
    assert "convnet has the highest spatial score, 0.80" in text
    assert "above 0: convnet." in text
    assert "Of 18 differences between models by region 6 are significant over subjects" in text
    assert "convnet is the better one in 6" in text
    assert "V1 convnet pixels 0.200 [0.150, 0.250]" in text
    assert "r rises with parameters in 6 of 6 regions (2 with p &lt; 0.05)" in text
    assert "tested over stimuli" not in text


def test_a_joint_model_that_is_best_is_no_model_to_map(files, study_page, tmp_path):
    """The summary counts joint models among its predictors; maps are those of linear models."""
    summary = store.open(files.of("summary_compared")[0], "encoding_summary").load()
    best = summary["score"].sel(predictor="convnet/layer1", region="V1").values
    assert f" {number(float((best**2).mean()), 3)} " in study_page.section("encoding")
    name = np.array(["joint/mix"], dtype=object)
    mix = summary.isel(predictor=[0]).assign_coords(predictor=name)
    mix = mix.assign_coords(model=("predictor", name), layer=("predictor", name))
    mix["mean"] = mix["mean"] + 1
    both = xr.concat([summary, mix], "predictor", data_vars="minimal")
    both["best_predictor"] = ("region", np.repeat(name, len(REGIONS)))
    opened = [
        store.open(p, "encoding")
        for p in (files.of("encoding_tested")[0], files.of("encoding", "01")[2])
    ]
    choices = report.ReportOptions.from_config(report.OPTIONS | {"slices": 1})
    with report_style():
        blocks = encoding_section([both], opened, (), choices)
    text = " ".join(block.text for block in blocks if block.kind == "paragraph")
    assert f"Maps are drawn for convnet, the best model in {len(REGIONS)} of {len(REGIONS)}" in text


def test_methods_cite_what_ran_and_nothing_else(files, study_page):
    methods = study_page.section("methods")
    references = study_page.section("references")
    for words in (
        "banded ridge regression",
        "chosen per voxel out of 100 drawn at random",
        "product measure",
        "field: a Gaussian receptive field",
        "route: queries",
        "20 principal components",
        "200 permutations",
        "of 03 the embeddings alone were fitted",
        "spatial score",
    ):
        assert words in methods
    for author in ("Nunez-Elizalde", "St-Yves", "Adeli", "Beliy", "Winkler", "Raugel", "Nishimoto"):
        assert author in references
    for author in ("Klindt", "Saha", "Rokem", "Stacked regressions"):
        assert author not in references


def test_features_are_told_with_their_source():
    models = {
        "gabor": {"architecture": "gabor"},
        "net": {"source": "builtin", "architecture": "convnet", "weights": "none", "seeds": 5},
        "vit": {"source": "timm", "architecture": "vit_small", "weights": "hub"},
        "own": {"source": "arrays", "files": "x.npy"},
    }
    blocks, references = methods_blocks(
        entry="betas",
        config={"features": {"models": models}},
        versions={},
        opened={name: [] for name in KINDS},
        surface=False,
    )
    text = " ".join(block.text for block in blocks)
    assert "gabor (built-in gabor [1])" in text
    assert "net (built-in convnet, untrained, 5 seeds)" in text
    assert "vit (timm vit_small, pretrained)" in text
    assert "own (computed elsewhere)" in text
    assert references.items[0].key == "gabor_energy"


def test_without_regions_all_voxels_are_one(files, tmp_path):
    nothing = {"regions": (), "region_labels": ()}
    few = {"options": report.OPTIONS | {"slices": 1, "encoding_threshold": 2.0}}
    page = report.Page(_subject(files, tmp_path / "sub-01.html", encoding=(), **nothing, **few))
    text = page.section("encoding")
    assert "all voxels" in text
    assert "best linear layer" not in text
    page = report.Page(
        _study(files, tmp_path / "study.html", encoding_summary=(), joint=(), **nothing, **few)
    )
    assert "r, universal" in page.section("encoding")


def test_regions_on_another_grid_are_refused(files, tmp_path):
    import nibabel as nib

    image = nib.Nifti1Image(np.ones((3, 3, 3), np.int16), np.eye(4))
    path = tmp_path / "sub-01_task-objects_dseg.nii.gz"
    nib.save(image, path)
    with pytest.raises(InputError, match=r"has the shape \(3, 3, 3\)"):
        _study(
            files,
            tmp_path / "a.html",
            regions=[path],
            region_labels=files.of("region_labels", "01"),
        )


def test_figures_are_the_same_bytes_each_time():
    rng = np.random.default_rng(0)
    maps = rng.random((2, 4, 4))
    shares, x, loss = rng.normal(size=(2, 3)), rng.normal(size=(3, 50)), rng.random((2, 2, 6))

    def draw():
        return [
            figures.shares_figure("abc", "uv", shares, shares / 2),
            figures.beside_figure("abc", {"one": shares.T, "two": shares[0]}),
            figures.coverage_figure(x[0], x[1], abs(x[2]), units="°", half_width=4.0),
            figures.attention_figure("ab", maps),
            figures.losses_figure({"one": (loss[0], loss[1])}),
        ]

    with report_style():
        assert draw() == draw()


def test_another_subjects_readout_is_refused(files, tmp_path):
    with pytest.raises(InputError, match="belongs to subject 02, not 01"):
        _subject(files, tmp_path / "a.html", readouts=files.of("readouts", "02"))
