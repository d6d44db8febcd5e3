"""A copy of the user's own class without some blocks, where its modules allow that; compared with the lesioned network.

A deleted block's module gives way to `nn.Identity`, or to its projection. Where that is not the same, it is refused.
"""

import copy
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.graph.blocks import BlockLike, ResidualBlock
from resnet_paths_plugin.graph.export import uncompiled, undisturbed
from resnet_paths_plugin.graph.operators import aten
from resnet_paths_plugin.network.differences import difference, in_last_digits, unit_of, within
from resnet_paths_plugin.network.model_pass import tensors_of
from resnet_paths_plugin.network.unraveled import UnraveledNetwork
from resnet_paths_plugin.network.unraveling import unravel
from resnet_paths_plugin.process_lock import alone


def pruned_copy(model: nn.Module, blocks: BlockLike | Iterable[BlockLike], example_inputs: Any = None) -> nn.Module:
    """Return a deep copy of a model, of its own class, in which the modules of deleted blocks do nothing.

    In the place of the module that owns a block stands `nn.Identity`, its projection, or either with the part that
    follows the sum, such as an activation or a norm. Hooks, methods, flags and names of all other parts are those of
    the model; hooks on the deleted module go with it. The model is not changed.

    Args:
        model: a module, or an unraveled network.
        blocks: the blocks to delete, by name, index or object. Of a module that computes several sums, such as a
            transformer layer, all blocks; its group's name stands for them.
        example_inputs: as in `unravel`; the copy's outputs are compared on these inputs too.

    Returns:
        The copy. In eval mode its outputs are those of `lesioned(blocks)`, which is tried on random inputs of the
        captured shape: bit for bit, or where the model's operators round otherwise in the last digits.

    Raises:
        UnknownBlockError: if the network does not have one of the blocks.
        InputError: if a block is not a whole module that can be left out, with the reason: `net.pruned(blocks)` then
            gives a module that is made from the graph.

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
    chosen = net.select(blocks)
    given = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    comparison = _Comparison(net, [net.random_inputs(), *([] if example_inputs is None else [given])])
    copied = _copy_of(net)
    modules = _modules_of(net, chosen)
    _check_calls(net, copied, modules, comparison.inputs[0])
    for path, owned in modules.items():
        _replace(copied, path, owned, comparison)
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
    """Return the blocks of each module to replace, by its path; a module inside another one of them is left out.

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


def _check_calls(
    net: UnraveledNetwork, copied: nn.Module, modules: Mapping[str, list[ResidualBlock]], args: tuple[Any, ...]
) -> None:
    """Check that each module takes one tensor and returns one.

    Raises:
        InputError: if one does not.
    """
    reasons: dict[str, str] = {}
    called: set[str] = set()

    def look(path: str, given: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
        called.add(path)
        if len(given) != 1 or options or not isinstance(given[0], Tensor):
            forms = [*(type(one).__name__ for one in given), *(f"{name}=" for name in options)]
            reasons[path] = f"it is called with ({', '.join(forms)}), and nn.Identity takes one tensor"
        elif not isinstance(output, Tensor):
            reasons[path] = f"it returns a {type(output).__name__}, and nn.Identity the tensor that it is given"

    def hook_of(path: str) -> Any:
        return lambda _, given, options, output: look(path, given, options, output)

    handles = [
        copied.get_submodule(path).register_forward_hook(hook_of(path), with_kwargs=True, prepend=True)
        for path in modules
    ]
    try:
        _outputs(copied, args)
    finally:
        for handle in handles:
            handle.remove()
    for path, owned in modules.items():
        reason = reasons.get(path) or (None if path in called else "its forward is run without calling the module")
        if reason is not None:
            raise _refused(net, [block.name for block in owned], reason)


def _replace(copied: nn.Module, path: str, owned: Sequence[ResidualBlock], comparison: "_Comparison") -> None:
    """Put in the place of a module the first of what may stand there that makes the copy the lesioned network.

    Raises:
        InputError: if nothing does.
    """
    whole = copied.get_submodule(path)
    known = set(whole.modules())
    tried: list[str] = []
    for name, replacement in _replacements(comparison.net, whole, owned):
        for part in replacement.modules():
            if part not in known:
                part.training = whole.training
        copied.set_submodule(path, replacement)
        error = comparison.error(copied, owned)
        if error is None:
            return
        tried.append(f"with {name} in its place the copy {error}")
    raise _refused(comparison.net, [block.name for block in owned], "; ".join(tried))


def _replacements(
    net: UnraveledNetwork, module: nn.Module, owned: Sequence[ResidualBlock]
) -> Iterator[tuple[str, nn.Module]]:
    """Yield what may stand in the place of a module, made of its parts, under the names that these have in it."""
    nodes = {node.name: node for node in net.program.nodes}
    last, path = owned[-1], owned[-1].module
    following = _following(module, path, nodes[last.sum])
    parts = _paths_below(path, nodes[last.skip]) if len(owned) == 1 else []
    if last.skip_kind == "identity" or not parts:
        yield "nn.Identity", nn.Identity()
    for part in parts:
        skip = module.get_submodule(part)
        yield repr(part), _sequence((part, skip))
        if following is not None:
            yield f"{part!r} and {following[0]!r}", _sequence((part, skip), following)
    if following is not None:
        yield repr(following[0]), _sequence((following[0], _out_of_place(following[1])))


def _following(module: nn.Module, path: str, total: fx.Node) -> tuple[str, nn.Module] | None:
    """Return the part of a module that is applied to its sum, by its path in it; None where there is none."""
    for user in total.users:
        below = _paths_below(path, user)
        if below:
            return below[0], module.get_submodule(below[0])
        if user.target is aten.relu.default:
            return "relu", nn.ReLU()
    return None


def _out_of_place(module: Any) -> nn.Module:
    """Return a module that leaves what it is given as it is, which belongs to others."""
    if not getattr(module, "inplace", False):
        return module  # type: ignore[no-any-return]  # a module may have any attributes
    copied: Any = copy.copy(module)
    copied.inplace = False
    return copied  # type: ignore[no-any-return]  # as above


def _paths_below(path: str, node: fx.Node) -> list[str]:
    """Return the parts of a module whose code made a value, by their paths in it, the outermost first."""
    stack = [str(owner) for owner, _ in node.meta.get("nn_module_stack", {}).values()]
    return list(dict.fromkeys(owner.removeprefix(f"{path}.") for owner in stack if owner.startswith(f"{path}.")))


def _sequence(*parts: tuple[str, nn.Module]) -> nn.Sequential:
    """Return modules one after the other, each under its path."""
    found: OrderedDict[str, nn.Module] = OrderedDict()
    for path, module in parts:
        name, _, rest = path.partition(".")
        found[name if name not in found else f"{name}_after"] = _sequence((rest, module)) if rest else module
    return nn.Sequential(found)


class _Comparison:
    """Compares a copy, from which blocks go one after the other, with lesioned networks.

    Attributes:
        net: the network.
        inputs: the arguments that they are compared on.
        gone: the blocks that the copy is without by now.
    """

    def __init__(self, net: UnraveledNetwork, inputs: Sequence[tuple[Any, ...]]) -> None:
        self.net = net
        self.inputs = inputs
        self.gone: list[ResidualBlock] = []

    def error(self, copied: nn.Module, blocks: Sequence[ResidualBlock]) -> str | None:
        """Return what the copy does otherwise than the network without some more blocks; None if it does the same."""
        lesioned = self.net.lesioned([*self.gone, *blocks])
        for args in self.inputs:
            with torch.no_grad():
                theirs = tensors_of(lesioned(*args))
            if not all(bool(torch.isfinite(leaf).all()) for leaf in theirs):
                return "cannot be compared, as outputs are not finite"
            try:
                ours = tensors_of(_outputs(copied, args))
            except Exception as error:  # noqa: BLE001 - whatever the model's code raises
                return f"fails ({type(error).__name__}: {error})"
            if not self._equal(ours, theirs):
                return "has other outputs than the network without the block"
        self.gone += blocks
        return None

    def _equal(self, ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
        error = difference(ours, theirs)
        if self.net.device.type == "cpu":
            return in_last_digits(error, theirs)
        return within(error, theirs, unit_of(self.net.graph))


def _outputs(model: nn.Module, args: tuple[Any, ...]) -> Any:
    """Run a model in eval mode, and leave it as it was."""
    with undisturbed(model), uncompiled(model), torch.no_grad():
        return model(*args)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))


def _refused(net: UnraveledNetwork, names: Sequence[str], reason: str) -> InputError:
    return InputError(
        f"there is no copy of {type(net.model).__name__} without {_listed(names)}: {reason}. net.pruned(blocks) gives "
        "a module that is made from the graph"
    )
