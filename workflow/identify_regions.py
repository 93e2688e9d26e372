"""Identify held-out subjects' regions by geo-topological statistics of their RDMs."""

from isocortex.provenance import job_log
from isocortex.topology import identify_regions

if __name__ == "__main__":
    with job_log(
        snakemake.log[0],
        where=f"identify_regions task-{snakemake.wildcards.task} "
        f"measure-{snakemake.wildcards.measure}",
    ):
        identify_regions(
            rdms=list(snakemake.input.rdms),
            out=snakemake.output.store,
            code=snakemake.params.code,
            seed=snakemake.params.seed,
            threads=snakemake.threads,
            **snakemake.params.options,
        )
