"""Import the RDMs of one model that were made elsewhere."""

from isocortex.provenance import job_log
from isocortex.rsa import import_model_rdms

if __name__ == "__main__":
    with job_log(snakemake.log[0], where=f"import_model_rdms {snakemake.wildcards.model}"):
        import_model_rdms(
            files=list(snakemake.input.files),
            layers=list(snakemake.params.layers),
            stimuli=list(snakemake.params.stimuli),
            rdms=list(snakemake.params.rdms),
            model=snakemake.wildcards.model,
            out=snakemake.output.store,
            code=snakemake.params.code,
        )
