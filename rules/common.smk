"""What the rules share: the study, its paths, and which results belong to it."""

import math
import os
import sys
from pathlib import Path

# A job keeps to its own threads: torch, dask and ANTs are told theirs, and linear algebra would
# start as many as there are cores in each of the jobs that run side by side.
os.environ.setdefault("OMP_NUM_THREADS", "1")

sys.path.insert(0, str(Path(workflow.basedir) / "workflow"))

from isocortex.bids import (
    SURFACES,
    read_header,
    stimuli_beside,
    stimulus_sidecar,
)
from isocortex.errors import InputError
from isocortex.fieldmaps_metadata import fieldmap_as_dict
from isocortex.parallel import hand_on_scheduler
from isocortex.provenance import code_version, fingerprint
from isocortex.study import TEMPLATE, check_inputs, load_study, model_files


def stop(error):
    """End in one line: no job has started."""
    print(f"isocortex: {error}", file=sys.stderr, flush=True)
    sys.exit(1)


def checked_study():
    """Return the study that the config describes."""
    try:
        return load_study(config)
    except InputError as error:
        stop(error)


def check_before_start():
    """Open headers, sidecars and events of the study, once, before the first job."""
    try:
        check_inputs(STUDY)
    except InputError as error:
        stop(error)


STUDY = checked_study()
CONFIG = STUDY.config
RESULTS = f"{CONFIG['results']}/{CONFIG['study']}"
PREPROCESS = f"{RESULTS}/preprocess"
SPACES = CONFIG["preprocess"]["spaces"]
SEED = CONFIG["seed"]
ENTRY = STUDY.entry
# Where blocks run is no part of any result: jobs get it beside their params.
hand_on_scheduler(CONFIG["dask"])


wildcard_constraints:
    subject="[A-Za-z0-9]+",
    task="[A-Za-z0-9]+",
    model="[A-Za-z0-9]+",
    family="[A-Za-z0-9]+",
    measure="[a-z]+",
    fieldmap=r"(ses-[A-Za-z0-9]+/)?fmap/sub-[^/]+",
    readout="[A-Za-z0-9]+",
    joint="[A-Za-z0-9]+",
    universal="[A-Za-z0-9]+",
    run=r"(ses-[A-Za-z0-9]+/)?func/sub-[^/]+",


def log_of(rule, *wildcards):
    """Return the log of a rule: results/<study>/logs/<rule>/<wildcards>.log."""
    name = "_".join(wildcards) or "study"
    return f"{RESULTS}/logs/{rule}/{name}.log"


def benchmark_of(rule, *wildcards):
    """Return the benchmark table of a rule."""
    name = "_".join(wildcards) or "study"
    return f"{RESULTS}/benchmarks/{rule}/{name}.tsv"


def manifest_of(store):
    """Return the manifest of a store."""
    return str(Path(store).with_suffix(".json"))


def manifests_of(stores):
    """Return the manifests of several stores."""
    return [manifest_of(store) for store in stores]


def options(section, *keys):
    """Return a config section, or some of its keys, for a rule's params."""
    chosen = CONFIG[section]
    return {key: chosen[key] for key in keys} if keys else dict(chosen)


def options_but(section, *keys):
    """Return a config section without some of its keys, for a rule's params."""
    return {key: value for key, value in CONFIG[section].items() if key not in keys}


def glm_options():
    """Return what the config says of betas, without options of estimators that are not chosen."""
    unused = ["continuous_tasks", "contrasts", "nifti"]
    unused += [] if CONFIG["glm"]["estimator"] == "lss" else ["lss_others"]
    unused += [] if CONFIG["glm"]["estimator"] == "optimised" else ["optimised"]
    return options_but("glm", *unused)


TRSA_OPTIONAL = ("dependence", "persistence")


def optional_trsa(part, *shared):
    """Return the keys of an optional part of `trsa`, with some that it shares, for params."""
    own = {key: value for key, value in CONFIG["trsa"][part].items() if key != "run"}
    return options("trsa", *shared) | own


def topology_options(*without):
    """Return what the config's section trsa says of statistics and inference."""
    return {
        key: value
        for key, value in options_but("trsa", *without).items()
        if not isinstance(value, dict)
    }


def layer_options():
    """Return what the config says of the identification of layers, for a rule's params."""
    layers = CONFIG["trsa"]["layer_identification"]
    return {"noise": layers["noise"], "draws": layers["draws"]}


include: "common/stores.smk"
include: "common/inputs.smk"
include: "common/analyses.smk"
include: "common/reports.smk"
include: "common/targets.smk"
