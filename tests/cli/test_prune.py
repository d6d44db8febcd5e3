"""`resnet-paths prune`: the files it writes are the smaller network, and each mistake has a message of its own."""

import importlib
import json
import re
import textwrap
from itertools import combinations

import command_lines
import numpy as np
import pytest
import torch
import xarray as xr
from command_lines import MODEL, STATISTICS, invoke, trained
from matplotlib.image import imread
from safetensors import safe_open
from safetensors.torch import load_file, load_model

import resnet_paths_plugin as rpp
from resnet_paths_plugin.analyzers.coalitions import selected_costs
from resnet_paths_plugin.cli import prune_request, prune_sizes, pruned_files, subject
from resnet_paths_plugin.errors import InputError

place, no_pictures = command_lines.place, command_lines.no_pictures  # fixtures


def pruning(*arguments, output="small.safetensors"):
    given = (MODEL, "--weights", "weights.safetensors", "--images", "images.npz", *STATISTICS)
    return ("prune", *given, "--output", output, *arguments)


def told(*arguments):
    """Return the last line that a command says, which is of a mistake."""
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return result.output.splitlines()[-1]


def model_without(*blocks):
    model = trained(importlib.import_module("tiny_residual_network").build()).eval()
    for block in blocks:
        torch.nn.init.zeros_(model.get_submodule(block).conv.weight)
        torch.nn.init.constant_(model.get_submodule(block).conv.bias, -1.0)  # which the ReLU makes 0
    return model


@pytest.fixture
def images(place):
    arrays = np.load(place / "images.npz")
    pixels = arrays["images"].transpose(0, 3, 1, 2) / 255
    mean, std = (np.reshape(values, (3, 1, 1)) for values in ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3)))
    return torch.tensor((pixels - mean) / std, dtype=torch.float32), torch.tensor(arrays["labels"])


@torch.no_grad()
def test_the_files_are_the_network_without_the_blocks(images, tmp_path):
    runtime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    files = {option: tmp_path / f"small.{ending}" for option, ending in (("--onnx", "onnx"), ("--program", "pt2"))}
    written = [part for option in files.items() for part in option]
    result = invoke(*pruning("--blocks", "blocks.0,blocks.2", *written, output=tmp_path / "small.safetensors"))
    assert result.exit_code == 0, result.output
    inputs, labels = images
    expected = model_without("blocks.0", "blocks.2")(inputs).numpy()

    found = torch.export.load(files["--program"]).module()(inputs)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-4)
    session = runtime.InferenceSession(files["--onnx"])
    (found,) = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)
    with safe_open(tmp_path / "small.safetensors", "pt") as file:
        facts = file.metadata()
    assert facts["model"] == MODEL
    fresh = importlib.import_module(facts["model"].partition(":")[0]).build()
    small = rpp.unravel(fresh, inputs).pruned(json.loads(facts["deleted_blocks"]), training=False)
    load_model(small, tmp_path / "small.safetensors")
    np.testing.assert_allclose(small(inputs).numpy(), expected, rtol=1e-5, atol=1e-4)

    errors = [
        float((scores.argmax(1) != labels.numpy()).mean()) for scores in (model_without()(inputs).numpy(), expected)
    ]
    table = {line.split()[0]: line.split()[1:] for line in reversed(result.output.splitlines()) if line}
    assert table["error"] == [f"{one:.2%}" for one in errors]
    assert table["blocks"] == ["3", "1", "33.3%"]
    assert table["parameters"] == ["581", "285", "49.1%"]
    assert "deleted: blocks.0, blocks.2" in result.output
    assert "error on 12 images" in result.output
    assert imread(tmp_path / "small-selection.png").std() > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "small-selection.png", "small.onnx", "small.pt2", "small.safetensors",
    ]  # fmt: skip


@pytest.fixture
def time_by_parameters(monkeypatch):
    """Count parameters in the place of seconds, which depend on what else the machine does."""

    def latencies(modules, _):
        return [float(sum(one.numel() for one in module.parameters())) for module in modules]

    monkeypatch.setattr(prune_sizes, "latencies", latencies)
    monkeypatch.setattr(selected_costs, "latencies", latencies)


def activations(inputs):
    """Return the sources and branches of the intact network's blocks, float64, by the block's name."""
    x, found = model_without().double().stem(inputs.double()), {}
    for name, block in model_without().double().blocks.named_children():
        branch = block.conv(x).relu()
        found[f"blocks.{name}"], x = (x, branch), x + branch
    return found


def model_with(stand_ins):
    """Return the model in which functions of the source stand in for the branches of some blocks."""
    model = model_without()
    for name, function in stand_ins.items():
        model.get_submodule(name).forward = lambda x, function=function: x + function(x)
    return model


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
@torch.no_grad()
@pytest.mark.parametrize(
    ("ablation", "chosen"),
    [("mean", ("--delete", 2, "--keep", "blocks.1")), ("linear", ("--blocks", "blocks.0,blocks.2"))],
)
def test_stand_ins_are_fitted_on_half_of_the_images_and_reported_on_the_other(ablation, chosen, images, tmp_path):
    runtime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    gone, (inputs, labels) = ("blocks.0", "blocks.2"), images
    values = activations(inputs)
    files = ("--onnx", tmp_path / "small.onnx", "--program", tmp_path / "small.pt2")
    result = invoke(*pruning(*chosen, "--ablation", ablation, *files, output=tmp_path / "small.safetensors"))
    assert result.exit_code == 0, result.output
    mean = tmp_path / "small.safetensors"
    if ablation != "mean":
        mean = tmp_path / "mean.safetensors"
        assert invoke(*pruning(*chosen, "--ablation", "mean", output=mean)).exit_code == 0

    # Which half it was, the mean itself tells.
    fitted = load_file(mean)["stand_in_0"].double()
    halves = [list(half) for half in combinations(range(12), 6)]
    distances = [float((values["blocks.0"][1][half].mean(0) - fitted).abs().max()) for half in halves]
    half = halves[int(np.argmin(distances))]
    assert min(distances) < 1e-5
    rest = [index for index in range(12) if index not in half]

    stand_ins, explained = {}, []
    for name in gone:
        source, branch = (one[half].movedim(1, -1).flatten(0, -2).numpy() for one in values[name])
        if ablation == "mean":
            mean = values[name][1][half].mean(0).float()
            stand_ins[name] = lambda _, mean=mean: mean
            continue
        rows = np.column_stack([source, np.ones(len(source))])
        weights = np.linalg.lstsq(rows, branch)[0]
        explained.append(1 - (branch - rows @ weights).var(0).sum() / branch.var(0).sum())
        weight, bias = (torch.tensor(part, dtype=torch.float32) for part in (weights[:-1].T, weights[-1]))
        stand_ins[name] = lambda x, weight=weight, bias=bias: torch.conv2d(x, weight[:, :, None, None], bias)
    patched = model_with(stand_ins)
    expected = patched(inputs).numpy()

    close = {"rtol": 1e-3, "atol": 1e-3}
    np.testing.assert_allclose(torch.export.load(tmp_path / "small.pt2").module()(inputs).numpy(), expected, **close)
    session = runtime.InferenceSession(tmp_path / "small.onnx")
    np.testing.assert_allclose(session.run(None, {session.get_inputs()[0].name: inputs.numpy()})[0], expected, **close)
    with safe_open(tmp_path / "small.safetensors", "pt") as file:
        facts = file.metadata()
    assert facts["ablation"] == ablation
    net = rpp.unravel(importlib.import_module("tiny_residual_network").build(), inputs)
    small = net.pruned(json.loads(facts["deleted_blocks"]), ablation=ablation, reference=inputs, training=False)
    load_model(small, tmp_path / "small.safetensors")
    np.testing.assert_allclose(small(inputs).numpy(), expected, **close)

    table = {line.split()[0]: line.split()[1:] for line in reversed(result.output.splitlines()) if line}
    wrong = [one(inputs[rest]).argmax(1) != labels[rest] for one in (model_without(), patched)]
    assert table["error"] == [f"{one.double().mean():.2%}" for one in wrong]
    assert f"{'their means' if ablation == 'mean' else 'linear maps'}, fitted on 6 images" in result.output
    assert "error on 6 images" in result.output
    if ablation == "linear":
        assert f"variance that the maps explain: {', '.join(f'{share:.0%}' for share in explained)}" in result.output


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures", "time_by_parameters")
@pytest.mark.parametrize(
    "chosen", [("--delete", 1, "--halving", 2), ("--blocks", "blocks.1"), ("--keep-latency", 0.99)]
)
def test_a_network_that_freezes_its_batch_is_pruned_at_that_batch(chosen, tmp_path):
    files = ("--output", tmp_path / "a.safetensors", "--program", tmp_path / "a.pt2", "--no-progress")
    given = ("--weights", "weights.safetensors", "--images", "images.npz", *STATISTICS, *files)
    result = invoke("prune", "tiny_residual_network:frozen", *given, *chosen)
    assert result.exit_code == 0, result.output
    assert 1 < int(re.search(r"latency of a batch of (\d+)", result.output)[1]) <= 12
    if "--blocks" in chosen:
        free = invoke("prune", MODEL, *given, *chosen)
        assert "latency of a batch of 1 " in free.output
        lines = [line for one in (free, result) for line in one.output.splitlines()]
        rows = [line.split() for line in lines if line.startswith(("error  ", "multiply-adds  ", "parameters  "))]
        rows = [rows[:3], rows[3:]]
        assert rows[0] == rows[1]


@pytest.mark.usefixtures("no_pictures")
@torch.no_grad()
def test_a_program_made_for_one_image_takes_any_number(images, place, tmp_path):
    arrays = np.load(place / "images.npz")
    np.savez(tmp_path / "one.npz", images=arrays["images"][:1], labels=arrays["labels"][:1])
    given = (MODEL, "--weights", "weights.safetensors", "--images", tmp_path / "one.npz", *STATISTICS)
    files = ("--output", tmp_path / "a.safetensors", "--program", tmp_path / "a.pt2")
    result = invoke("prune", *given, *files, "--blocks", "blocks.1")
    assert result.exit_code == 0, result.output
    found = torch.export.load(tmp_path / "a.pt2").module()(images[0])
    np.testing.assert_allclose(found, model_without("blocks.1")(images[0]), rtol=1e-5, atol=1e-4)


@pytest.mark.usefixtures("no_pictures")
def test_a_search_deletes_what_the_analyzer_chooses(images, tmp_path):
    result = invoke(
        *pruning(
            "--delete",
            1,
            "--method",
            "exhaustive",
            "--keep",
            "blocks.1",
            "--seed",
            3,
            output=tmp_path / "a.safetensors",
        )
    )
    assert result.exit_code == 0, result.output
    chosen = rpp.BlockSelection(model_without()).attribute(
        *images, k=1, method="exhaustive", keep="blocks.1", seed=3, latency=False
    )
    assert f"deleted: {chosen.selection.values[0]}\n" in result.output
    assert f"{float(chosen.held_out_error[0]):.2%}" in result.output


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.usefixtures("time_by_parameters")
def test_the_fewest_blocks_that_are_fast_enough_are_deleted(tmp_path):
    for share, size in ((0.8, 1), (0.7, 2), (0.5, 2)):
        result = invoke(*pruning("--keep-latency", share, output=tmp_path / f"{size}{share}.safetensors"))
        assert result.exit_code == 0, result.output
        (names,) = re.findall(r"deleted: (.*)", result.output)
        assert len(names.split(", ")) == size
    assert "still takes 49% of the time" in told(*pruning("--keep-latency", 0.3))


def test_the_search_goes_on_until_the_share_lies_between_two_sizes():
    share_left = {size: 1 - size / 100 for size in range(1, 91)}
    share_left |= {size: 0.9 - size / 100 for size in range(60, 91)}

    def search(chosen):
        sizes = chosen()
        searched.extend(sizes)
        ds = xr.Dataset({
            "method": ("selection", ["greedy"] * len(sizes)), "n_deleted": ("selection", list(sizes)),
            "latency": ("selection", [share_left[size] for size in sizes]), "intact_latency": 1.0,
        })  # fmt: skip
        return sizes, ds

    for first in (range(40, 44), range(1, 3), range(85, 91), range(59, 61)):
        for share in (0.995, 0.7, 0.35, 0.1):
            searched = []
            ds, place = prune_sizes.fewest_fast_enough(search, lambda first=first: first, 90, "greedy", share)
            fewest = min(size for size, left in share_left.items() if left <= share)
            assert int(ds["n_deleted"][place]) == fewest
            assert fewest == 1 or fewest - 1 in searched
    with pytest.raises(InputError, match=r"still takes 0% of the time|was not reached"):
        prune_sizes.fewest_fast_enough(search, lambda: range(1, 3), 90, "greedy", -1)


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.filterwarnings("always:timed again")
def test_a_resumed_search_for_latency_keeps_its_sizes(monkeypatch, tmp_path):
    def timed(after):
        def latencies(modules, _):
            return [1.0, *[after] * (len(modules) - 1)]

        return latencies

    monkeypatch.setattr(selected_costs, "latencies", timed(0.5))
    monkeypatch.setattr(prune_sizes, "latencies", timed(0.9))
    given = pruning("--keep-latency", 0.95, output=tmp_path / "a.safetensors")
    with monkeypatch.context() as stopped:
        stopped.setattr(pruned_files.PrunedFiles, "write", lambda *_: (_ for _ in ()).throw(InputError("stopped")))
        assert "--resume" in told(*given)
    assert (tmp_path / "a.safetensors.partial").exists()
    n_calls = []
    command = importlib.import_module("resnet_paths_plugin.cli.prune")
    monkeypatch.setattr(command, "sizes_for_latency", lambda *_: n_calls.append(1))
    monkeypatch.setattr(prune_sizes, "latencies", timed(0.96))
    result = invoke(*given, "--resume")
    assert result.exit_code == 0, result.output
    assert not n_calls
    assert "timed again, the network takes 96%" in " ".join(result.output.split())
    assert re.search(r"latency \(ms\) .* 96.0%", result.output)
    assert not (tmp_path / "a.safetensors.partial").exists()


@pytest.mark.slow
def test_the_embedded_network_needs_no_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pixels, labels = subject.held_out_digits().images[:6], subject.held_out_digits().labels[:6]
    monkeypatch.setattr(subject.demo, "load_digit_images", lambda: (pixels, labels))
    result = invoke("prune", "--blocks", "layer3.17")
    assert result.exit_code == 0, result.output
    assert {path.name for path in tmp_path.iterdir()} == {
        "digits_resnet110-pruned.safetensors", "digits_resnet110-pruned-selection.png",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give one of --delete"),
        (("--delete", 1, "--keep-latency", 0.5), "not --delete and --keep-latency"),
        (("--blocks", "blocks.0", "--keep", "blocks.1"), "--keep is for a search"),
        (("--blocks", "blocks.0", "--method", "greedy"), "--method is for a search"),
        (("--blocks", "blocks.0", "--method", "beam", "--halving", 1), "--method and --halving are for a search"),
        (("--delete", 3), "--delete 3 deletes every one of the network's 3"),
        (("--delete", 4), "--delete 4 is too many: choose at most 2 of the 3 blocks"),
        (("--delete", 2, "--keep", "blocks.0,blocks.1"), "at most 1 of the 1 blocks that --keep leaves"),
        (("--delete", 1, "--keep", "blocks.0,blocks.1,blocks.2"), "--keep leaves no block"),
        (("--delete", 1, "--halving", 6), "12 images are too few to hold half of them out and --halving 6"),
        (("--blocks", "blocks.0,blocks.1,blocks.2"), "--blocks names every one"),
        (("--blocks", "blocks.7"), "blocks.7"),
        (("--blocks", ","), "it names no block"),
        (("--delete", 1, "--onnx", "small.pb"), "must end in .onnx"),
        (("--delete", 1, "--program", "small.pt"), "must end in .pt2"),
        (("--delete", 1, "--program", "no/small.pt2"), "does not exist"),
    ],
)
def test_mistakes_are_told_in_a_line_and_nothing_is_written(arguments, message, place):
    before = sorted(place.iterdir())
    assert message in told(*pruning(*arguments))
    assert sorted(place.iterdir()) == before


def test_no_input_and_no_older_file_is_replaced_by_mistake(place):
    assert "must end in .safetensors" in told(*pruning("--delete", 1, output="images.npz"))
    assert "also read" in told(*pruning("--delete", 1, output="weights.safetensors"))
    (place / "older.safetensors").write_bytes(b"older")
    assert "exists already" in told(*pruning("--delete", 1, "--no-clobber", output="older.safetensors"))
    assert (place / "older.safetensors").read_bytes() == b"older"


def test_onnx_that_is_not_installed_is_said_before_the_run(monkeypatch):
    monkeypatch.setattr(pruned_files, "find_spec", lambda _: None)
    assert "pip install" in told(*pruning("--delete", 1, "--onnx", "small.onnx"))


@torch.no_grad()
def test_weights_too_large_for_an_onnx_file_come_beside_it(images, tmp_path, monkeypatch):
    runtime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    monkeypatch.setattr(pruned_files, "_MOST_IN_ONNX", 500)
    monkeypatch.setattr("torch.onnx._internal.exporter._onnx_program._LARGE_MODEL_THRESHOLD", 500)
    given = ("--blocks", "blocks.0", "--onnx", tmp_path / "small.onnx")
    result = invoke(*pruning(*given, output=tmp_path / "small.safetensors"))
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in tmp_path.glob("*onnx*")) == ["small.onnx", "small.onnx.data"]
    assert "small.onnx.data" in result.output
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in tmp_path.glob("*onnx*"):
        path.rename(moved / path.name)
    session = runtime.InferenceSession(moved / "small.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: images[0].numpy()})
    np.testing.assert_allclose(found, model_without("blocks.0")(images[0]).numpy(), rtol=1e-4, atol=1e-3)
    (moved / "small.onnx.data").rename(tmp_path / "small.onnx.data")
    assert "exists already" in told(*pruning(*given, "--no-clobber", output=tmp_path / "other.safetensors"))


def test_blocks_that_no_linear_map_fits_are_named_before_the_run(place):
    (place / "flat_network.py").write_text(
        textwrap.dedent("""
            import torch
            from tiny_residual_network import Tiny

            class Flat(torch.nn.Module):
                def __init__(self):
                    super().__init__()
                    self.layer = torch.nn.Linear(256, 256)

                def forward(self, x):
                    return x + self.layer(x.flatten(1)).view_as(x)

            class Mixed(Tiny):
                def __init__(self):
                    super().__init__()
                    self.blocks[1] = Flat()
        """)
    )
    given = ("prune", "flat_network:Mixed", "--images", "images.npz", *STATISTICS, "--ablation", "linear")
    output = ("--output", place / "linear.safetensors")
    line = told(*given, *output, "--delete", 1)
    assert "--ablation linear" in line
    assert "'blocks.1' allow none ('blocks.1': no operator of its branch tells" in line
    assert "--keep, or take --ablation mean" in line
    assert "leave them out of --blocks" in told(*given, *output, "--blocks", "blocks.1")
    assert not list(place.glob("linear.*"))
    result = invoke(*given, *output, "--delete", 1, "--keep", "blocks.1")
    assert result.exit_code == 0, result.output


def test_an_exhaustive_search_of_too_many_sets_is_refused_by_its_option(monkeypatch):
    monkeypatch.setattr(prune_request, "MOST_SETS", 2)
    assert "--method exhaustive would measure 3 sets of 2 blocks" in told(
        *pruning("--delete", 2, "--method", "exhaustive")
    )


@pytest.mark.filterwarnings("always")
def test_a_set_whose_outputs_overflow_is_left_out_of_the_choice(place):
    """Without its first block the model overflows."""
    (place / "guarded_network.py").write_text(
        textwrap.dedent("""
            import torch
            from tiny_residual_network import Block, Tiny

            class Guard(Block):
                def forward(self, x):
                    return x + (self.conv(x) / 1e20 - x)

            class Guarded(Tiny):
                def __init__(self):
                    super().__init__()
                    self.blocks[0] = Guard()

                def forward(self, x):
                    return super().forward(1e20 * x) ** 3
        """)
    )
    given = ("prune", "guarded_network:Guarded", "--images", "images.npz", *STATISTICS, "--delete", 1)
    line = told(*given, "--keep", "blocks.1,blocks.2", "--output", "none.safetensors")
    assert "none of them can be chosen" in line
    result = invoke(*given, "--output", "guarded.safetensors")
    assert result.exit_code == 0, result.output
    assert "left out (blocks.0)" in " ".join(result.output.split())
    assert "deleted: blocks.0" not in result.output


@pytest.mark.filterwarnings("always")
def test_a_search_without_any_finite_loss_says_where_it_comes_from(place):
    (place / "overflowing_network.py").write_text(
        textwrap.dedent("""
            import torch
            from tiny_residual_network import Tiny

            class Overflowing(Tiny):
                def forward(self, x):
                    return super().forward(x) * torch.inf
        """)
    )
    given = ("overflowing_network:Overflowing", "--images", "images.npz", *STATISTICS)
    line = told("prune", *given, "--delete", 1, "--output", "overflowing.safetensors")
    assert "for the intact network" in line


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_an_operator_that_onnx_lacks_leaves_no_file(place):
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    (place / "bessel_network.py").write_text(
        textwrap.dedent("""
            import torch
            from tiny_residual_network import Tiny

            class Bessel(Tiny):
                def forward(self, x):
                    return torch.special.bessel_j0(super().forward(x))
        """)
    )
    given = ("bessel_network:Bessel", "--images", "images.npz", *STATISTICS, "--output", "bessel.safetensors")
    line = told("prune", *given, "--blocks", "blocks.1", "--onnx", "bessel.onnx")
    assert "bessel_j0" in line
    # What was measured is kept, for the same command without the file that cannot be.
    assert [path.name for path in place.glob("bessel.*")] == ["bessel.safetensors.partial"]
    assert "--resume" in told("prune", *given, "--blocks", "blocks.1")
    assert invoke("prune", *given, "--blocks", "blocks.1", "--resume").exit_code == 0
    assert [path.name for path in place.glob("bessel.*")] == ["bessel.safetensors"]
