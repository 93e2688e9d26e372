"""Clean the time series of one subject and continuous task."""

from isocortex.glm import clean_bold
from isocortex.provenance import job_log

if __name__ == "__main__":
    with job_log(snakemake.log[0], where=f"clean_bold sub-{snakemake.wildcards.subject}"):
        clean_bold(
            bold=list(snakemake.input.bold),
            mask=list(snakemake.input.mask),
            confounds=list(snakemake.input.get("confounds", [])),
            sidecar=list(snakemake.input.sidecar),
            events=list(snakemake.input.events),
            runs=snakemake.params.runs,
            out=snakemake.output.store,
            subject=snakemake.wildcards.subject,
            task=snakemake.wildcards.task,
            **snakemake.params.options,
            code=snakemake.params.code,
            threads=snakemake.threads,
        )
