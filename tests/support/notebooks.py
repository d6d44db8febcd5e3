"""Runs the notebooks of examples/ without Jupyter; `python -m tests.support.notebooks [NAME ...]` keeps their outputs.

Cells run in order in one namespace. What they print, the value of a last expression and matplotlib's figures are the
outputs. Magics and rich displays are not supported.
"""

import ast
import base64
import contextlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

FOLDER = Path(__file__).parents[2] / "examples"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
DPI = 60


def read(notebook):
    """Return a notebook as JSON."""
    return json.loads(Path(notebook).read_text(encoding="utf-8"))


def code_cells(content):
    """Return the code cells of a notebook."""
    return [cell for cell in content["cells"] if cell["cell_type"] == "code"]


def run(content):
    """Run the code cells of a notebook one after the other, and return the outputs of each."""
    names = {"__name__": "__main__"}
    plt.switch_backend("agg")
    plt.close("all")
    return [_outputs(cell, number, names) for number, cell in enumerate(code_cells(content), 1)]


def text_of(outputs):
    """Return what the outputs of a cell say."""
    found = []
    for output in outputs:
        if output["output_type"] == "stream":
            found += output["text"]
        elif "text/plain" in output["data"]:
            found += [*output["data"]["text/plain"], "\n"]
    return "".join(found)


def pictures_of(outputs):
    """Return the figures among the outputs of a cell, as PNG files."""
    data = [output["data"].get("image/png") for output in outputs if "data" in output]
    return [base64.b64decode(picture) for picture in data if picture]


def _outputs(cell, number, names):
    source = "".join(cell["source"])
    tree = ast.parse(source)
    shows = tree.body and isinstance(tree.body[-1], ast.Expr) and not source.rstrip().endswith(";")
    last = tree.body.pop() if shows else None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, f"cell {number}", "exec"), names)  # noqa: S102 - our own notebooks
        value = last and eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names)  # noqa: S307
    outputs = []
    if printed.getvalue():
        text = printed.getvalue().splitlines(keepends=True)
        outputs.append({"output_type": "stream", "name": "stdout", "text": text})
    if value is not None:
        data = {"text/plain": repr(value).splitlines(keepends=True)}
        outputs.append({"output_type": "execute_result", "execution_count": number, "data": data, "metadata": {}})
    return [*outputs, *_figures()]


def _figures():
    found = []
    for number in plt.get_fignums():
        file = io.BytesIO()
        plt.figure(number).savefig(file, format="png", dpi=DPI, bbox_inches="tight", metadata={"Software": None})
        data = {"image/png": base64.b64encode(file.getvalue()).decode()}
        found.append({"output_type": "display_data", "data": data, "metadata": {}})
    plt.close("all")
    return found


def keep_outputs(notebook):
    """Run a notebook and write its outputs into it."""
    content = read(notebook)
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            outputs = run(content)
        finally:
            os.chdir(before)
    for number, (cell, found) in enumerate(zip(code_cells(content), outputs, strict=True), 1):
        cell |= {"execution_count": number, "outputs": found}
    Path(notebook).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    for chosen in NOTEBOOKS:
        if chosen.stem in sys.argv[1:] or not sys.argv[1:]:
            keep_outputs(chosen)
