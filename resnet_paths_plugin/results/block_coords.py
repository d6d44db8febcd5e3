"""What is known of blocks and of lesions, as coordinates that a user selects and groups by."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from resnet_paths_plugin.graph.blocks import ResidualBlock
from resnet_paths_plugin.results.variables import Entry

NOT_KNOWN = -1
"""The stage of a block that no plugin and no shape tells, and every number of a lesion of several units."""
_FLAGS: Mapping[str, object] = {"flag_values": np.int32(NOT_KNOWN), "flag_meanings": "not_known"}
_FLAGS_OF_LESIONS = {**_FLAGS, "flag_meanings": "not_known_or_not_one"}


def block_coords(blocks: Sequence[ResidualBlock]) -> dict[str, Entry]:
    """Return the coordinates of dim `block`, shape `[n]` each.

    `block` holds the names, beside it lie the blocks' facts; a `block_stage` of -1 is not known.
    """
    return {
        "block": ("block", [block.name for block in blocks]),
        "block_index": ("block", [block.index for block in blocks]),
        "block_stage": ("block", [NOT_KNOWN if block.stage is None else block.stage for block in blocks], _FLAGS),
        "block_skip_kind": ("block", [block.skip_kind for block in blocks]),
        "block_branch_type": ("block", [block.branch_type for block in blocks]),
        "block_group": ("block", [block.group for block in blocks]),
        "block_module": ("block", [block.module for block in blocks]),
        "block_depth": ("block", [block.depth for block in blocks]),
    }


def part_coords(blocks: Sequence[ResidualBlock], parts: Sequence[str]) -> dict[str, Entry]:
    """Return the coordinates of dim `block` where it holds parts of the trunk behind the blocks.

    A part has its own name, index and stage -1, and empty texts.

    Args:
        blocks: the blocks.
        parts: names of the blocks and of the further parts.
    """
    found: dict[str, Entry] = {}
    further = len(parts) - len(blocks)
    for name, entry in block_coords(blocks).items():
        values = list(np.asarray(entry[1]).tolist())
        missing: list[object] = [0 if name == "block_depth" else "" if isinstance(values[0], str) else NOT_KNOWN]
        whole = list(parts) if name == "block" else [*values, *(missing * further)]
        found[name] = ("block", whole, *([_FLAGS] if name == "block_index" else entry[2:]))
    return found


def lesion_coords(
    deleted: npt.NDArray[np.bool_], n_units: npt.NDArray[np.integer], facts: Mapping[str, npt.ArrayLike]
) -> dict[str, Entry]:
    """Return the coordinates that a lesion has from its block, shape `[lesions]` each.

    A lesion of one group has what all blocks of the group share, and their mean depth; a lesion of no or several units,
    and one of blocks that differ, has -1 or an empty text. The relative depth is the middle of a block's equal share
    of the network, from 0 to 1: `(index + 1/2) / n`.

    Args:
        deleted: whether each lesion deletes each block, `[lesions, n]`.
        n_units: how many blocks, or groups at level `"group"`, each lesion deletes, `[lesions]`.
        facts: `block_stage`, `block_skip_kind` and `block_branch_type`, `[n]` each, as `block_coords` has them.
    """
    one = [np.flatnonzero(row if count == 1 else ()) for row, count in zip(deleted, n_units, strict=True)]
    n = deleted.shape[1]

    def shared(name: str, otherwise: str | int) -> npt.NDArray[np.generic]:
        values = np.asarray(facts[name])
        found = [set(values[places].tolist()) for places in one]
        return np.array([value.pop() if len(value) == 1 else otherwise for value in found])

    return {
        "stage": ("lesion", shared("block_stage", NOT_KNOWN), _FLAGS_OF_LESIONS),
        "skip_kind": ("lesion", shared("block_skip_kind", "")),
        "branch_type": ("lesion", shared("block_branch_type", "")),
        "relative_depth": (
            "lesion",
            [(places.mean() + 0.5) / n if places.size else float(NOT_KNOWN) for places in one],
        ),
    }
