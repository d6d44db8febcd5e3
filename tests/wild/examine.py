"""One model: what its unraveled network gives, against its code's blocks and against what the model itself gives."""

import copy
import math
import time
import warnings
from importlib.metadata import packages_distributions, version

import torch
from networks import assert_same_state, state_of
from zoo.real.examine import compare_outputs, completeness, delete_each, leaves_of, random_weights
from zoo.real.values import randomise

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import InputError
from wild import truth
from wild.table import COMPLETE, Line

CANDIDATES = 30
"""Modules that are tried as a block's branch."""
TEXT = 300
"""Characters of an error that the table keeps."""


def examine(library, name):
    """Look at one model."""
    known = truth.models(library)[name]
    line = Line(library, version(packages_distributions()[library][0]), name, known.blocks)
    torch.set_num_threads(1)
    started = time.perf_counter()
    notes = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            torch.manual_seed(0)
            model, inputs = known.build().eval(), known.inputs()
            randomise(model, inputs)
            notes += look(model, inputs, known, line)
        except rpp.ResnetPathsError as error:
            line.refusal = _text(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the line says it
            notes.append(f"failed: {_text(error)}")
    line.note = "; ".join(notes)
    line.seconds = round(time.perf_counter() - started, 1)
    return line


def look(model, inputs, known, line):
    """Fill in a line; yield notes."""
    before = state_of(model)
    net = rpp.unravel(model, inputs)
    line.found = len(net.blocks)
    if line.found != line.declared:
        yield f"found {', '.join(block.name for block in net.blocks)}"[:TEXT]
    with torch.no_grad():
        intact = leaves_of(model(*inputs))
        yield from compare_outputs(model, net, (inputs,), line)
        yield from delete_each(net, inputs, intact, line)
        line.zeroed = sum(is_lesion_by_hand(model, net, block, inputs) for block in net.blocks)
    line.gradient = gradient_difference(model, net, inputs)
    if net.blocks:
        line.completeness = _short(path_completeness(model, net, inputs, known.tap))
        if known.tap is not None:
            line.tap_gradient = _short(tap_difference(model, net, inputs))
    try:
        assert_same_state(before, state_of(model))
        line.untouched = True
    except AssertionError as error:
        yield f"changed by being looked at: {_text(error)}"
    if net.blocks and not line.completeness < COMPLETE:
        model, inputs = copy.deepcopy(model).double(), tuple(map(_double, inputs))
        found = path_completeness(model, rpp.unravel(model, inputs), inputs, known.tap)
        line.completeness_float64 = _short(found)


def is_lesion_by_hand(model, net, block, inputs):
    """Whether the output without a block is the model's own where some module returns zeros instead of its output."""
    without = leaves_of(net.lesioned(block)(*inputs))
    for module in _candidates(model, block, inputs):
        handle = module.register_forward_hook(_zeros)
        try:
            patched = leaves_of(model(*inputs))
        except Exception:  # noqa: BLE001, S112 - a model may not stand zeros there; then it is no oracle
            continue
        finally:
            handle.remove()
        if all(torch.allclose(one, other, rtol=1e-4, atol=1e-5) for one, other in zip(without, patched, strict=True)):
            return True
    return False


def _candidates(model, block, inputs):
    """Return modules with an output of the block's size, those of the block's name and owner first, last ones first."""
    size = math.prod(block.sum_shape)
    order = {}
    handles = [
        module.register_forward_hook(lambda module, _, output: order.update({module: _first(output)}))
        for module in model.modules()
    ]
    try:
        model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    names = {module: name for name, module in model.named_modules()}
    sized = [module for module, output in reversed(order.items()) if output is not None and output.numel() % size == 0]
    fitting = [names[module] for module in sized]
    near = [block.name.partition(":")[0], block.module]
    fitting = sorted(fitting, key=lambda name: [not name.startswith(prefix) for prefix in near])
    return [model.get_submodule(name) for name in fitting[:CANDIDATES]]


def _first(output):
    return next(iter(leaves_of(output)), None)


def _zeros(_, __, output):
    if isinstance(output, tuple):
        return (torch.zeros_like(output[0]), *output[1:])
    return torch.zeros_like(output)


def gradient_difference(model, net, inputs):
    """Return the largest difference of gradients of the network's outputs from those of the model's, relative.

    The objective is a random weighted sum of the outputs; gradients are those of all inputs and parameters that are
    floats, each relative to the largest gradient of an input or of a parameter.
    """
    found, expected = (_gradients(module, model, inputs) for module in (net, model))
    largest = 0.0
    for ours, theirs in zip(found, expected, strict=True):
        if theirs:
            scale = max(float(gradient.abs().max()) for gradient in theirs)
            apart = max(float((one - other).abs().max()) for one, other in zip(ours, theirs, strict=True))
            largest = max(largest, apart / scale) if scale else math.inf
    return _short(largest)


def _gradients(module, model, inputs):
    tracked = [value.clone().requires_grad_(value.is_floating_point()) for value in inputs]
    leaves = [leaf for leaf in leaves_of(module(*tracked)) if leaf.requires_grad]
    total = sum((leaf * weight).sum() for leaf, weight in zip(leaves, random_weights(leaves), strict=True))
    floats = [value for value in tracked if value.requires_grad]
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found = torch.autograd.grad(total, [*floats, *parameters], materialize_grads=True, allow_unused=True)
    return found[: len(floats)], found[len(floats) :]


def path_completeness(model, net, inputs, tap):
    """Return how far the path gradients' sum is from the gradient: the model's own where every input is a float."""
    if tap is None and all(value.is_floating_point() for value in inputs):
        return completeness(model, net, inputs)[0]
    floats = [value for value in inputs if value.is_floating_point()] if tap is None else [inputs[0]]
    others = inputs[len(floats) :]
    study = rpp.PathLengthGradient(net).attribute(
        tuple(floats), None, others, objective=_weighted, tap="input" if tap is None else "stem"
    )
    return float(study.completeness_error.max())


def tap_difference(model, net, inputs):
    """Return how far the path gradients' sum at the first block's source is from the model's at a module's output.

    It is the smallest relative difference over the modules whose outputs have the source's shape, and not a number
    where none has, or where the source's first dimension is not the batch.
    """
    try:
        study = rpp.PathLengthGradient(net).attribute(
            inputs[0], None, inputs[1:], objective=_weighted, tap="stem", keep_maps=True
        )
    except InputError:
        return math.nan
    found = torch.from_numpy(study.gradient.sum("path_length").to_numpy())
    outputs = []
    handles = [
        module.register_forward_hook(lambda _, __, output: outputs.append(_first(output))) for module in model.modules()
    ]
    try:
        total = _weighted(model(*inputs), None).sum()
    finally:
        for handle in handles:
            handle.remove()
    fitting = [one for one in outputs if one is not None and one.requires_grad and one.shape == found.shape]
    gradients = torch.autograd.grad(total, fitting, materialize_grads=True, allow_unused=True) if fitting else ()
    return min((float((one - found).abs().max() / found.abs().max()) for one in gradients), default=math.nan)


def _weighted(outputs, _):
    """Return a fixed random weighted sum of each sample's outputs."""
    (weights,) = random_weights([outputs[0]])
    return (outputs * weights).flatten(1).sum(1)


def _double(value):
    return value.double() if value.is_floating_point() else value


def _short(value):
    return float(f"{value:.2g}")


def _text(error):
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:TEXT]
