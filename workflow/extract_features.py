"""Extract the features of one model."""

from isocortex.features import extract_features
from isocortex.provenance import job_log

if __name__ == "__main__":
    with job_log(snakemake.log[0], where=f"extract_features model-{snakemake.wildcards.model}"):
        extract_features(
            stimuli=list(snakemake.input.stimuli),
            stimulus_ids=list(snakemake.params.stimulus_ids),
            out=snakemake.output.store,
            model=snakemake.wildcards.model,
            **snakemake.params.options,
            threads=snakemake.threads,
            code=snakemake.params.code,
        )
