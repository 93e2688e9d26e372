"""Compute the RDMs of the layers of one model."""

from isocortex.provenance import job_log
from isocortex.rsa import compute_model_rdms

if __name__ == "__main__":
    with job_log(snakemake.log[0], where=f"compute_model_rdms {snakemake.wildcards.model}"):
        compute_model_rdms(
            features=snakemake.input.features,
            out=snakemake.output.store,
            model_measure=snakemake.wildcards.measure,
            code=snakemake.params.code,
            threads=snakemake.threads,
        )
