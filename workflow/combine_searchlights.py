"""Test the searchlight scores of all subjects."""

from isocortex.provenance import job_log
from isocortex.searchlight import combine_searchlights

if __name__ == "__main__":
    with job_log(snakemake.log[0], where=f"combine_searchlights task-{snakemake.wildcards.task}"):
        combine_searchlights(
            searchlights=list(snakemake.input.stores),
            out=snakemake.output.store,
            maps=snakemake.output.maps,
            **snakemake.params.options,
            seed=snakemake.params.seed,
            code=snakemake.params.code,
            threads=snakemake.threads,
        )
