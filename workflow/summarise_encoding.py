"""Summarise encoding scores by region and over subjects."""

from isocortex.encoding import summarise_encoding
from isocortex.provenance import job_log

if __name__ == "__main__":
    with job_log(snakemake.log[0], where=f"summarise_encoding task-{snakemake.wildcards.task}"):
        summarise_encoding(
            stores=list(snakemake.input.stores),
            joint=list(snakemake.input.joint),
            readouts=list(snakemake.input.readouts),
            regions=list(snakemake.input.regions),
            labels=snakemake.input.labels or None,
            out=snakemake.output.store,
            table=snakemake.output.table,
            maps=snakemake.output.maps,
            **snakemake.params.options,
            seed=snakemake.params.seed,
            code=snakemake.params.code,
        )
