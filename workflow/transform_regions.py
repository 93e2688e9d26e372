"""Resample an atlas to the BOLD grid of one subject."""

from isocortex.preprocess import transform_regions
from isocortex.provenance import job_log

if __name__ == "__main__":
    where = f"transform_regions sub-{snakemake.wildcards.subject}"
    with job_log(snakemake.log[0], where=where):
        transform_regions(
            snakemake.input.atlas,
            labels=snakemake.input.labels,
            grid=snakemake.input.grid,
            transforms=list(snakemake.input.get("transform", [])),
            subject=snakemake.wildcards.subject,
            outputs=dict(snakemake.output.items()),
            code=snakemake.params.code,
        )
