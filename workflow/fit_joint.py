"""Predict one subject's responses from several feature spaces together."""

from isocortex.encoding.fit_joint import fit_joint
from isocortex.provenance import job_log

if __name__ == "__main__":
    name, options = snakemake.wildcards.joint, snakemake.params.options
    with job_log(
        snakemake.log[0],
        where=f"fit_joint sub-{snakemake.wildcards.subject} joint-{name}",
    ):
        fit_joint(
            responses=snakemake.input.responses,
            features=dict(zip(options["spaces"], snakemake.input.features, strict=True)),
            out=snakemake.output.store,
            maps=snakemake.output.maps,
            name=name,
            regions=next(iter(snakemake.input.regions), None),
            region_labels=next(iter(snakemake.input.labels), None),
            **options,
            seed=snakemake.params.seed,
            threads=snakemake.threads,
            code=snakemake.params.code,
        )
