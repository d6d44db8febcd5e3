"""ModelCheck: the network against the model as it is now, on a batch at hand; what differs is refused.

It runs the model in eval mode and leaves it as it was. `mismatch` says what a difference may come from.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from resnet_paths_plugin.engine.random_states import generator_states
from resnet_paths_plugin.errors import CaptureMismatchError, ModelGradientError
from resnet_paths_plugin.graph.capture import CapturedGraph
from resnet_paths_plugin.graph.export import batch_size, uncompiled, undisturbed
from resnet_paths_plugin.graph.free_batch import resized
from resnet_paths_plugin.graph.operators import draws_at_random
from resnet_paths_plugin.graph.process_state import kept_generators
from resnet_paths_plugin.graph.structure import Structure
from resnet_paths_plugin.network.captured_network import CapturedNetwork
from resnet_paths_plugin.network.differences import (
    difference,
    in_last_digits,
    is_lost,
    is_short,
    near_mean,
    same_bits,
    unit_of,
    within,
    within_noise,
)
from resnet_paths_plugin.network.mismatch import Findings, explained
from resnet_paths_plugin.network.model_pass import (
    Call,
    Objective,
    passed,
    random_objective,
    seeded,
    tensors_of,
    with_fixed_seed,
)
from resnet_paths_plugin.network.model_side import ModelSide
from resnet_paths_plugin.network.own_pass import Compared, OwnPass, ThroughAutograd
from resnet_paths_plugin.process_lock import alone

GRADIENT_SAMPLES = 4
"""Samples whose gradients are compared at the first call of a view, from the first; outputs are compared on all."""
_PLAIN = (bool, int, float, complex, str)
OUTPUTS = "outputs"
"""Under this the check keeps the intact network's outputs for the study that it was made for."""
_RANDOM = "no, as the model draws random numbers"


@dataclass(eq=False)
class ModelCheck:
    """Compares a network with its model.

    Attributes:
        network: the network.
        enabled: whether views and studies check; a study may override it.
        captured: what the model was made of when it was captured.
    """

    network: CapturedNetwork
    enabled: bool
    captured: Structure
    _here: threading.local = field(default_factory=threading.local, init=False, repr=False)
    _seen: dict[tuple[str | None, bool], Structure] = field(default_factory=dict, init=False, repr=False)
    _kept: dict[object, tuple[Any, Callable[[], Any]]] = field(default_factory=dict, init=False, repr=False)
    _bits_held: bool = field(default=False, init=False, repr=False)

    @property
    def verified(self) -> str:
        """What the last check in this thread has found equal, in words."""
        return getattr(self._here, "verified", "no")

    @verified.setter
    def verified(self, equal: str) -> None:
        self._here.verified = equal

    @property
    def changed(self) -> bool:
        """Whether the model is made of other parts than when it was captured."""
        return Structure.of(self.network.model) != self.captured

    def view(self, args: tuple[Any, ...], call: Call | None = None) -> None:
        """Check at the first call, at the first of one sample, and when the model is made of other parts since.

        Args:
            args: the arguments of the call.
            call: through which gradients are compared too, on a few samples; None compares outputs only.

        Raises:
            CaptureMismatchError: if network and model differ.
            ModelGradientError: if gradients are compared and the model has none.
        """
        if not self.enabled or not _have_values(args):
            return
        self.network.graph.bind(args)  # says what does not fit
        one = batch_size(args) == 1
        now = Structure.of(self.network.model)
        if now not in [seen for (_, single), seen in self._seen.items() if single == one]:
            self.study(args)
        if call is not None and self._seen.get((_walk_of(call), one)) != now:
            if self.network.graph.conditions.holds(GRADIENT_SAMPLES):
                args = resized(args, min(batch_size(args), GRADIENT_SAMPLES), self.network.graph.apart)
            self.study(args, ThroughAutograd(call, args, self.network.name), walk=_walk_of(call))

    def watched(self, args: tuple[Any, ...], outputs: Any) -> Any:
        """Return outputs as they are; once a gradient is asked of them, gradients are compared first.

        Raises:
            CaptureMismatchError: then, if those of network and model differ.
        """
        known = self._seen.get((_walk_of(self.network.intact), batch_size(args) == 1))
        if not self.enabled or not torch.is_grad_enabled() or not _have_values(args):
            return outputs
        if known is not None and known == Structure.of(self.network.model):
            return outputs
        given = pytree.tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, args)

        def compare(_: Tensor) -> None:
            try:
                self.view(given, self.network.intact)
            except ModelGradientError:  # the network's own gradient is right: its operators do not work in place
                self._seen[_walk_of(self.network.intact), batch_size(given) == 1] = Structure.of(self.network.model)

        for leaf in tensors_of(outputs):
            if leaf.requires_grad:
                leaf.register_hook(compare)  # type: ignore[no-untyped-call]  # torch's
        return outputs

    def study(self, args: tuple[Any, ...], own: OwnPass | None = None, *, walk: str = "study") -> None:
        """Compare outputs, and where they are used gradients, on these samples.

        What the network's side has cost is kept for the study: see `take`.

        Args:
            args: the arguments.
            own: the study's own pass; None for a study without gradients.
            walk: what its gradients are taken by, to be compared once for each.

        Raises:
            InputError: if the arguments do not fit what was captured.
            CaptureMismatchError: if network and model differ.
            ModelGradientError: if gradients are compared and the model has none.
        """
        network = self.network
        network.graph.bind(args)
        self.forget()
        if not _have_values(args):
            self.verified = "no, as there are no values"
            return
        findings = Findings(network, args, self.captured)
        with alone(), torch.inference_mode(mode=False), torch.no_grad(), uncompiled(network.model):
            if own is None:
                self.verified = self._outputs_held(args, findings)
            else:
                self.verified = self._gradients_held(args, own, findings)
        self._seen[walk if own is not None else None, batch_size(args) == 1] = Structure.of(network.model)

    def rewritten(self, call: Call, args: tuple[Any, ...]) -> None:
        """Compare a module that was written from the network, with all blocks, on arguments that are made up.

        What is called later is compared all the same.

        Args:
            call: the module in eval mode, which shares the model's parameters.
            args: the arguments.

        Raises:
            CaptureMismatchError: if outputs or gradients differ from the model's.
        """
        if not self.enabled:
            return
        seen = dict(self._seen)
        try:
            self.study(args, ThroughAutograd(call, args, self.network.name))
        except ModelGradientError:  # its own operators work out of place, where the model's in-place ones fail
            self.study(args)
        finally:
            self._seen = seen
            self.forget()

    def take(self, key: object, given: Any) -> Any:
        """Return what the check has kept of the study's own work, once; None where that was on other values."""
        kept = self._kept.get(key)
        if kept is None or not _alike(kept[0], given) or self._kept.pop(key, None) is None:
            return None
        return kept[1]()

    def forget(self) -> None:
        """Release what is kept."""
        self._kept.clear()

    def sampling(
        self,
        call: Call,
        graph: CapturedGraph,
        args: tuple[Any, ...],
        checked: Structure | None,
        *,
        training: bool = True,
    ) -> Structure | None:
        """Compare a graph captured in training mode with the model in that mode: outputs and parameter gradients.

        Args:
            call: runs the graph with all blocks.
            graph: the graph.
            args: the arguments of a call.
            checked: what the model was made of at the last check; nothing is done where it still is.
            training: whether the mode is the training mode, or the eval mode.

        Returns:
            What the model is made of now.

        Raises:
            CaptureMismatchError: if they differ.
        """
        if not self.enabled or not torch.is_grad_enabled() or not _have_values(args):
            return checked
        model = self.network.model
        now = Structure.of(model)
        if now == checked:
            return checked
        findings = Findings(self.network, args, self.captured)
        random = any(draws_at_random(node) for node in graph.graph.nodes)
        with alone(), torch.no_grad(), uncompiled(model):
            with undisturbed(model, training=training):
                parameters = [one for one in model.parameters() if one.requires_grad]  # by its own `train`
                theirs = _trained(model, args, parameters, findings)
            with undisturbed(model, training=training):
                ours = _trained(call, args, parameters)
        for what, one, other in zip((OUTPUTS, "gradients"), ours, theirs, strict=True):
            if other is None or one is None:  # the model cannot be trained as it is
                continue
            error = difference(one, other)
            if within(error, other, unit_of(graph)) or (what != OUTPUTS and within_noise(one, other, unit_of(graph))):
                continue
            if random and not findings.changes:
                return now  # masks that are drawn otherwise cannot be told from another model
            raise CaptureMismatchError(explained(findings, what, error))
        return now

    def _outputs_held(self, args: tuple[Any, ...], findings: Findings) -> str:
        """Return what is equal, in words; outputs of a graph that draws random numbers may tell nothing."""
        network, side = self.network, self._model_side(args, None, findings)
        outputs = side.found.outputs
        with kept_generators():  # of the model itself the network runs nothing
            found = seeded(network.intact, args)
        alike = self._outputs_alike(tensors_of(found), outputs, side)
        if alike and not self._draws:
            self._kept[OUTPUTS] = args, lambda: found
        return alike or _RANDOM

    def _gradients_held(self, args: tuple[Any, ...], own: OwnPass, findings: Findings) -> str:
        side = self._model_side(args, own.objective, findings)
        theirs = side.found
        with kept_generators():
            if self._draws:
                with_fixed_seed()
            drawn = generator_states()
            ours = own.against(theirs.gradients)
            alike = self._outputs_alike(ours.outputs, theirs.outputs, side)
            if not alike:
                return _RANDOM
            held = self._gradients_alike(ours.gradients, side)
            # Where an objective draws, the study is to draw as it does without the check.
            if ours.finish is not None and not self._draws and same_bits(generator_states(), drawn):
                self._kept[own.key] = own.given, ours.finish
        return f"{alike} and gradients" if held else alike

    def _model_side(self, args: tuple[Any, ...], objective: Objective | None, findings: Findings) -> ModelSide:
        network = self.network
        return ModelSide(network.model, network.name, args, objective, self._draws, self._unit, findings)

    def _outputs_alike(self, ours: Sequence[Tensor], theirs: Sequence[Tensor], side: ModelSide) -> str:
        """Return what is alike; nothing where that is not known, since the graph draws random numbers."""
        if same_bits(ours, theirs):
            self._bits_held = True
            return OUTPUTS
        error = difference(ours, theirs)
        if self._exact:
            # Some operators round otherwise where gradients are recorded.
            alike = same_bits(ours, side.without_gradients)
            usual = not self._bits_held and not side.findings.changes
            if not alike and usual and in_last_digits(error, theirs):
                return f"{OUTPUTS} within rounding"  # the model asks whether it is traced, and adds otherwise then
        else:
            alike = within(error, theirs, self._unit) or within(
                error, theirs, self._unit, difference(side.moved.outputs, theirs)
            )
        if not alike and not self._draws:  # of random ones, a warning at the capture has said so
            raise CaptureMismatchError(explained(side.findings, OUTPUTS, error))
        return OUTPUTS if alike else ""

    def _gradients_alike(self, found: Sequence[Compared], side: ModelSide) -> bool:
        """Return whether gradients were compared: the model's must be finite."""
        theirs = [one.theirs for one in found]
        if not found or not all(bool(torch.isfinite(leaf).all()) for leaf in theirs):
            return False
        error = difference([one.ours for one in found], theirs, dtypes=False)
        if not within(error, theirs, self._unit) and not all(self._rounded(one, side) for one in found):
            side.findings.autograd_agrees = self._autograd_agrees(side)
            raise CaptureMismatchError(explained(side.findings, "gradients", error))
        return True

    def _rounded(self, pair: Compared, side: ModelSide) -> bool:
        """Whether two gradients differ by no more than the model's own rounding makes them."""
        error = difference([pair.ours], [pair.theirs], dtypes=False)
        if within(error, [pair.theirs], self._unit) or is_lost(pair.ours, pair.theirs):
            return True
        if is_short(self._unit):
            # On a CPU the study's own rows are float32, and round far less.
            if pair.tap is not None and self.network.device.type == "cpu":
                return near_mean(pair.ours, *side.averaged[pair.tap])
            apart = max((deviation for _, deviation in side.averaged.values()), default=0.0)
        else:
            others = [pair.tap] if pair.tap is not None else list(side.found.gradients)
            gradients = ([one.gradients[tap] for tap in others] for one in (side.moved, side.found))
            apart = max(difference(*gradients) or [0.0])
        return within(error, [pair.theirs], self._unit, [apart])

    def _autograd_agrees(self, side: ModelSide) -> bool:
        """Whether autograd takes the model's gradients through the network."""
        theirs = side.found.gradients
        if side.objective is None or not theirs:
            return False
        with kept_generators():
            if self._draws:
                with_fixed_seed()
            through = ThroughAutograd(self.network.intact, side.args, side.name, objective=side.objective)
            pairs = through.against(theirs).gradients
        error = difference([one.ours for one in pairs], [one.theirs for one in pairs])
        return within(error, [one.theirs for one in pairs], self._unit)

    @property
    def _unit(self) -> float:
        return unit_of(self.network.graph)

    @property
    def _exact(self) -> bool:
        return self.network.device.type == "cpu" and not self.network.optimize

    @cached_property
    def _draws(self) -> bool:
        return any(draws_at_random(node) for node in self.network.graph.graph.nodes)


def _trained(
    call: Call, args: tuple[Any, ...], parameters: Sequence[nn.Parameter], findings: Findings | None = None
) -> tuple[list[Tensor], list[Tensor] | None]:
    """Return the outputs and the gradients of a random objective at the parameters; None where there are none."""
    with_fixed_seed()
    run = passed(call, args, parameters, random_objective)
    if findings is not None:
        findings.note_backward([run.total])
    outputs = [leaf.detach().clone() for leaf in run.outputs]
    try:
        return outputs, [*run.gradients("the model", parameters).values()]
    except ModelGradientError:
        return outputs, None


def _walk_of(call: Call) -> str:
    """Return what gradients are taken by, where a network or a view is called."""
    return str(getattr(call, "__qualname__", type(call).__name__))


def _alike(one: Any, other: Any) -> bool:
    """Whether two structures hold equal values."""
    (ours, form), (theirs, other_form) = pytree.tree_flatten(one), pytree.tree_flatten(other)
    if form != other_form:
        return False
    for a, b in zip(ours, theirs, strict=True):
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            if a.device != b.device or a.dtype != b.dtype or not torch.equal(a, b):
                return False
        elif a is not b and not (isinstance(a, _PLAIN) and type(a) is type(b) and a == b):
            return False
    return True


def _have_values(args: tuple[Any, ...]) -> bool:
    """Whether arguments hold numbers: they do not on the meta device, in a trace, and under `torch.func`."""
    leaves = [leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, Tensor)]
    return not torch.compiler.is_compiling() and not any(
        leaf.is_meta
        or isinstance(leaf, torch._subclasses.FakeTensor)  # noqa: SLF001 - it has no other name
        or torch._C._functorch.is_functorch_wrapped_tensor(leaf)  # noqa: SLF001 - as above
        for leaf in leaves
    )
