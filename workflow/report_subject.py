"""Write the report of one subject."""

from isocortex.provenance import job_log
from isocortex.report import report_subject

if __name__ == "__main__":
    with job_log(snakemake.log[0], where=f"report_subject sub-{snakemake.wildcards.subject}"):
        report_subject(
            subject=snakemake.wildcards.subject,
            out=snakemake.output.report,
            figures=list(snakemake.input.get("figures", [])),
            confounds=list(snakemake.input.get("confounds", [])),
            betas=list(snakemake.input.get("betas", [])),
            contrasts=list(snakemake.input.get("contrasts", [])),
            regions=list(snakemake.input.get("regions", [])),
            region_labels=list(snakemake.input.get("region_labels", [])),
            rdms=list(snakemake.input.get("rdms", [])),
            searchlight=list(snakemake.input.get("searchlight", [])),
            searchlight_surface=list(snakemake.input.get("searchlight_surface", [])),
            encoding=list(snakemake.input.get("encoding", [])),
            joint=list(snakemake.input.get("joint", [])),
            readouts=list(snakemake.input.get("readouts", [])),
            manifests=list(snakemake.input.get("manifests", [])),
            anatomy=dict(snakemake.params.get("anatomy", {})),
            stimuli=dict(snakemake.params.get("stimuli", {})),
            study=snakemake.params.study["name"],
            entry=snakemake.params.study["entry"],
            options=snakemake.params.options,
            code=snakemake.params.code,
        )
