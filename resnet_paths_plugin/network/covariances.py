"""Covariances of pairs of vectors, added up over runs in float64, and the least-squares affine map that they give."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Covariances:
    """First and second moments of pairs `x [N, C_in]` and `y [N, C_out]`, float64, the second ones about the means.

    Attributes:
        count: `N`.
        source_mean: mean of `x`.
        branch_mean: mean of `y`.
        source: `sum (x - mean)(x - mean)^T`.
        cross: `sum (x - mean)(y - mean)^T`.
        branch: `sum (y - mean)^2` of each channel.
    """

    count: NDArray[Any]
    source_mean: NDArray[Any]
    branch_mean: NDArray[Any]
    source: NDArray[Any]
    cross: NDArray[Any]
    branch: NDArray[Any]

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> "Covariances":
        """Return the moments of some pairs."""
        means = x.mean(0), y.mean(0)
        x, y = x - means[0], y - means[1]
        found = (*means, x.T @ x, x.T @ y, y.square().sum(0))
        return cls(np.array(len(x)), *(values.cpu().numpy() for values in found))

    def with_more(self, other: "Covariances") -> "Covariances":
        """Return the moments of these pairs and others."""
        count = self.count + other.count
        share = other.count / count
        x, y = other.source_mean - self.source_mean, other.branch_mean - self.branch_mean
        weight = self.count * share
        return Covariances(
            count,
            self.source_mean + share * x,
            self.branch_mean + share * y,
            self.source + other.source + weight * np.outer(x, x),
            self.cross + other.cross + weight * np.outer(x, y),
            self.branch + other.branch + weight * y**2,
        )

    def least_squares(self, ridge: float) -> tuple[Tensor, Tensor]:
        """Return `A` and `b`, which minimise `sum |A x + b - y|^2 + ridge v |A|^2`; of several the smallest `A`.

        `v` is the mean over channels of the sum of squares of `x` about its mean.
        """
        values, vectors = np.linalg.eigh(self.source)
        values = values + ridge * float(np.trace(self.source)) / len(self.source)
        kept = values > values.max(initial=0) * len(values) * np.finfo(np.float64).eps
        inverse = np.where(kept, 1 / np.where(kept, values, 1), 0)
        weight = (vectors @ (inverse[:, None] * (vectors.T @ self.cross))).T
        bias = self.branch_mean - weight @ self.source_mean
        return torch.from_numpy(np.ascontiguousarray(weight)), torch.from_numpy(bias)

    def explained(self, weight: Tensor) -> float:
        """Return the share of the variance of `y` that a map explains; 1 where `y` does not vary."""
        a, total = weight.numpy(), float(self.branch.sum())
        rest = total - 2 * float((a.T * self.cross).sum()) + float((a @ self.source * a).sum())
        return 1 - rest / total if total > 0 else 1.0
