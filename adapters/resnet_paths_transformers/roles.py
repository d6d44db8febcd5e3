"""What blocks are called: the layer, and what its branch is in it."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import nn

from resnet_paths_plugin import ResidualBlock
from resnet_paths_transformers.layers import layers

_CROSS = re.compile(r"cross|enc(?:oder)?_?(?:dec(?:oder)?_?)?att", re.IGNORECASE)
_ATTENTION = re.compile(r"(?:^|_)att(?:n|ention)(?:$|\.)", re.IGNORECASE)
_MIXER = re.compile(r"(?:\w+_)?(?:mixer|mamba|ssm|recurrent\w*|modulation)(?:$|\.)", re.IGNORECASE)
_MLP = re.compile(r"(?:^|\.|_)(?:mlp|ffn?|feed_forward|dense|output|intermediate|fc\d?)(?:$|\.|_)", re.IGNORECASE)
_CONVOLUTION = re.compile(r"conv", re.IGNORECASE)


def reviewed(model: nn.Module, blocks: Sequence[ResidualBlock]) -> list[ResidualBlock]:
    """Return the blocks grouped by layer, and named after the layer and what the branch is in it."""
    known = sorted(layers(model), key=len, reverse=True)
    homes = [next((path for path in known if f"{block.module}.".startswith(f"{path}.")), None) for block in blocks]
    own = Counter((home, block.group) for block, home in zip(blocks, homes, strict=True) if block.module == home)
    found: list[ResidualBlock] = []
    for block, home in zip(blocks, homes, strict=True):
        if home is None:
            found.append(block)
            continue
        inside = _base(block.name).removeprefix(home).removeprefix(".")
        if not inside:
            inside = _only_child(model.get_submodule(home))
        whole = not inside and own[home, block.group] == 1 == homes.count(home)
        run = _run(block.group)
        role = "" if whole else _role(model, block, home, inside)
        found.append(replace(block, name=f"{home}{'.' if role else ''}{role}{run}", group=f"{home}{run}"))
    return list(_told_apart(blocks, found))


def _only_child(layer: nn.Module) -> str:
    """Return the name of a layer's only part with weights besides norms; nothing where there are several."""
    parts = [
        name
        for name, part in layer.named_children()
        if "norm" not in type(part).__name__.lower() and any(True for _ in part.parameters())
    ]
    return parts[0] if len(parts) == 1 else ""


def _told_apart(before: Sequence[ResidualBlock], after: Sequence[ResidualBlock]) -> Iterator[ResidualBlock]:
    """Number the blocks of one role in one layer."""
    uses = Counter(block.name for block in after)
    seen: Counter[str] = Counter()
    taken = {block.name for block in after}
    for old, new in zip(before, after, strict=True):
        if uses[new.name] == 1:
            yield new
            continue
        seen[new.name] += 1
        numbered = f"{_base(new.name)}_{seen[new.name]}{_run(new.name)}"
        yield replace(new, name=old.name if numbered in taken else numbered)


def _run(name: str) -> str:
    """Return which run of a module a name says, such as `:2`; nothing where it runs once."""
    base, colon, number = name.rpartition(":")
    return f":{number}" if base and colon and number.isdigit() else ""


def _base(name: str) -> str:
    return name.removesuffix(_run(name))


def _role(model: nn.Module, block: ResidualBlock, layer: str, inside: str) -> str:
    """Return what a branch is in its layer, such as `cross_attention`; nothing where it is the layer's own.

    Args:
        model: the model.
        block: the block as it was detected.
        layer: path of its layer.
        inside: the path in the layer that its name ends with.
    """
    mixer = _MIXER.search(inside)
    if mixer:
        role = mixer[0].rstrip(".")
        return f"{role}.scan" if block.skip_kind != "identity" and block.module != layer else role
    if block.branch_type == "attention" or _ATTENTION.search(inside):
        owner = type(model.get_submodule(block.module)).__name__ if block.module != layer else ""
        return "cross_attention" if _CROSS.search(f"{inside} {owner}") else "attention"
    if block.branch_type == "mlp" or _MLP.search(inside):
        return "mlp"
    if block.branch_type == "pooling":
        return "pooling"
    if _CONVOLUTION.search(inside):
        return "convolution" if block.branch_type == "convolution" else inside
    return inside
