"""Take time series that were cleaned elsewhere into the store of one subject and task."""

from isocortex.glm import import_timeseries
from isocortex.provenance import job_log

if __name__ == "__main__":
    with job_log(snakemake.log[0], where=f"import_timeseries sub-{snakemake.wildcards.subject}"):
        import_timeseries(
            files=list(snakemake.input.files),
            events=list(snakemake.input.events),
            mask=list(snakemake.input.get("mask", [])),
            tr=snakemake.params.tr,
            runs=snakemake.params.runs,
            space=snakemake.params.space,
            out=snakemake.output.store,
            subject=snakemake.wildcards.subject,
            task=snakemake.wildcards.task,
            **snakemake.params.options,
            code=snakemake.params.code,
            threads=snakemake.threads,
        )
