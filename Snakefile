from snakemake.utils import min_version

min_version("9.0")


configfile: f"{workflow.basedir}/config/config.yaml"


include: "rules/common.smk"
include: "rules/preprocess.smk"
include: "rules/glm.smk"
include: "rules/features.smk"
include: "rules/rsa.smk"
include: "rules/searchlight.smk"
include: "rules/trsa.smk"
include: "rules/encoding.smk"
include: "rules/report.smk"


onstart:
    check_before_start()


rule all:
    default_target: True
    input:
        target_reports(),
        target_preprocess(),
        target_encoding(),
        beside_betas(),


rule preprocess:
    input:
        target_preprocess(),


rule glm:
    input:
        target_glm(),


rule features:
    input:
        target_features(),


rule rsa:
    input:
        target_rsa(),


rule trsa:
    input:
        target_trsa(),


rule encoding:
    input:
        target_encoding(),
