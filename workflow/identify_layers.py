"""Identify left-out seeds' layers of a network by geo-topological statistics of their RDMs."""

from isocortex.provenance import job_log
from isocortex.topology import identify_layers

if __name__ == "__main__":
    with job_log(
        snakemake.log[0],
        where=f"identify_layers {snakemake.wildcards.family} measure-{snakemake.wildcards.measure}",
    ):
        identify_layers(
            model_rdms=list(snakemake.input.model_rdms),
            network=snakemake.wildcards.family,
            out=snakemake.output.store,
            code=snakemake.params.code,
            seed=snakemake.params.seed,
            threads=snakemake.threads,
            **snakemake.params.options,
        )
