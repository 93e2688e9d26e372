"""Partition the variance of the brain's RDMs among models."""

from isocortex.provenance import job_log
from isocortex.rsa.partition import partition_models

if __name__ == "__main__":
    with job_log(
        snakemake.log[0],
        where=f"partition_models task-{snakemake.wildcards.task} "
        f"measure-{snakemake.wildcards.measure}",
    ):
        partition_models(
            rdms=list(snakemake.input.rdms),
            model_rdms=list(snakemake.input.model_rdms),
            out=snakemake.output.store,
            **snakemake.params.options,
            seed=snakemake.params.seed,
            code=snakemake.params.code,
            threads=snakemake.threads,
        )
