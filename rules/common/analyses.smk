# Which stores belong to a task or the study, and options of the analyses.


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
