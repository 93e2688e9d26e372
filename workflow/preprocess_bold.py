"""Preprocess one BOLD run."""

from isocortex.preprocess import preprocess_bold
from isocortex.provenance import job_log

FIELD = ("field", "field_reference")
ANATOMY = ("t1w", "mask", "dseg", "gm", "wm", "csf", "to_template")

if __name__ == "__main__":
    where = f"preprocess_bold sub-{snakemake.wildcards.subject} {snakemake.wildcards.run}"
    with job_log(snakemake.log[0], where=where):
        preprocess_bold(
            snakemake.input.bold,
            sidecars=list(snakemake.input.get("sidecars", [])),
            # no anatomy for a subject without a T1w, no field for a run without one
            anatomy={name: snakemake.input[name] for name in ANATOMY if snakemake.input.get(name)},
            fieldmap=[snakemake.input[name] for name in FIELD if snakemake.input.get(name)],
            distortion=snakemake.params.distortion,
            subject=snakemake.wildcards.subject,
            run=snakemake.wildcards.run,
            outputs=dict(snakemake.output.items()),
            options=snakemake.params.options,
            seed=snakemake.params.seed,
            log=snakemake.log[0],
            temporary=snakemake.resources.tmpdir,
            threads=snakemake.threads,
            mem_mb=snakemake.resources.mem_mb,
            code=snakemake.params.code,
        )
