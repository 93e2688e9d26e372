rule extract_features:
    """Run one model over all stimuli and keep its layers' responses."""
    input:
        stimuli=ancient(stimulus_files()),
        sources=ancient(model_sources),
    output:
        store=directory(features_store()),
        manifest=manifest_of(features_store()),
    log:
        log_of("extract_features", "model-{model}"),
    benchmark:
        benchmark_of("extract_features", "model-{model}")
    conda:
        "../envs/features.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=120,
    params:
        options=model_options,
        stimulus_ids=list(STUDY.stimuli),
        stimuli=stimulus_content(),
        source=model_content,
        code=code_version("extract_features"),
    script:
        "../workflow/extract_features.py"
