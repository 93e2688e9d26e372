"""Compare brain regions with model layers by geo-topological statistics of their RDMs."""

from isocortex.provenance import job_log
from isocortex.topology import compare_topology

if __name__ == "__main__":
    with job_log(
        snakemake.log[0],
        where=f"compare_topology task-{snakemake.wildcards.task} "
        f"measure-{snakemake.wildcards.measure}",
    ):
        compare_topology(
            rdms=list(snakemake.input.rdms),
            model_rdms=list(snakemake.input.model_rdms),
            out=snakemake.output.store,
            code=snakemake.params.code,
            seed=snakemake.params.seed,
            threads=snakemake.threads,
            **snakemake.params.options,
        )
