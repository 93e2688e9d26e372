"""References of the methods text, and their numbers."""

from __future__ import annotations

from dataclasses import dataclass


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
            "atropos",
            "Avants BB, Tustison NJ, Wu J, Cook PA, Gee JC (2011). An open source multivariate "
            "framework for n-tissue segmentation with evaluation on public data. Neuroinformatics "
            "9:381–400.",
            "10.1007/s12021-011-9109-y",
        ),
        Reference(
            "lucas_kanade",
            "Baker S, Matthews I (2004). Lucas-Kanade 20 years on: a unifying framework. "
            "International Journal of Computer Vision 56:221–255.",
            "10.1023/B:VISI.0000011205.11775.fd",
        ),
        Reference(
            "bbr",
            "Greve DN, Fischl B (2009). Accurate and robust brain image alignment using "
            "boundary-based registration. NeuroImage 48:63–72.",
            "10.1016/j.neuroimage.2009.06.060",
        ),
        Reference(
            "topup",
            "Andersson JLR, Skare S, Ashburner J (2003). How to correct susceptibility distortions "
            "in spin-echo echo-planar images: application to diffusion tensor imaging. NeuroImage "
            "20:870–888.",
            "10.1016/S1053-8119(03)00336-7",
        ),
        Reference(
            "fieldmaps",
            "Jezzard P, Balaban RS (1995). Correction for geometric distortion in echo planar "
            "images from B0 field variations. Magnetic Resonance in Medicine 34:65–73.",
            "10.1002/mrm.1910340111",
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
            "crown",
            "Patriat R, Reynolds RC, Birn RM (2017). An improved model of motion-related signal "
            "changes in fMRI. NeuroImage 144:74–82.",
            "10.1016/j.neuroimage.2016.08.051",
        ),
        Reference(
            "mriqc",
            "Esteban O, Birman D, Schaer M, Koyejo OO, Poldrack RA, Gorgolewski KJ (2017). MRIQC: "
            "Advancing the automatic prediction of image quality in MRI from unseen sites. PLOS "
            "ONE 12:e0184661.",
            "10.1371/journal.pone.0184661",
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
            "cognitive neuroscience and artificial intelligence. Nature Neuroscience 25:116–126. "
            "Noise ceiling of single-trial designs.",
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
            "cv_models",
            "Khaligh-Razavi SM, Kriegeskorte N (2014). Deep supervised, but not unsupervised, "
            "models may explain IT cortical representation. PLOS Computational Biology "
            "10:e1003915. Weighted models.",
            "10.1371/journal.pcbi.1003915",
        ),
        Reference(
            "wings",
            "Golan T, Raju PC, Kriegeskorte N (2020). Controversial stimuli: pitting neural "
            "networks against each other as models of human cognition. PNAS 117:29330–29337. "
            "Display of tests between models.",
            "10.1073/pnas.1912334117",
        ),
        Reference(
            "holm",
            "Holm S (1979). A simple sequentially rejective multiple test procedure. Scandinavian "
            "Journal of Statistics 6:65–70.",
            address="https://www.jstor.org/stable/4615733",
        ),
        Reference(
            "fdr",
            "Benjamini Y, Hochberg Y (1995). Controlling the false discovery rate: a practical and "
            "powerful approach to multiple testing. Journal of the Royal Statistical Society B "
            "57:289–300.",
            "10.1111/j.2517-6161.1995.tb02031.x",
        ),
        Reference(
            "riemann",
            "Shahbazi M, Shirali A, Aghajan H, Nili H (2021). Using distance on the Riemannian "
            "manifold to compare representations in brain and in models. NeuroImage 239:118271.",
            "10.1016/j.neuroimage.2021.118271",
        ),
        Reference(
            "bures",
            "Harvey SE, Larsen BW, Williams AH (2024). Duality of Bures and shape distances with "
            "implications for comparing neural representations. Proceedings of Machine Learning "
            "Research 243:11–26.",
            address="https://arxiv.org/abs/2311.11436",
        ),
        Reference(
            "partition",
            "Groen IIA, Greene MR, Baldassano C, Fei-Fei L, Beck DM, Baker CI (2018). Distinct "
            "contributions of functional and deep neural network features to representational "
            "similarity of scenes in human brain and behavior. eLife 7:e32962. Variance "
            "partitioning of RDMs.",
            "10.7554/eLife.32962",
        ),
        Reference(
            "smacof",
            "de Leeuw J, Mair P (2009). Multidimensional scaling using majorization: SMACOF in R. "
            "Journal of Statistical Software 31(3):1–30.",
            "10.18637/jss.v031.i03",
        ),
        Reference(
            "procrustes",
            "Gower JC (1975). Generalized Procrustes analysis. Psychometrika 40:33–51.",
            "10.1007/BF02291478",
        ),
        Reference(
            "surface",
            "Oosterhof NN, Wiestler T, Downing PE, Diedrichsen J (2011). A comparison of "
            "volume-based and surface-based multi-voxel pattern analysis. NeuroImage 56:593–600.",
            "10.1016/j.neuroimage.2010.04.270",
        ),
        Reference(
            "signflip",
            "Nichols TE, Holmes AP (2002). Nonparametric permutation tests for functional "
            "neuroimaging: a primer with examples. Human Brain Mapping 15:1–25.",
            "10.1002/hbm.1058",
        ),
        Reference(
            "tfce",
            "Smith SM, Nichols TE (2009). Threshold-free cluster enhancement: addressing problems "
            "of smoothing, threshold dependence and localisation in cluster inference. NeuroImage "
            "44:83–98.",
            "10.1016/j.neuroimage.2008.03.061",
        ),
        Reference(
            "trsa",
            "Lin B, Kriegeskorte N (2024). The topology and geometry of neural representations. "
            "PNAS "
            "121:e2317881121.",
            "10.1073/pnas.2317881121",
        ),
        Reference(
            "agtic",
            "Lin B, Kriegeskorte N (2018). Adaptive geo-topological independence criterion. "
            "arXiv:1810.02923.",
            address="https://arxiv.org/abs/1810.02923",
        ),
        Reference(
            "dcor",
            "Székely GJ, Rizzo ML, Bakirov NK (2007). Measuring and testing dependence by "
            "correlation of distances. Annals of Statistics 35:2769–2794.",
            "10.1214/009053607000000505",
        ),
        Reference(
            "persistence",
            "Edelsbrunner H, Letscher D, Zomorodian A (2002). Topological persistence and "
            "simplification. Discrete & Computational Geometry 28:511–533.",
            "10.1007/s00454-002-2885-2",
        ),
        Reference(
            "gudhi",
            "The GUDHI Project. GUDHI user and reference manual.",
            address="https://gudhi.inria.fr",
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
            "banded",
            "Nunez-Elizalde AO, Huth AG, Gallant JL (2019). Voxelwise encoding models with "
            "non-spherical multivariate normal priors. NeuroImage 197:482–492. Banded ridge.",
            "10.1016/j.neuroimage.2019.04.012",
        ),
        Reference(
            "product",
            "Pratt JW (1987). Dividing the indivisible: using simple symmetry to partition "
            "variance explained. Proceedings of the Second International Tampere Conference in "
            "Statistics, 245–260. Product measure.",
        ),
        Reference(
            "stacking",
            "Lin R, Naselaris T, Kay K, Wehbe L (2023). Stacked regressions and structured "
            "variance partitioning for interpretable brain maps. bioRxiv 2023.04.23.537988.",
            "10.1101/2023.04.23.537988",
        ),
        Reference(
            "glmsingle",
            "Prince JS, Charest I, Kurzawski JW, Pyles JA, Tarr MJ, Kay KN (2022). Improving the "
            "accuracy of single-trial fMRI response estimates using GLMsingle. eLife 11:e77599.",
            "10.7554/eLife.77599",
        ),
        Reference(
            "glmdenoise",
            "Kay KN, Rokem A, Winawer J, Dougherty RF, Wandell BA (2013). GLMdenoise: a fast, "
            "automated technique for denoising task-based fMRI data. Frontiers in Neuroscience "
            "7:247.",
            "10.3389/fnins.2013.00247",
        ),
        Reference(
            "least_squares_separate",
            "Mumford JA, Turner BO, Ashby FG, Poldrack RA (2012). Deconvolving BOLD activation in "
            "event-related designs for multivoxel pattern classification analyses. NeuroImage "
            "59:2636–2643.",
            "10.1016/j.neuroimage.2011.08.076",
        ),
        Reference(
            "harmonic_mean",
            "Thomas JD, Hultquist RA (1978). Interval estimation for the unbalanced case of the "
            "one-way random effects model. Annals of Statistics 6:582–587.",
            "10.1214/aos/1176344202",
        ),
        Reference(
            "fractional",
            "Rokem A, Kay K (2020). Fractional ridge regression: a fast, interpretable "
            "reparameterization of ridge regression. GigaScience 9:giaa133.",
            "10.1093/gigascience/giaa133",
        ),
        Reference(
            "motion_energy",
            "Nishimoto S, Vu AT, Naselaris T, Benjamini Y, Yu B, Gallant JL (2011). "
            "Reconstructing visual experiences from brain activity evoked by natural movies. "
            "Current Biology 21:1641–1646. Motion energy and delays.",
            "10.1016/j.cub.2011.08.031",
        ),
        Reference(
            "gabor_energy",
            "Kay KN, Naselaris T, Prenger RJ, Gallant JL (2008). Identifying natural images "
            "from human brain activity. Nature 452:352–355. Gabor energy.",
            "10.1038/nature06713",
        ),
        Reference(
            "gist",
            "Oliva A, Torralba A (2001). Modeling the shape of the scene: a holistic "
            "representation of the spatial envelope. International Journal of Computer Vision "
            "42:145–175.",
            "10.1023/A:1011139631724",
        ),
        Reference(
            "resnet",
            "He K, Zhang X, Ren S, Sun J (2016). Deep residual learning for image recognition. "
            "CVPR, 770–778.",
            "10.1109/CVPR.2016.90",
        ),
        Reference(
            "allconv",
            "Springenberg JT, Dosovitskiy A, Brox T, Riedmiller M (2015). Striving for "
            "simplicity: the all convolutional net. ICLR workshop.",
            address="https://arxiv.org/abs/1412.6806",
        ),
        Reference(
            "factorised",
            "Klindt DA, Ecker AS, Euler T, Bethge M (2017). Neural system identification for "
            "large populations separating “what” and “where”. NeurIPS 30.",
            address="https://arxiv.org/abs/1711.02653",
        ),
        Reference(
            "fwrf",
            "St-Yves G, Naselaris T (2018). The feature-weighted receptive field: an "
            "interpretable encoding model for complex feature spaces. NeuroImage 180:188–202.",
            "10.1016/j.neuroimage.2017.06.035",
        ),
        Reference(
            "gaussian",
            "Lurz KK, Bashiri M, Willeke K, et al. (2021). Generalization in data-driven models "
            "of primary visual cortex. ICLR.",
            "10.1101/2020.10.05.326256",
        ),
        Reference(
            "semantic",
            "Saha S, Chadha I, Khosla M (2024). Modeling the human visual system: comparative "
            "insights from response-optimized and task-optimized vision models, language "
            "models, and different readout mechanisms. arXiv:2410.14031. Semantic spatial "
            "transformer.",
            address="https://arxiv.org/abs/2410.14031",
        ),
        Reference(
            "routing",
            "Adeli H, Sun M, Kriegeskorte N (2025). Transformer brain encoders explain human "
            "high-level visual responses. NeurIPS.",
            address="https://arxiv.org/abs/2505.17329",
        ),
        Reference(
            "universal",
            "Beliy R, Wasserman N, Zalcher A, Irani M (2024). The wisdom of a crowd of brains: "
            "a universal brain encoder. arXiv:2406.12179.",
            address="https://arxiv.org/abs/2406.12179",
        ),
        Reference(
            "factors",
            "Raugel J, Szafraniec M, Vo HV, et al. (2025). Disentangling the factors of "
            "convergence between brains and computer vision models. arXiv:2508.18226. Spatial "
            "score.",
            address="https://arxiv.org/abs/2508.18226",
        ),
        Reference(
            "adamw",
            "Loshchilov I, Hutter F (2019). Decoupled weight decay regularization. ICLR.",
            address="https://arxiv.org/abs/1711.05101",
        ),
        Reference(
            "blocks",
            "Winkler AM, Ridgway GR, Webster MA, Smith SM, Nichols TE (2014). Permutation "
            "inference for the general linear model. NeuroImage 92:381–397. Exchangeability "
            "blocks.",
            "10.1016/j.neuroimage.2014.01.060",
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


class Citations:
    """Numbers references in the order of their first citation; called with keys, gives "[1, 2]"."""

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
