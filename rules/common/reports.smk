# What the reports read.


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
