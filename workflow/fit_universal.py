"""Predict all subjects' responses by one network with an embedding for each voxel."""

from isocortex.encoding.fit_universal import fit_universal
from isocortex.provenance import job_log

if __name__ == "__main__":
    name = snakemake.wildcards.universal
    with job_log(
        snakemake.log[0], where=f"fit_universal task-{snakemake.wildcards.task} universal-{name}"
    ):
        fit_universal(
            responses=snakemake.input.responses,
            features=snakemake.input.features,
            out=snakemake.output.store,
            maps=snakemake.output.maps,
            name=name,
            regions=snakemake.input.regions,
            region_labels=next(iter(snakemake.input.labels), None),
            **snakemake.params.options,
            seed=snakemake.params.seed,
            threads=snakemake.threads,
            code=snakemake.params.code,
        )
