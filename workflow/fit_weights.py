"""Fit one subject's weights on all samples, at the penalties that the folds chose."""

from isocortex.encoding import fit_weights
from isocortex.provenance import job_log

if __name__ == "__main__":
    with job_log(
        snakemake.log[0],
        where=f"fit_weights sub-{snakemake.wildcards.subject} model-{snakemake.wildcards.model}",
    ):
        fit_weights(
            responses=snakemake.input.responses,
            features=snakemake.input.features,
            encoding=snakemake.input.encoding,
            out=snakemake.output.store,
            **snakemake.params.options,
            seed=snakemake.params.seed,
            threads=snakemake.threads,
            code=snakemake.params.code,
        )
