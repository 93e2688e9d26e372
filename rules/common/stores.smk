# Paths of the stores: the only place where they are written.


def betas_store(subject="{subject}", task="{task}"):
    return f"{RESULTS}/glm/sub-{subject}_task-{task}_betas.zarr"


def contrast_maps(subject="{subject}", task="{task}"):
    return f"{RESULTS}/glm/sub-{subject}_task-{task}_contrasts"


def beta_images(subject="{subject}", task="{task}"):
    return f"{RESULTS}/glm/sub-{subject}_task-{task}_images"


def timeseries_store(subject="{subject}", task="{task}"):
    return f"{RESULTS}/glm/sub-{subject}_task-{task}_timeseries.zarr"


def features_store(model="{model}"):
    return f"{RESULTS}/features/model-{model}_features.zarr"


def rdms_store(subject="{subject}", task="{task}", measure="{measure}"):
    return f"{RESULTS}/rsa/sub-{subject}_task-{task}_measure-{measure}_rdms.zarr"


def model_rdms_store(model="{model}", measure="{measure}"):
    return f"{RESULTS}/rsa/model-{model}_measure-{measure}_rdms.zarr"


def scores_store(task="{task}", measure="{measure}"):
    return f"{RESULTS}/rsa/task-{task}_measure-{measure}_scores.zarr"


def partition_store(task="{task}", measure="{measure}"):
    return f"{RESULTS}/rsa/task-{task}_measure-{measure}_partition.zarr"


def searchlight_store(subject="{subject}", task="{task}"):
    return f"{RESULTS}/searchlight/sub-{subject}_task-{task}_searchlight.zarr"


def searchlight_group_store(task="{task}"):
    return f"{RESULTS}/searchlight/task-{task}_searchlight.zarr"


def surface_searchlight_store(subject="{subject}", task="{task}"):
    return f"{RESULTS}/searchlight/sub-{subject}_task-{task}_surface.zarr"


def surface_searchlight_group_store(task="{task}"):
    return f"{RESULTS}/searchlight/task-{task}_surface.zarr"


def identification_store(task="{task}", measure="{measure}"):
    return f"{RESULTS}/trsa/task-{task}_measure-{measure}_identification.zarr"


def topology_store(task="{task}", measure="{measure}"):
    return f"{RESULTS}/trsa/task-{task}_measure-{measure}_topology.zarr"


def dependence_store(task="{task}", measure="{measure}"):
    return f"{RESULTS}/trsa/task-{task}_measure-{measure}_dependence.zarr"


def persistence_store(task="{task}", measure="{measure}"):
    return f"{RESULTS}/trsa/task-{task}_measure-{measure}_persistence.zarr"


def layers_store(family="{family}", measure="{measure}"):
    return f"{RESULTS}/trsa/family-{family}_measure-{measure}_layers.zarr"


def encoding_store(subject="{subject}", task="{task}", model="{model}"):
    return f"{RESULTS}/encoding/sub-{subject}_task-{task}_model-{model}_encoding.zarr"


def readout_store(subject="{subject}", task="{task}", readout="{readout}"):
    return f"{RESULTS}/encoding/sub-{subject}_task-{task}_readout-{readout}.zarr"


def universal_store(task="{task}", universal="{universal}"):
    return f"{RESULTS}/encoding/task-{task}_universal-{universal}.zarr"


def joint_store(subject="{subject}", task="{task}", joint="{joint}"):
    return f"{RESULTS}/encoding/sub-{subject}_task-{task}_joint-{joint}.zarr"


def encoding_summary_store(task="{task}"):
    return f"{RESULTS}/encoding/task-{task}_summary.zarr"


def regions_prefix(subject="{subject}", task="{task}"):
    return f"{RESULTS}/regions/sub-{subject}_task-{task}"


def anat(name, subject="{subject}"):
    return f"{PREPROCESS}/sub-{subject}/anat/sub-{subject}_{name}"


def func(name, subject="{subject}", run="{run}"):
    return f"{PREPROCESS}/sub-{subject}/{run}_{name}"


def fmap(name, subject="{subject}", fieldmap="{fieldmap}"):
    return f"{PREPROCESS}/sub-{subject}/{fieldmap}_{name}"


def figures_of(part, subject="{subject}"):
    return f"{PREPROCESS}/sub-{subject}/figures/{part}"


def each_space(name, subject="{subject}", run="{run}"):
    """Return an output of preprocess_bold in every output space that is a volume."""
    volumes = [space for space in SPACES if space not in SURFACES]
    return [func(f"space-{space}_{name}", subject, run) for space in volumes]


def each_hemisphere(name, subject="{subject}", run="{run}"):
    """Return an output of preprocess_bold on both hemispheres of every surface asked for."""
    surfaces = [space for space in SPACES if space in SURFACES]
    return [
        func(f"hemi-{side}_space-{space}_{name}", subject, run)
        for space in surfaces
        for side in "LR"
    ]
