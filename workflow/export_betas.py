"""Write the betas of one subject and task as NIfTI."""

from isocortex.glm import export_betas
from isocortex.provenance import job_log

if __name__ == "__main__":
    with job_log(snakemake.log[0], where=f"export_betas sub-{snakemake.wildcards.subject}"):
        export_betas(
            betas=snakemake.input.betas,
            out=snakemake.output.images,
            manifest=snakemake.output.manifest,
            code=snakemake.params.code,
        )
