"""Describe the folder of preprocessed data."""

from isocortex.preprocess import describe_derivatives
from isocortex.provenance import job_log

if __name__ == "__main__":
    with job_log(snakemake.log[0], where="describe_derivatives"):
        describe_derivatives(
            raw=snakemake.params.source,
            description=snakemake.output.description,
            ignore=snakemake.output.ignore,
        )
