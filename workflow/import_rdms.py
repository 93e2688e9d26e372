"""Import the RDMs of one subject that were made elsewhere."""

from isocortex.provenance import job_log
from isocortex.rsa import import_rdms

if __name__ == "__main__":
    with job_log(snakemake.log[0], where=f"import_rdms sub-{snakemake.wildcards.subject}"):
        import_rdms(
            files=list(snakemake.input.files),
            regions=list(snakemake.params.regions),
            stimuli=list(snakemake.params.stimuli),
            rdms=list(snakemake.params.rdms),
            subject=snakemake.wildcards.subject,
            task=snakemake.wildcards.task,
            measure=snakemake.wildcards.measure,
            out=snakemake.output.store,
            code=snakemake.params.code,
        )
