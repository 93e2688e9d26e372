rule fit_encoding:
    """Predict one subject's responses from the layers of one model."""
    input:
        responses=ancient(responses_store),
        responses_manifest=responses_manifest,
        features=ancient(features_store()),
        features_manifest=manifest_of(features_store()),
        regions=ancient(encoding_regions("dseg.nii.gz")),
        labels=ancient(encoding_regions("dseg.tsv")),
        region_manifest=encoding_regions("manifest.json"),
    output:
        store=directory(encoding_store()),
        manifest=manifest_of(encoding_store()),
        maps=directory(
            f"{RESULTS}/encoding/sub-{{subject}}_task-{{task}}_model-{{model}}_maps"
        ),
    log:
        log_of("fit_encoding", "sub-{subject}", "task-{task}", "model-{model}"),
    benchmark:
        benchmark_of("fit_encoding", "sub-{subject}", "task-{task}", "model-{model}")
    conda:
        "../envs/encoding.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=240,
    params:
        options=options(
            "encoding",
            "alphas",
            "method",
            "fractions",
            "alpha_per",
            "pca",
            "cross_validation",
            "permutations",
            "permutation_block",
            "bootstrap",
            "predictions",
            "delays",
            "resampling",
            "gap",
            "min_ceiling",
            "voxel_batch",
            "device",
        ),
        responsive_ceiling=responsive_ceiling_of_bootstrap(),
        seed=SEED,
        code=code_version("fit_encoding"),
    script:
        "../workflow/fit_encoding.py"


rule fit_joint:
    """Predict one subject's responses from several feature spaces together."""
    input:
        responses=ancient(responses_store),
        responses_manifest=responses_manifest,
        features=ancient(joint_features),
        features_manifests=joint_features_manifests,
        regions=ancient(joint_regions("dseg.nii.gz")),
        labels=ancient(joint_regions("dseg.tsv")),
        region_manifest=joint_regions("manifest.json"),
    output:
        store=directory(joint_store()),
        manifest=manifest_of(joint_store()),
        maps=directory(
            f"{RESULTS}/encoding/sub-{{subject}}_task-{{task}}_joint-{{joint}}_maps"
        ),
    log:
        log_of("fit_joint", "sub-{subject}", "task-{task}", "joint-{joint}"),
    benchmark:
        benchmark_of("fit_joint", "sub-{subject}", "task-{task}", "joint-{joint}")
    conda:
        "../envs/encoding.yaml"
    threads: 1
    resources:
        mem_mb=8000,
        runtime=720,
    params:
        options=joint_options,
        seed=SEED,
        code=code_version("fit_joint"),
    script:
        "../workflow/fit_joint.py"


rule fit_readout:
    """Predict one subject's responses from a model's feature maps through a readout."""
    input:
        responses=ancient(responses_store),
        responses_manifest=responses_manifest,
        features=ancient(readout_features),
        features_manifest=readout_features_manifest,
        regions=ancient(readout_regions("dseg.nii.gz")),
        labels=ancient(readout_regions("dseg.tsv")),
        region_manifest=readout_regions("manifest.json"),
    output:
        store=directory(readout_store()),
        manifest=manifest_of(readout_store()),
        maps=directory(
            f"{RESULTS}/encoding/sub-{{subject}}_task-{{task}}_readout-{{readout}}_maps"
        ),
    log:
        log_of("fit_readout", "sub-{subject}", "task-{task}", "readout-{readout}"),
    benchmark:
        benchmark_of("fit_readout", "sub-{subject}", "task-{task}", "readout-{readout}")
    conda:
        "../envs/encoding.yaml"
    threads: 1
    resources:
        mem_mb=8000,
        runtime=720,
    params:
        options=readout_options,
        seed=SEED,
        code=code_version("fit_readout"),
    script:
        "../workflow/fit_readout.py"


rule fit_universal:
    """Predict all subjects' responses by one network with an embedding for each voxel."""
    input:
        responses=ancient(universal_responses),
        responses_manifests=universal_responses_manifests,
        features=ancient(universal_features),
        features_manifest=universal_features_manifest,
        regions=ancient(universal_regions("dseg.nii.gz")),
        labels=ancient(universal_regions("dseg.tsv")),
        region_manifests=universal_regions("manifest.json"),
    output:
        store=directory(universal_store()),
        manifest=manifest_of(universal_store()),
        maps=directory(f"{RESULTS}/encoding/task-{{task}}_universal-{{universal}}_maps"),
    log:
        log_of("fit_universal", "task-{task}", "universal-{universal}"),
    benchmark:
        benchmark_of("fit_universal", "task-{task}", "universal-{universal}")
    conda:
        "../envs/encoding.yaml"
    threads: 1
    resources:
        mem_mb=16000,
        runtime=1440,
    params:
        options=universal_options,
        seed=SEED,
        code=code_version("fit_universal"),
    script:
        "../workflow/fit_universal.py"


rule fit_weights:
    """Fit one subject's weights on all samples, at the penalties that the folds chose."""
    input:
        responses=ancient(responses_store),
        responses_manifest=responses_manifest,
        features=ancient(features_store()),
        features_manifest=manifest_of(features_store()),
        encoding=ancient(encoding_store()),
        encoding_manifest=manifest_of(encoding_store()),
    output:
        store=directory(weights_store()),
        manifest=manifest_of(weights_store()),
    log:
        log_of("fit_weights", "sub-{subject}", "task-{task}", "model-{model}"),
    benchmark:
        benchmark_of("fit_weights", "sub-{subject}", "task-{task}", "model-{model}")
    conda:
        "../envs/encoding.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=120,
    params:
        options=options(
            "encoding",
            "cross_validation",
            "delays",
            "resampling",
            "gap",
            "voxel_batch",
        ),
        seed=SEED,
        code=code_version("fit_weights"),
    script:
        "../workflow/fit_weights.py"


rule summarise_encoding:
    """Summarise the encoding scores by region and over subjects."""
    input:
        stores=ancient(task_encodings),
        manifests=task_encoding_manifests,
        joint=ancient(task_joints),
        joint_manifests=task_joint_manifests,
        readouts=ancient(task_readouts),
        readout_manifests=task_readout_manifests,
        regions=ancient(task_regions),
        labels=ancient(first_region_labels),
        region_manifests=task_region_manifests,
    output:
        store=directory(encoding_summary_store()),
        manifest=manifest_of(encoding_summary_store()),
        table=f"{RESULTS}/encoding/task-{{task}}_summary.tsv",
        maps=directory(f"{RESULTS}/encoding/task-{{task}}_maps"),
    log:
        log_of("summarise_encoding", "task-{task}"),
    benchmark:
        benchmark_of("summarise_encoding", "task-{task}")
    conda:
        "../envs/encoding.yaml"
    threads: 1
    resources:
        mem_mb=3000,
        runtime=60,
    params:
        options=CONFIG["encoding"]["summary"],
        seed=SEED,
        code=code_version("summarise_encoding"),
    script:
        "../workflow/summarise_encoding.py"
