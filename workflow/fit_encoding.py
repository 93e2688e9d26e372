"""Predict one subject's responses from the layers of one model."""

from isocortex.encoding import fit_encoding
from isocortex.provenance import job_log

if __name__ == "__main__":
    with job_log(
        snakemake.log[0],
        where=f"fit_encoding sub-{snakemake.wildcards.subject} model-{snakemake.wildcards.model}",
    ):
        fit_encoding(
            responses=snakemake.input.responses,
            features=snakemake.input.features,
            out=snakemake.output.store,
            maps=snakemake.output.maps,
            **snakemake.params.options,
            regions=next(iter(snakemake.input.regions), None),
            labels=next(iter(snakemake.input.labels), None),
            responsive_ceiling=snakemake.params.responsive_ceiling,
            seed=snakemake.params.seed,
            threads=snakemake.threads,
            code=snakemake.params.code,
        )
