"""Games of this package in the hands of `shapiq`, which is imported here alone, and when it is asked for."""

import importlib
import inspect
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet_paths_plugin.analyzers.coalitions.game import BlockGame
from resnet_paths_plugin.errors import InputError

FloatArray = NDArray[np.float64]


def shapiq_module() -> ModuleType:
    """Return the package `shapiq`.

    Raises:
        InputError: if it is not installed.
    """
    try:
        import shapiq  # noqa: PLC0415 - an extra, which takes a while
    except ImportError as error:
        raise InputError(
            "this needs the package shapiq: pip install 'resnet-paths-plugin[interactions]', or take method='exact' or "
            "'permutation'"
        ) from error
    module: ModuleType = shapiq
    return module


def approximators() -> dict[str, type]:
    """Return the approximators of `shapiq` by name.

    Raises:
        InputError: if it is not installed.
    """
    approximator: Any = importlib.import_module("shapiq.approximator")
    return {
        name: value
        for name, value in vars(approximator).items()
        if isinstance(value, type)
        and issubclass(value, approximator.Approximator)
        and value is not approximator.Approximator
    }


def approximated(
    game: BlockGame, name: str, budget: int, order: int, seed: int
) -> tuple[FloatArray, FloatArray | None]:
    """Return Shapley values `[n]` and, at order 2, interaction indices `[n, n]`, as an approximator estimates them.

    Args:
        game: the game.
        name: name of the approximator's class in `shapiq`.
        budget: the number of coalitions that it may evaluate.
        order: 1 for values, 2 for values and interactions (the Shapley interaction index).
        seed: seed of its draws.

    Raises:
        InputError: if there is no such approximator, or it does not estimate this.
    """
    shapiq_module()
    known = approximators()
    if name not in known:
        raise InputError(
            f"method must be 'auto', 'exact', 'permutation' or an approximator of shapiq, one of {', '.join(known)}, "
            f"not {name!r}"
        )
    error: Exception | None = None
    for index in ("SV", "SII") if order == 1 else ("SII",):
        try:
            made = _made(known[name], game.n_players, order, index, seed)
        except (TypeError, ValueError) as failed:
            error = failed
            continue
        found = made.approximate(budget, game)
        if found.index in {index, "SV"} and found.max_order >= order:
            return _values(found, game.n_players, order)
    what = "Shapley values" if order == 1 else "Shapley interaction indices of order 2"
    raise InputError(
        f"shapiq's {name} does not estimate {what} of a game of {game.n_players} players"
        f"{'' if error is None else f' ({error})'}: take another one, such as {'SVARM' if order == 1 else 'SVARMIQ'}"
    ) from error


def _made(kind: type, n: int, order: int, index: str, seed: int) -> Any:
    """Return an approximator, given what its class takes."""
    given = {"n": n, "max_order": order, "index": index, "random_state": seed}
    taken = inspect.signature(kind).parameters
    return kind(**{name: value for name, value in given.items() if name in taken})


def _values(found: Any, n: int, order: int) -> tuple[FloatArray, FloatArray | None]:
    values: FloatArray = np.array([found[(i,)] for i in range(n)], dtype=np.float64)
    if order == 1:
        return values, None
    interactions = np.full((n, n), np.nan)
    for i in range(n):
        for j in range(i):
            interactions[i, j] = interactions[j, i] = found[(j, i)]
    return values, interactions
