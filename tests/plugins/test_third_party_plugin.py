"""The example of a third party's plugin: installed for real, by pip, and used in processes of its own.

What it says is held against what is written here by hand, its analyzer against its model patched by hand.
"""

import ast
import copy
import html
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
from resnet_paths_plugin.plugins import hookspecs

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
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
        "    hooks:  analyzers, describe_model, figures, list_models, load_model, measures, review_blocks\n"
    ) in told
    assert "    BlockRedundancy (tidepool_resnet_paths.redundancy): Say which blocks stand in for each other" in told
    assert "    redundancy_map (tidepool_resnet_paths.figures): Which two blocks make up for each other (red)" in told


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
    result, rise = analyzed["BlockRedundancy"].to_dataset(), rises(model, pictures)
    for block in BLOCKS:
        np.testing.assert_allclose(
            result["deletion_effect"].sel(block=block), rise[block,], rtol=1e-4, atol=2e-5, err_msg=block
        )
        assert result["redundancy"].sel(block=block, other_block=block).isnull().all()
    largest = 0.0
    for one, other in combinations(BLOCKS, 2):
        expected = rise[one, other] - rise[one,] - rise[other,]
        largest = max(largest, np.abs(expected).max())
        for pair in ((one, other), (other, one)):
            found = result["redundancy"].sel(block=pair[0], other_block=pair[1])
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5, err_msg=" ".join(pair))
    assert largest > 1  # there is something to find


def test_the_analyzers_result_states_model_plugins_and_arguments(analyzed):
    attrs = analyzed["BlockRedundancy"].attrs
    expected = {
        "title": "Redundancy of the blocks of limpet6", "model_library": "tidepool", "model_library_version": "0.3.0",
        "model_architecture": "limpet6", "model_class": "tidepool.limpet.Limpet", "argument_effect": "loss",
        "class_names": '["ripples", "reeds", "slope", "pebbles"]',
    }  # fmt: skip
    assert {name: attrs[name] for name in expected} == expected
    assert "tidepool 0.3.0 via tidepool 0.3.0" in attrs["plugins"].split(", ")
    redundancy = analyzed["BlockRedundancy"]["redundancy"]
    assert (redundancy.dims, redundancy.attrs["units"]) == (("block", "other_block", "sample"), "nat")


def test_the_measure_is_in_every_study_of_the_models_that_it_is_for(analyzed, model, pictures):
    def margins(logits, _):
        return (logits.max(1).values - logits.sort(1).values[:, -2]).double()

    lesions = analyzed["single_lesions"]
    np.testing.assert_allclose(
        lesions["intact_score_margin"], losses(model, pictures, of=margins), rtol=1e-4, atol=1e-5
    )
    for block in BLOCKS:
        expected = losses(model, pictures, block, of=margins)
        np.testing.assert_allclose(lesions["score_margin"].sel(lesion=block), expected, rtol=1e-4, atol=2e-5)
    assert "score_margin" in analyzed["random_lesions"]


def test_the_figure_is_drawn_beside_the_file_told_and_shown_in_the_report(told, place, analyzed):
    assert (place / "limpet6-blockredundancy.png").read_bytes().startswith(b"\x89PNG")
    mean = analyzed["BlockRedundancy"]["redundancy"].mean("sample").values
    one, other = divmod(int(np.nanargmax(mean)), len(BLOCKS))
    sentence = f"{list(BLOCKS)[one]} and {list(BLOCKS)[other]} are the most redundant: {mean[one, other]:+.2g} nat."
    assert f"Redundancy of every two blocks\n    {sentence}" in told
    page = (place / "limpet6.html").read_text(encoding="utf-8")
    assert html.escape(sentence) in page
    assert "BlockRedundancy: no figure fits it" not in told


FROM_PYTHON = """
    import json, sys
    from dataclasses import asdict
    import numpy as np, torch
    import resnet_paths_plugin as rpp
    from resnet_paths_plugin.plugins import manager as plugins
    from tidepool_resnet_paths.redundancy import BlockRedundancy

    model = rpp.load_model("tidepool/limpet6", pretrained=True)
    arrays = np.load("pictures.npz")
    inputs = (torch.tensor(arrays["images"]).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    labels = torch.tensor(arrays["labels"])
    batches = [(inputs[:150], labels[:150]), (inputs[150:], labels[150:])]
    result = BlockRedundancy(model).attribute(batches, effect="target_score")
    ax = result.resnet_paths.plot()
    lengths = rpp.PathLengthGradient(model).attribute(inputs[:4], target=labels[:4])

    def refusal(ask):
        try:
            ask()
        except rpp.ResnetPathsError as error:
            return f"{type(error).__name__}: {error}"

    analyzer = plugins.analyzers()["BlockRedundancy"]
    json.dump({
        "description": asdict(plugins.describe(model)),
        "of another library": repr(plugins.describe(torch.nn.Linear(2, 2))),
        "is its class": analyzer is BlockRedundancy,
        "redundancy": result["redundancy"].values.tolist(),
        "kind": result.resnet_paths.kind,
        "drawn": ax.images[0].get_array().filled(0).tolist(),
        "ticks": [label.get_text() for label in ax.get_yticklabels()],
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
        "inputs": {}, "arguments": {}, "task": None, "tokenize": None,
    }  # fmt: skip
    assert from_python["of another library"] == "None"


def test_the_analyzer_is_used_from_python_as_those_of_this_package(from_python, model, pictures):
    def target_scores(logits, labels):
        return logits.gather(1, labels[:, None])[:, 0]

    assert from_python["is its class"]
    rise = rises(model, pictures, of=target_scores)
    for (at, one), (place, other) in combinations(enumerate(BLOCKS), 2):
        expected = rise[one, other] - rise[one,] - rise[other,]
        found = from_python["redundancy"][at][place]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=5e-5, err_msg=f"{one} {other}")


def test_a_result_is_drawn_by_the_plugins_figure(from_python):
    assert from_python["kind"] == "redundancy_map"
    assert from_python["ticks"] == list(BLOCKS)
    expected = np.nan_to_num(np.array(from_python["redundancy"], dtype=float)).mean(-1)
    np.testing.assert_allclose(from_python["drawn"], expected, rtol=1e-6, atol=1e-9)


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
    assert from_python["no target"].startswith("InputError: redundancies are those of effects on the labels")


def test_the_plugin_uses_public_names_only():
    """Names of `rpp.__all__`, and of modules in it."""
    used = set()
    for path in (EXAMPLE / "tidepool_resnet_paths").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not any(alias.name.startswith("resnet_paths_plugin.") for alias in node.names), path
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("resnet_paths_plugin"):
                used |= {f"{node.module}.{alias.name}" for alias in node.names}
            if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("rpp."):
                used.add(f"resnet_paths_plugin.{ast.unparse(node).removeprefix('rpp.')}")
    assert {"resnet_paths_plugin.Analyzer", "resnet_paths_plugin.Figure"} <= used
    for name in used:
        owner, at = rpp, name.split(".")[1:]
        for part in at:
            public = getattr(owner, "__all__", None) or [one for one in vars(owner) if not one.startswith("_")]
            assert part in public, name
            owner = getattr(owner, part)


# The guide to plugins


@pytest.fixture(scope="module")
def chapter():
    return (ROOT / "adapters" / "README.md").read_text(encoding="utf-8")


def test_the_guide_names_every_hook(chapter):
    hooks = {name for name in vars(hookspecs) if name.startswith("resnet_paths_")}
    assert len(hooks) == 9
    assert set(re.findall(r"^\| `(resnet_paths_\w+)`", chapter, re.MULTILINE)) == hooks


def test_the_guides_plugin_is_the_example_word_for_word(chapter):
    (code,) = re.findall(r"^```python\n(.*?)^```", chapter, re.DOTALL | re.MULTILINE)  # files of a plugin are ```py
    lines = code.splitlines()
    hooks = [node for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)]
    assert len(hooks) >= 2
    source = (EXAMPLE / "tidepool_resnet_paths" / "__init__.py").read_text(encoding="utf-8")
    for hook in hooks:
        assert "\n".join(lines[hook.decorator_list[0].lineno - 1 : hook.end_lineno]) in source
