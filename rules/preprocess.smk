rule describe_derivatives:
    """Describe the preprocessed dataset, as BIDS derivatives must be."""
    output:
        description=f"{PREPROCESS}/dataset_description.json",
        ignore=f"{PREPROCESS}/.bidsignore",
    log:
        log_of("describe_derivatives"),
    benchmark:
        benchmark_of("describe_derivatives")
    conda:
        "../envs/preprocess.yaml"
    threads: 1
    resources:
        mem_mb=500,
        runtime=5,
    params:
        source=CONFIG["input"].get("bids", ""),
        code=code_version("describe_derivatives"),
    script:
        "../workflow/describe_derivatives.py"


rule preprocess_anat:
    """Bias field, brain mask, tissues and registration of one subject's T1w."""
    input:
        t1w=ancient(raw_t1w),
    output:
        t1w=anat("desc-preproc_T1w.nii.gz"),
        mask=anat("desc-brain_mask.nii.gz"),
        dseg=anat("dseg.nii.gz"),
        gm=anat("label-GM_probseg.nii.gz"),
        wm=anat("label-WM_probseg.nii.gz"),
        csf=anat("label-CSF_probseg.nii.gz"),
        to_template=anat(f"from-T1w_to-{TEMPLATE}_mode-image_xfm.h5"),
        from_template=anat(f"from-{TEMPLATE}_to-T1w_mode-image_xfm.h5"),
        t1w_template=anat(f"space-{TEMPLATE}_desc-preproc_T1w.nii.gz"),
        sidecar=anat("desc-preproc_T1w.json"),
        figures=directory(figures_of("anat")),
        manifest=anat("manifest.json"),
    log:
        log_of("preprocess_anat", "sub-{subject}"),
    benchmark:
        benchmark_of("preprocess_anat", "sub-{subject}")
    conda:
        "../envs/preprocess.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=120,
    params:
        source=raw_t1w_content,
        seed=SEED,
        code=code_version("preprocess_anat"),
    script:
        "../workflow/preprocess_anat.py"


rule estimate_fieldmap:
    """One field of one subject, from gradient echoes or opposite phase encoding."""
    input:
        images=ancient(raw_fieldmap_images),
        sidecars=raw_fieldmap_sidecars,
    output:
        field=fmap("desc-preproc_fieldmap.nii.gz"),
        sidecar=fmap("desc-preproc_fieldmap.json"),
        reference=fmap("desc-reference_fieldmap.nii.gz"),
        reference_sidecar=fmap("desc-reference_fieldmap.json"),
        figures=directory(figures_of("{fieldmap}")),
        manifest=fmap("manifest.json"),
    log:
        log_of("estimate_fieldmap", "sub-{subject}", "{fieldmap}"),
    benchmark:
        benchmark_of("estimate_fieldmap", "sub-{subject}", "{fieldmap}")
    conda:
        "../envs/preprocess.yaml"
    threads: 1
    resources:
        mem_mb=3000,
        runtime=60,
    params:
        fieldmap=raw_fieldmap_parts,
        source=raw_fieldmap_content,
        seed=SEED,
        code=code_version("estimate_fieldmap"),
    script:
        "../workflow/estimate_fieldmap.py"


rule preprocess_bold:
    """Motion, coregistration, one resampling into all spaces and confounds of one run."""
    input:
        bold=ancient(raw_bold),
        sidecars=raw_sidecars,
        t1w=ancient(rules.preprocess_anat.output.t1w),
        mask=ancient(rules.preprocess_anat.output.mask),
        dseg=ancient(rules.preprocess_anat.output.dseg),
        gm=ancient(rules.preprocess_anat.output.gm),
        wm=ancient(rules.preprocess_anat.output.wm),
        csf=ancient(rules.preprocess_anat.output.csf),
        to_template=ancient(rules.preprocess_anat.output.to_template),
        anat_manifest=rules.preprocess_anat.output.manifest,
        field=ancient(run_field),
        field_reference=ancient(run_field_reference),
        field_manifest=run_field_manifest,
    output:
        bold=each_space("desc-preproc_bold.nii.gz"),
        mask=each_space("desc-brain_mask.nii.gz"),
        boldref=each_space("boldref.nii.gz"),
        sidecar=each_space("desc-preproc_bold.json"),
        mask_sidecar=each_space("desc-brain_mask.json"),
        surface=each_hemisphere("desc-preproc_bold.func.gii"),
        surface_sidecar=each_hemisphere("desc-preproc_bold.json"),
        confounds=func("desc-confounds_timeseries.tsv"),
        confounds_json=func("desc-confounds_timeseries.json"),
        motion=func("from-orig_to-boldref_mode-image_desc-hmc_xfm.tsv"),
        to_t1w=func("from-boldref_to-T1w_mode-image_xfm.txt"),
        figures=directory(figures_of("{run}")),
        manifest=func("manifest.json"),
    log:
        log_of("preprocess_bold", "sub-{subject}", "{run}"),
    benchmark:
        benchmark_of("preprocess_bold", "sub-{subject}", "{run}")
    wildcard_constraints:
        subject=subjects_pattern(t1w=True),
    conda:
        "../envs/preprocess.yaml"
    threads: 1
    resources:
        mem_mb=bold_mem_mb,
        runtime=120,
    params:
        options=options("preprocess"),
        distortion=run_distortion,
        source=raw_bold_content,
        seed=SEED,
        code=code_version("preprocess_bold"),
    script:
        "../workflow/preprocess_bold.py"


# A subject without a T1w: the run goes straight to the template, and no T1w space is written.
use rule preprocess_bold as preprocess_bold_alone with:
    input:
        bold=ancient(raw_bold),
        sidecars=raw_sidecars,
        field=ancient(run_field),
        field_reference=ancient(run_field_reference),
        field_manifest=run_field_manifest,
    output:
        bold=each_space("desc-preproc_bold.nii.gz"),
        mask=each_space("desc-brain_mask.nii.gz"),
        boldref=each_space("boldref.nii.gz"),
        sidecar=each_space("desc-preproc_bold.json"),
        mask_sidecar=each_space("desc-brain_mask.json"),
        surface=each_hemisphere("desc-preproc_bold.func.gii"),
        surface_sidecar=each_hemisphere("desc-preproc_bold.json"),
        confounds=func("desc-confounds_timeseries.tsv"),
        confounds_json=func("desc-confounds_timeseries.json"),
        motion=func("from-orig_to-boldref_mode-image_desc-hmc_xfm.tsv"),
        to_template=func(f"from-boldref_to-{TEMPLATE}_mode-image_xfm.h5"),
        from_template=func(f"from-{TEMPLATE}_to-boldref_mode-image_xfm.h5"),
        figures=directory(figures_of("{run}")),
        manifest=func("manifest.json"),
    wildcard_constraints:
        subject=subjects_pattern(t1w=False),


rule transform_regions:
    """Carry the atlas onto the grid of one subject's betas."""
    input:
        atlas=ancient(atlas_of),
        labels=CONFIG["regions"]["labels"] if has_regions() else [],
        grid=ancient(betas_grid),
        transform=ancient(atlas_transform),
        anat_manifest=atlas_manifest,
        grid_manifest=glm_manifests,
    output:
        regions=f"{regions_prefix()}_dseg.nii.gz",
        labels=f"{regions_prefix()}_dseg.tsv",
        manifest=f"{regions_prefix()}_manifest.json",
    log:
        log_of("transform_regions", "sub-{subject}", "task-{task}"),
    benchmark:
        benchmark_of("transform_regions", "sub-{subject}", "task-{task}")
    conda:
        "../envs/preprocess.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=20,
    params:
        source=atlas_content,
        code=code_version("transform_regions"),
    script:
        "../workflow/transform_regions.py"
