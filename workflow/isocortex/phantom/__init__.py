"""The demo study: simulated subjects whose anatomy, motion and representations are known.

`make_study` (or ``python -m isocortex.phantom OUT``) writes three folders:

``bids/``
    A BIDS dataset: T1w, BOLD runs with sidecars and events, the pictures in ``stimuli/``.
``regions/``
    ``atlas-visual_space-MNI152NLin2009aSym_res-2_dseg.nii.gz`` (int16, nilearn's 2 mm grid) and
    ``.tsv`` (index, name).
``truth/``
    What tests and benchmarks compare with; no rule reads it. For the study ``truth.json``: the
    settings, ``region_layer`` (region to layer of the convnet), the regions' centres, the
    pictures' categories, the response to one picture (``hrf.response``, peak 1, a sample every
    ``hrf.step_s``), and the strengths of the noise. For each subject, in ``sub-XX/``, files
    that begin with ``sub-XX_``:

    - ``truth.json``: contrasts, scanner pose, size of the regions, the median temporal SNR of
      grey matter outside the regions (without motion and drift), mean noise ceilings of each
      region, the parameters of the warp.
    - ``from-T1w_to-MNI152NLin2009aSym_coordinates.nii.gz``: (i, j, k, 3) float32, on the T1w
      grid: where in MNI space, mm, each voxel of the T1w image lies.
    - ``space-T1w_desc-regions_dseg.nii.gz``, ``space-T1w_desc-brain_mask.nii.gz`` (brain with
      its fluid), ``space-T1w_label-{GM,WM,CSF}_probseg.nii.gz``: on the T1w grid.
    - ``space-boldref_desc-regions_dseg.nii.gz``, ``space-boldref_desc-tsnr_statmap.nii.gz``
      (0 outside the brain), ``space-boldref_desc-{single,mean}_noiseceiling.nii.gz`` (explained
      share of the variance over pictures, of one trial's estimate and of the mean over the
      runs, by least squares with a constant and cosines up to 1/128 Hz; 0 outside the regions):
      on the BOLD grid, with the head as in the first volume of run 01.
    - ``task-objects_run-0N_motion.json``: ``t1w_to_scanner``, a 4x4 for each volume, from mm in
      T1w space to mm in the BOLD image's space; ``from_first``, a 4x4 for each volume, from where
      a point of the head is in the first volume of the run (BOLD mm) to where it is in this one
      (so volume 0 has the identity); ``parameters``, three shifts (mm) and three rotations
      (radians, about x, y, z in that order) for each volume, about ``centre`` (T1w mm), before
      the session's pose: ``t1w_to_scanner = session @ rigid_matrix(parameters, centre)``.
    - ``responses.npz``: the planted voxels: ``xyz`` (voxel, 3) T1w mm, ``region`` (voxel,)
      index, ``beta`` (voxel, image) percent signal change at the peak, ``field`` (voxel, 2)
      centre of the receptive field, ``image`` (image,) file names. Between them the responses
      are interpolated linearly.
    - ``record.json``: settings, digest of the code, fingerprints of the subject's files: with it
      a rerun knows what it need not make again.

The BOLD images are not distorted along the phase-encoding direction.
"""

from isocortex.phantom.regions import REGIONS, make_atlas
from isocortex.phantom.stimuli import make_images
from isocortex.phantom.study import make_study

__all__ = ["REGIONS", "make_atlas", "make_images", "make_study"]
