"""PrunedNetwork: a network under a schedule as a module of its own, to fine-tune, export and take away.

It is written from the graph and knows nothing of the model's classes; which blocks to delete is the caller's choice.
"""

import copy
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, NoReturn

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from resnet_paths_plugin.engine.program import Program
from resnet_paths_plugin.engine.rewired_graph import RewiredGraph
from resnet_paths_plugin.engine.schedule import Schedule
from resnet_paths_plugin.errors import InputError, UnsupportedMethodError
from resnet_paths_plugin.graph.capture import CapturedGraph
from resnet_paths_plugin.graph.keywords import packed, rearranged, signature_of, split
from resnet_paths_plugin.graph.process_state import kept_autocast
from resnet_paths_plugin.network.captured_network import CapturedNetwork

_EVAL, _TRAIN = "eval_graph", "training_graph"
_TAKEN = {_EVAL, _TRAIN, "kept_blocks", "deleted_blocks"}


class PrunedNetwork(nn.Module):
    """A model without some of its residual branches: what only they used is gone, operators and parameters alike.

    Parameters and buffers have the names that they have in the model, so its `state_dict` loads into the model with
    `strict=False`. A deleted block keeps its skip, a projection included. It trains, and can be copied, exported and
    compiled as any module. It starts in eval mode; `train()` and `eval()` switch all of it, between two graphs.

    The graphs call operators, not submodules: these hold tensors, and have no forward pass, no flags and no hooks of
    their own. To put another head on it, put it on the model and prune that.

    Made by `net.pruned` and by `to_module()` of a network under a schedule.

    Attributes:
        model_name: the model's name.
        kept_blocks: the names of the blocks whose branch still runs somewhere.
        deleted_blocks: the names of the others.
    """

    def __init__(
        self,
        network: CapturedNetwork,
        schedule: Schedule,
        training: Program | None = None,
        *,
        share_parameters: bool = False,
    ) -> None:
        super().__init__()
        self.model_name = network.name
        self._out_spec = network.graph.out_spec
        self._shares = share_parameters
        self._inputs: dict[str, _Inputs] = {}
        self._reads: dict[str, list[tuple[str, str]]] = {}
        self._autocast: set[str] = set()
        tensors = _Tensors(self, network.model, schedule, copies=not share_parameters)
        for mode, program in ((_EVAL, network.program), (_TRAIN, training)):
            if program is None:
                continue
            rewired = RewiredGraph.of(program, schedule)
            self._inputs[mode] = _Inputs(program.graph)
            self._reads[mode] = [tensors.place(tensor, program) for tensor in rewired.tensors]
            self.add_module(mode, fx.GraphModule(copy.deepcopy(dict(rewired.nested)), rewired.graph, class_name=mode))
            if rewired.has_autocast:
                self._autocast.add(mode)
            if mode == _EVAL:
                runs = rewired.runs
        tensors.complete()
        self.kept_blocks = tuple(block.name for block in network.blocks if block.index in runs)
        self.deleted_blocks = tuple(block.name for block in network.blocks if block.index not in runs)
        self.eval()

    def forward(self, *inputs: Any, **keywords: Any) -> Any:
        """Return the output for the arguments that the model takes, tensors with batch `B`.

        Raises:
            InputError: if the arguments are of other shapes or dtypes than those that the model was captured with.
            UnsupportedMethodError: if a part was put in the place of another.
        """
        mode = _TRAIN if self.training else _EVAL
        leaves = self._inputs[mode].checked(packed(inputs, keywords), self._float_dtype())
        reads = self._reads[mode]
        holders = {path: self._holder(path) for path in dict.fromkeys(path for path, _ in reads)}
        tensors = [getattr(holders[path], name) for path, name in reads]
        graph = getattr(self, mode)
        leaves_open = mode in self._autocast and not torch.compiler.is_compiling()  # after an error within autocast
        with kept_autocast() if leaves_open else nullcontext():
            found = graph(*tensors, *leaves)
        return pytree.tree_unflatten(found, self._out_spec)

    def trained(self, *args: Any, **keywords: Any) -> Any:
        """Return the output in training mode, whichever mode it is in."""
        before = self.training
        self.train()
        try:
            return self(*args, **keywords)
        finally:
            self.train(before)

    def train(self, mode: bool = True) -> "PrunedNetwork":
        """Run the graph of the training mode, or that of the eval mode.

        Raises:
            UnsupportedMethodError: if the training mode was not captured.
        """
        if mode and _TRAIN not in self._reads:
            raise UnsupportedMethodError(
                f"this pruned {self.model_name} was made with training=False and knows eval mode only: make one with "
                "training=True to train it"
            )
        return super().train(mode)

    def _holder(self, path: str) -> nn.Module:
        """Return the submodule that holds tensors under a path of the model."""
        holder: nn.Module = self
        for name in path.split(".") if path else ():
            part = holder._modules.get(name)  # noqa: SLF001 - a getattr would find methods too
            if not isinstance(part, _Holder):
                raise UnsupportedMethodError(
                    f"part {path!r} of this pruned {self.model_name} was replaced or removed, and its graph runs no "
                    "parts: change the model, then unravel and prune it"
                )
            holder = part
        return holder

    def _float_dtype(self) -> torch.dtype | None:
        """Return the dtype that the parameters have now, after `double()`, say."""
        return next((tensor.dtype for tensor in self.parameters() if tensor.is_floating_point()), None)

    def _apply(self, fn: Any, recurse: bool = True) -> "PrunedNetwork":
        if self._shares:
            raise UnsupportedMethodError(
                f"this pruned {self.model_name} shares the model's parameters: change dtype or device of the model, "
                "then unravel and prune it, or make one with share_parameters=False"
            )
        return super()._apply(fn, recurse)  # type: ignore[no-any-return,no-untyped-call]  # torch's

    def __deepcopy__(self, memo: dict[int, Any]) -> "PrunedNetwork":
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        copied._shares = False  # noqa: SLF001 - of this class
        return copied

    def __reduce_ex__(self, _: Any) -> NoReturn:
        raise UnsupportedMethodError(
            f"{type(self).__name__} cannot be pickled (torch.save of the module): save its state_dict, and load it "
            "into the same network pruned again; or save an exported program (torch.export.save), which holds all of it"
        )

    def __repr__(self) -> str:
        count = sum(parameter.numel() for parameter in self.parameters())
        gone = f", without {', '.join(self.deleted_blocks)}" if self.deleted_blocks else ""
        return f"{type(self).__name__}({self.model_name}: {len(self.kept_blocks)} blocks, {count:,} parameters{gone})"


class _Holder(nn.Module):
    """Holds tensors under a name of the model's; nothing calls it."""

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise UnsupportedMethodError(
            "the parts of a pruned network hold tensors and are not called, so that a hook on them would never run: "
            "put it on the model, then unravel and prune that"
        )

    forward = _refuse
    register_forward_hook = _refuse
    register_forward_pre_hook = _refuse
    register_full_backward_hook = _refuse
    register_full_backward_pre_hook = _refuse


class _Inputs:
    """What a captured graph takes, without the graph, which holds the model.

    Args:
        graph: the graph.
    """

    def __init__(self, graph: CapturedGraph) -> None:
        self._spec = graph.in_spec
        self._captured = pytree.tree_map(
            lambda leaf: leaf.new_empty(0, device="meta") if isinstance(leaf, Tensor) else leaf, graph.captured_args()
        )
        self._signature = signature_of(graph.model)
        self._expected = [_form(node.meta.get("val")) for node in graph.inputs]
        self._conditions = None if graph.conditions.always else graph.conditions

    def checked(self, args: tuple[Any, ...], dtype: torch.dtype | None) -> list[Any]:
        """Return the leaves of arguments that fit.

        Args:
            args: the arguments.
            dtype: what floating-point arguments may be besides what was captured.

        Raises:
            InputError: if they do not.
        """
        leaves, spec = pytree.tree_flatten(split(args))
        if spec != self._spec:
            args = rearranged(self._signature, args, self._captured)
            leaves, spec = pytree.tree_flatten(split(args))
        if spec != self._spec:
            raise InputError(
                f"the network takes {self._spec.num_leaves} input(s) and got {len(leaves)}, or differently nested ones"
            )
        batches: dict[str, int] = {}
        for position, (expected, leaf) in enumerate(zip(self._expected, leaves, strict=True)):
            if not _fits(expected, leaf, dtype, batches):
                raise InputError(f"input {position} must be {_described(expected)}, not {_described(_form(leaf))}")
        if self._conditions is not None:
            size = next((leaf.shape[0] for leaf in leaves if isinstance(leaf, Tensor) and leaf.ndim), 1)
            if not self._conditions.holds(int(size)):
                raise InputError(
                    f"a batch of {int(size)} was given, and what was captured holds for "
                    f"{self._conditions.described()} only, as what the model does depends on its batch size"
                )
        return leaves


class _Tensors:
    """Puts the model's parameters and buffers, or copies of them, under their own names into a module."""

    def __init__(self, into: nn.Module, model: nn.Module, schedule: Schedule, *, copies: bool) -> None:
        self._into, self._model, self._copies = into, model, copies
        self._names = _names(model)
        self._constants: list[tuple[Tensor, tuple[str, str]]] = []
        self._stand_ins = {id(tensor): ("", f"stand_in_{block}") for block, tensor in schedule.constants.items()}
        for block, applied in schedule.linear.items():
            self._stand_ins[id(applied.weight)] = f"linear_stand_in_{block}", "weight"
            self._stand_ins[id(applied.bias)] = f"linear_stand_in_{block}", "bias"
        for path, name in self._stand_ins.values():
            self._check(model, path or name)
        self._paths: dict[str, None] = {}
        self._live_tensors: dict[int, dict[str, Tensor]] = {}

    def place(self, tensor: str | Tensor, program: Program) -> tuple[str, str]:
        """Return the path of the submodule and the attribute that hold a tensor from now on.

        Raises:
            InputError: if the model gives one of its parts a name that is taken.
        """
        if isinstance(tensor, Tensor):
            return self._constant(tensor)
        path, attribute = _split(tensor)
        owner = self._submodule(path)
        if attribute not in owner._parameters and attribute not in owner._buffers:  # noqa: SLF001 - not its methods
            self._put(tensor, self._live(tensor, program))
        return path, attribute

    def complete(self) -> None:
        """Add the buffers that lie beside tensors in use, such as a batch norm's counter, so that states agree."""
        for path in list(self._paths):
            try:
                beside = self._model.get_submodule(path)
            except AttributeError:
                continue  # a name of the graph's own
            owner = self._submodule(path)
            for name, buffer in beside.named_buffers(recurse=False):
                if name not in owner._buffers:  # noqa: SLF001 - see above
                    self._put(f"{path}.{name}" if path else name, buffer)

    def _live(self, path: str, program: Program) -> Tensor:
        """Return a tensor that a program reads, by its path; all are looked up at once, which takes a while."""
        found = self._live_tensors.get(id(program))
        if found is None:
            live = program.graph.live_tensors()
            found = {known: live[node] for node, known in reversed(program.graph.tensors.items())}
            self._live_tensors[id(program)] = found
        return found[path]

    def _put(self, path: str, tensor: Tensor) -> None:
        """Put a tensor there, and wherever else the model holds the same one."""
        made = self._copy(tensor)
        for name in self._names.get(id(tensor), [path]):
            where, attribute = _split(name)
            owner = self._submodule(where)
            self._paths[where] = None
            self._check(owner, attribute)
            if isinstance(made, nn.Parameter):
                owner.register_parameter(attribute, made)
            else:
                owner.register_buffer(attribute, made, persistent=_is_persistent(self._model, name))

    def _copy(self, tensor: Tensor) -> Tensor:
        if not self._copies:
            return tensor
        copied = tensor.detach().clone()
        return nn.Parameter(copied, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copied

    def _constant(self, tensor: Tensor) -> tuple[str, str]:
        """Return where a tensor of the graph's own lies from now on, or a stand-in, which is a parameter."""
        for known, place in self._constants:
            if known is tensor:
                return place
        path, name = self._stand_ins.get(id(tensor), ("", f"constant_{len(self._constants)}"))
        owner = self._submodule(path)
        self._check(owner, name)
        made = tensor.detach().clone()
        if id(tensor) in self._stand_ins and made.is_floating_point():
            owner.register_parameter(name, nn.Parameter(made))
        else:
            owner.register_buffer(name, made, persistent=id(tensor) in self._stand_ins)
        self._constants.append((tensor, (path, name)))
        return path, name

    def _check(self, owner: nn.Module, name: str) -> None:
        """Refuse a name that the module, or for a stand-in the model, has a use of its own for."""
        if hasattr(owner, name) or (owner is self._into and name in _TAKEN):
            raise InputError(
                f"{type(self._model).__name__} calls a part {name!r}, a name that is taken in a module made from its "
                "graph: rename that part"
            )

    def _submodule(self, path: str) -> nn.Module:
        owner = self._into
        for name in path.split(".") if path else ():
            child = owner._modules.get(name)  # noqa: SLF001 - a getattr would find the module's methods too
            if not isinstance(child, _Holder):
                self._check(owner, name)
                child = _Holder()
                owner.add_module(name, child)
            owner = child
        return owner


def _names(model: nn.Module) -> dict[int, list[str]]:
    """Return every name of each parameter and buffer, by its identity: tied ones have several."""
    found: dict[int, list[str]] = {}
    for name, tensor in _named_tensors(model):
        found.setdefault(id(tensor), []).append(name)
    return found


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _is_persistent(model: nn.Module, path: str) -> bool:
    where, attribute = _split(path)
    try:
        owner = model.get_submodule(where)
    except AttributeError:
        return False
    return attribute not in owner._non_persistent_buffers_set and attribute in owner._buffers  # noqa: SLF001


def _split(path: str) -> tuple[str, str]:
    where, _, attribute = path.rpartition(".")
    return where, attribute


def _form(value: Any) -> Any:
    """Return shape (a size that may vary by its symbol) and dtype of a tensor, any other value as it is."""
    if not isinstance(value, Tensor):
        return value
    sizes = (str(size.node.expr) if isinstance(size, torch.SymInt) else int(size) for size in value.shape)
    return tuple(sizes), value.dtype


def _fits(expected: Any, leaf: Any, dtype: torch.dtype | None, batches: dict[str, int]) -> bool:
    """Whether an argument has the form that was captured; `batches` collects what symbols stand for."""
    if not isinstance(expected, tuple):
        return not isinstance(leaf, Tensor) and bool(leaf == expected)
    shape, captured = expected
    known = {captured, dtype} if captured.is_floating_point else {captured}
    return (
        isinstance(leaf, Tensor)
        and leaf.dtype in known
        and leaf.ndim == len(shape)
        and all(
            batches.setdefault(want, got) == got if isinstance(want, str) else want == got
            for want, got in zip(shape, leaf.shape, strict=True)
        )
    )


def _described(form: Any) -> str:
    if not isinstance(form, tuple):
        return repr(form)
    shape, dtype = form
    sizes = ", ".join("B" if isinstance(size, str) else str(size) for size in shape)
    return f"a tensor of shape ({sizes}) and {dtype}"
