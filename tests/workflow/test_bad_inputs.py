"""Bad input ends in one clear line and exit code 1 before any job starts."""

import gzip
import json
import shutil
from pathlib import Path

import pytest
import torch

from . import tiny

FUNC = Path("bids/sub-01/func")
STEM = "sub-01_task-objects_run-1"


def set_key(config: dict, key: str, value) -> None:
    *path, last = key.split(".")
    for part in path:
        config = config.setdefault(part, {})
    config[last] = value


def key(name, value):
    return lambda folder, config: set_key(config, name, value)


def no_key(name):
    return lambda folder, config: config.pop(name)


def text(path, content):
    return lambda folder, config: (folder / path).write_text(content)


def remove(path):
    def change(folder, config):
        target = folder / path
        shutil.rmtree(target) if target.is_dir() else target.unlink()

    return change


def event(onset="2.0", duration="1", stimulus="a.png"):
    header = "onset\tduration\ttrial_type\tstim_file\n"
    return text(FUNC / f"{STEM}_events.tsv", f"{header}{onset}\t{duration}\tthing\t{stimulus}\n")


def no_t1w(folder, config):
    remove("bids/sub-02/anat")(folder, config)
    set_key(config, "preprocess.spaces", ["MNI152NLin2009aSym", "T1w"])


def truncated(folder, config):
    file = folder / FUNC / f"{STEM}_bold.nii.gz"
    file.write_bytes(file.read_bytes()[:4000])


def short_inside(folder, config):
    file = folder / FUNC / f"{STEM}_bold.nii.gz"
    file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes())[:-800]))


def not_nifti(folder, config):
    (folder / FUNC / f"{STEM}_bold.nii.gz").write_bytes(gzip.compress(b"x" * 4000))


def bold(shape, **options):
    return lambda folder, config: tiny.nifti(
        folder / FUNC / f"{STEM}_bold.nii.gz", shape, **options
    )


def same_run_twice(folder, config):
    file = folder / FUNC / f"{STEM}_bold.nii.gz"
    shutil.copy(file, file.with_name(file.name.replace("run-1", "run-01")))


def two_formats(folder, config):
    file = folder / FUNC / f"{STEM}_bold.nii.gz"
    file.with_suffix("").write_bytes(gzip.decompress(file.read_bytes()))


def sidecar(**content):
    return text(FUNC / f"{STEM}_bold.json", json.dumps(content))


def no_tr(folder, config):
    (folder / "bids/task-objects_bold.json").write_text('{"TaskName": "objects"}')
    tiny.nifti(folder / FUNC / f"{STEM}_bold.nii.gz", (*tiny.SHAPE, 20), tr=0.0)


def one_run(folder, config):
    set_key(config, "rsa.measures", ["crossnobis"])
    for file in (folder / FUNC).glob("*run-2*"):
        file.unlink()


def betas_and_crossnobis(folder, config):
    """The default noise normalisation, from residuals, which betas come without."""
    (folder / "betas.tsv").write_text("subject\timage\tevents\n01\tatlas.nii.gz\tatlas.tsv\n")
    config["input"] = {"betas": "betas.tsv"}
    config.pop("features")


def pickled_rdm(folder, config):
    (folder / "V1.pkl").write_bytes(b"")
    (folder / "rdms.tsv").write_text("subject\tregion\tfile\n01\tV1\tV1.pkl\n")
    config["input"] = {"rdms": "rdms.tsv"}


def model_rdms(*rows, header="model\tfile\tlayer", name="animacy.csv"):
    """A table of models given as RDMs, beside the study's recordings and its model pixels."""

    def build(folder, config):
        (folder / name).write_text("0,1\n1,0\n")
        (folder / "models.tsv").write_text("\n".join([header, *rows]) + "\n")
        set_key(config, "input.model_rdms", "models.tsv")

    return build


def multi_echo(folder, config):
    file = folder / FUNC / f"{STEM}_bold.nii.gz"
    file.rename(file.with_name(file.name.replace("_bold", "_echo-1_bold")))


def atlas_without_label(folder, config):
    (folder / "atlas.tsv").write_text("index\tname\n1\tA\n1\tB\n")


def derivatives(change=lambda folder: None, space="T1w"):
    def build(folder, config):
        func = folder / "derivatives" / FUNC.relative_to("bids")
        for run in (1, 2):
            stem = f"sub-01_task-objects_run-{run}"
            tiny.nifti(func / f"{stem}_space-T1w_desc-preproc_bold.nii.gz", (*tiny.SHAPE, 20))
            tiny.nifti(func / f"{stem}_space-T1w_desc-brain_mask.nii.gz", tiny.SHAPE)
            names = [f"{kind}_{axis}" for kind in ("trans", "rot") for axis in "xyz"]
            table = "\n".join(["\t".join(names)] + ["\t".join(["0.1"] * 6)] * 20) + "\n"
            (func / f"{stem}_desc-confounds_timeseries.tsv").write_text(table)
            sidecar = func / f"{stem}_space-T1w_desc-preproc_bold.json"
            sidecar.write_text('{"RepetitionTime": 2.0}')
        config["input"] = {"derivatives": "derivatives", "bids": "bids"}
        config["regions"]["space"] = "T1w"
        set_key(config, "glm.space", space)
        change(func)

    return build


def fewer_confounds(func):
    (func / f"{STEM}_desc-confounds_timeseries.tsv").write_text("trans_x\n0.1\n")


def no_mask(func):
    (func / f"{STEM}_space-T1w_desc-brain_mask.nii.gz").unlink()


def no_sidecar(func):
    (func / f"{STEM}_space-T1w_desc-preproc_bold.json").unlink()


def other_grid(func):
    tiny.nifti(func / f"{STEM}_space-T1w_desc-preproc_bold.nii.gz", (8, 8, 6, 20))


def readout(**options):
    """A readout of the pixels, but for what is given."""
    return key("encoding.readouts.rf", {"kind": "gaussian", "model": "pixels"} | options)


def universal(**options):
    """A universal encoder of the pixels, but for what is given."""
    return key("encoding.universal.crowd", {"model": "pixels"} | options)


CASES = {
    "misspelt key": (key("glm.hfr", "spm"), "glm.hfr: no such key: did you mean 'hrf'?"),
    "misspelt section": (key("seeed", 2), "seeed: no such key: did you mean 'seed'?"),
    "value not allowed": (key("glm.hrf", "glovr"), "did you mean 'glover'?"),
    "wrong type": (key("seed", "three"), 'seed is "three", but must be a whole number'),
    "study missing": (no_key("study"), "study is missing: name of the study"),
    "regions missing": (no_key("regions"), "regions is missing: name an atlas"),
    "no entry": (key("input", {"model_rdms": "x"}), "input needs one of"),
    "dataset missing": (key("input.bids", "nowhere"), "nowhere is not a folder"),
    "variable not set": (key("input.bids", "$NOT_SET_HERE/x"), "NOT_SET_HERE is not set"),
    "empty dataset": (key("input.bids", "bids/stimuli"), "holds no sub-* folder"),
    "unknown subject": (key("subjects", ["sub-1"]), "subject '1' is not in bids: did you mean 01?"),
    "number as subject": (key("subjects", [1]), "subject 1 is a number: write it in quotes"),
    "unknown excluded": (key("exclude", {"09": "moved"}), "subject '09' is not in bids"),
    "nobody left": (key("exclude", {"01": "moved", "02": "slept"}), "no subject is left"),
    "unknown task": (key("tasks", ["rest"]), "has no BOLD run of task rest"),
    "space not made": (key("glm.space", "T1w"), "which preprocess.spaces"),
    "no T1w for the space": (no_t1w, "sub-02 has no T1w in bids: add it, take T1w out of"),
    "no runs": (remove("bids/sub-02/func"), "sub-02 has no BOLD run"),
    "crossnobis with one run": (one_run, "has one run of task objects, and crossnobis needs two"),
    "Mahalanobis without noise": (
        key("rsa", {"measures": ["mahalanobis"], "noise_normalisation": {"source": "none"}}),
        "mahalanobis is in units of the noise",
    ),
    "duplicate run": (same_run_twice, "are the same run twice"),
    "run in two formats": (two_formats, "are the same run twice"),
    "multi-echo": (multi_echo, "is multi-echo"),
    "no stimuli": (remove("bids/stimuli"), "bids/stimuli is not a folder"),
    "missing stimulus": (
        remove("bids/stimuli/c.png"),
        "names stimulus 'c.png'",
    ),
    "no events table": (remove(FUNC / f"{STEM}_events.tsv"), "has no events table"),
    "no events": (
        text(FUNC / f"{STEM}_events.tsv", "onset\tduration\tstim_file\n"),
        "holds no events",
    ),
    "events beyond the end": (event(onset="40.0"), "1 events start after the last volume's end"),
    "onset no number": (event(onset="early"), "line 2: onset is 'early'"),
    "negative duration": (event(duration="-1"), "line 2: duration is '-1'"),
    "ragged events": (
        text(FUNC / f"{STEM}_events.tsv", "onset\tduration\n1.0\n"),
        "not as many cells",
    ),
    "truncated NIfTI": (truncated, "is truncated"),
    "NIfTI shorter than its header": (short_inside, "is truncated"),
    "not a NIfTI": (not_nifti, "is not a NIfTI-1 file"),
    "volume instead of series": (bold(tiny.SHAPE), "is no time series"),
    "series instead of volume": (
        lambda folder, config: tiny.nifti(
            folder / "bids/sub-01/anat/sub-01_T1w.nii.gz", (*tiny.SHAPE, 3)
        ),
        "is not a volume",
    ),
    "TR missing": (no_tr, "no RepetitionTime in its JSON and none in its header"),
    "TR contradicted": (sidecar(RepetitionTime=2.5), "2.5 s in its JSON and 2 s in its header"),
    "two TRs of a task": (
        lambda folder, config: (
            bold((*tiny.SHAPE, 20), tr=2.5)(folder, config),
            sidecar(RepetitionTime=2.5)(folder, config),
        ),
        "has TR 2 s, sub-01_task-objects_run-1_bold.nii.gz 2.5 s: give the runs different task",
    ),
    "TR in milliseconds": (sidecar(RepetitionTime=2000), "RepetitionTime is 2000"),
    "unreadable JSON": (text(FUNC / f"{STEM}_bold.json", "{"), "cannot be read as JSON"),
    "slice timing too short": (
        sidecar(SliceTiming=[0.0, 1.0]),
        "SliceTiming has 2 values for the 6 slices",
    ),
    "slice timing in ms": (
        sidecar(SliceTiming=[0, 300, 600, 900, 1200, 1500]),
        "from 0 to 1500 s with a RepetitionTime of 2 s",
    ),
    "atlas missing": (remove("atlas.nii.gz"), "regions.atlas is 'atlas.nii.gz', which is missing"),
    "label twice": (atlas_without_label, "line 3: 'B' is there twice"),
    "checkpoint missing": (
        key("features.models.pixels.weights", "weights.pt"),
        "weights is 'weights.pt', which is missing",
    ),
    "derivatives without events' dataset": (
        key("input", {"derivatives": "bids"}),
        "input.bids is missing: the dataset that holds the events",
    ),
    "derivatives in another space": (
        derivatives(space="MNI152NLin6Asym"),
        "it has T1w; set glm.space",
    ),
    "derivatives without mask": (derivatives(no_mask), "has no brain mask beside it"),
    "derivatives without sidecar": (derivatives(no_sidecar), "has no JSON sidecar beside it"),
    "confound rows": (derivatives(fewer_confounds), "has 1 rows for 20 volumes"),
    "mismatched grids": (derivatives(other_grid), "lie on different grids"),
    "two entries": (
        key("input", {"betas": "atlas.tsv", "rdms": "atlas.tsv"}),
        "takes one of derivatives, betas, timeseries and rdms",
    ),
    "betas without residuals": (betas_and_crossnobis, "for crossnobis set it to betas or none"),
    "pickled RDM": (pickled_rdm, "is a pickle, which can run code when it is read"),
    "model RDM missing": (
        model_rdms("animacy\tlost.csv\t"),
        "lost.csv of model animacy is missing",
    ),
    "model RDM pickled": (
        model_rdms("animacy\tanimacy.pkl\t", name="animacy.pkl"),
        "line 2: animacy.pkl of model animacy is a pickle",
    ),
    "unknown column of model RDMs": (
        model_rdms("animacy\tanimacy.csv\t", header="model\tfile\tlayr"),
        "has a column 'layr', known are model, file, layer, stimuli, rdm: did you mean 'layer'?",
    ),
    "column of model RDMs missing": (
        model_rdms("animacy.csv\t", header="file\tlayer"),
        "needs the columns model and file: add model",
    ),
    "model RDM of a model with features": (
        model_rdms("pixels\tanimacy.csv\t"),
        "line 2: model pixels is in features.models, too: rename one",
    ),
    "model RDM of no name": (model_rdms("a-b\tanimacy.csv\t"), "model 'a-b' is no name"),
    "model RDM twice": (
        model_rdms("animacy\tanimacy.csv\t", "animacy\tanimacy.csv\t"),
        "line 3: layer animacy of model animacy is there twice",
    ),
    "stimulus list of a model RDM missing": (
        model_rdms("animacy\tanimacy.csv\tids.txt", header="model\tfile\tstimuli"),
        "ids.txt of model animacy is missing",
    ),
    "unknown kind of readout": (readout(kind="gausian"), "did you mean 'gaussian'?"),
    "readout of an unknown model": (readout(model="pixel"), "did you mean 'pixels'?"),
    "unknown option of a readout": (
        readout(options={"gird": 3}),
        "readout 'gaussian' has no option 'gird' in encoding.readouts.rf.options",
    ),
    "universal encoder of an unknown model": (
        universal(model="pixel"),
        "encoding.universal.crowd.model is 'pixel', which is not in features.models: did you mean",
    ),
    "unknown new subject": (
        universal(new_subjects=["07"]),
        "encoding.universal.crowd.new_subjects names '07', which is no subject of the study",
    ),
    "only new subjects": (
        universal(new_subjects=["01", "02"]),
        "names all subjects of task objects: leave at least one to train the network on",
    ),
    "width without room for heads": (
        universal(width=10, heads=4),
        "encoding.universal.crowd.width (10) is no multiple of heads (4): change one",
    ),
    "table without columns": (key("input", {"rdms": "atlas.tsv"}), "needs the columns subject"),
}
if not torch.cuda.is_available():
    CASES["CUDA without a GPU"] = (key("encoding.device", "cuda"), "no usable CUDA GPU")


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_line_before_any_job(tmp_path, name):
    change, message = CASES[name]
    config = tiny.make(tmp_path)
    change(tmp_path, config)
    tiny.write_config(tmp_path, config)
    done = tiny.snakemake(tmp_path)
    lines = [line for line in done.stderr.splitlines() if line.startswith("isocortex: ")]
    assert done.returncode == 1, done.stderr
    assert len(lines) == 1, done.stderr
    assert message in lines[0]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "results" / "tiny" / "logs").exists()
    assert not list((tmp_path / ".snakemake" / "locks").glob("*"))


def test_good_input_passes_the_same_checks(tmp_path):
    """Else all of the above could pass for another reason."""
    tiny.make(tmp_path)
    done = tiny.snakemake(tmp_path, "--until", "describe_derivatives")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "results/tiny/preprocess/dataset_description.json").is_file()


def test_good_derivatives_pass_the_same_checks(tmp_path):
    config = tiny.make(tmp_path)
    derivatives()(tmp_path, config)
    tiny.write_config(tmp_path, config)
    done = tiny.snakemake(tmp_path, "--until", "transform_regions")
    assert done.returncode == 0, done.stderr
