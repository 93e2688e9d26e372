if ENTRY == "rdms":

    rule import_rdms:
        """Take over one subject's RDMs that were made elsewhere."""
        input:
            files=ancient(given_rdms),
            stimuli=ancient(given_rdm_stimuli),
        output:
            store=directory(rdms_store()),
            manifest=manifest_of(rdms_store()),
        log:
            log_of("import_rdms", "sub-{subject}", "task-{task}", "measure-{measure}"),
        benchmark:
            benchmark_of(
                "import_rdms", "sub-{subject}", "task-{task}", "measure-{measure}"
            )
        conda:
            "../envs/rsa.yaml"
        threads: 1
        resources:
            mem_mb=1000,
            runtime=10,
        params:
            regions=given_rdm_regions,
            stimuli=given_rdm_stimulus_lists,
            rdms=given_rdm_choices,
            source=given_rdms_content,
            code=code_version("import_rdms"),
        script:
            "../workflow/import_rdms.py"

else:

    rule compute_rdms:
        """Compute the RDMs of one subject's regions by one measure."""
        input:
            betas=ancient(betas_store()),
            betas_manifest=manifest_of(betas_store()),
            regions=ancient(f"{regions_prefix()}_dseg.nii.gz"),
            region_labels=ancient(f"{regions_prefix()}_dseg.tsv"),
            regions_manifest=f"{regions_prefix()}_manifest.json",
        output:
            store=directory(rdms_store()),
            manifest=manifest_of(rdms_store()),
        log:
            log_of("compute_rdms", "sub-{subject}", "task-{task}", "measure-{measure}"),
        benchmark:
            benchmark_of(
                "compute_rdms", "sub-{subject}", "task-{task}", "measure-{measure}"
            )
        conda:
            "../envs/rsa.yaml"
        threads: 1
        resources:
            mem_mb=3000,
            runtime=30,
        params:
            options=rdm_options,
            code=code_version("compute_rdms"),
        script:
            "../workflow/compute_rdms.py"


rule import_model_rdms:
    """Take over one model's RDMs that were made elsewhere."""
    input:
        files=ancient(given_model_files),
        stimuli=ancient(given_model_stimuli),
    output:
        store=directory(model_rdms_store(measure="given")),
        manifest=manifest_of(model_rdms_store(measure="given")),
    log:
        log_of("import_model_rdms", "model-{model}"),
    benchmark:
        benchmark_of("import_model_rdms", "model-{model}")
    conda:
        "../envs/rsa.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        layers=given_model_layers,
        stimuli=given_model_stimulus_lists,
        rdms=given_model_choices,
        source=given_model_content,
        code=code_version("import_model_rdms"),
    script:
        "../workflow/import_model_rdms.py"


rule compute_model_rdms:
    """Compute the RDMs of one model's layers."""
    input:
        features=ancient(features_store()),
        features_manifest=manifest_of(features_store()),
    output:
        store=directory(model_rdms_store()),
        manifest=manifest_of(model_rdms_store()),
    log:
        log_of("compute_model_rdms", "model-{model}", "measure-{measure}"),
    benchmark:
        benchmark_of("compute_model_rdms", "model-{model}", "measure-{measure}")
    wildcard_constraints:
        measure="correlation|cosine|euclidean",
    conda:
        "../envs/rsa.yaml"
    threads: 1
    resources:
        mem_mb=3000,
        runtime=30,
    params:
        code=code_version("compute_model_rdms"),
    script:
        "../workflow/compute_model_rdms.py"


rule compare_rdms:
    """Compare all subjects' RDMs with the models', with noise ceilings and inference."""
    input:
        rdms=ancient(task_rdms),
        rdm_manifests=task_rdm_manifests,
        model_rdms=ancient(task_model_rdms),
        model_manifests=task_model_rdm_manifests,
    output:
        store=directory(scores_store()),
        manifest=manifest_of(scores_store()),
    log:
        log_of("compare_rdms", "task-{task}", "measure-{measure}"),
    benchmark:
        benchmark_of("compare_rdms", "task-{task}", "measure-{measure}")
    conda:
        "../envs/rsa.yaml"
    threads: 2
    resources:
        mem_mb=3000,
        runtime=60,
    params:
        options=options(
            "rsa",
            "comparisons",
            "model_kinds",
            "bootstrap",
            "permutations",
            "interval",
            "correction",
        ),
        seed=SEED,
        code=code_version("compare_rdms"),
    script:
        "../workflow/compare_rdms.py"


rule partition_models:
    """Partition the variance of the brain's RDMs among models."""
    input:
        rdms=ancient(task_rdms),
        rdm_manifests=task_rdm_manifests,
        model_rdms=ancient(task_model_rdms),
        model_manifests=task_model_rdm_manifests,
    output:
        store=directory(partition_store()),
        manifest=manifest_of(partition_store()),
    log:
        log_of("partition_models", "task-{task}", "measure-{measure}"),
    benchmark:
        benchmark_of("partition_models", "task-{task}", "measure-{measure}")
    conda:
        "../envs/rsa.yaml"
    threads: 2
    resources:
        mem_mb=3000,
        runtime=60,
    params:
        options=partition_options(),
        seed=SEED,
        code=code_version("partition_models"),
    script:
        "../workflow/partition_models.py"
