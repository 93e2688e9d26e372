"""Write the report of the study and the summary of its findings."""

from isocortex.provenance import job_log
from isocortex.report import report_study

STORES = (
    *("scores", "partition", "identification", "topology", "layers", "dependence", "persistence"),
    *("encoding_summary", "searchlight", "searchlight_surface"),
    *("rdms", "model_rdms", "encoding", "joint", "readouts", "universal", "betas"),
    *("regions", "region_labels", "confounds", "manifests"),
)

if __name__ == "__main__":
    with job_log(snakemake.log[0], where="report_study"):
        report_study(
            out=snakemake.output.report,
            summary=snakemake.output.summary,
            **{name: list(snakemake.input.get(name, [])) for name in STORES},
            study=snakemake.params.study["name"],
            subjects=list(snakemake.params.subjects),
            excluded=dict(snakemake.params.excluded),
            entry=snakemake.params.study["entry"],
            made_by=snakemake.params.study["made_by"],
            stimuli=dict(snakemake.params.get("stimuli", {})),
            config=snakemake.params.config,
            options=snakemake.params.options,
            code=snakemake.params.code,
        )
