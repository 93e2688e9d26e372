"""The methods text, written from what the stores and the configuration say was done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import xarray as xr

from isocortex.report.page import Heading, Paragraph, join
from isocortex.report.wording import correction, level, radius_text, resampled


@dataclass(frozen=True)
class Reference:
    """A reference with its link."""

    key: str
    text: str
    doi: str = ""
    address: str = ""

    @property
    def url(self) -> str:
        """Address of the link."""
        return f"https://doi.org/{self.doi}" if self.doi else self.address

    @property
    def label(self) -> str:
        """Text of the link."""
        return f"doi:{self.doi}" if self.doi else self.address.removeprefix("https://")


REFERENCES = {
    reference.key: reference
    for reference in (
        Reference(
            "nipype",
            "Gorgolewski K, Burns CD, Madison C, Clark D, Halchenko YO, Waskom ML, Ghosh SS "
            "(2011). "
            "Nipype: a flexible, lightweight and extensible neuroimaging data processing framework "
            "in Python. Frontiers in Neuroinformatics 5:13.",
            "10.3389/fninf.2011.00013",
        ),
        Reference(
            "syn",
            "Avants BB, Epstein CL, Grossman M, Gee JC (2008). Symmetric diffeomorphic image "
            "registration with cross-correlation. Medical Image Analysis 12:26–41.",
            "10.1016/j.media.2007.06.004",
        ),
        Reference(
            "n4",
            "Tustison NJ, Avants BB, Cook PA, Zheng Y, Egan A, Yushkevich PA, Gee JC (2010). "
            "N4ITK: "
            "improved N3 bias correction. IEEE Transactions on Medical Imaging 29:1310–1320.",
            "10.1109/TMI.2010.2046908",
        ),
        Reference(
            "template",
            "Fonov V, Evans AC, Botteron K, Almli CR, McKinstry RC, Collins DL (2011). Unbiased "
            "average age-appropriate atlases for pediatric studies. NeuroImage 54:313–327.",
            "10.1016/j.neuroimage.2010.07.033",
        ),
        Reference(
            "fd",
            "Power JD, Barnes KA, Snyder AZ, Schlaggar BL, Petersen SE (2012). Spurious but "
            "systematic correlations in functional connectivity MRI networks arise from subject "
            "motion. NeuroImage 59:2142–2154.",
            "10.1016/j.neuroimage.2011.10.018",
        ),
        Reference(
            "compcor",
            "Behzadi Y, Restom K, Liau J, Liu TT (2007). A component based noise correction method "
            "(CompCor) for BOLD and perfusion based fMRI. NeuroImage 37:90–101.",
            "10.1016/j.neuroimage.2007.04.042",
        ),
        Reference(
            "nilearn",
            "Abraham A, Pedregosa F, Eickenberg M, et al. (2014). Machine learning for "
            "neuroimaging "
            "with scikit-learn. Frontiers in Neuroinformatics 8:14. The design matrices follow the "
            "conventions of nilearn.",
            "10.3389/fninf.2014.00014",
        ),
        Reference(
            "fmriprep",
            "Esteban O, Markiewicz CJ, Blair RW, et al. (2019). fMRIPrep: a robust preprocessing "
            "pipeline for functional MRI. Nature Methods 16:111–116. Names of the confounds.",
            "10.1038/s41592-018-0235-4",
        ),
        Reference(
            "friston",
            "Friston KJ, Holmes AP, Worsley KJ, Poline JP, Frith CD, Frackowiak RSJ (1994). "
            "Statistical parametric maps in functional imaging: a general linear approach. Human "
            "Brain Mapping 2:189–210.",
            "10.1002/hbm.460020402",
        ),
        Reference(
            "nsd",
            "Allen EJ, St-Yves G, Wu Y, et al. (2022). A massive 7T fMRI dataset to bridge "
            "cognitive "
            "neuroscience and artificial intelligence. Nature Neuroscience 25:116–126. Noise "
            "ceiling "
            "of single-trial designs.",
            "10.1038/s41593-021-00962-x",
        ),
        Reference(
            "rsa",
            "Kriegeskorte N, Mur M, Bandettini P (2008). Representational similarity analysis – "
            "connecting the branches of systems neuroscience. Frontiers in Systems Neuroscience "
            "2:4.",
            "10.3389/neuro.06.004.2008",
        ),
        Reference(
            "ceiling",
            "Nili H, Wingfield C, Walther A, Su L, Marslen-Wilson W, Kriegeskorte N (2014). A "
            "toolbox "
            "for representational similarity analysis. PLOS Computational Biology 10:e1003553. "
            "Noise "
            "ceiling of RDM comparisons.",
            "10.1371/journal.pcbi.1003553",
        ),
        Reference(
            "crossnobis",
            "Walther A, Nili H, Ejaz N, Alink A, Kriegeskorte N, Diedrichsen J (2016). Reliability "
            "of "
            "dissimilarity measures for multi-voxel pattern analysis. NeuroImage 137:188–200.",
            "10.1016/j.neuroimage.2015.12.012",
        ),
        Reference(
            "whitened",
            "Diedrichsen J, Berlot E, Mur M, Schütt HH, Shahbazi M, Kriegeskorte N (2021). "
            "Comparing "
            "representational geometries using whitened unbiased-distance-matrix similarity. "
            "Neurons, Behavior, Data analysis, and Theory 5(3).",
            "10.51628/001c.27664",
        ),
        Reference(
            "inference",
            "Schütt HH, Kipnis AD, Diedrichsen J, Kriegeskorte N (2023). Statistical inference on "
            "representational geometries. eLife 12:e82566. Defines the bootstraps (rsatoolbox).",
            "10.7554/eLife.82566",
        ),
        Reference(
            "searchlight",
            "Kriegeskorte N, Goebel R, Bandettini P (2006). Information-based functional brain "
            "mapping. PNAS 103:3863–3868.",
            "10.1073/pnas.0600244103",
        ),
        Reference(
            "trsa",
            "Lin B, Kriegeskorte N (2024). The topology and geometry of neural representations. "
            "PNAS "
            "121:e2317881121.",
            "10.1073/pnas.2317881121",
        ),
        Reference(
            "encoding",
            "Naselaris T, Kay KN, Nishimoto S, Gallant JL (2011). Encoding and decoding in fMRI. "
            "NeuroImage 56:400–410.",
            "10.1016/j.neuroimage.2010.07.073",
        ),
        Reference(
            "himalaya",
            "Dupré la Tour T, Eickenberg M, Nunez-Elizalde AO, Gallant JL (2022). Feature-space "
            "selection with banded ridge regression. NeuroImage 264:119728. Ridge per voxel, "
            "himalaya.",
            "10.1016/j.neuroimage.2022.119728",
        ),
        Reference(
            "pytorch",
            "Paszke A, Gross S, Massa F, et al. (2019). PyTorch: an imperative style, "
            "high-performance deep learning library. NeurIPS 32.",
            address="https://arxiv.org/abs/1912.01703",
        ),
        Reference(
            "fsaverage",
            "Fischl B, Sereno MI, Tootell RBH, Dale AM (1999). High-resolution intersubject "
            "averaging "
            "and a coordinate system for the cortical surface. Human Brain Mapping 8:272–284.",
            "10.1002/(SICI)1097-0193(1999)8:4<272::AID-HBM10>3.0.CO;2-4",
        ),
        Reference(
            "snakemake",
            "Mölder F, Jablonski KP, Letcher B, et al. (2021). Sustainable data analysis with "
            "Snakemake. F1000Research 10:33.",
            "10.12688/f1000research.29032.2",
        ),
        Reference(
            "dask",
            "Rocklin M (2015). Dask: parallel computation with blocked algorithms and task "
            "scheduling. Proceedings of the 14th Python in Science Conference, 126–132.",
            "10.25080/Majora-7b98e3ed-013",
        ),
        Reference(
            "xarray",
            "Hoyer S, Hamman J (2017). xarray: N-D labeled arrays and datasets in Python. Journal "
            "of "
            "Open Research Software 5:10.",
            "10.5334/jors.148",
        ),
        Reference(
            "zarr",
            "Zarr core specification, version 3. Zarr developers.",
            address="https://zarr-specs.readthedocs.io",
        ),
        Reference(
            "bids",
            "Gorgolewski KJ, Auer T, Calhoun VD, et al. (2016). The brain imaging data structure, "
            "a "
            "format for organizing and describing outputs of neuroimaging experiments. Scientific "
            "Data 3:160044.",
            "10.1038/sdata.2016.44",
        ),
    )
}


@dataclass
class References:
    """The references that the text cites, in the order of their first citation."""

    items: list[Reference]
    kind: str = "references"


class _Citations:
    def __init__(self) -> None:
        self.used: list[Reference] = []

    def __call__(self, *keys: str) -> str:
        numbers = []
        for key in keys:
            reference = REFERENCES[key]
            if reference not in self.used:
                self.used.append(reference)
            numbers.append(self.used.index(reference) + 1)
        return f"[{', '.join(str(n) for n in sorted(numbers))}]"


def methods_blocks(
    *,
    entry: str,
    config: Mapping[str, Any],
    versions: Mapping[str, str],
    betas: Sequence[xr.Dataset],
    rdms: Sequence[xr.Dataset],
    scores: Sequence[xr.Dataset],
    searchlight: Sequence[xr.Dataset],
    identification: Sequence[xr.Dataset],
    topology: Sequence[xr.Dataset],
    encoding: Sequence[xr.Dataset],
    encoding_summary: Sequence[xr.Dataset],
    surface: bool,
) -> tuple[list[Any], References]:
    """Write the methods text.

    Parameters
    ----------
    entry
        Where the study enters the chain.
    config
        The whole configuration.
    versions
        Package versions.
    betas, rdms, scores, searchlight, identification, topology, encoding, encoding_summary
        Opened stores; only their attributes and names are read. Empty where a stage did not run,
        which leaves its paragraph out.
    surface
        Whether maps were drawn on fsaverage5.

    Returns
    -------
    blocks, references
        Paragraphs under headings, and the references cited.
    """
    cite = _Citations()
    blocks: list[Any] = []

    def version(package: str) -> str:
        return f"{package} {versions[package]}" if package in versions else package

    def add(heading: str, *sentences: str) -> None:
        blocks.append(Heading(heading))
        blocks.append(Paragraph(" ".join(sentence for sentence in sentences if sentence)))

    if entry == "bids":
        add("Preprocessing", *_preprocessing(config.get("preprocess", {}), cite, version))
    elif entry == "derivatives":
        add(
            "Preprocessing",
            "The study started from preprocessed BIDS derivatives "
            f"{cite('bids')}, with confounds named as by fMRIPrep {cite('fmriprep')}; see their "
            "own "
            "methods text.",
        )
    if betas:
        attrs = betas[0].attrs
        told = str(attrs.get("methods", "")).strip() or (
            f"Single-trial responses were estimated by {attrs['estimator']}, haemodynamic "
            "response: "
            f"{attrs.get('hrf', 'not recorded')}."
        )
        add(
            "Single-trial responses",
            told,
            f"Design matrices follow {version('nilearn')} {cite('nilearn', 'friston')}. Signal, "
            "noise "
            f"and noise ceiling of single-trial responses are those of the Natural Scenes Dataset "
            f"{cite('nsd')}.",
        )
    if rdms:
        add("Dissimilarity matrices", *_rdms(rdms, cite))
    if scores:
        add("Comparison with models", *_scores(scores, cite))
    if searchlight:
        attrs = searchlight[0].attrs
        add(
            "Searchlight",
            str(attrs.get("methods", "")),
            f"Around every voxel an RDM was computed (radius {radius_text(attrs['radius'])}) and "
            f"compared with the models' by {attrs['comparison']} {cite('searchlight')}; subjects "
            "were combined by the mean and by t of the Fisher-z transformed scores.",
        )
    if identification or topology:
        add("Topological RSA", *_topology(identification, topology, cite))
    if encoding_summary or encoding:
        add(
            "Encoding models",
            *_encoding(encoding, encoding_summary, cite, version),
            f"For display on fsaverage5 {cite('fsaverage')} maps were sampled between the white "
            "and "
            "the pial surface."
            if surface
            else "",
        )
    add(
        "Software",
        f"The analysis ran as a Snakemake workflow ({version('snakemake')}) {cite('snakemake')} "
        "with "
        f"{version('dask')} {cite('dask')} and {version('xarray')} {cite('xarray')}; results are "
        f"stored in Zarr format 3 ({version('zarr')}) {cite('zarr')} and described in the manner "
        "of "
        f"BIDS {cite('bids')}. All package versions and every configuration value are listed under "
        "Provenance.",
    )
    return blocks, References(cite.used)


def _value(section: Mapping[str, Any], key: str, template: str) -> str:
    """Fill the template where the configuration has the key."""
    value = section.get(key)
    if value is None or isinstance(value, Mapping):
        return ""
    if isinstance(value, (list, tuple)):
        value = join([str(item) for item in value]) if value else "none"
    return template.format(value)


def _preprocessing(section: Mapping[str, Any], cite: Any, version: Any) -> list[str]:
    steps = "Of each run a reference image was made, head motion estimated rigidly against it, "
    if section.get("slice_timing", True):
        steps += "slice timing corrected where the sidecar gives slice times, "
    resolution = section.get("resolution")
    return [
        f"Preprocessing ran as nipype workflows ({version('nipype')}) {cite('nipype')} on ANTs "
        f"({version('antspyx')}). The T1w image was corrected for intensity non-uniformity by N4 "
        f"{cite('n4')}, its brain extracted, its tissues classified, and it was registered to the "
        f"MNI152 template of nilearn {cite('template', 'nilearn')} by SyN {cite('syn')}.",
        f"{steps}and the reference registered rigidly to the T1w image; all transforms were "
        "applied "
        "in a single resampling"
        + _value(section, "spaces", " into {}")
        + (f" at {resolution:g} mm." if isinstance(resolution, (int, float)) else "."),
        f"Confounds carry fMRIPrep's names {cite('fmriprep')}: motion parameters, framewise "
        f"displacement and DVARS {cite('fd')}, tissue signals"
        + _value(section, "compcor_components", " and {} CompCor components")
        + f" {cite('compcor')}.",
    ]


def _rdms(rdms: Sequence[xr.Dataset], cite: Any) -> list[str]:
    sentences = []
    seen = set()
    for dataset in rdms:
        measure = str(dataset.attrs["measure"])
        if measure in seen:
            continue
        seen.add(measure)
        told = str(dataset.attrs.get("methods", "")).strip()
        normalisation = dataset.attrs["noise_normalisation"] or "none"
        validation = dataset.attrs["cross_validation"] or "none"
        citation = cite("crossnobis") if "nobis" in measure else cite("rsa")
        sentences.append(
            f"Dissimilarity of every pair of stimuli by {measure} {citation} (noise normalisation: "
            f"{normalisation}; cross-validation: {validation})."
        )
        if told:
            sentences.append(told)
    return sentences


def _scores(scores: Sequence[xr.Dataset], cite: Any) -> list[str]:
    dataset = scores[0]
    comparisons = [str(name) for name in dataset["comparison"].values]
    names = {"pearson": "Pearson correlation", "spearman": "Spearman correlation"}
    words = []
    for name in comparisons:
        word = names.get(name, name.replace("_", " "))
        words.append(f"whitened correlation {cite('whitened')}" if name == "corr_cov" else word)
    attrs = dataset.attrs
    return [
        str(attrs.get("methods", "")),
        f"RDMs of {dataset.sizes['region']} regions and {dataset.sizes['predictor']} model layers "
        "were "
        f"compared by {join(words)} {cite('rsa')}, with lower and upper noise ceiling "
        f"{cite('ceiling')}.",
        "There are too few stimuli and subjects for intervals or p-values."
        if attrs["bootstrap"] == "none"
        else f"Intervals are {level(dataset)} intervals of a t distribution with the variance of "
        f"{attrs['n_bootstrap']} bootstrap samples of {resampled(dataset)} (seed {attrs['seed']}) "
        f"{cite('inference')}; p-values are against 0, {correction(dataset)}.",
    ]


def _topology(
    identification: Sequence[xr.Dataset], topology: Sequence[xr.Dataset], cite: Any
) -> list[str]:
    attrs = (identification or topology)[0].attrs
    sentences = [
        str(attrs.get("methods", "")),
        f"Geo-topological summary statistics of the RDMs follow {cite('trsa')}, with the "
        "estimator's "
        f"choices made explicit: scale {attrs['scale']}, thresholds {attrs['threshold']}, pool "
        f"{attrs['pool']}, geodesics {attrs['geodesic']}.",
    ]
    if identification and topology:
        sentences.append(str(topology[0].attrs.get("methods", "")))
    return sentences


def _encoding(
    encoding: Sequence[xr.Dataset], summary: Sequence[xr.Dataset], cite: Any, version: Any
) -> list[str]:
    told = ""
    folds = ""
    parts: list[str] = []
    if encoding:
        told = str(encoding[0].attrs.get("methods", ""))
        folds = f" (folds: {encoding[0].attrs['folds']})"
    sentences = [
        told,
        "Each voxel's responses were predicted from each layer by ridge regression "
        f"{cite('encoding')} in "
        f"{version('torch')} {cite('pytorch')}, with the penalty chosen per voxel by nested "
        f"cross-validation {cite('himalaya')}; scores are Pearson correlations on held-out "
        f"trials{folds}, "
        "normalised by the square root of the explainable share of variance where that is large "
        "enough.",
    ]
    for key, template in (
        ("test", "Regions were tested by a {}"),
        ("interval", "intervals are the {}"),
        ("correction", "p-values are corrected ({})"),
    ):
        told = str(summary[0].attrs.get(key, "")) if summary else ""
        if told:
            parts.append(template.format(told))
    if parts:
        sentences.append(f"{'; '.join(parts)}.")
    return sentences
