"""Take single-trial betas that were made elsewhere into the store of one subject and task."""

from isocortex.glm import import_betas
from isocortex.provenance import job_log

if __name__ == "__main__":
    with job_log(snakemake.log[0], where=f"import_betas sub-{snakemake.wildcards.subject}"):
        import_betas(
            image=str(snakemake.input.image),
            events=str(snakemake.input.events),
            mask=snakemake.input.mask or None,
            out=snakemake.output.store,
            subject=snakemake.wildcards.subject,
            task=snakemake.wildcards.task,
            space=snakemake.params.space,
            code=snakemake.params.code,
            threads=snakemake.threads,
        )
