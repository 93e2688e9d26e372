"""Compute the RDMs of one subject's regions by one measure."""

from isocortex.provenance import job_log
from isocortex.rsa import compute_rdms

if __name__ == "__main__":
    with job_log(snakemake.log[0], where=f"compute_rdms sub-{snakemake.wildcards.subject}"):
        compute_rdms(
            betas=snakemake.input.betas,
            regions=snakemake.input.regions,
            region_labels=snakemake.input.region_labels,
            out=snakemake.output.store,
            measure=snakemake.wildcards.measure,
            **snakemake.params.options,
            code=snakemake.params.code,
            threads=snakemake.threads,
        )
