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
