"""The example that trains along short paths runs, tabulates what it stores, and draws it."""

import runpy
import sys
from pathlib import Path

import pytest
from matplotlib.image import imread

import resnet_paths_plugin as rpp

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_example_trains_along_short_paths_and_tabulates_the_accuracies(monkeypatch, capsys, tmp_path):
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn, extra 'demo'")
    output, script = tmp_path / "short.nc", EXAMPLES / "train_on_short_paths.py"
    monkeypatch.syspath_prepend(EXAMPLES)
    options = [
        "--seeds",
        "2",
        "--epochs",
        "6",
        "--blocks-per-stage",
        "1",
        "--lengths",
        "0",
        "1",
        "--output",
        str(output),
    ]
    monkeypatch.setattr(sys, "argv", [str(script), *options])
    runpy.run_path(str(script), run_name="__main__")

    ds = rpp.load(output)
    assert ds.accuracy.dims == ("longest_path", "seed")
    assert ds.longest_path.values.tolist() == [0, 1, 3]
    means = ds.accuracy.mean("seed").values
    assert means[0] < means[1], "branches are trained with k = 1, and not with 0"
    lines = capsys.readouterr().out.splitlines()
    for longest, mean, line in zip((0, 1, 3), means, lines[2:5], strict=True):
        assert line.startswith(f"{longest} (all)" if longest == 3 else str(longest))
        assert f"{100 * mean:.2f} (" in line
    assert imread(output.with_suffix(".png")).std() > 0
