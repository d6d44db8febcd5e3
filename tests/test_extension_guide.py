"""The guides to analyzers, figures and measures, followed step by step: by a plugin, and in a copy of the package.

What comes out is held against models that are changed by hand.
"""

import copy
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import nn

import resnet_paths_plugin as rpp
from resnet_paths_plugin import report
from resnet_paths_plugin.plugins import manager as plugins

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
FILE = re.compile(r"^`(branch_scale/\w+\.py)`\n\n```py\n(.*?)^```", re.DOTALL | re.MULTILINE)


def files():
    found = dict(FILE.findall((ROOT / "adapters" / "README.md").read_text(encoding="utf-8")))
    assert len(found) == 5
    return found


class Block(nn.Module):
    def __init__(self, factor=1.0):
        super().__init__()
        self.branch, self.factor = nn.Sequential(nn.Linear(6, 6), nn.Tanh()), factor

    def forward(self, x):
        return x + self.factor * self.branch(x)


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks, self.fc = nn.Sequential(*(Block() for _ in range(3))), nn.Linear(6, 4)

    def forward(self, x):
        return self.fc(self.blocks(x))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Classifier().double().eval()


@pytest.fixture(scope="module")
def inputs():
    torch.manual_seed(1)
    return torch.randn(5, 6, dtype=torch.float64)


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The guide's plugin, with the metadata of an installed distribution."""
    metadata = tmp_path / "branch_scale-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: branch-scale\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[resnet_paths_plugin]\nbranch_scale = branch_scale\n")
    for name, code in files().items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    plugins.default_plugin_manager.cache_clear()
    yield plugins.analyzers()["BranchScale"]
    plugins.default_plugin_manager.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "branch_scale"]:
        del sys.modules[name]


def shifts(model, inputs, factor):
    """Return what the outputs move by, `[block, sample]`, with each block's factor set by hand."""
    found = []
    with torch.no_grad():
        for place in range(len(model.blocks)):
            changed = copy.deepcopy(model)
            changed.blocks[place].factor = factor
            found.append((changed(inputs) - model(inputs)).norm(dim=1).numpy())
    return np.stack(found)


def test_the_guides_analyzer_gives_what_changing_the_model_by_hand_gives(installed, model, inputs, tmp_path):
    options = {"factor": 3.0, "internal_batch_size": 2}
    result = installed(model).attribute(inputs, **options)
    np.testing.assert_allclose(result["output_shift"], shifts(model, inputs, 3.0), rtol=1e-12)
    assert (result.attrs["title"], result.attrs["argument_factor"]) == ("Scaled branches of Classifier", 3.0)
    assert "branch_scale" in result.attrs["plugins"]
    kept = installed(model).attribute(inputs, run=rpp.RunOptions(checkpoint=tmp_path / "run.nc"), **options)
    np.testing.assert_array_equal(kept["output_shift"], result["output_shift"])
    kept.close()
    with pytest.raises(rpp.errors.InputError, match="factor must not be 1"):
        installed(model).attribute(inputs, factor=1)


def test_a_model_that_changes_is_noticed_by_the_guides_analyzer_too(installed, inputs):
    model = Classifier().double().eval()
    analyzer = installed(model)
    analyzer.attribute(inputs)
    model.blocks[1].branch[1] = nn.Sigmoid()
    changed = analyzer.attribute(inputs, factor=0.5)  # captured again
    np.testing.assert_allclose(changed["output_shift"], shifts(model, inputs, 0.5), rtol=1e-12)


def test_the_guides_figure_is_drawn_and_reported(installed, model, inputs):
    result = installed(model).attribute(inputs)
    assert result.resnet_paths.kind == "output_shift"
    ax = result.resnet_paths.plot()
    mean = shifts(model, inputs, 2.0).mean(1)
    np.testing.assert_allclose([bar.get_height() for bar in ax.patches], mean, rtol=1e-12)
    plt.close(ax.figure)
    (figure,) = report.figures(result)
    assert (figure.name, figure.figure, figure.title) == ("output-shift", "output_shift", "Scaling single branches")
    assert figure.sentence == f"The outputs move most with blocks.{mean.argmax()}: by {mean.max():.3g}."
    assert figure.png().startswith(b"\x89PNG")


def test_the_guides_measure_is_in_lesions_of_the_models_that_it_is_for(installed, model, inputs):
    lesions = rpp.BlockLesion(model).attribute(inputs)
    for place in range(3):
        changed = copy.deepcopy(model)
        changed.blocks[place].factor = 0.0
        with torch.no_grad():
            expected = torch.distributions.Categorical(logits=changed(inputs)).entropy()
        np.testing.assert_allclose(lesions["entropy"][place], expected, rtol=1e-6)
    headless = rpp.BlockLesion(model.blocks).attribute(inputs)
    assert "entropy" not in headless
    own = rpp.BlockLesion(model).attribute(inputs, measures={"entropy": lambda outputs, _: outputs[:, 0]})
    with torch.no_grad():
        np.testing.assert_allclose(own["intact_entropy"], model(inputs)[:, 0], rtol=1e-6)  # the user's goes first


CORE = """
import numpy as np, torch
import resnet_paths_plugin as rpp
from resnet_paths_plugin.plugins import manager as plugins

assert plugins.analyzers(rpp.create_plugin_manager())["BranchScale"] is rpp.BranchScale
torch.manual_seed(0)
class Block(torch.nn.Linear):
    def forward(self, x):
        return x + super().forward(x).tanh()
result = rpp.BranchScale(torch.nn.Sequential(Block(4, 4), Block(4, 4))).attribute(torch.randn(3, 4), factor=0.0)
print(result.resnet_paths.kind, result["output_shift"].shape)
model, inputs = torch.nn.Sequential(Block(4, 4), Block(4, 4)), torch.randn(3, 4)
lesions = rpp.BlockLesion(model).attribute(inputs)
with torch.no_grad():
    expected = torch.distributions.Categorical(logits=model[0](inputs)).entropy()
np.testing.assert_allclose(lesions["entropy"].sel(lesion="1"), expected, rtol=1e-5)
assert lesions["entropy"].attrs["units"] == "nat", lesions["entropy"].attrs
"""


def changed(text, change):
    """Return a text with the lines behind a `+`, each after the line without one, which must be there once."""
    lines, at = text.splitlines(), None
    for one in change.splitlines():
        if one.startswith("+"):
            at += 1
            lines.insert(at, one[1:])
        else:
            assert lines.count(one[1:]) == 1, one
            at = lines.index(one[1:])
    return "\n".join(lines) + "\n"


def test_the_same_files_in_the_package_need_one_line_each(tmp_path):
    guide = (ROOT / "resnet_paths_plugin" / "README.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"^```diff\n(.*?)^```", guide, re.DOTALL | re.MULTILINE)
    package = tmp_path / "resnet_paths_plugin"
    shutil.copytree(ROOT / "resnet_paths_plugin", package, ignore=shutil.ignore_patterns("__pycache__"))
    places = {
        "branch_scale/study.py": "analyzers/branch_scale_study.py",
        "branch_scale/analyzer.py": "analyzers/branch_scale.py",
        "branch_scale/figure.py": "plotting/branch_scale.py",
    }
    written = files()
    for name, place in places.items():
        code = written[name].replace("branch_scale.study", "resnet_paths_plugin.analyzers.branch_scale_study")
        (package / place).write_text(code, encoding="utf-8")
    changes = re.findall(r"^(\w[\w/.]*)\n((?:[ +].*\n|\+\n)+)", lines, re.MULTILINE)
    assert len(changes) == 4
    for name, change in changes:
        (package / name).write_text(changed((package / name).read_text(encoding="utf-8"), change), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT / "adapters")])}
    done = subprocess.run(  # noqa: S603 - our own code
        [sys.executable, "-c", CORE], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "output_shift (2, 3)\n"
