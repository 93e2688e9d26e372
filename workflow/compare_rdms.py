"""Compare the RDMs of all subjects with those of all models."""

from isocortex.provenance import job_log
from isocortex.rsa import compare_rdms

if __name__ == "__main__":
    with job_log(snakemake.log[0], where=f"compare_rdms task-{snakemake.wildcards.task}"):
        compare_rdms(
            rdms=list(snakemake.input.rdms),
            model_rdms=list(snakemake.input.model_rdms),
            out=snakemake.output.store,
            **snakemake.params.options,
            seed=snakemake.params.seed,
            code=snakemake.params.code,
            threads=snakemake.threads,
        )
