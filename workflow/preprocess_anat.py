"""Preprocess the anatomy of one subject."""

from isocortex.preprocess import preprocess_anat
from isocortex.provenance import job_log

if __name__ == "__main__":
    with job_log(snakemake.log[0], where=f"preprocess_anat sub-{snakemake.wildcards.subject}"):
        preprocess_anat(
            list(snakemake.input.t1w),
            subject=snakemake.wildcards.subject,
            outputs=dict(snakemake.output.items()),
            seed=snakemake.params.seed,
            log=snakemake.log[0],
            temporary=snakemake.resources.tmpdir,
            threads=snakemake.threads,
            mem_mb=snakemake.resources.mem_mb,
            code=snakemake.params.code,
        )
