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
