"""The notebooks of examples/ run without Jupyter, and still print what they are stored with."""

import io
import re

import pytest
from matplotlib.image import imread
from notebooks import NOTEBOOKS, code_cells, pictures_of, read, run, text_of

pytestmark = pytest.mark.slow

LARGEST = 200_000
ROUNDING = 1e-5
"""Numbers below are differences by rounding, which other machines round otherwise."""
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[+-]?\d+)?(?![\w.]*\w)")

each_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)


def test_there_are_notebooks():
    assert {path.stem for path in NOTEBOOKS} >= {"lesions", "paths", "captum", "comparing"}


@each_notebook
def test_a_notebook_is_small_and_was_run_from_top_to_bottom(notebook):
    content = read(notebook)
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    assert notebook.stat().st_size < LARGEST
    cells = code_cells(content)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert len({cell["id"] for cell in content["cells"]}) == len(content["cells"])
    pictures = [picture for cell in cells for picture in pictures_of(cell["outputs"])]
    assert pictures
    for picture in pictures:
        assert imread(io.BytesIO(picture)).std() > 0


@each_notebook
def test_a_notebook_prints_what_it_is_stored_with(notebook, tmp_path, monkeypatch):
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn, extra 'demo'")
    monkeypatch.chdir(tmp_path)
    content = read(notebook)
    for number, (cell, found) in enumerate(zip(code_cells(content), run(content), strict=True), 1):
        stored, fresh = text_of(cell["outputs"]), text_of(found)
        assert NUMBER.sub("#", fresh).split() == NUMBER.sub("#", stored).split(), f"cell {number}"
        for new, old in zip(NUMBER.findall(fresh), NUMBER.findall(stored), strict=True):
            both_rounding = abs(float(new)) < ROUNDING and abs(float(old)) < ROUNDING
            assert both_rounding or float(new) == pytest.approx(float(old), rel=0.02, abs=0.02), f"cell {number}: {new}"
        assert len(pictures_of(found)) == len(pictures_of(cell["outputs"])), f"cell {number}"
