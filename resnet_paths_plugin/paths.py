"""Combinatorics of paths: how many of each length, how many survive deletions, which lengths hold a total.

Counts are exact Python integers; what is a ratio of them is rounded once. No model and no gradient in here.

Functions of `n` hold for a chain of `n` residual blocks only. Functions of `paths` take any network: the
number of blocks of a chain, or the counts that a walk over the network's graph gave.
"""

import math
import operator
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import accumulate
from typing import SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from resnet_paths_plugin.argument_sizes import shown as _shown
from resnet_paths_plugin.errors import InputError

MOST_BLOCKS = 100_000
"""Blocks of a chain, and of a path, whose counts are made: they have as many digits as a chain has blocks."""

FloatArray = NDArray[np.float64]

_NO_DECADES = -400
"""A decimal logarithm whose number is zero as a float."""

PathCounts = SupportsIndex | Mapping[int, int] | Sequence[int]
"""A chain's number of blocks `n`; or `{length: count}`; or the counts of lengths 0, 1, 2, ... in order."""


def counts(paths: PathCounts) -> list[int]:
    """Number of paths of each length, exactly.

    Args:
        paths: a chain's `n`, for which the count of length `k` is `C(n, k)` (Sec. 5, "distribution of path
            lengths"); or a network's own counts, which are checked and put in order.

    Returns:
        Exact integers for the lengths `0..K`, where `K` is the longest length (`n` in a chain).

    Raises:
        InputError: if `n`, a length or a count is negative or no integer, or if there is no count.

    Examples:
        >>> rpp.paths.counts(4)
        [1, 4, 6, 4, 1]
        >>> rpp.paths.counts({0: 1, 2: 3})
        [1, 0, 3]
    """
    if isinstance(paths, Mapping):
        by_length = {
            _size(length, "a path length"): _natural(count, f"the number of paths of length {length}")
            for length, count in paths.items()
        }
        found = [by_length.get(length, 0) for length in range(max(by_length, default=-1) + 1)]
    elif isinstance(paths, SupportsIndex) and not isinstance(paths, Sequence | np.ndarray):
        n = _size(paths, "the number of blocks n")
        found = [math.comb(n, k) for k in range(n + 1)]
    elif isinstance(paths, Sequence | np.ndarray) and not isinstance(paths, str | bytes):
        found = [_natural(count, f"the number of paths of length {k}") for k, count in enumerate(paths)]
    else:
        raise InputError(
            f"path counts cannot be read from {paths!r}: expected the number of blocks of a chain, "
            "a mapping from length to count, or the counts of lengths 0, 1, 2, ..."
        )
    if not found:
        raise InputError("there are no path counts: expected at least the count of one length")
    return found


def log10_counts(paths: PathCounts) -> FloatArray:
    """Decimal logarithm of the number of paths of each length, shape `[K + 1]`; `-inf` where there is none.

    Finite for counts far beyond the range of floats.

    Raises:
        InputError: as `counts`.

    Examples:
        >>> rpp.paths.log10_counts(2_000)[1_000].round(1).item()  # 10 ** 600.3 paths of half the length
        600.3
    """
    return np.array([math.log10(count) if count else -math.inf for count in counts(paths)])


def distribution(paths: PathCounts) -> FloatArray:
    """Share of all paths that has each length; `Binomial(n, 1/2)` for a chain (Fig. 6a).

    Args:
        paths: a chain's `n`, or a network's own counts.

    Returns:
        Shares of the lengths `0..K`, shape `[K + 1]`, each the exact ratio rounded once.

    Raises:
        InputError: as `counts`, and if all counts are zero.

    Examples:
        >>> rpp.paths.distribution(4).tolist()
        [0.0625, 0.25, 0.375, 0.25, 0.0625]
    """
    found = counts(paths)
    total = _total(found)
    # Python divides integers of any size with one rounding, so no logarithms are needed.
    return np.array([count / total for count in found])


def share_of_paths(paths: PathCounts, low: int, high: int) -> float:
    """Share of all paths whose length is in `low..high`, both included.

    Args:
        paths: a chain's `n`, or a network's own counts.
        low: shortest length that is taken.
        high: longest length that is taken; beyond the longest path there is nothing more to take.

    Returns:
        A fraction in [0, 1], the exact ratio rounded once.

    Raises:
        InputError: as `distribution`, and if the lengths are negative or `low > high`.

    Examples:
        >>> round(rpp.paths.share_of_paths(54, 19, 35), 3)  # most paths take 19 to 35 of 54 blocks
        0.98
    """
    low, high = _natural(low, "the length low"), _natural(high, "the length high")
    if low > high:
        raise InputError(f"no lengths lie in {low}..{high}: expected low <= high")
    found = counts(paths)
    return sum(found[low : high + 1]) / _total(found)


def remaining_counts(n: int, d: int) -> list[int]:
    """Number of paths of each length that `d` deletions in a chain leave: `C(n-d, k)` (Fig. 7).

    Chains only. Together they are `2^(n-d)`.

    Args:
        n: number of residual blocks of the chain.
        d: number of deleted blocks.

    Returns:
        Exact integers for the lengths `0..n`; zero for lengths above `n - d`.

    Raises:
        InputError: if `n` or `d` is negative or no integer, or if `d > n`.

    Examples:
        >>> rpp.paths.remaining_counts(4, 1)
        [1, 3, 3, 1, 0]
    """
    n, d = _chain_and_part(n, d, "d", "blocks cannot be deleted")
    return [math.comb(n - d, k) for k in range(n + 1)]


def exact_survival(n: int, d: int) -> list[Fraction]:
    """Fraction of the paths of each length that survives `d` deletions: `C(n-d, k) / C(n, k)` (Fig. 7).

    Chains only; the same whichever blocks are deleted.

    Args:
        n: number of residual blocks of the chain.
        d: number of deleted blocks.

    Returns:
        Exact fractions for the lengths `0..n`.

    Raises:
        InputError: as `remaining_counts`.

    Examples:
        >>> [str(fraction) for fraction in rpp.paths.exact_survival(4, 1)]
        ['1', '3/4', '1/2', '1/4', '0']
    """
    return [Fraction(left, count) for left, count in zip(remaining_counts(n, d), counts(n), strict=True)]


def survival(n: int, d: int) -> FloatArray:
    """`exact_survival` as floats, shape `[n + 1]` (Fig. 7). Chains only.

    Raises:
        InputError: as `remaining_counts`.

    Examples:
        >>> rpp.paths.survival(4, 1).tolist()
        [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    return np.array([float(fraction) for fraction in exact_survival(n, d)])


def log10_totals(paths: PathCounts, mean_norm: ArrayLike) -> FloatArray:
    """Decimal logarithm of each length's total: number of paths times mean norm of one (Fig. 6c).

    Args:
        paths: a chain's `n`, or a network's own counts.
        mean_norm: mean norm of the gradient of a single path of each length, shape `[K + 1]`, none negative.

    Returns:
        Shape `[K + 1]`. `-inf` where there are no paths, whatever their mean, and where
        the mean is zero; NaN where there are paths whose mean is NaN.

    Raises:
        InputError: as `counts`, and if `mean_norm` is negative somewhere or has another length.

    Examples:
        >>> rpp.paths.log10_totals(2, [1.0, 0.5, 0.0]).tolist()  # 1 path, 2 paths of norm 0.5, 1 path of norm 0
        [0.0, 0.0, -inf]
    """
    log_counts = log10_counts(paths)
    norms = _vector(mean_norm, "the mean norms")
    if norms.shape != log_counts.shape:
        raise InputError(
            f"{norms.size} mean norms were given for {log_counts.size} path lengths: "
            f"expected one for each length 0..{log_counts.size - 1}"
        )
    if (norms < 0).any():
        raise InputError(f"a mean norm cannot be negative, but one is {norms[norms < 0][0]}")
    with np.errstate(divide="ignore"):
        log_norms = np.log10(norms)
    # Of a length without paths no mean can be measured; its total is zero all the same.
    return np.where(np.isneginf(log_counts), -np.inf, log_counts + log_norms)


def effective_range(
    values: ArrayLike | Sequence[int], share: float = 0.95, *, log10: bool = False, signed: bool = False
) -> tuple[float, float]:
    """Shortest interval of lengths that holds a share of the total (the "effective paths" of Sec. 5).

    Among equally short intervals, the one that holds most is taken; among those that hold equally much, the
    one of the shortest lengths. Sums are exact, and `share` means the decimal that it prints as, so that 0.95
    of twenty equal values is nineteen of them.

    Args:
        values: what each of the lengths `0..K` contributes, shape `[K + 1]`, none negative; integers of
            any size, or floats.
        share: the part of the total to hold, in (0, 1].
        log10: `values` are decimal logarithms (`-inf` for zero), and may span any number of decades; what
            lies more than 300 decades below the largest counts as zero.
        signed: `values` may be negative, as parts of a gradient are that point against it; an interval holds the sum of
            its values.

    Returns:
        The shortest and the longest length of the interval, both included, as whole numbers. `(nan, nan)`
        where no range exists: the total is not positive, or not finite (a NaN or an infinity among the values).

    Raises:
        InputError: if a value is negative and not `signed`, `share` is outside (0, 1], or there are no values.

    Examples:
        >>> rpp.paths.effective_range([0.01, 0.5, 0.4, 0.08, 0.01], share=0.9)
        (1.0, 2.0)
    """
    if not 0 < share <= 1:
        raise InputError(f"the share is {share}: expected a number above 0 and at most 1")
    weights = _weights(_numbers(values), log10=log10, signed=signed)
    if weights is None or sum(weights) <= 0:
        return (math.nan, math.nan)
    find = _shortest_signed_interval if signed else _shortest_interval
    low, high = find(weights, Fraction(str(float(share))) * sum(weights))
    return (float(low), float(high))


def sample_path(n: int, k: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Draw a path of length `k` uniformly among the `C(n, k)` of a chain: the blocks whose branch it takes.

    Chains only.

    Args:
        n: number of residual blocks of the chain.
        k: length of the path.
        generator: source of randomness; it is advanced.

    Returns:
        Indices of the blocks (from 0), ascending, shape `[k]`.

    Raises:
        InputError: if `n` or `k` is negative or no integer, or if `k > n`.

    Examples:
        >>> import numpy as np
        >>> branches = rpp.paths.sample_path(54, 20, np.random.default_rng(0))
        >>> branches.shape
        (20,)
    """
    n, k = _chain_and_part(n, k, "k", "branches cannot be on one path")
    return np.sort(generator.choice(n, size=k, replace=False)).astype(np.int64)


def _numbers(values: ArrayLike | Sequence[int]) -> list[int | float]:
    """The values as Python numbers, so that integers beyond the range of floats keep all their digits."""
    array = np.asarray(values)
    numbers: list[int | float] = array.tolist() if array.ndim == 1 else []
    if not numbers or not all(isinstance(number, int | float) for number in numbers):
        raise InputError(f"a range of lengths was asked of {values!r}: expected one number for each length")
    return numbers


def _weights(values: list[int | float], *, log10: bool, signed: bool) -> list[Fraction] | None:
    """The values as exact fractions, up to a common factor if they are logarithms; None if not finite."""
    if any(isinstance(value, float) and (math.isnan(value) or value == math.inf) for value in values):
        return None
    if signed and -math.inf in values:
        return None
    if log10:
        largest = max(values)
        if largest == -math.inf:
            return [Fraction(0)]
        return [Fraction(10.0 ** float(max(value - largest, _NO_DECADES))) for value in values]
    if min(values) < 0 and not signed:
        raise InputError(f"a total cannot hold the negative value {min(values)}: expected non-negative values")
    return [Fraction(value) for value in values]


def _shortest_interval(weights: list[Fraction], goal: Fraction) -> tuple[int, int]:
    """The earliest of the heaviest of the shortest intervals that weigh at least `goal`, ends included."""
    best = (len(weights) - 1, -sum(weights, Fraction(0)), 0)
    low, held = 0, Fraction(0)
    for high, weight in enumerate(weights):
        held += weight
        while held - weights[low] >= goal:
            held -= weights[low]
            low += 1
        if held >= goal:
            best = min(best, (high - low, -held, low))
    width, _, low = best
    return low, low + width


def _shortest_signed_interval(weights: list[Fraction], goal: Fraction) -> tuple[int, int]:
    """The same where weights may be negative, so that a longer interval may weigh less."""
    up_to = [Fraction(0), *accumulate(weights)]
    for width in range(len(weights)):
        held = [(-(up_to[low + width + 1] - up_to[low]), low) for low in range(len(weights) - width)]
        heaviest, low = min(held)
        if -heaviest >= goal:
            return low, low + width
    return 0, len(weights) - 1  # pragma: no cover - all of them weigh enough


def _natural(value: object, what: str) -> int:
    """The value as a non-negative Python integer."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise InputError(f"{what} is {value!r}: expected a whole number") from None
    if isinstance(value, bool) or number < 0:
        raise InputError(f"{what} is {value!r}: expected a whole number, at least 0")
    return number


def _size(value: object, what: str) -> int:
    """The value as a number of blocks, of which counts can be made."""
    number = _natural(value, what)
    if number > MOST_BLOCKS:
        raise InputError(f"{what} is {_shown(number)}: counts are made for at most {MOST_BLOCKS:,}")
    return number


def _chain_and_part(n: int, part: int, symbol: str, complaint: str) -> tuple[int, int]:
    """The number of blocks of a chain, and a number of them that cannot be larger."""
    n, part = _size(n, "the number of blocks n"), _natural(part, f"the number {symbol}")
    if part > n:
        raise InputError(f"{symbol} = {part} {complaint} in a chain of n = {n}: expected at most {n}")
    return n, part


def _total(found: list[int]) -> int:
    total = sum(found)
    if not total:
        raise InputError("all path counts are zero: shares need at least one path")
    return total


def _vector(values: ArrayLike, what: str) -> FloatArray:
    """The values as a float64 vector that is not empty."""
    try:
        vector = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{what} are no numbers: {values!r}") from None
    except OverflowError:
        raise InputError(f"{what} hold a number beyond the range of floats") from None
    if vector.ndim != 1 or not vector.size:
        raise InputError(f"{what} have shape {vector.shape}: expected one number for each length 0, 1, 2, ...")
    return vector
