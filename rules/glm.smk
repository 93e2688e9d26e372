if ENTRY == "betas":

    rule import_betas:
        """Take over one subject's responses that were estimated elsewhere."""
        input:
            image=ancient(given_betas),
            events=given_betas_events,
            mask=given_betas_mask,
        output:
            store=directory(betas_store()),
            manifest=manifest_of(betas_store()),
        log:
            log_of("import_betas", "sub-{subject}", "task-{task}"),
        benchmark:
            benchmark_of("import_betas", "sub-{subject}", "task-{task}")
        conda:
            "../envs/glm.yaml"
        threads: 1
        resources:
            mem_mb=4000,
            runtime=30,
        params:
            space=STUDY.space,
            source=given_betas_content,
            code=code_version("import_betas"),
        script:
            "../workflow/import_betas.py"

elif ENTRY == "timeseries":

    rule import_timeseries:
        """Take over one subject's time series that were cleaned elsewhere."""
        input:
            files=ancient(given_series),
            mask=ancient(given_series_masks),
            events=glm_events,
        output:
            store=directory(timeseries_store()),
            manifest=manifest_of(timeseries_store()),
        log:
            log_of("import_timeseries", "sub-{subject}", "task-{task}"),
        benchmark:
            benchmark_of("import_timeseries", "sub-{subject}", "task-{task}")
        conda:
            "../envs/glm.yaml"
        threads: 1
        resources:
            mem_mb=4000,
            runtime=30,
        params:
            options=options("glm", "stimulus_column", "trial_types", "nuisance_types"),
            runs=run_names,
            tr=given_series_tr,
            space=STUDY.space,
            source=given_series_content,
            code=code_version("import_timeseries"),
        script:
            "../workflow/import_timeseries.py"

else:

    rule clean_bold:
        """Take drift and confounds out of the runs of one subject and continuous task."""
        input:
            bold=ancient(glm_bold),
            mask=ancient(glm_mask),
            confounds=ancient(glm_confounds),
            sidecar=ancient(glm_sidecars),
            events=glm_events,
            manifests=glm_manifests,
        output:
            store=directory(timeseries_store()),
            manifest=manifest_of(timeseries_store()),
        log:
            log_of("clean_bold", "sub-{subject}", "task-{task}"),
        benchmark:
            benchmark_of("clean_bold", "sub-{subject}", "task-{task}")
        conda:
            "../envs/glm.yaml"
        threads: 1
        resources:
            mem_mb=4000,
            runtime=60,
        params:
            options=options(
                "glm",
                "space",
                "drift",
                "high_pass",
                "drift_order",
                "confound_columns",
                "stimulus_column",
                "trial_types",
                "nuisance_types",
            ),
            runs=run_names,
            source=glm_content,
            code=code_version("clean_bold"),
        script:
            "../workflow/clean_bold.py"

    rule fit_glm:
        """Estimate the single-trial responses of one subject and task."""
        input:
            bold=ancient(glm_bold),
            mask=ancient(glm_mask),
            confounds=ancient(glm_confounds),
            sidecar=ancient(glm_sidecars),
            events=glm_events,
            manifests=glm_manifests,
        output:
            store=directory(betas_store()),
            manifest=manifest_of(betas_store()),
        log:
            log_of("fit_glm", "sub-{subject}", "task-{task}"),
        benchmark:
            benchmark_of("fit_glm", "sub-{subject}", "task-{task}")
        conda:
            "../envs/glm.yaml"
        threads: 1
        resources:
            mem_mb=4000,
            runtime=60,
        params:
            options=glm_options(),
            runs=run_names,
            source=glm_content,
            code=code_version("fit_glm"),
        script:
            "../workflow/fit_glm.py"

    rule map_contrasts:
        """Map contrasts of conditions of one subject and task, fixed effects over runs."""
        input:
            bold=ancient(glm_bold),
            mask=ancient(glm_mask),
            confounds=ancient(glm_confounds),
            sidecar=ancient(glm_sidecars),
            events=glm_events,
            manifests=glm_manifests,
        output:
            maps=directory(contrast_maps()),
            manifest=manifest_of(contrast_maps()),
        log:
            log_of("map_contrasts", "sub-{subject}", "task-{task}"),
        benchmark:
            benchmark_of("map_contrasts", "sub-{subject}", "task-{task}")
        conda:
            "../envs/glm.yaml"
        threads: 1
        resources:
            mem_mb=3000,
            runtime=60,
        params:
            options=options(
                "glm",
                "space",
                "contrasts",
                "hrf",
                "drift",
                "high_pass",
                "drift_order",
                "confound_columns",
                "trials",
                "stimulus_column",
                "trial_types",
                "nuisance_types",
                "noise_model",
                "scaling",
            ),
            runs=run_names,
            source=glm_content,
            code=code_version("map_contrasts"),
        script:
            "../workflow/map_contrasts.py"


if ENTRY not in ("timeseries", "rdms", "stimuli"):

    rule export_betas:
        """Write the betas of one subject and task as NIfTI, with a table of the trials."""
        input:
            betas=ancient(betas_store()),
            manifest=manifest_of(betas_store()),
        output:
            images=directory(beta_images()),
            manifest=manifest_of(beta_images()),
        log:
            log_of("export_betas", "sub-{subject}", "task-{task}"),
        benchmark:
            benchmark_of("export_betas", "sub-{subject}", "task-{task}")
        conda:
            "../envs/glm.yaml"
        threads: 1
        resources:
            mem_mb=2000,
            runtime=60,
        params:
            code=code_version("export_betas"),
        script:
            "../workflow/export_betas.py"
