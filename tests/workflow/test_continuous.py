"""Continuous tasks in the graph: cleaned or given time series, encoding, nothing of RSA."""

import re

import numpy as np

from tests.workflow import tiny


def jobs(folder, *arguments):
    """Rule -> number of jobs that a dry run names."""
    done = tiny.snakemake(folder, "--dry-run", *arguments)
    assert done.returncode == 0, done.stderr[-4000:]
    return {
        rule: int(n) for rule, n in re.findall(r"^(\w+) +(\d+)$", done.stdout, flags=re.MULTILINE)
    }


def test_a_continuous_task_beside_one_of_trials(tmp_path):
    config = tiny.make(tmp_path, subjects=("01",))
    func = tmp_path / "bids" / "sub-01" / "func"
    tiny.nifti(func / "sub-01_task-film_bold.nii.gz", (*tiny.SHAPE, 20))
    tiny.events(func / "sub-01_task-film_events.tsv", [(0.0, 40.0, "film", "a.png")])
    config["rsa"] = {"measures": ["correlation"]}
    tiny.write_config(tmp_path, config | {"glm": {"continuous_tasks": ["film"]}})
    planned = jobs(tmp_path)
    assert planned["fit_glm"] == planned["clean_bold"] == 1
    assert planned["fit_encoding"] == planned["summarise_encoding"] == 2
    assert planned["compute_rdms"] == planned["compare_rdms"] == 1
    tiny.write_config(tmp_path, config)
    planned = jobs(tmp_path)
    assert "clean_bold" not in planned
    assert planned["fit_glm"] == planned["compute_rdms"] == 2


def test_given_series_are_taken_over_and_followed(tmp_path):
    (tmp_path / "stimuli").mkdir()
    np.save(tmp_path / "stimuli" / "film.npy", np.zeros((20, 8, 8), np.uint8))
    series = np.random.default_rng(0).standard_normal((40, 5))
    np.save(tmp_path / "series.npy", series)
    tiny.events(tmp_path / "events.tsv", [(0.0, 40.0, "film", "film.npy")])
    table = "subject\tfile\trun\ttask\ttr\tevents\n01\tseries.npy\t1\tfilm\t1.0\tevents.tsv\n"
    (tmp_path / "timeseries.tsv").write_text(table)
    model = {"source": "builtin", "architecture": "contrast-energy"}
    model["sampling"] = {"window": 1.0, "frames": 1, "frame_rate": 0.5}
    config = {
        "study": "tiny",
        "input": {"timeseries": "timeseries.tsv", "stimuli": "stimuli"},
        "features": {"models": {"contrast": model}},
    }
    tiny.write_config(tmp_path, config)
    target = "results/tiny/glm/sub-01_task-film_timeseries.json"
    done = tiny.snakemake(tmp_path, target)
    assert done.returncode == 0, done.stderr[-4000:]
    planned = jobs(tmp_path)
    assert planned["fit_encoding"] == 1
    rsa = {"compute_rdms", "compute_model_rdms", "transform_regions"}
    assert not ({"import_timeseries"} | rsa) & set(planned)
    np.save(tmp_path / "series.npy", series + 1)
    assert "import_timeseries" in jobs(tmp_path, target)
