"""Predict one subject's responses from a model's feature maps through a readout."""

from isocortex.encoding.fit_readout import fit_readout
from isocortex.provenance import job_log

if __name__ == "__main__":
    name = snakemake.wildcards.readout
    with job_log(
        snakemake.log[0],
        where=f"fit_readout sub-{snakemake.wildcards.subject} readout-{name}",
    ):
        fit_readout(
            responses=snakemake.input.responses,
            features=snakemake.input.features,
            out=snakemake.output.store,
            maps=snakemake.output.maps,
            name=name,
            regions=next(iter(snakemake.input.regions), None),
            region_labels=next(iter(snakemake.input.labels), None),
            **snakemake.params.options,
            seed=snakemake.params.seed,
            threads=snakemake.threads,
            code=snakemake.params.code,
        )
