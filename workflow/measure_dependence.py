"""Test the dependence of brain regions on model layers over all pairs of thresholds (AGTDM)."""

from isocortex.provenance import job_log
from isocortex.topology import measure_dependence

if __name__ == "__main__":
    with job_log(
        snakemake.log[0],
        where=f"measure_dependence task-{snakemake.wildcards.task} "
        f"measure-{snakemake.wildcards.measure}",
    ):
        measure_dependence(
            rdms=list(snakemake.input.rdms),
            model_rdms=list(snakemake.input.model_rdms),
            out=snakemake.output.store,
            code=snakemake.params.code,
            seed=snakemake.params.seed,
            threads=snakemake.threads,
            **snakemake.params.options,
        )
