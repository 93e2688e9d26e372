"""A study without a brain: seeds of a network and photographs, from features to the report."""

import json

import numpy as np

from isocortex import store
from isocortex.phantom.stimuli import write_images

from . import tiny


def test_seeds_of_a_network_run_to_the_report(tmp_path):
    write_images(tmp_path / "images", 12, size=40)
    config = {
        "study": "tiny",
        "input": {"stimuli": "images"},
        "features": {
            "models": {
                "net": {"architecture": "convnet", "layers": ["layer1", "layer3"], "seeds": 3}
            }
        },
        "trsa": {
            "grid_step": 0.5,
            "bootstrap_samples": 100,
            "permutations": 100,
            "layer_identification": {"noise": [0, 0.2], "draws": 2},
        },
    }
    tiny.write_config(tmp_path, config)
    done = tiny.snakemake(tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    results = tmp_path / "results" / "tiny"
    path = results / "trsa/family-net_measure-correlation_layers.zarr"
    found = store.open(path, "layer_identification")
    assert found["seed"].values.tolist() == ["net0", "net1", "net2"]
    assert found["layer"].values.tolist() == ["layer1", "layer3"]
    # These two layers are told apart whatever the seed.
    assert (found["accuracy"].sel(statistic="rank_rdm", noise=0) == 1).all()
    assert np.isfinite(found["accuracy"]).all()
    html = (results / "report/study.html").read_text()
    assert "Identification of network layers" in html
    json.loads((results / "report/summary.json").read_text())
    # Other noise is another result of this job and of the report alone.
    config["trsa"]["layer_identification"]["noise"] = [0, 0.3]
    tiny.write_config(tmp_path, config)
    again = tiny.snakemake(tmp_path, "--dry-run").stdout
    assert "identify_layers" in again
    assert "extract_features" not in again
    assert "compute_model_rdms" not in again
