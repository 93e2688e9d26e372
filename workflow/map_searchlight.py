"""Score every searchlight of one subject against all models."""

from isocortex.provenance import job_log
from isocortex.searchlight import map_searchlight

if __name__ == "__main__":
    with job_log(snakemake.log[0], where=f"map_searchlight sub-{snakemake.wildcards.subject}"):
        map_searchlight(
            betas=snakemake.input.betas,
            model_rdms=list(snakemake.input.model_rdms),
            out=snakemake.output.store,
            maps=snakemake.output.maps,
            **snakemake.params.options,
            code=snakemake.params.code,
            threads=snakemake.threads,
        )
