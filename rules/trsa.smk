rule identify_regions:
    """Identify held-out subjects' regions by geometry and by topology."""
    input:
        rdms=ancient(task_rdms),
        rdm_manifests=task_rdm_manifests,
    output:
        store=directory(identification_store()),
        manifest=manifest_of(identification_store()),
    log:
        log_of("identify_regions", "task-{task}", "measure-{measure}"),
    benchmark:
        benchmark_of("identify_regions", "task-{task}", "measure-{measure}")
    conda:
        "../envs/rsa.yaml"
    threads: 2
    resources:
        mem_mb=3000,
        runtime=120,
    params:
        options=topology_options("comparison"),
        seed=SEED,
        code=code_version("identify_regions"),
    script:
        "../workflow/identify_regions.py"


rule identify_layers:
    """Identify left-out seeds' layers of a network, with noise added to the RDMs."""
    input:
        model_rdms=ancient(family_model_rdms),
        model_manifests=family_model_rdm_manifests,
    output:
        store=directory(layers_store()),
        manifest=manifest_of(layers_store()),
    log:
        log_of("identify_layers", "family-{family}", "measure-{measure}"),
    benchmark:
        benchmark_of("identify_layers", "family-{family}", "measure-{measure}")
    conda:
        "../envs/rsa.yaml"
    threads: 2
    resources:
        mem_mb=3000,
        runtime=120,
    params:
        options=topology_options("comparison") | layer_options(),
        seed=SEED,
        code=code_version("identify_layers"),
    script:
        "../workflow/identify_layers.py"


rule compare_topology:
    """Compare the brain's geo-topological statistics with the models'."""
    input:
        rdms=ancient(task_rdms),
        rdm_manifests=task_rdm_manifests,
        model_rdms=ancient(task_model_rdms),
        model_manifests=task_model_rdm_manifests,
    output:
        store=directory(topology_store()),
        manifest=manifest_of(topology_store()),
    log:
        log_of("compare_topology", "task-{task}", "measure-{measure}"),
    benchmark:
        benchmark_of("compare_topology", "task-{task}", "measure-{measure}")
    conda:
        "../envs/rsa.yaml"
    threads: 2
    resources:
        mem_mb=3000,
        runtime=120,
    params:
        options=topology_options("permutations"),
        seed=SEED,
        code=code_version("compare_topology"),
    script:
        "../workflow/compare_topology.py"


rule measure_dependence:
    """Test the brain's dependence on the models over all pairs of thresholds (AGTDM)."""
    input:
        rdms=ancient(task_rdms),
        rdm_manifests=task_rdm_manifests,
        model_rdms=ancient(task_model_rdms),
        model_manifests=task_model_rdm_manifests,
    output:
        store=directory(dependence_store()),
        manifest=manifest_of(dependence_store()),
    log:
        log_of("measure_dependence", "task-{task}", "measure-{measure}"),
    benchmark:
        benchmark_of("measure_dependence", "task-{task}", "measure-{measure}")
    conda:
        "../envs/rsa.yaml"
    threads: 2
    resources:
        mem_mb=3000,
        runtime=120,
    params:
        options=optional_trsa("dependence", "scale", "permutations"),
        seed=SEED,
        code=code_version("measure_dependence"),
    script:
        "../workflow/measure_dependence.py"


rule summarise_persistence:
    """Summarise the persistent homology of the regions' RDMs."""
    input:
        rdms=ancient(task_rdms),
        rdm_manifests=task_rdm_manifests,
    output:
        store=directory(persistence_store()),
        manifest=manifest_of(persistence_store()),
    log:
        log_of("summarise_persistence", "task-{task}", "measure-{measure}"),
    benchmark:
        benchmark_of("summarise_persistence", "task-{task}", "measure-{measure}")
    conda:
        "../envs/rsa.yaml"
    threads: 2
    resources:
        mem_mb=3000,
        runtime=120,
    params:
        options=optional_trsa(
            "persistence", "permutations", "bootstrap_samples", "interval"
        ),
        seed=SEED,
        code=code_version("summarise_persistence"),
    script:
        "../workflow/summarise_persistence.py"
