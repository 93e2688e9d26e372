rule map_searchlight:
    """Compare RDMs with the models' around every voxel of one subject."""
    input:
        betas=ancient(betas_store()),
        betas_manifest=manifest_of(betas_store()),
        model_rdms=ancient(searchlight_model_rdms()),
        model_manifests=manifests_of(searchlight_model_rdms()),
    output:
        store=directory(searchlight_store()),
        manifest=manifest_of(searchlight_store()),
        maps=directory(f"{RESULTS}/searchlight/sub-{{subject}}_task-{{task}}_maps"),
    log:
        log_of("map_searchlight", "sub-{subject}", "task-{task}"),
    benchmark:
        benchmark_of("map_searchlight", "sub-{subject}", "task-{task}")
    conda:
        "../envs/rsa.yaml"
    threads: 1
    resources:
        mem_mb=3000,
        runtime=240,
    params:
        options=searchlight_options()
        | options("searchlight", "radius", "min_voxels", "min_fraction", "step"),
        mask=searchlight_mask_content(),
        code=code_version("map_searchlight"),
    script:
        "../workflow/map_searchlight.py"


rule map_surface_searchlight:
    """Compare RDMs with the models' around every vertex of one subject's template surface."""
    input:
        betas=ancient(betas_store()),
        betas_manifest=manifest_of(betas_store()),
        model_rdms=ancient(searchlight_model_rdms()),
        model_manifests=manifests_of(searchlight_model_rdms()),
    output:
        store=directory(surface_searchlight_store()),
        manifest=manifest_of(surface_searchlight_store()),
        maps=directory(
            f"{RESULTS}/searchlight/sub-{{subject}}_task-{{task}}_surface_maps"
        ),
    log:
        log_of("map_surface_searchlight", "sub-{subject}", "task-{task}"),
    benchmark:
        benchmark_of("map_surface_searchlight", "sub-{subject}", "task-{task}")
    conda:
        "../envs/rsa.yaml"
    threads: 1
    resources:
        mem_mb=3000,
        runtime=240,
    params:
        options=searchlight_options() | surface_options(),
        mask=searchlight_mask_content(),
        code=code_version("map_surface_searchlight"),
    script:
        "../workflow/map_surface_searchlight.py"


rule combine_searchlights:
    """Test the searchlight maps of all subjects."""
    input:
        stores=ancient(task_searchlights),
        manifests=task_searchlight_manifests,
    output:
        store=directory(searchlight_group_store()),
        manifest=manifest_of(searchlight_group_store()),
        maps=directory(f"{RESULTS}/searchlight/task-{{task}}_maps"),
    log:
        log_of("combine_searchlights", "task-{task}"),
    benchmark:
        benchmark_of("combine_searchlights", "task-{task}")
    conda:
        "../envs/rsa.yaml"
    threads: 1
    resources:
        mem_mb=3000,
        runtime=120,
    params:
        options=options("searchlight", "permutations", "connectivity"),
        seed=SEED,
        code=code_version("combine_searchlights"),
    script:
        "../workflow/combine_searchlights.py"


rule combine_surface_searchlights:
    """Test the surface searchlight maps of all subjects."""
    input:
        stores=ancient(task_surface_searchlights),
        manifests=task_surface_searchlight_manifests,
    output:
        store=directory(surface_searchlight_group_store()),
        manifest=manifest_of(surface_searchlight_group_store()),
        maps=directory(f"{RESULTS}/searchlight/task-{{task}}_surface_maps"),
    log:
        log_of("combine_surface_searchlights", "task-{task}"),
    benchmark:
        benchmark_of("combine_surface_searchlights", "task-{task}")
    conda:
        "../envs/rsa.yaml"
    threads: 1
    resources:
        mem_mb=3000,
        runtime=120,
    params:
        options=options("searchlight", "permutations"),
        seed=SEED,
        code=code_version("combine_surface_searchlights"),
    script:
        "../workflow/combine_surface_searchlights.py"
