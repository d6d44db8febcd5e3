"""The example of a third party's plugin: installed for real, by pip, and used in processes of its own.

What it says is held against what is written here by hand, its analyzer against its model patched by hand.
"""

import ast
import copy
import json
import os
import re
import subprocess
import sys
import textwrap
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import cross_entropy

import resnet_paths_plugin as rpp
from resnet_paths_plugin import hookspecs

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "third_party_plugin"

BLOCKS = {
    "high.1": ("zones.0", 0), "high.2": ("zones.0", 1),
    "mid.1": ("zones.1", 0), "mid.2": ("zones.1", 1),
    "low.1": ("zones.2", 0), "low.2": ("zones.2", 1),
}  # fmt: skip
"""Tidepool's names, and where each block's branch is: the zone and the place in it."""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder that pip installs the example in, with no index and no build environment."""
    site = tmp_path_factory.mktemp("site")
    options = ["--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--target", site]
    command = [sys.executable, "-m", "pip", "install", *options, EXAMPLE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own example
    assert done.returncode == 0, done.stderr
    return site


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The folder that commands run in."""
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def run(site, place):
    """Run a command where the example is installed, and return what it printed."""
    path = os.pathsep.join(map(str, [site, ROOT, ROOT / "adapters"]))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}

    def run(*command):
        done = subprocess.run(  # noqa: S603 - our own commands
            command, cwd=place, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="module")
def told(run):
    """What the commands of the example's README print, but for the installation."""
    (commands,) = re.findall(r"```bash\npip install \S+\n(.*?)```", (EXAMPLE / "README.md").read_text(), re.DOTALL)
    commands = commands.replace("resnet-paths ", "python -m resnet_paths_plugin ")
    return run("bash", "-euc", commands.replace("python ", f"'{sys.executable}' "))


@pytest.fixture(scope="module")
def model():
    """The model with its weights, made without library and plugin knowing of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLE)
        from tidepool.limpet import Limpet

        model = Limpet("limpet6", depth=2)
        for name in [name for name in sys.modules if name.partition(".")[0] == "tidepool"]:
            del sys.modules[name]
    model.load_state_dict(load_file(EXAMPLE / "tidepool" / "limpet6.safetensors"))
    return model.eval()


@pytest.fixture(scope="module")
def pictures(told, place):
    """The pictures that were analyzed, as the model takes them, and their labels."""
    arrays = np.load(place / "pictures.npz")
    return (torch.tensor(arrays["images"]).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25, torch.tensor(arrays["labels"])


@pytest.fixture(scope="module")
def analyzed(told, place):
    return rpp.load(place / "limpet6.nc")


class NoBranch(nn.Module):
    def forward(self, x):
        return torch.zeros_like(x)


def losses(model, pictures, *without, of=lambda logits, labels: cross_entropy(logits, labels, reduction="none")):
    """Return the loss of each picture where the branches of some blocks are replaced by zero, float64."""
    patched = copy.deepcopy(model)
    for block in without:
        zone, place = BLOCKS[block]
        patched.get_submodule(zone).branches[place] = NoBranch()
    inputs, labels = pictures
    with torch.no_grad():
        return of(patched(inputs), labels).double().numpy()


def rises(model, pictures, **measured):
    """Return the rise of the loss for each block deleted alone, and for each two that are deleted together."""
    intact = losses(model, pictures, **measured)
    lesions = [*((block,) for block in BLOCKS), *combinations(BLOCKS, 2)]
    return {lesion: losses(model, pictures, *lesion, **measured) - intact for lesion in lesions}


def test_the_library_works_without_the_plugin_and_this_package(run):
    script = """
        import sys, tidepool
        tidepool.create_model("limpet6", pretrained=True)
        known = {name.partition(".")[0] for name in sys.modules}
        print(sorted(known & {"tidepool", "tidepool_resnet_paths", "resnet_paths_plugin"}))
    """
    assert run(sys.executable, "-c", textwrap.dedent(script)) == "['tidepool']\n"


def test_the_installed_plugin_is_listed_with_its_origin_hooks_and_analyzer(told):
    assert (
        "tidepool 0.3.0 via tidepool 0.3.0\n"
        "    module: tidepool_resnet_paths\n"
        "    hooks:  analyzers, describe_model, load_model, review_blocks\n"
    ) in told
    assert "    BlockInteraction (tidepool_resnet_paths.interaction): Say which blocks stand in for each other" in told


def test_blocks_have_the_librarys_names_and_zones_and_its_head_is_none(told):
    table = told[told.index("limpet6 (tidepool): 6 residual blocks, skips: 6 identity") :].splitlines()[2:8]
    rows = [line.split() for line in table]
    assert [row[1] for row in rows] == list(BLOCKS)
    assert [row[2] for row in rows] == ["0", "0", "1", "1", "2", "2"]
    assert [row[-1] for row in rows] == ["high", "high", "mid", "mid", "low", "low"]


def test_the_command_line_loads_the_weights_that_the_library_ships(analyzed, model, pictures):
    lesions = analyzed["single_lesions"]
    assert lesions["lesion"].values.tolist() == list(BLOCKS)
    np.testing.assert_allclose(lesions["intact_loss"], losses(model, pictures), rtol=1e-4, atol=1e-6)
    assert float(lesions["intact_error"]) < 0.05  # they were trained on such pictures


def test_the_analyzer_gives_what_patching_the_model_by_hand_gives(analyzed, model, pictures):
    result, rise = analyzed["BlockInteraction"].to_dataset(), rises(model, pictures)
    for block in BLOCKS:
        np.testing.assert_allclose(
            result["deletion_effect"].sel(block=block), rise[block,], rtol=1e-4, atol=2e-5, err_msg=block
        )
        assert result["interaction"].sel(block=block, other_block=block).isnull().all()
    largest = 0.0
    for one, other in combinations(BLOCKS, 2):
        expected = rise[one, other] - rise[one,] - rise[other,]
        largest = max(largest, np.abs(expected).max())
        for pair in ((one, other), (other, one)):
            found = result["interaction"].sel(block=pair[0], other_block=pair[1])
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5, err_msg=" ".join(pair))
    assert largest > 1  # there is something to find


def test_the_analyzers_result_states_model_plugins_and_arguments(analyzed):
    attrs = analyzed["BlockInteraction"].attrs
    expected = {
        "title": "Interaction of the blocks of limpet6", "model_library": "tidepool", "model_library_version": "0.3.0",
        "model_architecture": "limpet6", "model_class": "tidepool.limpet.Limpet", "argument_effect": "loss",
        "class_names": "['ripples', 'reeds', 'slope', 'pebbles']",
    }  # fmt: skip
    assert {name: attrs[name] for name in expected} == expected
    assert "tidepool 0.3.0 via tidepool 0.3.0" in attrs["plugins"].split(", ")
    interaction = analyzed["BlockInteraction"]["interaction"]
    assert (interaction.dims, interaction.attrs["units"]) == (("block", "other_block", "sample"), "nat")


FROM_PYTHON = """
    import json, sys
    from dataclasses import asdict
    import numpy as np, torch
    import resnet_paths_plugin as rpp
    from resnet_paths_plugin import plugins
    from tidepool_resnet_paths.interaction import BlockInteraction

    model = rpp.load_model("tidepool/limpet6", pretrained=True)
    arrays = np.load("pictures.npz")
    inputs = (torch.tensor(arrays["images"]).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    labels = torch.tensor(arrays["labels"])
    batches = [(inputs[:150], labels[:150]), (inputs[150:], labels[150:])]
    result = BlockInteraction(model).attribute(batches, effect="target_score")
    lengths = rpp.PathLengthGradient(model).attribute(inputs[:4], target=labels[:4])

    def refusal(ask):
        try:
            ask()
        except rpp.ResnetPathsError as error:
            return f"{type(error).__name__}: {error}"

    analyzer = plugins.analyzers()["BlockInteraction"]
    json.dump({
        "description": asdict(plugins.describe(model)),
        "of another library": repr(plugins.describe(torch.nn.Linear(2, 2))),
        "is its class": analyzer is BlockInteraction,
        "interaction": result["interaction"].values.tolist(),
        "path lengths": lengths["path_length"].values.tolist(),
        "completeness error": float(lengths["completeness_error"].max()),
        "unknown name": refusal(lambda: rpp.load_model("tidepool/limpit")),
        "no weights": refusal(lambda: rpp.load_model("tidepool/limpet12", pretrained=True)),
        "unknown effect": refusal(lambda: analyzer(model).attribute(inputs, labels, effect="error")),
        "no target": refusal(lambda: analyzer(model).attribute(inputs)),
    }, sys.stdout)
"""


@pytest.fixture(scope="module")
def from_python(run, told):
    return json.loads(run(sys.executable, "-c", textwrap.dedent(FROM_PYTHON)))


def test_the_description_is_what_the_library_declares(from_python):
    assert from_python["description"] == {
        "library": "tidepool", "library_version": "0.3.0", "architecture": "limpet6", "input_shape": [3, 12, 12],
        "preprocessing": {
            "size": [12, 12], "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25],
            "interpolation": "bilinear", "crop_fraction": 1.0,
        },
        "class_names": ["ripples", "reeds", "slope", "pebbles"],
        "stages": {"zones.0": 0, "zones.1": 1, "zones.2": 2, "head": 2},
    }  # fmt: skip
    assert from_python["of another library"] == "None"


def test_the_analyzer_is_used_from_python_as_those_of_this_package(from_python, model, pictures):
    def target_scores(logits, labels):
        return logits.gather(1, labels[:, None])[:, 0]

    assert from_python["is its class"]
    rise = rises(model, pictures, of=target_scores)
    for (at, one), (place, other) in combinations(enumerate(BLOCKS), 2):
        expected = rise[one, other] - rise[one,] - rise[other,]
        found = from_python["interaction"][at][place]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=5e-5, err_msg=f"{one} {other}")


def test_the_sum_that_the_review_dropped_lies_on_every_path(from_python):
    assert from_python["path lengths"] == [0, 1, 2, 3, 4, 5, 6]
    assert from_python["completeness error"] < 1e-5


def test_mistakes_are_told_to_people(from_python):
    assert from_python["unknown name"] == (
        "ModelNotFoundError: tidepool has no model 'limpit': it has limpet6, limpet12"
    )
    assert from_python["no weights"] == (
        "ModelNotFoundError: tidepool has no trained weights for 'limpet12', only for limpet6"
    )
    assert from_python["unknown effect"] == "InputError: effect must be 'loss' or 'target_score', not 'error'"
    assert from_python["no target"].startswith("InputError: interactions are those of effects on the labels")


# The README's chapter


@pytest.fixture(scope="module")
def chapter():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (chapter,) = re.findall(r"^## Plugins\n(.*?)^## ", readme, re.DOTALL | re.MULTILINE)
    return chapter


def test_the_readme_names_every_hook(chapter):
    hooks = {name for name in vars(hookspecs) if name.startswith("resnet_paths_")}
    assert len(hooks) == 6
    assert set(re.findall(r"^\| `(resnet_paths_\w+)`", chapter, re.MULTILINE)) == hooks


def test_the_readmes_plugin_is_the_example_word_for_word(chapter):
    (code,) = re.findall(r"^```python\n(.*?)^```", chapter, re.DOTALL | re.MULTILINE)
    lines = code.splitlines()
    hooks = [node for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)]
    assert len(hooks) >= 2
    source = (EXAMPLE / "tidepool_resnet_paths" / "__init__.py").read_text(encoding="utf-8")
    for hook in hooks:
        assert "\n".join(lines[hook.decorator_list[0].lineno - 1 : hook.end_lineno]) in source
