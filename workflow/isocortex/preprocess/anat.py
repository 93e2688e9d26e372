"""Preprocess one subject's anatomy: the function behind the rule preprocess_anat."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from isocortex import provenance
from isocortex.errors import InputError
from isocortex.jobs import working_folder
from isocortex.preprocess.engine import run_workflow
from isocortex.preprocess.images import open_image
from isocortex.preprocess.outputs import put_all, sources_of
from isocortex.preprocess.registration import TEMPLATE, make_deterministic
from isocortex.preprocess.workflows import init_anat_wf

logger = logging.getLogger(__name__)


def preprocess_anat(
    t1w: Sequence[str | Path],
    *,
    subject: str,
    outputs: Mapping[str, str | Path],
    seed: int,
    log: str | Path,
    temporary: str | Path | None = None,
    threads: int = 1,
    mem_mb: int = 4000,
    code: str = "",
) -> None:
    """Bias field, brain mask, tissue classes and registration to the template.

    Parameters
    ----------
    t1w
        The subject's T1w volumes; several are aligned rigidly and averaged.
    subject
        Label, without ``sub-``.
    outputs
        Name to file: t1w, mask, dseg, gm, wm, csf, to_template, from_template, t1w_template,
        sidecar, figures (a folder), manifest.
    seed
        Of ANTs' sampling.
    log
        The rule's log; a crash report goes beside it as ``<log stem>.crash.txt``.
    temporary
        Folder for the working folder; the system's by default.
    threads, mem_mb
        What the job may use.
    code
        Digest of the code, for the manifest.

    Raises
    ------
    InputError
        No T1w, or one that cannot be used.
    RuntimeError
        A step failed; the message names it and the crash report.

    Notes
    -----
    The outputs appear together, the manifest last. dseg: 1 grey matter, 2 white matter, 3 CSF.
    """
    paths = [Path(path) for path in t1w]
    if not paths:
        raise InputError(f"no T1w for subject {subject}: add one, or exclude the subject")
    for path in paths:
        open_image(path)
    # the workers are forked: they inherit ITK's single thread
    make_deterministic(seed)
    log = Path(log)
    with working_folder("anat", log, within=temporary) as folder:
        workflow = init_anat_wf(seed=seed, n_images=len(paths))
        workflow.get_node("inputnode").inputs.t1w = [str(path.resolve()) for path in paths]
        made = dict(
            run_workflow(
                workflow,
                folder=folder,
                crash_file=log.with_name(f"{log.stem}.crash.txt"),
                where=f"sub-{subject}",
                threads=threads,
                mem_mb=mem_mb,
            )
        )
        qc = made.pop("qc")
        sidecar = folder / "sidecar.json"
        provenance.write_json(
            sidecar,
            {
                "SkullStripped": False,
                "Sources": sources_of(paths),
                "Description": "Bias-corrected (N4)"
                + (f", mean of {len(paths)} aligned volumes" if len(paths) > 1 else ""),
                "Template": TEMPLATE,
            },
        )
        made["sidecar"] = sidecar
        put_all(
            made,
            outputs,
            sources=paths,
            code=code,
            subject=subject,
            qc=qc,
        )
