"""Map contrasts of conditions of one subject and task."""

from isocortex.glm import map_contrasts
from isocortex.provenance import job_log

if __name__ == "__main__":
    with job_log(snakemake.log[0], where=f"map_contrasts sub-{snakemake.wildcards.subject}"):
        map_contrasts(
            bold=list(snakemake.input.bold),
            mask=list(snakemake.input.mask),
            confounds=list(snakemake.input.get("confounds", [])),
            sidecar=list(snakemake.input.sidecar),
            events=list(snakemake.input.events),
            runs=snakemake.params.runs,
            out=snakemake.output.maps,
            manifest=snakemake.output.manifest,
            subject=snakemake.wildcards.subject,
            task=snakemake.wildcards.task,
            **snakemake.params.options,
            code=snakemake.params.code,
            threads=snakemake.threads,
        )
