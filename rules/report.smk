rule report_subject:
    """Write one subject's report."""
    input:
        betas=ancient(subject_stores("betas")),
        betas_manifests=subject_manifests("betas"),
        contrasts=ancient(subject_contrasts),
        contrasts_manifests=subject_contrasts_manifests,
        rdms=ancient(subject_stores("rdms")),
        rdms_manifests=subject_manifests("rdms"),
        searchlight=ancient(subject_stores("searchlight")),
        searchlight_manifests=subject_manifests("searchlight"),
        searchlight_surface=ancient(subject_stores("searchlight_surface")),
        searchlight_surface_manifests=subject_manifests("searchlight_surface"),
        encoding=ancient(subject_stores("encoding")),
        encoding_manifests=subject_manifests("encoding"),
        joint=ancient(subject_stores("encoding_joint")),
        joint_manifests=subject_manifests("encoding_joint"),
        readouts=ancient(subject_stores("readout")),
        readouts_manifests=subject_manifests("readout"),
        regions=ancient(subject_regions("dseg.nii.gz")),
        region_labels=ancient(subject_regions("dseg.tsv")),
        figures=ancient(subject_figures),
        confounds=ancient(subject_confounds),
        anatomy=ancient(subject_anatomy_file),
        stimuli=ancient(stimulus_files()),
        manifests=subject_plain_manifests,
    output:
        report=report(
            f"{RESULTS}/report/sub-{{subject}}.html",
            caption="../workflow/report/subject.rst",
            category="Subjects",
        ),
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
        study={"name": CONFIG["study"], "entry": ENTRY},
        options=options("report"),
        anatomy=subject_anatomy,
        confounds=subject_confounds_content,
        stimuli=stimulus_paths(),
        stimulus_content=stimulus_content(),
        code=code_version("report_subject"),
    script:
        "../workflow/report_subject.py"


rule report_study:
    """Write the study's report."""
    input:
        scores=ancient(study_stores("scores")),
        scores_manifests=manifests_of(study_stores("scores")),
        partition=ancient(study_stores("partition")),
        partition_manifests=manifests_of(study_stores("partition")),
        identification=ancient(study_stores("identification")),
        identification_manifests=manifests_of(study_stores("identification")),
        topology=ancient(study_stores("topology")),
        topology_manifests=manifests_of(study_stores("topology")),
        layers=ancient(study_stores("layer_identification")),
        layers_manifests=manifests_of(study_stores("layer_identification")),
        dependence=ancient(study_stores("dependence")),
        dependence_manifests=manifests_of(study_stores("dependence")),
        persistence=ancient(study_stores("persistence")),
        persistence_manifests=manifests_of(study_stores("persistence")),
        encoding_summary=ancient(study_stores("encoding_summary")),
        encoding_summary_manifests=manifests_of(study_stores("encoding_summary")),
        searchlight=ancient(study_stores("searchlight_group")),
        searchlight_manifests=manifests_of(study_stores("searchlight_group")),
        searchlight_surface=ancient(study_stores("searchlight_surface_group")),
        searchlight_surface_manifests=manifests_of(
            study_stores("searchlight_surface_group")
        ),
        rdms=ancient(study_stores("rdms")),
        rdms_manifests=manifests_of(study_stores("rdms")),
        encoding=ancient(study_stores("encoding")),
        encoding_manifests=manifests_of(study_stores("encoding")),
        joint=ancient(study_stores("encoding_joint")),
        joint_manifests=manifests_of(study_stores("encoding_joint")),
        readouts=ancient(study_stores("readout")),
        readouts_manifests=manifests_of(study_stores("readout")),
        universal=ancient(study_stores("universal")),
        universal_manifests=manifests_of(study_stores("universal")),
        regions=ancient(report_regions("dseg.nii.gz")),
        region_labels=ancient(report_regions("dseg.tsv")),
        betas=ancient(study_stores("betas")),
        betas_manifests=manifests_of(study_stores("betas")),
        model_rdms=ancient(all_model_rdms()),
        model_rdms_manifests=manifests_of(all_model_rdms()),
        confounds=ancient(study_confounds()),
        stimuli=ancient(stimulus_files()),
        manifests=study_plain_manifests(),
    output:
        report=report(
            f"{RESULTS}/report/study.html",
            caption="../workflow/report/study.rst",
            category="Study",
        ),
        summary=report(
            f"{RESULTS}/report/summary.json",
            caption="../workflow/report/summary.rst",
            category="Study",
        ),
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
        study={
            "name": CONFIG["study"],
            "entry": ENTRY,
            "made_by": STUDY.made_by,
        },
        subjects=list(STUDY.subjects),
        excluded=CONFIG["exclude"],
        config=analysis_config(),
        options=options("report"),
        confounds=confounds_content(study_confounds()),
        stimuli=stimulus_paths(),
        stimulus_content=stimulus_content(),
        code=code_version("report_study"),
    script:
        "../workflow/report_study.py"
