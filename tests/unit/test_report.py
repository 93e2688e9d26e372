"""Reports: complete in themselves, true to the stores, deterministic, honest about absence."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections import defaultdict
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import numpy as np
import pytest
import xarray as xr

from isocortex import store
from isocortex.errors import InputError
from isocortex.report import ReportOptions, report_study, report_subject
from isocortex.report.methods import methods_blocks
from isocortex.report.page import interval, number, p_value
from isocortex.report.subject_glm import trial_z


def _helpers():
    path = Path(__file__).with_name("report_study_files.py")
    spec = importlib.util.spec_from_file_location("report_study_files", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


files_of = _helpers()
OPTIONS = files_of.default_options() | {"slices": 3, "max_regions_shown": 3, "surface": False}
NOTHING = dict.fromkeys(
    [
        "scores",
        "partition",
        "identification",
        "topology",
        "layers",
        "dependence",
        "persistence",
        "encoding_summary",
        "searchlight",
        "searchlight_surface",
        "rdms",
        "model_rdms",
        "encoding",
        "betas",
        "confounds",
    ],
    (),
)
EXCLUDED = {"04": "moved more than 3 mm in every run"}
SUBJECT_SECTIONS = [
    "preprocessing",
    "motion",
    "design",
    "responses",
    "regions",
    "rdms",
    "searchlight",
    "encoding",
    "provenance",
]
STUDY_SECTIONS = [
    "findings",
    "sample",
    "rdms",
    "models",
    "partition",
    "topology",
    "dependence",
    "persistence",
    "layers",
    "encoding",
    "searchlight",
    "notes",
    "methods",
    "references",
    "provenance",
]


class Page(HTMLParser):
    """What the tests ask of a page."""

    LOADING = ("src", "srcset", "poster", "data", "background", "action", "formaction")

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.images, self.loads, self.captions, self.anchors = [], [], 0, []
        self.links = []
        self.tags: set[str] = set()
        self.feed(self.source)
        bare = re.sub(r"data:[a-z/+]+;base64,[A-Za-z0-9+/=]+", "", self.source)
        self.css = "".join(re.findall(r"<style>(.*?)</style>", bare, re.S))
        self.script = "".join(re.findall(r"<script>(.*?)</script>", bare, re.S))
        self.text = re.sub(
            r"<[^>]+>", " ", re.sub(r"<(style|script)>.*?</\1>", "", bare, flags=re.S)
        )
        self.text = re.sub(r"\s+", " ", self.text).replace("&#39;", "'")

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.add(tag)
        self.loads += [attrs[name] for name in self.LOADING if name in attrs]
        if tag == "link":
            self.loads.append(attrs.get("href", ""))
        if tag == "img":
            self.images.append(attrs)
        if tag == "a":
            self.links.append(attrs["href"])
        if tag == "figcaption":
            self.captions += 1
        if tag == "section":
            self.anchors.append(attrs["id"])

    def section(self, anchor: str) -> str:
        """Text of a section without tags."""
        found = re.search(rf'<section id="{anchor}">(.*?)</section>', self.source, re.S).group(1)
        found = re.sub(r"data:[a-z/+]+;base64,[A-Za-z0-9+/=]+", "", found)
        return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", found))


def _subject(files, out: Path, **changes) -> Path:
    label = "01"
    keywords = {
        "subject": label,
        "study": "made",
        "out": out,
        "options": OPTIONS,
        "figures": files.of("figures", label),
        "confounds": files.of("confounds", label),
        "betas": files.of("betas", label),
        "regions": files.of("regions", label),
        "region_labels": files.of("region_labels", label),
        "rdms": files.of("rdms_correlation", label) + files.of("rdms_crossnobis", label),
        "searchlight": files.of("searchlight", label),
        "encoding": files.of("encoding", label)[:1],
        "stimuli": files.stimuli,
        "code": "0123456789abcdef",
    }
    return report_subject(**(keywords | changes))


def _study(files, out: Path, **changes) -> Path:
    keywords = {
        "study": "made",
        "subjects": files.subjects,
        "out": out,
        "summary": out.with_name(f"{out.stem}_summary.json"),
        "options": OPTIONS,
        "config": {"glm": {"hrf": "spm"}, "preprocess": {"spaces": ["MNI152NLin2009aSym"]}},
        "excluded": EXCLUDED,
        "scores": files.of("scores")[:1],
        "partition": files.of("partition"),
        "identification": files.of("identification"),
        "topology": files.of("topology"),
        "layers": files.of("layers"),
        "dependence": files.of("dependence"),
        "persistence": files.of("persistence"),
        "encoding_summary": files.of("encoding_summary"),
        "searchlight": files.of("searchlight_group"),
        "searchlight_surface": files.of("searchlight_surface_group"),
        "model_rdms": files.of("model_rdms"),
        "rdms": files.of("rdms_correlation"),
        "encoding": files.of("encoding"),
        "betas": files.of("betas"),
        "confounds": files.of("confounds"),
        "stimuli": files.stimuli,
        "code": "0123456789abcdef",
    }
    return report_study(**(keywords | changes))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return files_of.make_study(tmp_path_factory.mktemp("made"), n_stimuli=24, resolution=8)


@pytest.fixture(scope="module")
def subject_page(files):
    return Page(_subject(files, files.root / "report" / "sub-01.html"))


@pytest.fixture(scope="module")
def study_page(files):
    return Page(_study(files, files.root / "report" / "study.html"))


@pytest.fixture(params=["subject", "study"])
def page(request, subject_page, study_page):
    return subject_page if request.param == "subject" else study_page


def test_nothing_is_loaded_from_outside(page):
    assert page.images
    assert all(load.startswith("data:") for load in page.loads)
    assert not {"link", "iframe", "object", "embed", "base", "video"} & page.tags
    assert "url(" not in page.css
    assert "@import" not in page.css
    assert not re.search(r"https?:|fetch|XMLHttpRequest|import", page.script)
    assert all(link.startswith(("#", "https://")) for link in page.links)


def test_images_hold_no_outside_reference(page):
    import base64

    for image in page.images:
        mime, content = image["src"].split(";base64,")
        if mime == "data:image/svg+xml":
            text = base64.b64decode(content).decode()
            references = re.findall(r'(?:href|src)="([^"]+)"|url\(([^)]+)\)', text)
            assert all((a or b).startswith(("#", "data:")) for a, b in references)


def test_every_image_has_a_description_and_every_figure_a_number(page):
    assert all(len(image.get("alt", "")) > 10 for image in page.images)
    numbers = [int(n) for n in re.findall(r"<b>Figure (\d+)\.", page.source)]
    assert numbers == list(range(1, page.captions + 1))
    tables = [int(n) for n in re.findall(r"<caption><b>Table (\d+)\.", page.source)]
    assert tables == list(range(1, len(tables) + 1))


def test_page_is_well_formed(page):
    root = ElementTree.fromstring(page.source.replace("<!DOCTYPE html>", ""))
    ids = [element.attrib["id"] for element in root.iter() if "id" in element.attrib]
    assert len(ids) == len(set(ids))
    assert all(link[1:] in ids for link in page.links if link.startswith("#"))
    headings = [e.tag[-2:] for e in root.iter() if re.search(r"}h[1-6]$", e.tag)]
    assert headings.count("h1") == 1
    levels = [int(tag[1]) for tag in headings]
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_every_section_is_there(subject_page, study_page):
    assert subject_page.anchors == SUBJECT_SECTIONS
    assert study_page.anchors == STUDY_SECTIONS
    for page in (subject_page, study_page):
        assert "gave no result" not in page.text
        assert "not part of the run" not in page.text


def test_pages_are_of_modest_size(page):
    assert len(page.source) < 8e6


def test_same_inputs_give_the_same_bytes(files, tmp_path):
    study = {"partition": files.of("partition"), "rdms": files.of("rdms_correlation")}
    subject = dict.fromkeys(["regions", "region_labels", "betas", "rdms", "encoding"], ())
    pages = [
        (
            _subject(files, tmp_path / again / "sub-01.html", **subject),
            _study(files, tmp_path / again / "study.html", **(NOTHING | study)),
        )
        for again in ("first", "second")
    ]
    for first, second in zip(*pages):
        assert first.read_bytes() == second.read_bytes()


def test_findings_are_the_numbers_of_the_stores(files, study_page):
    summary = json.loads((files.root / "report" / "study_summary.json").read_text())
    geometry, identification, encoding, layers = summary["findings"]
    names = [finding["name"] for finding in summary["findings"]]
    assert names == ["rsa", "identification", "encoding", "layers"]
    text = study_page.section("findings")

    scores = store.open(files.of("scores")[0], "scores").load()
    for finding, dataset in (
        (geometry, scores.isel(comparison=0)),
        (encoding, store.open(files.of("encoding_summary")[0], "encoding_summary").load()),
    ):
        assert finding["available"]
        assert len(finding["values"]["regions"]) == dataset.sizes["region"]
        for value in finding["values"]["regions"]:
            here = dataset.sel(region=value["region"])
            assert value["predictor"] == str(here["best_predictor"].item())
            assert value["predictor"] == files_of.BEST[value["region"]]
            cell = here.sel(predictor=value["predictor"])
            assert value["score"] == pytest.approx(cell["mean"].item(), abs=1e-12)
            low, high = cell["interval_low"].item(), cell["interval_high"].item()
            assert value["interval"] == pytest.approx([low, high], abs=1e-12)
            # Too few subjects for a p-value: said, not made up.
            assert value["p_corrected"] is None
            words = f"{value['predictor']}, {number(cell['mean'].item())} {interval(low, high)}"
            assert f"{value['region']}: {words}" in finding["text"]
            assert f"{value['region']} {words}" in text
    assert "no p-value with 3 subjects" in text

    dataset = store.open(files.of("identification")[0], "identification").load()
    nested = dataset.sel(statistic="rgtm(nested)")
    values = identification["values"]
    assert values["statistic"] == "rgtm(nested)"
    assert values["accuracy"] == pytest.approx(nested["accuracy"].item())
    assert values["chance"] == pytest.approx(1 / 6)
    assert values["baseline"]["accuracy"] == pytest.approx(
        dataset.sel(statistic="rdm")["accuracy"].item()
    )
    assert f"{number(100 * nested['accuracy'].item(), 0)}%" in identification["text"]
    assert identification["text"] in text

    dataset = store.open(files.of("layers")[0], "layer_identification").load()
    nested = dataset.sel(statistic="rgtm(nested)")["accuracy"].values
    assert layers["values"]["statistics"]["rgtm(nested)"]["accuracy"] == pytest.approx(nested)
    assert f"{number(100 * nested[-1], 0)}%" in layers["text"]
    assert layers["text"] in text


def test_excluded_subjects_and_their_reasons(files, study_page):
    for anchor in ("sample", "notes"):
        assert EXCLUDED["04"] in study_page.section(anchor)
    summary = json.loads((files.root / "report" / "study_summary.json").read_text())
    assert summary["excluded"] == EXCLUDED
    assert summary["subjects"] == files.subjects


def test_flags_name_what_is_missing(study_page):
    notes = study_page.section("notes")
    assert "No p-value" in notes
    assert "too few" in notes
    assert "4 with NaN" in notes


def test_methods_say_what_was_done_and_cite(study_page):
    methods = study_page.section("methods")
    assert "ordinary least squares" in methods
    assert "scale rank" in methods
    cited = {int(n) for group in re.findall(r"\[([\d, ]+)\]", methods) for n in group.split(",")}
    listed = len(re.findall(r'<li id="ref-\d+">', study_page.source))
    assert cited == set(range(1, listed + 1))
    references = study_page.section("references")
    for author in ("Kriegeskorte", "Walther", "Diedrichsen", "Schütt", "Lin B", "Allen EJ"):
        assert author in references
    assert "glm.hrf" in study_page.section("provenance")


def test_provenance_repeats_the_digests(files, study_page):
    manifest = store.manifest(files.of("scores")[0])
    provenance = study_page.section("provenance")
    assert manifest["content"][:16] in provenance
    assert manifest["code"][:16] in provenance
    assert manifest["versions"]["zarr"] in provenance


def test_subject_page_holds_the_quality_measures(subject_page):
    motion = subject_page.section("motion")
    assert "task-objects_run-01" in motion
    preprocessing = subject_page.section("preprocessing")
    assert "Registration to the template" in preprocessing
    assert "0.91" in preprocessing
    assert subject_page.source.count('class="flicker"') == 2


def test_confounds_table_against_the_file(files, subject_page):
    path = files.of("confounds", "01")[0]
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    column = rows[0].index("framewise_displacement")
    displacement = np.array([float(row[column]) for row in rows[2:]])
    row = re.search(r"task-objects_run-01 ([\d.,− ]+)", subject_page.section("motion")).group(1)
    cells = row.split()
    assert cells[:3] == ["110", f"{displacement.mean():.3f}", f"{displacement.max():.2f}"]


def test_responses_made_elsewhere_come_without_design_and_fit(files, tmp_path):
    dataset = store.open(files.of("betas", "01")[0], "betas").load()
    dataset = dataset.isel(volume=slice(0), regressor=slice(0), time=slice(0))
    for name in ("z_stimulus", "r2", "tsnr", "ncsnr", "noise_ceiling", "onset"):
        dataset[name] = xr.full_like(dataset[name], np.nan)
    dataset.attrs["design"] = []
    path = tmp_path / "sub-01_task-objects_betas.zarr"
    store.write(dataset, path, spec="betas")
    nothing = dict.fromkeys(
        [
            *("figures", "confounds", "regions", "region_labels", "rdms"),
            *("searchlight", "searchlight_surface"),
        ],
        (),
    )
    page = Page(
        _subject(files, tmp_path / "a.html", entry="betas", betas=[path], encoding=(), **nothing)
    )
    assert "came without onsets" in page.section("design")
    responses = page.section("responses")
    assert "One-sample t over 72 single-trial responses" in responses
    assert "Temporal signal-to-noise ratio: no map" in responses
    assert "fewer than two stimuli repeat" in responses


def test_trial_z_agrees_with_scipy():
    from scipy import stats

    beta = np.random.default_rng(0).standard_normal((15, 40)) + np.linspace(-1, 1, 40)
    z = trial_z(xr.Dataset({"beta": (("trial", "voxel"), beta)}))
    test = stats.ttest_1samp(beta, 0, axis=0)
    expected = np.sign(test.statistic) * stats.norm.isf(test.pvalue / 2)
    np.testing.assert_allclose(z, expected, atol=1e-8)
    strong = trial_z(xr.Dataset({"beta": (("trial", "voxel"), beta[:, :1] * 1e-6 + 5)}))
    assert np.isfinite(strong).all()


def test_absent_stages_are_explained_without_empty_figures(files, tmp_path):
    nothing = dict.fromkeys(
        [
            "figures",
            "confounds",
            "betas",
            "regions",
            "region_labels",
            "rdms",
            "searchlight",
            "searchlight_surface",
            "encoding",
        ],
        (),
    )
    left = {"rdms": files.of("rdms_correlation", "01")}
    page = Page(_subject(files, tmp_path / "a.html", entry="rdms", **(nothing | left)))
    assert page.anchors == ["rdms", "notes", "provenance"]
    assert len(page.images) == 1
    notes = page.section("notes")
    assert notes.count("starts from dissimilarity matrices made elsewhere") == 1
    assert "Design, Responses, Regions, Searchlight and Encoding models" in notes
    left = {"confounds": files.of("confounds", "01")}
    page = Page(_subject(files, tmp_path / "b.html", entry="derivatives", **(nothing | left)))
    assert page.anchors == ["motion", "notes", "provenance"]
    assert "preprocessed BIDS derivatives" in page.section("notes")
    assert page.images


def test_study_from_rdms_only(files, tmp_path):
    given = {
        "scores": files.of("scores")[:1],
        "rdms": files.of("rdms_correlation"),
        "model_rdms": files.of("model_rdms"),
    }
    out = _study(
        files,
        tmp_path / "study.html",
        entry="rdms",
        stimuli={},
        excluded={},
        **(NOTHING | given),
    )
    page = Page(out)
    assert page.anchors == [
        *("findings", "sample", "rdms", "models", "notes", "methods", "references", "provenance"),
    ]
    notes = page.section("notes")
    assert "Encoding models and Searchlight" in notes
    assert notes.count("made elsewhere") == 1
    assert "No subject was excluded" in page.section("sample")
    assert "names no image files" in notes
    # Nothing topological was computed, so there is no methods text on it.
    assert "opolog" not in page.section("methods")
    assert page.source.count("<li>\n<h3>") == 1
    findings = json.loads((tmp_path / "study_summary.json").read_text())["findings"]
    assert [finding["available"] for finding in findings] == [True, False, False]


def test_study_of_layers_only(files, tmp_path):
    """A study of stimuli and networks without subjects has a report of its layers alone."""
    given = {"layers": files.of("layers")}
    out = _study(files, tmp_path / "study.html", subjects=[], excluded={}, **(NOTHING | given))
    page = Page(out)
    assert page.anchors == [
        *("findings", "layers", "notes", "methods", "references", "provenance"),
    ]
    text = page.section("findings")
    assert "rgtm(nested) identifies 96%" in text
    assert "RSA" not in text
    assert "Subjects" not in page.text
    assert "Layer identification against noise" in page.section("layers")
    assert "Lin B" in page.section("references")
    assert "Not part of this report" not in page.section("notes")
    found = json.loads((tmp_path / "study_summary.json").read_text())["findings"]
    assert [finding["name"] for finding in found] == ["layers"]


def test_study_with_nothing_at_all_still_says_so(files, tmp_path):
    out = report_study(
        study="empty",
        subjects=[],
        out=tmp_path / "study.html",
        summary=tmp_path / "summary.json",
        options=files_of.default_options(),
        config={},
    )
    page = Page(out)
    assert page.anchors == ["findings", "notes", "methods", "references", "provenance"]
    assert "No analysis of this run has a finding yet" in page.section("findings")
    assert not page.images


def test_inference_is_reported_where_there_is_one(files, tmp_path):
    changed = {}
    for kind in ("scores", "identification", "encoding_summary"):
        dataset = store.open(files.of(kind)[0], kind).load()
        for name in ("p", "p_corrected"):
            if name in dataset:
                dataset[name] = xr.full_like(dataset[name], 0.03)
        store.write(dataset, tmp_path / f"{kind}.zarr", spec=kind)
        changed[kind] = [tmp_path / f"{kind}.zarr"]
    page = Page(_study(files, tmp_path / "study.html", **(NOTHING | changed)))
    text = page.section("findings")
    above = "6 of 6 best layers above 0 (p &lt; 0.05, corrected"
    assert f"{above} by Holm's method)" in text.replace("&#39;", "'")
    assert f"{above} for false discoveries)" in text
    assert "p = 0.030" in text
    assert "No p-value" not in page.section("notes")


def test_one_subject_gets_no_made_up_intervals_and_no_identification(files, tmp_path):
    changed = {}
    for kind in ("scores", "encoding_summary", "identification", "searchlight_group"):
        dataset = store.open(files.of(kind)[0], kind).load()
        if "subject" in dataset.dims:
            dataset = dataset.isel(subject=[0])
        for name, values in dataset.data_vars.items():
            wanted = ("interval_", "p_", "ceiling_", "accuracy", "ratio")
            if values.dtype.kind == "f" and (name.startswith(wanted) or name == "p"):
                dataset[name] = xr.full_like(values, np.nan)
        if kind == "identification":
            dataset.attrs["flag"] = "needs at least 2 subjects, has 1"
        store.write(dataset, tmp_path / f"{kind}.zarr", spec=kind)
        changed[kind.removesuffix("_group")] = [tmp_path / f"{kind}.zarr"]
    page = Page(_study(files, tmp_path / "study.html", subjects=["01"], **(NOTHING | changed)))
    text = page.section("findings")
    assert "no interval" in text
    assert "no p-value with 1 subject" in text
    assert "Regions identified" not in text
    assert "needs at least 2 subjects, has 1" in page.section("notes")
    assert "topology" not in page.anchors
    assert "the maps describe and do not test" in page.section("searchlight")
    assert "nan" not in page.section("models").lower()
    findings = json.loads((tmp_path / "study_summary.json").read_text())["findings"]
    assert [finding["available"] for finding in findings] == [True, False, True]


def test_options_change_the_page(files, study_page, tmp_path):
    options = OPTIONS | {
        "title": "A study of <shapes> & forms",
        "thumbnails": False,
        "max_regions_shown": 2,
        "slices": 3,
        "encoding_threshold": 0.99,
        "searchlight_threshold": 0.98,
    }
    given = {kind: files.of(kind) for kind in ("scores", "encoding")}
    given |= {"searchlight": files.of("searchlight_group"), "rdms": files.of("rdms_correlation")}
    page = Page(_study(files, tmp_path / "study.html", options=options, **(NOTHING | given)))
    assert "<h1>A study of &lt;shapes&gt; &amp; forms</h1>" in page.source
    assert "first 2 of 6 regions" in page.section("models")
    assert "display threshold of 0.99" in page.section("encoding")
    assert "display threshold of 0.98" in page.section("searchlight")
    assert "fsaverage5" not in page.section("encoding")
    assert "Images along the axes" in study_page.section("rdms")
    assert "Images along the axes" not in page.section("rdms")


def test_surface_option_draws_the_voxels_on_fsaverage(files, tmp_path):
    given = {"encoding": [path for path in files.of("encoding") if "model-pixels" in path.name]}
    out = _study(
        files, tmp_path / "study.html", options=OPTIONS | {"surface": True}, **(NOTHING | given)
    )
    page = Page(out)
    assert "inflated surface" in page.section("encoding")
    assert len(page.images) == 2


def test_subject_space_has_no_group_map(files, tmp_path):
    moved = []
    for path in files.of("encoding"):
        if "model-convnet" not in path.name:
            continue
        dataset = store.open(path, "encoding").load()
        dataset.attrs["space"] = "T1w"
        store.write(dataset, tmp_path / path.name, spec="encoding")
        moved.append(tmp_path / path.name)
    page = Page(_study(files, tmp_path / "study.html", **(NOTHING | {"encoding": moved})))
    assert "there is no group map" in page.section("encoding")


def test_group_map_is_the_mean_over_subjects(files):
    from isocortex.report.maps import average_encoding

    paths = [path for path in files.of("encoding") if "model-convnet" in path.name]
    opened = [store.open(path, "encoding").load() for path in paths]
    maps = average_encoding(opened)
    expected = np.mean([dataset["score"].values for dataset in opened], axis=0)
    np.testing.assert_allclose(maps.scores, expected, atol=1e-6)
    top, best = maps.highest(0.1)
    shown = expected.max(axis=0) >= 0.1
    assert np.array_equal(np.isfinite(top), shown)
    assert np.array_equal(best[shown], expected.argmax(axis=0)[shown])


def test_centres_without_a_score_are_no_subjects(study_page):
    text = study_page.section("searchlight")
    assert "with 3 subjects" in text
    assert "0 to 3" not in text


def test_subjects_have_their_surface_searchlight(files, tmp_path):
    nothing = dict.fromkeys(
        ["figures", "confounds", "betas", "regions", "region_labels", "rdms", "searchlight"], ()
    )
    surface = files.of("searchlight_surface", "01")
    page = Page(
        _subject(files, tmp_path / "a.html", searchlight_surface=surface, encoding=(), **nothing)
    )
    assert page.anchors == ["searchlight", "notes", "provenance"]
    assert "on the fsaverage5 surface: 20,484 centres" in page.section("searchlight")
    assert "vertices reach the display threshold of 0.10" in page.section("searchlight")
    with pytest.raises(InputError, match="belongs to subject 02, not 01"):
        _subject(
            files,
            tmp_path / "b.html",
            searchlight_surface=files.of("searchlight_surface", "02"),
            encoding=(),
            **nothing,
        )


def test_a_store_of_another_subject_is_refused(files, tmp_path):
    with pytest.raises(InputError, match="belongs to subject 02, not 01"):
        _subject(files, tmp_path / "a.html", betas=files.of("betas", "02"))


def test_bad_input_is_named_in_one_line(files, tmp_path):
    with pytest.raises(InputError, match=r"figures\.json is missing"):
        _subject(files, tmp_path / "a.html", figures=[tmp_path])
    table = tmp_path / "sub-01_desc-confounds_timeseries.tsv"
    table.write_text("trans_x\nlots\n")
    with pytest.raises(InputError, match=r"column trans_x .* no number"):
        _subject(files, tmp_path / "a.html", confounds=[table])
    with pytest.raises(InputError, match="unknown option 'colour' in config section report"):
        _subject(files, tmp_path / "a.html", options=OPTIONS | {"colour": 1})
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    stimuli = dict.fromkeys(files.stimuli, broken)
    with pytest.raises(InputError, match=r"broken\.png cannot be read"):
        _study(files, tmp_path / "b.html", stimuli=stimuli)


def test_options_schema_and_class_agree():
    path = Path(__file__).parents[2] / "workflow" / "schemas" / "config" / "report.json"
    schema = json.loads(path.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["additionalProperties"] is False
    defaults = files_of.default_options()
    jsonschema.validate(defaults, schema)
    assert set(defaults) == set(ReportOptions.__dataclass_fields__)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"slices": 0}, schema)


def test_numbers_in_words():
    assert number(-0.004) == "0.00"
    assert number(-1.256) == "−1.26"
    assert number(np.nan) == "n/a"
    assert interval(0.1, np.nan) == "no interval"
    assert p_value(0.0002) == "< 0.001"
    assert p_value(0.0314) == "0.031"


def test_mean_rdms_scales_subjects_alike():
    from isocortex.report.matrices import order_stimuli
    from isocortex.report.study_geometry import mean_rdms

    shape = np.array([[1.0, 2.0, 3.0]])
    stores = [
        xr.Dataset(
            {"dissimilarity": (("region", "pair"), gain * shape)},
            coords={
                "region": np.array(["V1"], dtype=object),
                "stimulus_i": ("pair", np.array(["a", "a", "b"], dtype=object)),
                "stimulus_j": ("pair", np.array(["b", "c", "c"], dtype=object)),
            },
        )
        for gain in (1.0, 100.0)
    ]
    matrices, n = mean_rdms(stores, order_stimuli(["c", "b", "a"]))
    scale = np.sqrt(np.mean(shape**2))
    expected = np.array([[0, 1, 2], [1, 0, 3], [2, 3, 0]]) / scale
    np.testing.assert_allclose(matrices["V1"], expected)
    assert n == {"V1": 2}


def test_the_report_says_who_preprocessed():
    blocks, _ = methods_blocks(
        entry="derivatives",
        made_by="fMRIPrep 24.1.1",
        config={},
        versions={},
        opened=defaultdict(list),
        surface=False,
    )
    assert "made by fMRIPrep 24.1.1, with confounds named" in "".join(map(str, blocks))
