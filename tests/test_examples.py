"""The examples run as they are, and show what they say."""

import runpy
import sys
from pathlib import Path

import pytest
from matplotlib.image import imread

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_effective_paths_explain_what_all_paths_do_and_long_ones_do_not(monkeypatch, capsys, tmp_path):
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn, extra 'demo'")
    script, picture = EXAMPLES / "captum_short_paths.py", tmp_path / "maps.png"
    monkeypatch.setattr(sys, "argv", [str(script), "--images", "4", "--output", str(picture)])
    runpy.run_path(str(script), run_name="__main__")

    lines = capsys.readouterr().out.splitlines()
    assert "54 blocks, 1.8e+16 paths, 4 digits" in lines[0]
    table = {line.split()[0]: line.split()[1:] for line in lines[2:5]}
    lengths = {group: [int(end) for end in cells[0].split("-")] for group, cells in table.items()}
    share, saliency, integrated = ({group: float(cells[at]) for group, cells in table.items()} for at in (1, 2, 3))
    assert lengths["all"] == [0, 54]
    assert lengths["long"] == [lengths["effective"][1] + 1, 54]
    assert share["effective"] < 1e-3
    for similarity in (saliency, integrated):
        assert similarity["all"] == 1
        assert similarity["effective"] > 0.95
        assert similarity["long"] < 0.9
    assert imread(picture).std() > 0
