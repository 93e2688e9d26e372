"""Summarise the persistent homology of the regions' RDMs."""

from isocortex.provenance import job_log
from isocortex.topology import summarise_persistence

if __name__ == "__main__":
    with job_log(
        snakemake.log[0],
        where=f"summarise_persistence task-{snakemake.wildcards.task} "
        f"measure-{snakemake.wildcards.measure}",
    ):
        summarise_persistence(
            rdms=list(snakemake.input.rdms),
            out=snakemake.output.store,
            code=snakemake.params.code,
            seed=snakemake.params.seed,
            threads=snakemake.threads,
            **snakemake.params.options,
        )
