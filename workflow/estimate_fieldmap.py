"""Estimate one field of one subject."""

from isocortex.fieldmaps_metadata import fieldmap_from_dict
from isocortex.preprocess import estimate_fieldmap
from isocortex.provenance import job_log

if __name__ == "__main__":
    where = f"estimate_fieldmap sub-{snakemake.wildcards.subject} {snakemake.wildcards.fieldmap}"
    with job_log(snakemake.log[0], where=where):
        estimate_fieldmap(
            fieldmap_from_dict(snakemake.params.fieldmap),
            subject=snakemake.wildcards.subject,
            outputs=dict(snakemake.output.items()),
            seed=snakemake.params.seed,
            log=snakemake.log[0],
            temporary=snakemake.resources.tmpdir,
            threads=snakemake.threads,
            mem_mb=snakemake.resources.mem_mb,
            code=snakemake.params.code,
        )
