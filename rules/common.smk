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


# Paths of the stores: the only place where they are written.


def betas_store(subject="{subject}", task="{task}"):
    return f"{RESULTS}/glm/sub-{subject}_task-{task}_betas.zarr"


def contrast_maps(subject="{subject}", task="{task}"):
    return f"{RESULTS}/glm/sub-{subject}_task-{task}_contrasts"


def beta_images(subject="{subject}", task="{task}"):
    return f"{RESULTS}/glm/sub-{subject}_task-{task}_images"


def timeseries_store(subject="{subject}", task="{task}"):
    return f"{RESULTS}/glm/sub-{subject}_task-{task}_timeseries.zarr"


def features_store(model="{model}"):
    return f"{RESULTS}/features/model-{model}_features.zarr"


def rdms_store(subject="{subject}", task="{task}", measure="{measure}"):
    return f"{RESULTS}/rsa/sub-{subject}_task-{task}_measure-{measure}_rdms.zarr"


def model_rdms_store(model="{model}", measure="{measure}"):
    return f"{RESULTS}/rsa/model-{model}_measure-{measure}_rdms.zarr"


def scores_store(task="{task}", measure="{measure}"):
    return f"{RESULTS}/rsa/task-{task}_measure-{measure}_scores.zarr"


def partition_store(task="{task}", measure="{measure}"):
    return f"{RESULTS}/rsa/task-{task}_measure-{measure}_partition.zarr"


def searchlight_store(subject="{subject}", task="{task}"):
    return f"{RESULTS}/searchlight/sub-{subject}_task-{task}_searchlight.zarr"


def searchlight_group_store(task="{task}"):
    return f"{RESULTS}/searchlight/task-{task}_searchlight.zarr"


def surface_searchlight_store(subject="{subject}", task="{task}"):
    return f"{RESULTS}/searchlight/sub-{subject}_task-{task}_surface.zarr"


def surface_searchlight_group_store(task="{task}"):
    return f"{RESULTS}/searchlight/task-{task}_surface.zarr"


def identification_store(task="{task}", measure="{measure}"):
    return f"{RESULTS}/trsa/task-{task}_measure-{measure}_identification.zarr"


def topology_store(task="{task}", measure="{measure}"):
    return f"{RESULTS}/trsa/task-{task}_measure-{measure}_topology.zarr"


def dependence_store(task="{task}", measure="{measure}"):
    return f"{RESULTS}/trsa/task-{task}_measure-{measure}_dependence.zarr"


def persistence_store(task="{task}", measure="{measure}"):
    return f"{RESULTS}/trsa/task-{task}_measure-{measure}_persistence.zarr"


def layers_store(family="{family}", measure="{measure}"):
    return f"{RESULTS}/trsa/family-{family}_measure-{measure}_layers.zarr"


def encoding_store(subject="{subject}", task="{task}", model="{model}"):
    return f"{RESULTS}/encoding/sub-{subject}_task-{task}_model-{model}_encoding.zarr"


def readout_store(subject="{subject}", task="{task}", readout="{readout}"):
    return f"{RESULTS}/encoding/sub-{subject}_task-{task}_readout-{readout}.zarr"


def universal_store(task="{task}", universal="{universal}"):
    return f"{RESULTS}/encoding/task-{task}_universal-{universal}.zarr"


def joint_store(subject="{subject}", task="{task}", joint="{joint}"):
    return f"{RESULTS}/encoding/sub-{subject}_task-{task}_joint-{joint}.zarr"


def encoding_summary_store(task="{task}"):
    return f"{RESULTS}/encoding/task-{task}_summary.zarr"


def regions_prefix(subject="{subject}", task="{task}"):
    return f"{RESULTS}/regions/sub-{subject}_task-{task}"


def anat(name, subject="{subject}"):
    return f"{PREPROCESS}/sub-{subject}/anat/sub-{subject}_{name}"


def func(name, subject="{subject}", run="{run}"):
    return f"{PREPROCESS}/sub-{subject}/{run}_{name}"


def fmap(name, subject="{subject}", fieldmap="{fieldmap}"):
    return f"{PREPROCESS}/sub-{subject}/{fieldmap}_{name}"


def figures_of(part, subject="{subject}"):
    return f"{PREPROCESS}/sub-{subject}/figures/{part}"


def each_space(name, subject="{subject}", run="{run}"):
    """Return an output of preprocess_bold in every output space that is a volume."""
    volumes = [space for space in SPACES if space not in SURFACES]
    return [func(f"space-{space}_{name}", subject, run) for space in volumes]


def each_hemisphere(name, subject="{subject}", run="{run}"):
    """Return an output of preprocess_bold on both hemispheres of every surface asked for."""
    surfaces = [space for space in SPACES if space in SURFACES]
    return [
        func(f"hemi-{side}_space-{space}_{name}", subject, run)
        for space in surfaces
        for side in "LR"
    ]


# Inputs that depend on the study's files.


def has_t1w(subject):
    """Return whether runs of a subject go to its own anatomy, or straight to the template."""
    return bool(STUDY.subjects[subject].t1w)


def subjects_pattern(t1w):
    """Return what the subjects with, or without, a T1w match."""
    labels = [s for s in STUDY.subjects if ENTRY == "bids" and has_t1w(s) == t1w]
    return "|".join(labels) or "(?!)"


def raw_t1w(wildcards):
    return [str(path) for path in STUDY.subjects[wildcards.subject].t1w]


def raw_t1w_content(wildcards):
    return [fingerprint(path) for path in raw_t1w(wildcards)]


def raw_run(wildcards):
    return STUDY.run(wildcards.subject, wildcards.run)


def raw_bold(wildcards):
    return str(raw_run(wildcards).bold)


def raw_bold_content(wildcards):
    return fingerprint(raw_bold(wildcards))


def bold_mem_mb(wildcards):
    """Return the memory of preprocess_bold: three times a long run, as float32."""
    values = math.prod(read_header(raw_bold(wildcards)).shape)
    return max(3500, 1500 + 3 * 4 * values // 10**6)


def raw_sidecars(wildcards):
    return [str(path) for path in raw_run(wildcards).sidecars]


def raw_fieldmap(wildcards):
    """Return what a field is estimated from."""
    fieldmaps = STUDY.subjects[wildcards.subject].fieldmaps.values()
    return next(found for found in fieldmaps if found.stem == wildcards.fieldmap)


def raw_fieldmap_images(wildcards):
    found = raw_fieldmap(wildcards)
    return [str(path) for path in [*found.files, *found.magnitudes]]


def raw_fieldmap_sidecars(wildcards):
    found = raw_fieldmap(wildcards)
    return sorted({str(path) for files in found.sidecars for path in files})


def raw_fieldmap_content(wildcards):
    return [fingerprint(path) for path in raw_fieldmap_images(wildcards)]


def raw_fieldmap_parts(wildcards):
    return fieldmap_as_dict(raw_fieldmap(wildcards))


def run_fieldmap(wildcards, name):
    """Return a file of the field that a run is corrected with, nothing where it has none."""
    fieldmaps = STUDY.subjects[wildcards.subject].fieldmaps
    found = fieldmaps.get(raw_run(wildcards).fieldmap)
    return [fmap(name, wildcards.subject, found.stem)] if found else []


def run_field(wildcards):
    return run_fieldmap(wildcards, "desc-preproc_fieldmap.nii.gz")


def run_field_reference(wildcards):
    return run_fieldmap(wildcards, "desc-reference_fieldmap.nii.gz")


def run_field_manifest(wildcards):
    return run_fieldmap(wildcards, "manifest.json")


def run_distortion(wildcards):
    """Return the kind of a run's field, or why it has none, for params."""
    run = raw_run(wildcards)
    found = STUDY.subjects[wildcards.subject].fieldmaps.get(run.fieldmap)
    return {"kind": found.kind if found else "none", "note": run.no_fieldmap}


def runs_of(wildcards):
    return STUDY.subjects[wildcards.subject].of(wildcards.task)


def run_names(wildcards):
    return [{"session": run.session, "run": run.name} for run in runs_of(wildcards)]


def glm_bold(wildcards):
    if ENTRY == "bids":
        return [
            func(
                f"space-{STUDY.space}_desc-preproc_bold.nii.gz",
                wildcards.subject,
                run.stem,
            )
            for run in runs_of(wildcards)
        ]
    return [str(run.bold) for run in runs_of(wildcards)]


def glm_mask(wildcards):
    if ENTRY == "bids":
        return [
            func(
                f"space-{STUDY.space}_desc-brain_mask.nii.gz",
                wildcards.subject,
                run.stem,
            )
            for run in runs_of(wildcards)
        ]
    return [str(run.mask) for run in runs_of(wildcards)]


def glm_confounds(wildcards):
    if ENTRY == "bids":
        return [
            func("desc-confounds_timeseries.tsv", wildcards.subject, run.stem)
            for run in runs_of(wildcards)
        ]
    return [str(run.confounds) for run in runs_of(wildcards)]


def glm_sidecars(wildcards):
    if ENTRY == "bids":
        return [
            func(
                f"space-{STUDY.space}_desc-preproc_bold.json",
                wildcards.subject,
                run.stem,
            )
            for run in runs_of(wildcards)
        ]
    return [str(path) for run in runs_of(wildcards) for path in run.sidecars]


def glm_manifests(wildcards):
    """Return what makes the GLM run again: the manifests of the preprocessed runs."""
    if ENTRY == "bids":
        return [
            func("manifest.json", wildcards.subject, run.stem)
            for run in runs_of(wildcards)
        ]
    return []


def glm_content(wildcards):
    """Return signs of the content of derivatives made elsewhere, which have no manifest."""
    if ENTRY == "bids":
        return []
    tables = glm_confounds(wildcards)
    files = [
        *glm_bold(wildcards),
        *glm_mask(wildcards),
        *tables,
        *glm_sidecars(wildcards),
    ]
    files += [Path(table).with_suffix(".json") for table in tables]
    return [fingerprint(file) for file in files]


def glm_events(wildcards):
    return [str(run.events) for run in runs_of(wildcards) if run.events]


def betas_grid(wildcards):
    """Return an image on the grid of the betas."""
    if ENTRY in ("betas", "timeseries"):
        return str(runs_of(wildcards)[0].bold)
    return glm_mask(wildcards)[0]


def given_betas(wildcards):
    return str(runs_of(wildcards)[0].bold)


def given_betas_content(wildcards):
    return fingerprint(given_betas(wildcards))


def given_betas_events(wildcards):
    return str(runs_of(wildcards)[0].events)


def given_betas_mask(wildcards):
    mask = runs_of(wildcards)[0].mask
    return str(mask) if mask else []


def given_series(wildcards):
    return [str(run.bold) for run in runs_of(wildcards)]


def given_series_masks(wildcards):
    return [str(run.mask) for run in runs_of(wildcards) if run.mask]


def given_series_content(wildcards):
    files = [*given_series(wildcards), *given_series_masks(wildcards)]
    return [fingerprint(file) for file in files]


def given_series_tr(wildcards):
    return runs_of(wildcards)[0].tr


def responses_store(wildcards):
    """Return what encoding predicts: volumes of a continuous task, single trials of another."""
    continuous = wildcards.task in STUDY.continuous_tasks
    store = timeseries_store if continuous else betas_store
    return store(wildcards.subject, wildcards.task)


def responses_manifest(wildcards):
    return manifest_of(responses_store(wildcards))


def given_rdms(wildcards):
    return [str(run.bold) for run in runs_of(wildcards)]


def given_rdm_stimulus_lists(wildcards):
    """Return the file of stimulus ids of each RDM, empty where the table names none."""
    return [str(run.events or "") for run in runs_of(wildcards)]


def given_rdm_choices(wildcards):
    """Return which RDM of each file is meant, empty where the table does not say."""
    return [run.rdm for run in runs_of(wildcards)]


def given_rdm_stimuli(wildcards):
    return sorted({path for path in given_rdm_stimulus_lists(wildcards) if path})


def rdms_content(files, lists):
    """Return signs of the content of files with RDMs, and of stimulus ids named or beside them."""
    beside = [stimuli_beside(file) for file in files]
    return [fingerprint(path) for path in [*files, *beside, *lists]]


def given_rdms_content(wildcards):
    return rdms_content(given_rdms(wildcards), given_rdm_stimuli(wildcards))


def given_rdm_regions(wildcards):
    return [run.label for run in runs_of(wildcards)]


def given_model(wildcards):
    """Return the rows of the table of models given as RDMs that are one model's."""
    return STUDY.given_models[wildcards.model]


def given_model_files(wildcards):
    return [str(row.file) for row in given_model(wildcards)]


def given_model_layers(wildcards):
    """Return the layer of each file, empty where the file may name it."""
    return [row.layer for row in given_model(wildcards)]


def given_model_stimulus_lists(wildcards):
    """Return the file of stimulus ids of each file, empty where the table names none."""
    return [str(row.stimuli or "") for row in given_model(wildcards)]


def given_model_stimuli(wildcards):
    return sorted({path for path in given_model_stimulus_lists(wildcards) if path})


def given_model_choices(wildcards):
    """Return which RDM of each file is meant, empty where the table does not say."""
    return [row.rdm for row in given_model(wildcards)]


def given_model_content(wildcards):
    return rdms_content(given_model_files(wildcards), given_model_stimuli(wildcards))


def atlas_of(wildcards):
    return str(STUDY.atlas(wildcards.subject))


def atlas_content(wildcards):
    """Return signs of the content of the atlas and of what has no manifest beside it."""
    files = [atlas_of(wildcards)]
    if ENTRY != "bids":
        files += [betas_grid(wildcards), *atlas_transform(wildcards)]
    return [fingerprint(file) for file in files if file]


def atlas_transform(wildcards):
    """Return the transforms that take the atlas into the betas' space, where it needs some."""
    route = STUDY.region_route(wildcards.subject)
    if ENTRY == "derivatives":
        transforms = STUDY.subjects[wildcards.subject].transforms
        return [str(transforms[f"{start}-{end}"]) for start, end in route]
    return [
        anat(f"from-{start}_to-{end}_mode-image_xfm.h5", wildcards.subject)
        for start, end in route
    ]


def atlas_manifest(wildcards):
    if ENTRY == "bids" and atlas_transform(wildcards):
        return anat("manifest.json", wildcards.subject)
    return []


def model_options(wildcards):
    return (
        options("features", "batch_size", "device")
        | CONFIG["features"]["models"][wildcards.model]
    )


def model_sources(wildcards):
    """Return the local files that a model is made from: weights, tokenizer, code, arrays."""
    return [
        str(path) for path in model_files(wildcards.model, model_options(wildcards))
    ]


def model_content(wildcards):
    return [fingerprint(path) for path in model_sources(wildcards)]


def stimulus_files():
    return [str(path) for path in STUDY.stimuli.values()]


def stimulus_content():
    """Return a sign of each stimulus' content, and of the JSON file beside an array of frames."""
    beside = {name: stimulus_sidecar(path) for name, path in STUDY.stimuli.items()}
    return {
        name: fingerprint(path) + (fingerprint(beside[name]) if beside[name] else "")
        for name, path in STUDY.stimuli.items()
    }


# Which stores belong to a task, a subject, the study.


def task_rdms(wildcards):
    return [
        rdms_store(subject, wildcards.task, wildcards.measure)
        for subject in STUDY.with_task(wildcards.task)
    ]


def task_rdm_manifests(wildcards):
    return manifests_of(task_rdms(wildcards))


def encoding_needs_regions():
    encoding = CONFIG["encoding"]
    return encoding["alpha_per"] == "region" or encoding["bootstrap"]


def encoding_regions(ending):
    """Return an input function: a file of the regions where the fit takes them, or nothing."""

    def files(wildcards):
        prefix = regions_prefix(wildcards.subject, wildcards.task)
        return [f"{prefix}_{ending}"] if encoding_needs_regions() else []

    return files


def weights_store(subject="{subject}", task="{task}", model="{model}"):
    return f"{RESULTS}/encoding/sub-{subject}_task-{task}_model-{model}_weights.zarr"


def responsive_ceiling_of_bootstrap():
    """Return the summary's choice of voxels, which matters to a fit with a bootstrap alone."""
    encoding = CONFIG["encoding"]
    return encoding["summary"]["responsive_ceiling"] if encoding["bootstrap"] else None


def readout_config(wildcards):
    return CONFIG["encoding"]["readouts"][wildcards.readout]


def readout_features(wildcards):
    return features_store(readout_config(wildcards)["model"])


def readout_features_manifest(wildcards):
    return manifest_of(readout_features(wildcards))


def readout_options(wildcards):
    """Return what the config says of a readout and of the folds that all encoding shares."""
    own = {k: v for k, v in readout_config(wildcards).items() if k != "model"}
    keys = ("cross_validation", "delays", "resampling", "gap", "min_ceiling", "device")
    return options("encoding", *keys) | own


def joint_config(wildcards):
    return CONFIG["encoding"]["joint"][wildcards.joint]


def joint_features(wildcards):
    """Return the features store of each space of a joint model, in the config's order."""
    sources = joint_config(wildcards)["spaces"].values()
    return [features_store(source.partition("/")[0]) for source in sources]


def joint_features_manifests(wildcards):
    return manifests_of(joint_features(wildcards))


def joint_options(wildcards):
    """Return what the config says of a joint model and of what all encoding shares."""
    keys = ("alphas", "cross_validation", "delays", "resampling", "gap")
    shared = options("encoding", *keys, "min_ceiling", "voxel_batch", "device")
    return shared | joint_config(wildcards)


def universal_config(wildcards):
    return CONFIG["encoding"]["universal"][wildcards.universal]


def universal_responses(wildcards):
    subjects = STUDY.with_task(wildcards.task)
    return [betas_store(subject, wildcards.task) for subject in subjects]


def universal_responses_manifests(wildcards):
    return manifests_of(universal_responses(wildcards))


def universal_features(wildcards):
    return features_store(universal_config(wildcards)["model"])


def universal_features_manifest(wildcards):
    return manifest_of(universal_features(wildcards))


def universal_options(wildcards):
    """Return what the config says of a universal encoder, new subjects if they have the task."""
    own = {k: v for k, v in universal_config(wildcards).items() if k != "model"}
    there = set(STUDY.with_task(wildcards.task)) & set(own["new_subjects"])
    own["new_subjects"] = sorted(there)
    return options("encoding", "min_ceiling", "device") | own


def readout_regions(ending):
    """Return an input function: a file of the regions where a readout has a use for them."""

    def files(wildcards):
        readout = readout_config(wildcards)
        by_region = readout["options"].get("queries") == "region"
        prefix = regions_prefix(wildcards.subject, wildcards.task)
        wanted = by_region or readout["voxels"] == "regions"
        return [f"{prefix}_{ending}"] if wanted else []

    return files


def joint_regions(ending):
    """Return an input function: a file of the regions where a joint model keeps to them."""

    def files(wildcards):
        prefix = regions_prefix(wildcards.subject, wildcards.task)
        wanted = joint_config(wildcards)["voxels"] == "regions"
        return [f"{prefix}_{ending}"] if wanted else []

    return files


def universal_regions(ending):
    """Return an input function: all subjects' regions where a universal encoder keeps to them."""

    def files(wildcards):
        wanted = universal_config(wildcards)["voxels"] == "regions"
        subjects = STUDY.with_task(wildcards.task) if wanted else []
        return [
            f"{regions_prefix(subject, wildcards.task)}_{ending}"
            for subject in subjects
        ]

    return files


def task_encodings(wildcards):
    return [
        encoding_store(subject, wildcards.task, model)
        for subject in STUDY.with_task(wildcards.task)
        for model in STUDY.models
    ]


def task_encoding_manifests(wildcards):
    return manifests_of(task_encodings(wildcards))


def task_joints(wildcards):
    return [
        joint_store(subject, wildcards.task, name)
        for subject in STUDY.with_task(wildcards.task)
        for name in CONFIG["encoding"]["joint"]
    ]


def task_joint_manifests(wildcards):
    return manifests_of(task_joints(wildcards))


def task_readouts(wildcards):
    return [
        readout_store(subject, wildcards.task, name)
        for subject in STUDY.with_task(wildcards.task)
        for name in CONFIG["encoding"]["readouts"]
    ]


def task_readout_manifests(wildcards):
    return manifests_of(task_readouts(wildcards))


def task_regions(wildcards):
    if not has_regions():
        return []
    return [
        f"{regions_prefix(subject, wildcards.task)}_dseg.nii.gz"
        for subject in STUDY.with_task(wildcards.task)
    ]


def first_region_labels(wildcards):
    """Return the table of region names, which is the same for all subjects."""
    if not has_regions():
        return []
    return (
        f"{regions_prefix(STUDY.with_task(wildcards.task)[0], wildcards.task)}_dseg.tsv"
    )


def task_region_manifests(wildcards):
    if not has_regions():
        return []
    return [
        f"{regions_prefix(subject, wildcards.task)}_manifest.json"
        for subject in STUDY.with_task(wildcards.task)
    ]


def task_searchlights(wildcards):
    return [
        searchlight_store(subject, wildcards.task)
        for subject in STUDY.with_task(wildcards.task)
    ]


def task_searchlight_manifests(wildcards):
    return manifests_of(task_searchlights(wildcards))


def task_surface_searchlights(wildcards):
    return [
        surface_searchlight_store(subject, wildcards.task)
        for subject in STUDY.with_task(wildcards.task)
    ]


def task_surface_searchlight_manifests(wildcards):
    return manifests_of(task_surface_searchlights(wildcards))


def model_measure(measure):
    """Return the dissimilarity of the features that goes with one of the brain's patterns."""
    chosen = CONFIG["rsa"]["model_measure"]
    if chosen != "matched":
        return chosen
    if measure in ("correlation", "given"):
        return "correlation"
    # Mahalanobis distances and crossnobis are squared Euclidean ones in units of the noise, Poisson
    # divergences nearly so (variance = mean), and features have no noise.
    return "cosine" if measure == "cosine" else "euclidean"


def model_rdms_for(measure):
    """Return the models' RDMs that RDMs of the brain by a measure are compared with."""
    computed = [
        model_rdms_store(model, model_measure(measure)) for model in STUDY.models
    ]
    # An RDM that is given is what it is, whichever measure the brain's is by.
    return computed + given_model_rdms()


def given_model_rdms():
    return [model_rdms_store(model, "given") for model in STUDY.given_models]


def task_model_rdms(wildcards):
    return model_rdms_for(wildcards.measure)


def task_model_rdm_manifests(wildcards):
    return manifests_of(task_model_rdms(wildcards))


def model_measures():
    """Return the dissimilarities of the features of models."""
    # Without a brain there is none of its measures to match.
    return sorted({model_measure(measure) for measure in STUDY.measures or ["given"]})


def all_model_rdms():
    if STUDY.tasks and not STUDY.trial_tasks:
        # Continuous tasks have no RDMs that they could be compared with.
        return []
    computed = [
        model_rdms_store(model, measure)
        for measure in model_measures()
        for model in STUDY.models
    ]
    return sorted(computed + given_model_rdms())


def family_model_rdms(wildcards):
    """Return the RDMs of all seeds of a family."""
    return [
        model_rdms_store(model, wildcards.measure)
        for model in STUDY.families[wildcards.family]
    ]


def family_model_rdm_manifests(wildcards):
    return manifests_of(family_model_rdms(wildcards))


def searchlight_model_rdms():
    return model_rdms_for(CONFIG["searchlight"]["measure"])


WHITENED = ("mahalanobis", "crossnobis")


def rdm_options(wildcards):
    """Return what the config says of RDMs by a measure; of noise only where it is whitened."""
    noise = ("noise_normalisation",) if wildcards.measure in WHITENED else ()
    return options("rsa", "min_voxels", "average_by", *noise)


def partition_options():
    """Return what the config says of partitions, which have one variance of the bootstrap."""
    rsa = CONFIG["rsa"]
    bootstrap = {k: v for k, v in rsa["bootstrap"].items() if k != "variance"}
    shared = options("rsa", "permutations", "interval")
    return rsa["partition"] | shared | {"bootstrap": bootstrap}


def searchlight_options():
    """Return what volume and surface searchlights share, for their rules' params."""
    keys = ["mask", "measure", "comparison", "transform"]
    if CONFIG["searchlight"]["measure"] in WHITENED:
        keys.append("noise_normalisation")
    return options("searchlight", *keys) | options("rsa", "average_by")


def surface_options():
    """Return what the config says of searchlights on the surface only."""
    surface = CONFIG["searchlight"]["surface"]
    return {key: value for key, value in surface.items() if key != "run"}


def searchlight_mask_content():
    mask = CONFIG["searchlight"]["mask"]
    return fingerprint(mask) if mask else ""


def has_models():
    return bool(STUDY.compared_models)


def has_responses():
    """Return whether there is something that encoding can predict."""
    return ENTRY not in ("rdms", "stimuli")


def has_betas():
    return has_responses() and bool(STUDY.trial_tasks)


def has_regions():
    return has_responses() and "regions" in CONFIG


def has_searchlight():
    return has_models() and has_betas() and CONFIG["searchlight"]["run"]


def has_surface_searchlight():
    # Only in a template space can a template's surface be sampled.
    return has_searchlight() and CONFIG["searchlight"]["surface"]["run"]


def subject_stores(kind):
    """Return an input function: one subject's stores of a kind, over tasks."""

    def stores(wildcards):
        subject = wildcards.subject
        own = STUDY.subjects[subject].tasks()
        tasks = [task for task in own if task not in STUDY.continuous_tasks]
        if kind == "betas":
            return [betas_store(subject, task) for task in tasks] if has_betas() else []
        if kind == "rdms":
            return [
                rdms_store(subject, task, m) for task in tasks for m in STUDY.measures
            ]
        if kind == "searchlight":
            return [
                searchlight_store(subject, task) for task in tasks if has_searchlight()
            ]
        if kind == "searchlight_surface":
            surface = has_surface_searchlight()
            return [surface_searchlight_store(subject, t) for t in tasks if surface]
        if kind == "encoding_joint":
            names, store = CONFIG["encoding"]["joint"], joint_store
        elif kind == "readout":
            names, store = CONFIG["encoding"]["readouts"], readout_store
        else:
            names, store = STUDY.models, encoding_store
        return [
            store(subject, task, name)
            for task in own
            for name in names
            if has_responses()
        ]

    return stores


def subject_manifests(kind):
    """Return an input function: the manifests of `subject_stores`."""
    stores = subject_stores(kind)

    def manifests(wildcards):
        return manifests_of(stores(wildcards))

    return manifests


def subject_contrasts(wildcards):
    """Return the folders of one subject's contrast maps, over tasks, where they are asked for."""
    if not CONFIG["glm"]["contrasts"] or not has_betas():
        return []
    own = STUDY.subjects[wildcards.subject].tasks()
    return [contrast_maps(wildcards.subject, t) for t in own if t in STUDY.trial_tasks]


def subject_contrasts_manifests(wildcards):
    return manifests_of(subject_contrasts(wildcards))


def subject_regions(name):
    """Return an input function: a file of one subject's regions, over tasks."""

    def files(wildcards):
        if not has_regions():
            return []
        tasks = STUDY.subjects[wildcards.subject].tasks()
        return [f"{regions_prefix(wildcards.subject, task)}_{name}" for task in tasks]

    return files


def report_regions(ending):
    """Return a file of all subjects' regions where the study's report has means over them."""
    asked = CONFIG["encoding"]
    if not has_regions() or not (
        asked["joint"] or asked["readouts"] or asked["universal"]
    ):
        return []
    return [
        f"{regions_prefix(subject, task)}_{ending}"
        for task in STUDY.tasks
        for subject in STUDY.with_task(task)
    ]


def subject_figures(wildcards):
    if ENTRY != "bids":
        return []
    subject = STUDY.subjects[wildcards.subject]
    parts = [part.stem for part in [*subject.fieldmaps.values(), *subject.runs]]
    parts = ["anat", *parts] if subject.t1w else parts
    return [figures_of(part, wildcards.subject) for part in parts]


def anat_manifests(subject):
    """Return the manifest of a subject's anatomy, where it has one."""
    return [anat("manifest.json", subject)] if has_t1w(subject) else []


def preprocess_manifests(subject):
    if ENTRY != "bids":
        return []
    runs = STUDY.subjects[subject].runs
    return [
        *anat_manifests(subject),
        *(func("manifest.json", subject, r.stem) for r in runs),
    ]


def fieldmap_manifests(subject):
    """Return the manifests of a subject's fieldmaps, whose pictures its report shows."""
    fieldmaps = STUDY.subjects[subject].fieldmaps if ENTRY == "bids" else {}
    return [fmap("manifest.json", subject, part.stem) for part in fieldmaps.values()]


def subject_plain_manifests(wildcards):
    """Return the manifests of one subject's results that are not stores."""
    return [
        *preprocess_manifests(wildcards.subject),
        *fieldmap_manifests(wildcards.subject),
        *subject_regions("manifest.json")(wildcards),
    ]


def confounds_of(subject):
    runs = STUDY.subjects[subject].runs
    if ENTRY == "bids":
        return [
            func("desc-confounds_timeseries.tsv", subject, run.stem) for run in runs
        ]
    return [str(run.confounds) for run in runs if run.confounds]


def subject_confounds(wildcards):
    return confounds_of(wildcards.subject)


def subject_confounds_content(wildcards):
    return confounds_content(subject_confounds(wildcards))


def confounds_content(files):
    """Return signs of the content of confounds made elsewhere, which have no manifest."""
    return [fingerprint(file) for file in files] if ENTRY == "derivatives" else []


def study_confounds():
    return [path for subject in STUDY.subjects for path in confounds_of(subject)]


def study_plain_manifests():
    """Return the manifests of the study's preprocessing, and of the regions that it reports by."""
    return [
        path for subject in STUDY.subjects for path in preprocess_manifests(subject)
    ] + report_regions("manifest.json")


def subject_anatomy(wildcards):
    """Return the image to draw a subject's maps on, by space."""
    images = {}
    if ENTRY == "bids" and has_t1w(wildcards.subject):
        images["T1w"] = anat("desc-preproc_T1w.nii.gz", wildcards.subject)
    return images


def subject_anatomy_file(wildcards):
    return list(subject_anatomy(wildcards).values())


def stimulus_paths():
    return {name: str(path) for name, path in STUDY.stimuli.items()}


def analysis_config():
    """Return the config without subjects, which the report gets otherwise, and places."""
    return {
        key: CONFIG[key]
        for key in CONFIG
        if key not in ("subjects", "exclude", "results", "dask")
    }


def study_stores(kind):
    """Return the study's stores of a kind, over tasks and measures."""
    trial_tasks = STUDY.trial_tasks
    pairs = [(task, measure) for task in trial_tasks for measure in STUDY.measures]
    if kind == "betas":
        tasks = trial_tasks if has_betas() else []
        return [betas_store(s, task) for task in tasks for s in STUDY.with_task(task)]
    if kind == "rdms":
        return [rdms_store(s, t, m) for t, m in pairs for s in STUDY.with_task(t)]
    if kind == "identification":
        return [identification_store(*pair) for pair in pairs]
    if kind == "layer_identification":
        return [
            layers_store(family, measure)
            for family in STUDY.families
            for measure in model_measures()
        ]
    if kind in TRSA_OPTIONAL and not CONFIG["trsa"][kind]["run"]:
        return []
    if kind == "persistence":
        return [persistence_store(*pair) for pair in pairs]
    if not has_models():
        return []
    if kind == "scores":
        return [scores_store(*pair) for pair in pairs]
    if kind == "partition":
        asked = bool(CONFIG["rsa"]["partition"]["models"])
        return [partition_store(*pair) for pair in pairs] if asked else []
    if kind == "topology":
        return [topology_store(*pair) for pair in pairs]
    if kind == "dependence":
        return [dependence_store(*pair) for pair in pairs]
    if kind == "searchlight_group":
        # Only in a template space do subjects share a grid.
        shared = has_searchlight() and STUDY.space != "T1w"
        return [searchlight_group_store(task) for task in trial_tasks] if shared else []
    if kind == "searchlight_surface_group":
        surface = has_surface_searchlight()
        return [surface_searchlight_group_store(t) for t in trial_tasks if surface]
    if not has_responses():
        return []
    if kind == "readout":
        return [
            readout_store(subject, task, readout)
            for task in STUDY.tasks
            for subject in STUDY.with_task(task)
            for readout in CONFIG["encoding"]["readouts"]
        ]
    if kind == "universal":
        return [
            universal_store(task, universal)
            for task in STUDY.trial_tasks
            for universal in CONFIG["encoding"]["universal"]
        ]
    if kind == "encoding_joint":
        return [
            joint_store(subject, task, joint)
            for task in STUDY.tasks
            for subject in STUDY.with_task(task)
            for joint in CONFIG["encoding"]["joint"]
        ]
    if kind == "encoding_summary":
        tasks = STUDY.tasks if STUDY.models else []
        return [encoding_summary_store(task) for task in tasks]
    if kind == "weights" and not CONFIG["encoding"]["weights"]:
        return []
    store = weights_store if kind == "weights" else encoding_store
    return [
        store(subject, task, model)
        for task in STUDY.tasks
        for subject in STUDY.with_task(task)
        for model in STUDY.models
    ]


# Targets.


def target_preprocess():
    if ENTRY != "bids":
        return []
    return [
        f"{PREPROCESS}/dataset_description.json",
        *(path for label in STUDY.subjects for path in anat_manifests(label)),
        *(
            func("manifest.json", label, run.stem)
            for label, subject in STUDY.subjects.items()
            for run in subject.runs
        ),
        *whole_runs(STUDY.tasks),
    ]


def whole_runs(tasks):
    """Return the outputs of runs that depend on config and files, for every target.

    Snakemake does not see that params changed where an output is missing that nothing asks for:
    a new space, or a T1w that is gone, would leave all of the run as it was.
    """
    if ENTRY != "bids":
        return []
    runs = [
        (label, run.stem)
        for label, subject in STUDY.subjects.items()
        for run in subject.runs
        if run.task in tasks
    ]
    route = {
        True: "from-boldref_to-T1w_mode-image_xfm.txt",
        False: f"from-boldref_to-{TEMPLATE}_mode-image_xfm.h5",
    }
    return [
        path
        for label, stem in runs
        for path in [
            *each_space("desc-preproc_bold.nii.gz", label, stem),
            *each_hemisphere("desc-preproc_bold.func.gii", label, stem),
            func(route[has_t1w(label)], label, stem),
        ]
    ]


def target_glm():
    if not has_responses():
        return []
    return [
        manifest_of(
            timeseries_store(label, task)
            if task in STUDY.continuous_tasks
            else betas_store(label, task)
        )
        for label, subject in STUDY.subjects.items()
        for task in subject.tasks()
    ] + [*beside_betas(), *whole_runs(STUDY.tasks)]


def beside_betas():
    """Return what the config asks for beside betas: contrast maps, betas as NIfTI."""
    glm = CONFIG["glm"]
    asked = [
        *([contrast_maps] if glm["contrasts"] else []),
        *([beta_images] if glm["nifti"] else []),
    ]
    return [
        manifest_of(folder(label, task))
        for folder in asked
        for task in STUDY.trial_tasks
        for label in STUDY.with_task(task)
    ]


def target_features():
    return [manifest_of(features_store(model)) for model in STUDY.models]


def target_rsa():
    kinds = (
        "rdms",
        "scores",
        "partition",
        "searchlight_group",
        "searchlight_surface_group",
    )
    stores = [store for kind in kinds for store in study_stores(kind)]
    return manifests_of(stores) + whole_runs(STUDY.trial_tasks)


def target_trsa():
    kinds = ("identification", "topology", "layer_identification", *TRSA_OPTIONAL)
    stores = [store for kind in kinds for store in study_stores(kind)]
    return manifests_of(stores) + whole_runs(STUDY.trial_tasks)


def target_encoding():
    kinds = ("encoding_summary", "weights", "readout", "encoding_joint", "universal")
    stores = [store for kind in kinds for store in study_stores(kind)]
    return manifests_of(stores) + whole_runs(STUDY.tasks)


def target_reports():
    return [
        f"{RESULTS}/report/study.html",
        *(f"{RESULTS}/report/sub-{label}.html" for label in STUDY.subjects),
    ]
