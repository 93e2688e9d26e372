rule report_subject:
    """Write one subject's report."""
    input:
        betas=ancient(subject_stores("betas")),
        betas_manifests=subject_manifests("betas"),
        rdms=ancient(subject_stores("rdms")),
        rdms_manifests=subject_manifests("rdms"),
        searchlight=ancient(subject_stores("searchlight")),
        searchlight_manifests=subject_manifests("searchlight"),
        encoding=ancient(subject_stores("encoding")),
        encoding_manifests=subject_manifests("encoding"),
        regions=ancient(subject_regions),
        figures=ancient(subject_figures),
        figure_manifests=subject_figure_manifests,
        confounds=ancient(subject_confounds),
    output:
        html=f"{RESULTS}/report/sub-{{subject}}.html",
    log:
        log_of("report_subject", "sub-{subject}"),
    benchmark:
        benchmark_of("report_subject", "sub-{subject}")
    conda:
        "../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=3000,
        runtime=30,
    params:
        options=options("report"),
        study=CONFIG["study"],
        code=code_version("report_subject"),
    script:
        "../workflow/report_subject.py"


rule report_study:
    """Write the study's report."""
    input:
        rdms=ancient(study_stores("rdms")),
        rdms_manifests=manifests_of(study_stores("rdms")),
        scores=ancient(study_stores("scores")),
        scores_manifests=manifests_of(study_stores("scores")),
        identification=ancient(study_stores("identification")),
        identification_manifests=manifests_of(study_stores("identification")),
        topology=ancient(study_stores("topology")),
        topology_manifests=manifests_of(study_stores("topology")),
        searchlight_group=ancient(study_stores("searchlight_group")),
        searchlight_group_manifests=manifests_of(study_stores("searchlight_group")),
        encoding_summary=ancient(study_stores("encoding_summary")),
        encoding_summary_manifests=manifests_of(study_stores("encoding_summary")),
        model_rdms=ancient(all_model_rdms()),
        stimuli=ancient(stimulus_files()),
    output:
        html=f"{RESULTS}/report/study.html",
        summary=f"{RESULTS}/report/summary.json",
    log:
        log_of("report_study"),
    benchmark:
        benchmark_of("report_study")
    conda:
        "../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=3000,
        runtime=30,
    params:
        options=options("report"),
        config=CONFIG,
        stimulus_ids=list(STUDY.stimuli),
        excluded=CONFIG["exclude"],
        code=code_version("report_study"),
    script:
        "../workflow/report_study.py"
