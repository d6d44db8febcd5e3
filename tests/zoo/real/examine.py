"""One model with real tensors: what its unraveled network gives, against what the model itself gives."""

import time
from dataclasses import dataclass
from itertools import zip_longest

import timm
import torch
import torchvision
from networks import assert_same_state, state_of
from torch.utils import _pytree as pytree

import resnet_paths_plugin as rpp
from resnet_paths_plugin.engine.backward import BackwardWalk
from resnet_paths_plugin.engine.routing import ByLength
from zoo.models import family
from zoo.real.values import randomise

BATCH = 2
MOST_BLOCKS = 60
"""Blocks up to which every length of path is told apart."""
LENGTHS_BEYOND = 4
"""Longest length told apart in networks of more; what is longer shares a row."""
VISIBLE = 1e-5
"""Least change of an output, relative to its largest element, that is more than rounding in float32."""
COMPLETE = 1e-5
"""Largest relative difference of summed path gradients from the ordinary gradient, in float32."""
ROUNDING = 5 * torch.finfo(torch.float64).eps
"""The same in float64, relative to the cancellation of the lengths' gradients."""
FUSED = "by nothing without torch's fused path of nn.MultiheadAttention"
"""The one known reason for which outputs differ in their last digits."""


@dataclass(slots=True)
class Line:
    """What was found of one model.

    Attributes:
        library, version, family, model: which model.
        input: shape of one sample.
        sized_by: argument that binds the model to that shape; none where it needs none.
        blocks: residual blocks found; -1 where the model could not be looked at.
        identical: whether outputs equal the model's bit for bit, for a batch of two and of one.
        lesions: blocks whose lesion ran.
        finite: whether all outputs of lesions were finite.
        least_change: the least change of an output by a lesion, relative to that output's largest element.
        completeness: largest relative difference, over samples, of the summed path gradients from the model's gradient.
        cancellation: summed norms of the path gradients of each length, relative to the norm of their sum, the largest
            over samples: by so much the sum's rounding errors are larger than those of the parts.
        completeness_float64: completeness in float64, where float32 does not suffice.
        untouched: whether the model was as before afterwards.
        seconds: what it all took.
        note: the reason for everything that is not as it should be.
    """

    library: str
    version: str
    family: str
    model: str
    input: str = ""
    sized_by: str = ""
    blocks: int = -1
    identical: bool = False
    lesions: int = 0
    finite: bool = False
    least_change: float = float("nan")
    completeness: float = float("nan")
    cancellation: float = float("nan")
    completeness_float64: float = float("nan")
    untouched: bool = False
    seconds: float = 0.0
    note: str = ""

    @property
    def passes(self):
        """Whether everything is as it should be."""
        whole = not self.blocks or (
            self.lesions == self.blocks
            and self.finite
            and self.least_change > VISIBLE
            and (self.completeness < COMPLETE or self.completeness_float64 < ROUNDING * self.cancellation)
        )
        return self.blocks >= 0 and (self.identical or FUSED in self.note) and self.untouched and whole


def examine(recipe):
    """Look at one model."""
    subject = recipe.subject
    version = {"timm": timm, "torchvision": torchvision}[subject.library].__version__
    line = Line(subject.library, version, family(subject), subject.name)
    line.input, line.sized_by = "x".join(map(str, recipe.shape)), recipe.sized_by
    torch.set_num_threads(1)
    started = time.perf_counter()
    notes = []
    try:
        torch.manual_seed(0)
        model = randomise(recipe.model(), recipe.inputs(4, seed=1))
        notes = list(_look(model, recipe.inputs(BATCH), line))
    except Exception as error:  # noqa: BLE001 - whatever it is, the line says it
        notes.append(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    line.note = "; ".join(notes)
    line.seconds = round(time.perf_counter() - started, 1)
    return line


def _look(model, inputs, line):
    """Fill in a line; yield notes."""
    before = state_of(model)
    net = rpp.unravel(model, inputs)
    with torch.no_grad():
        intact = leaves_of(model(*inputs))
        yield from compare_outputs(model, net, (inputs, tuple(value[:1] for value in inputs)), line)
        line.blocks = len(net.blocks)
        yield from delete_each(net, inputs, intact, line)
    if net.blocks:
        yield from _add_up(model, net, inputs, line)
    try:
        assert_same_state(before, state_of(model))
        line.untouched = True
    except AssertionError as error:
        yield f"changed by being looked at: {error}"
    if net.blocks and not line.completeness < COMPLETE:
        yield from _add_up_exactly(model.double(), tuple(value.double() for value in inputs), line)


def compare_outputs(model, net, batches, line):
    """Compare outputs with the model's own, for each batch."""
    line.identical = True
    for given in batches:
        found, expected = leaves_of(net(*given)), leaves_of(model(*given))
        if same(found, expected):
            continue
        line.identical = False
        torch.backends.mha.set_fastpath_enabled(value=False)
        try:
            unfused = same(found, leaves_of(model(*given)))
        finally:
            torch.backends.mha.set_fastpath_enabled(value=True)
        epsilons = change(found, expected) / torch.finfo(expected[0].dtype).eps
        reason = f", and {FUSED}" if unfused else ""
        yield f"outputs of {len(given[0])} differ by {epsilons:.1f} epsilons of the largest{reason}"


def delete_each(net, inputs, intact, line):
    """Delete each block once."""
    schedules = [rpp.Schedule.lesion(net, block) for block in net.blocks]
    line.finite = all(bool(torch.isfinite(leaf).all()) for leaf in intact)
    changes = {}
    for place, output in net.outputs(schedules, inputs):
        leaves = leaves_of(output)
        line.finite = line.finite and all(bool(torch.isfinite(leaf).all()) for leaf in leaves)
        changes[place] = change(leaves, intact)
    line.lesions = len(changes)
    if changes:
        line.least_change = _short(min(changes.values()))
        hidden = [net.blocks[place].name for place, size in changes.items() if not size > VISIBLE]
        if hidden:
            yield f"no change by deleting {', '.join(hidden[:8])}"


def _add_up(model, net, inputs, line):
    """Compare the sum of the path gradients of all lengths with the model's own gradient."""
    line.completeness, line.cancellation = map(_short, completeness(model, net, inputs))
    if len(net.blocks) > MOST_BLOCKS:
        yield f"{len(net.blocks)} blocks: lengths to {LENGTHS_BEYOND} told apart, longer ones together"


def _add_up_exactly(model, inputs, line):
    """Tell whether it is float32 that keeps the path gradients from adding up."""
    line.completeness_float64 = _short(completeness(model, rpp.unravel(model, inputs), inputs)[0])
    if line.completeness_float64 < ROUNDING * line.cancellation:
        yield f"the lengths' gradients cancel to 1/{line.cancellation:.0f}: float32 rounds, in float64 they add up"


def completeness(model, net, inputs):
    """Return how far summed path gradients are from the model's gradient, and how far they cancel.

    Both are the largest over samples, relative to the gradient's norm; the objective is a random weighted sum of the
    outputs.
    """
    with torch.no_grad():
        weights = random_weights(leaves_of(model(*inputs)))
    banks = path_gradients(net, inputs, weights)
    expected = gradients(model, inputs, weights)
    missing = _norms([rows.sum(0) - ordinary for rows, ordinary in zip(banks, expected, strict=True)])
    # From one of several inputs there may be fewer lengths than from another.
    parts = sum(_norms([row for row in rows if row is not None]) for rows in zip_longest(*banks))
    whole = _norms(expected)
    return float((missing / whole).max()), float((parts / whole).max())


def path_gradients(net, inputs, weights):
    """Return the gradients of the weighted sum of the outputs at each input, one row for each length of path."""
    walk = BackwardWalk(net.path_graph(), net.inputs(inputs), net.program.parameters(), dtype=inputs[0].dtype)
    places = [at for at, leaf in enumerate(walk.outputs) if isinstance(leaf, torch.Tensor)]
    seeds = net.program.at_outputs(dict(zip(places, weights, strict=True)))
    limits = (LENGTHS_BEYOND,) if len(net.blocks) > MOST_BLOCKS else None
    banks = walk.run(seeds, ByLength([(1,)] * len(net.blocks), limits))
    return [banks[tap].rows for tap in net.program.inputs]


def gradients(model, inputs, weights):
    """Return the model's own gradient of the weighted sum of its outputs at each input."""
    tracked = [value.clone().requires_grad_() for value in inputs]
    leaves = leaves_of(model(*tracked))
    total = sum((leaf * weight).sum() for leaf, weight in zip(leaves, weights, strict=True))
    return torch.autograd.grad(total, tracked)


def random_weights(leaves, seed=2):
    """Return a fixed random weight for each element of the outputs."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(leaf.shape, generator=generator).to(leaf.dtype) for leaf in leaves]


def leaves_of(output):
    """Return the tensors of an output, however it is nested."""
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]


def same(found, expected):
    """Whether two outputs are equal bit for bit."""
    return len(found) == len(expected) and all(map(torch.equal, found, expected))


def change(found, expected):
    """Return the largest change of an output, relative to that output's largest element."""
    return max(float((one - other).abs().max() / other.abs().max()) for one, other in zip(found, expected, strict=True))


def _norms(gradients):
    """Return the norm of each sample's gradients at all inputs, shape `[B]` float64."""
    return sum(gradient.double().square().flatten(1).sum(1) for gradient in gradients).sqrt()


def _short(value):
    return float(f"{value:.2g}")
