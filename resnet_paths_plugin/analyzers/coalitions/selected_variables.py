"""The variables of a selection's result: chosen sets, random sets and the trace of the search. Computes nothing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet_paths_plugin.analyzers.coalitions.search_plan import SearchPlan
from resnet_paths_plugin.analyzers.coalitions.searches import Found, Step
from resnet_paths_plugin.analyzers.coalitions.set_space import Sets, keys
from resnet_paths_plugin.results.variables import Entry


@dataclass(frozen=True, slots=True, eq=False)
class SelectedSets:
    """Some sets with their effects on the samples searched.

    Attributes:
        sets: which units each deletes, `[m, units]`.
        effects: `[m]`.
    """

    sets: Sets
    effects: NDArray[np.float64]


def selected_variables(
    plan: SearchPlan,
    found: Sequence[Found],
    steps: Sequence[Step],
    random: SelectedSets,
    *,
    at: Callable[[Sets], NDArray[np.intp]],
    reported: Mapping[str, NDArray[np.float64]],
    costs: Mapping[str, tuple[Mapping[bytes, Any], Any, Mapping[str, object]]],
) -> dict[str, Entry]:
    """Return the variables by name, with dims `selection`, `random_set` and `step`.

    Args:
        plan: the plan.
        found: the sets that were chosen.
        steps: all sets that were measured.
        random: random sets.
        at: returns the places of sets among those reported.
        reported: what is reported of sets, by name; what is of the intact network begins with `intact_`.
        costs: what each set costs by its key, what the intact network costs, and how it was measured.
    """
    chosen = SelectedSets(np.stack([one.chosen for one in found]), np.array([one.effect for one in found]))
    variables: dict[str, Entry] = {
        "method": ("selection", [one.method for one in found]),
        "n_tried": ("selection", [one.n_tried for one in found]),
        "search_cost": ("selection", [one.cost for one in found]),
        "step_method": ("step", [one.method for one in steps]),
        "step_deleted": (("step", "block"), plan.blocks(np.stack([one.chosen for one in steps]))),
        "step_effect": ("step", [one.effect for one in steps]),
        "step_left_out": ("step", [not np.isfinite(one.effect) for one in steps]),
        "step_n_samples": ("step", [one.n_samples for one in steps]),
    }
    for dim, prefix, group in (("selection", "", chosen), ("random_set", "random_", random)):
        if not len(group.sets):
            continue
        deleted = plan.blocks(group.sets)
        variables |= {
            f"{prefix}deleted": ((dim, "block"), deleted),
            f"{prefix}n_deleted": (dim, deleted.sum(axis=1)),
            f"{prefix}n_deleted_units": (dim, group.sets.sum(axis=1)),
            f"{prefix}searched_effect": (dim, group.effects),
        }
        for name, values in reported.items():
            if values.ndim:
                variables[f"{prefix}{name}"] = (dim, values[at(group.sets)])
        for name, (each, _, how) in costs.items():
            variables[f"{prefix}{name}"] = (dim, [each[key] for key in keys(group.sets)], how)
    variables |= {name: ((), values) for name, values in reported.items() if not values.ndim}
    variables |= {f"intact_{name}": ((), intact, how) for name, (_, intact, how) in costs.items()}
    return variables
