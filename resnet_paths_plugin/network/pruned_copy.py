"""A copy of the user's own class without some blocks, where its modules allow that; compared with the lesioned network.

A deleted block's module gives way to `nn.Identity`, or to its projection. Where that is not the same, it is refused.
"""

import copy
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, groupby
from typing import Any

import torch
from torch import Tensor, nn

from resnet_paths_plugin.engine.program import Program
from resnet_paths_plugin.errors import CaptureError, InputError
from resnet_paths_plugin.graph.blocks import BlockLike, ResidualBlock
from resnet_paths_plugin.network.copy_comparison import Comparison, run_in_eval_mode
from resnet_paths_plugin.network.skip_chain import SkipChain, calls_of, skip_chain
from resnet_paths_plugin.network.training_program import training_program
from resnet_paths_plugin.network.unraveled import UnraveledNetwork
from resnet_paths_plugin.network.unraveling import unravel
from resnet_paths_plugin.process_lock import alone

_EVAL_ONLY = "training=False gives a copy that is right in eval mode"

_Memory = tuple[int, int, tuple[int, ...]]
"""Where a value is in memory, how often that was written to, and its shape."""


def pruned_copy(
    model: nn.Module,
    blocks: BlockLike | Iterable[BlockLike],
    example_inputs: Any = None,
    *,
    training: bool = True,
) -> nn.Module:
    """Return a deep copy of a model, of the same class, without the branches of some blocks.

    The module that owns a deleted block is replaced by the parts that still act on its input: its projection, and what
    follows the sum, such as a norm, a dropout or an activation; by `nn.Identity` where there are none, or where only
    an activation is left and the input is a value of the same activation already. Hooks, methods, flags and names of
    all other parts are those of the model; hooks on the replaced module go with it. The model is not changed.

    Args:
        model: a module, or an unraveled network.
        blocks: the blocks to delete, by name, index or object. Of a module that computes several sums, such as a
            transformer layer, all blocks; its group's name stands for them.
        example_inputs: as in `unravel`; the copy's outputs are compared on these inputs too.
        training: whether the copy is to be right in training mode as well; the model is then captured again, in
            training mode.

    Returns:
        The copy. In eval mode its outputs are those of `lesioned(blocks)`, bit for bit or, where operators round
        otherwise, up to the last digits: that is tried on random inputs of the captured shape, and what stands in for
        each module also on multiples of its input. In training mode what stands in for a module does what the graph of
        that mode shows of it: a drop path that the module's own code applies to the sum is no part, and is refused.

    Raises:
        UnknownBlockError: if the network does not have one of the blocks.
        InputError: if a block is not a whole module, or its module does more than its parts do, such as a factor or a
            dropout in its own code, also if only in training mode, or the network is optimized: `net.pruned(blocks)`
            then gives a module that is made from the graph. If the model cannot be captured in training mode, or has
            other blocks there, such as one with a drop path in its skip: `training=False` gives a copy for eval mode.

    Examples:
        >>> small = rpp.pruned_copy(model, ["layer1.1", "layer3.1"])
        >>> type(small) is type(model), small.layer1[1]
        (True, Identity())
        >>> torch.equal(small(images), net.lesioned(["layer1.1", "layer3.1"])(images))
        True
    """
    net = unravel(model, example_inputs)
    if net.units == "layers":
        raise InputError(f"{net.name} was unraveled into layers, and a copy is without blocks: use units='blocks'")
    if net.optimize:
        raise InputError(
            f"{net.name} was optimized ({', '.join(net.optimize)}), and a copy is of the model as it is: unravel it "
            "without optimize"
        )
    chosen = net.select(blocks)
    given = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    inputs = [net.random_inputs(), *([] if example_inputs is None else [given])]
    copied = _copy_of(net)
    modules = _modules_of(net, chosen)
    calls = _watched_calls(net, copied, modules, inputs[0])
    chains = {path: _chains_of(net, copied, path, owned, chosen, calls[path]) for path, owned in modules.items()}
    if training and chains:
        _check_training(net, copied, modules, chosen, chains)
    for path, found in chains.items():
        _replace(copied, path, found[0])
    comparison = Comparison(net, chosen, inputs)
    for path, found in chains.items():
        reason = comparison.of_module(copied, path, found)
        if reason is not None:
            raise _refused(net, [block.name for block in modules[path]], reason)
    reason = comparison.of_outputs(copied)
    if reason is not None:
        raise _refused(net, [block.name for block in chosen], reason)
    return copied


def _copy_of(net: UnraveledNetwork) -> nn.Module:
    try:
        with alone(), torch.inference_mode(mode=False):
            return copy.deepcopy(net.model)
    except Exception as error:
        raise InputError(
            f"{type(net.model).__name__} cannot be copied ({error}): net.pruned(blocks) gives a module of its own"
        ) from error


def _modules_of(net: UnraveledNetwork, chosen: Sequence[ResidualBlock]) -> dict[str, list[ResidualBlock]]:
    """Return the blocks of each module to replace, by its path; a module inside another one of them goes with it.

    Raises:
        InputError: if a module cannot be replaced as a whole.
    """
    paths = list(dict.fromkeys(block.module for block in chosen))
    found: dict[str, list[ResidualBlock]] = {}
    for path in paths:
        if any(path.startswith(f"{other}.") for other in paths if other):
            continue
        owned = [block for block in net.blocks if block.module == path]
        names = [block.name for block in owned]
        if not path:
            raise _refused(
                net, names, "the model's own forward computes the sum, so that there is no module to leave out"
            )
        if missing := [block.name for block in owned if block not in chosen]:
            raise _refused(
                net,
                [block.name for block in chosen if block.module == path],
                f"{path!r} computes the sums of {_listed(names)}: delete all of them ({_listed(missing)} too)",
            )
        same = [
            other
            for other, part in net.model.named_modules(remove_duplicate=False)
            if part is net.model.get_submodule(path)
        ]
        if len(same) > 1:
            raise _refused(net, names, f"one module stands at {_listed(same)}, which all call it")
        found[path] = owned
    return found


@dataclass
class _Calls:
    """What was seen of the calls of a module.

    Attributes:
        reason: why nothing can stand in its place; None where something can.
        count: how often it was called.
        boundaries: where the values are that it takes, returns, and hands to its parts or gets from them.
        idle: parts that returned the very tensor that they were given, with where it is.
    """

    reason: str | None = None
    count: int = 0
    boundaries: dict[str, set[_Memory]] = field(default_factory=dict)
    idle: list[tuple[str, _Memory]] = field(default_factory=list)


def _watched_calls(
    net: UnraveledNetwork, copied: nn.Module, modules: Mapping[str, list[ResidualBlock]], args: tuple[Any, ...]
) -> dict[str, _Calls]:
    """Return what is seen of the calls of some modules; each has to take one tensor and to return one.

    Raises:
        InputError: if one does not.
    """
    calls = {path: _Calls() for path in modules}
    alive: list[Any] = []  # so that no two values have the same memory

    def look(path: str, part: str, given: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
        seen = calls[path]
        alive.append(output)
        if not part:
            seen.count += 1
            seen.reason = seen.reason or _why_not_in_place(given, options, output)
        single = given[0] if given and isinstance(given[0], Tensor) else None
        tensors = [one for one in (single, output) if isinstance(one, Tensor)]
        seen.boundaries.setdefault(part, set()).update(map(_memory, tensors))
        if part and single is output and single is not None:
            seen.idle.append((part, _memory(single)))

    def hook_of(path: str, part: str) -> Any:
        return lambda _, given, options, output: look(path, part, given, options, output)

    handles = [
        module.register_forward_hook(hook_of(path, part), with_kwargs=True, prepend=True)
        for path in modules
        for part, module in copied.get_submodule(path).named_modules()
    ]
    try:
        run_in_eval_mode(copied, args)
    finally:
        for handle in handles:
            handle.remove()
    for path, owned in modules.items():
        reason = calls[path].reason or (None if calls[path].count else "its forward is run without calling the module")
        if reason is not None:
            raise _refused(net, [block.name for block in owned], reason)
    return calls


def _why_not_in_place(given: tuple[Any, ...], options: dict[str, Any], output: Any) -> str | None:
    if len(given) != 1 or options or not isinstance(given[0], Tensor):
        forms = [*(type(one).__name__ for one in given), *(f"{name}=" for name in options)]
        return f"it is called with ({', '.join(forms)}), and nn.Identity takes one tensor"
    if not isinstance(output, Tensor):
        return f"it returns a {type(output).__name__}, and nn.Identity the tensor that it is given"
    return None


def _memory(value: Tensor) -> _Memory:
    """Return where a value is, and how often it was written to."""
    return value.data_ptr(), value._version, tuple(value.shape)  # noqa: SLF001 - it has no other name


def _chains_of(
    net: UnraveledNetwork,
    copied: nn.Module,
    path: str,
    owned: Sequence[ResidualBlock],
    chosen: Sequence[ResidualBlock],
    calls: _Calls,
) -> list[SkipChain]:
    """Return what each call of a module does without the blocks.

    Raises:
        InputError: if it does what no part of it does, or not the same in all calls.
    """
    whole, names = copied.get_submodule(path), [block.name for block in owned]
    try:
        found = _chains_in(net.program, whole, path, owned, chosen)
    except InputError as error:
        raise _refused(net, names, str(error)) from error
    if len(found) != calls.count or len({(chain.parts, chain.is_function) for chain in found}) > 1:
        raise _refused(net, names, "its calls do not all do the same without them")
    if (part := _idle_part(net, whole, path, found[0], calls)) is not None:
        raise _refused(
            net,
            names,
            f"its part {part!r} ({type(whole.get_submodule(part)).__name__}) does nothing in eval mode, where the "
            "network is captured, and what it does in training mode would be lost",
        )
    return found


def _chains_in(
    program: Program,
    whole: nn.Module,
    path: str,
    owned: Sequence[ResidualBlock],
    chosen: Sequence[ResidualBlock],
) -> list[SkipChain]:
    """Return what each call of a module does without the blocks, in the graph of one of the modes.

    Raises:
        InputError: if it does what no part of it does.
    """
    deleted = {block.index for block in chosen}
    sums = [program.nodes[program.sums[program.branches[block.index].sum].root].name for block in owned]
    return [skip_chain(program, whole, call, path, deleted) for call in calls_of(program, path, sums)]


def _check_training(
    net: UnraveledNetwork,
    copied: nn.Module,
    modules: Mapping[str, Sequence[ResidualBlock]],
    chosen: Sequence[ResidualBlock],
    chains: Mapping[str, Sequence[SkipChain]],
) -> None:
    """Check that modules do without the blocks in training mode what they do in eval mode.

    Raises:
        InputError: if one does something else, or the model cannot be captured in training mode.
    """
    try:
        program = training_program(net)
    except CaptureError as error:
        raise _refused(net, [block.name for block in chosen], f"{error} ({_EVAL_ONLY})") from error
    for path, owned in modules.items():
        names = [block.name for block in owned]
        try:
            found = _chains_in(program, copied.get_submodule(path), path, owned, chosen)
        except InputError as error:
            raise _refused(net, names, f"in training mode {error} ({_EVAL_ONLY})") from error
        forms = [[(chain.parts, chain.is_function) for chain in each] for each in (found, chains[path])]
        if forms[0] != forms[1]:
            raise _refused(net, names, f"in training mode it applies other parts than in eval mode ({_EVAL_ONLY})")


def _idle_part(net: UnraveledNetwork, whole: nn.Module, path: str, chain: SkipChain, calls: _Calls) -> str | None:
    """Return a part on the way from input to output that the graph shows nothing of, such as a drop path."""
    shown = {str(owner) for node in net.program.nodes for owner, _ in node.meta.get("nn_module_stack", {}).values()}
    kept = {part for part, is_function in zip(chain.parts, chain.is_function, strict=True) if not is_function}
    on_the_way = set[_Memory]().union(*(calls.boundaries.get(part, ()) for part in ("", *kept)))
    return next(
        (
            part
            for part, value in calls.idle
            if value in on_the_way
            and f"{path}.{part}" not in shown
            and type(whole.get_submodule(part)) not in {nn.Identity, nn.Sequential}
            and not any(part.startswith(f"{other}.") for other in kept)
        ),
        None,
    )


def _replace(copied: nn.Module, path: str, chain: SkipChain) -> None:
    """Put what a module still does in its place, under the names that its parts have in it."""
    whole = copied.get_submodule(path)
    known = set(whole.modules())
    parts: list[tuple[str, nn.Module]] = [
        (part, nn.ReLU() if is_function else whole.get_submodule(part))
        for part, is_function in zip(chain.parts, chain.is_function, strict=True)
    ]
    if parts:
        parts[0] = parts[0][0], _out_of_place(parts[0][1])
    replacement = _sequence(parts) if parts else nn.Identity()
    for module in replacement.modules():
        if module not in known:
            module.training = whole.training
    copied.set_submodule(path, replacement)


def _out_of_place(module: Any) -> nn.Module:
    """Return a module that leaves what it is given as it is, which belongs to others."""
    if not getattr(module, "inplace", False):
        return module  # type: ignore[no-any-return]  # a module may have any attributes
    copied: Any = copy.copy(module)
    copied.inplace = False
    return copied  # type: ignore[no-any-return]  # as above


def _sequence(parts: Sequence[tuple[str, nn.Module]]) -> nn.Sequential:
    """Return modules one after the other, each under its path."""
    found: OrderedDict[str, nn.Module] = OrderedDict()
    for name, group in groupby(parts, key=lambda part: part[0].partition(".")[0]):
        below = [(path.partition(".")[2], module) for path, module in group]
        for run in [below] if all(path for path, _ in below) else [[one] for one in below]:
            free = next(one for at in count() if (one := f"{name}_after{at}" if at else name) not in found)
            found[free] = _sequence(run) if run[0][0] else run[0][1]
    return nn.Sequential(found)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))


def _refused(net: UnraveledNetwork, names: Sequence[str], reason: str) -> InputError:
    return InputError(
        f"there is no copy of {type(net.model).__name__} without {_listed(names)}: {reason}. net.pruned(blocks) gives "
        "a module that is made from the graph"
    )
