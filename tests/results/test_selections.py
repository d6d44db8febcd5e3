"""What is shown of some samples is theirs; scores in structures; outputs that are not finite. Oracle: the model."""

from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor, nn

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import NonFiniteOutputWarning
from resnet_paths_plugin.plotting.effects import effect_of
from resnet_paths_plugin.results.derived import refreshed

X = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """Three blocks and a head, whose output is wrapped."""

    def __init__(self, wrap: Callable[[Tensor], Any] = lambda y: y, *, broken: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.f, self.h = nn.ModuleList(nn.Linear(5, 5) for _ in range(3)), nn.Linear(5, 4)
        self.wrap, self.broken = wrap, broken

    def forward(self, x: Tensor) -> Any:
        y = x + torch.tanh(self.f[0](x))
        extra = 0 * (1 / (y - x).abs().sum(1, keepdim=True)) if self.broken else 0
        for f in list(self.f)[1:]:
            y = y + torch.tanh(f(y))
        return self.wrap(self.h(y) + extra)


WRAPS = (lambda y: {"out": y}, lambda y: (y,), lambda y: [y], lambda y: {"hidden": y * 2, "logits": y})


@pytest.mark.parametrize("wrap", WRAPS)
def test_scores_in_a_structure_give_the_results_of_the_bare_tensor(wrap: Callable[[Tensor], Any]) -> None:
    for analyzer in (rpp.BlockLesion, rpp.PathLengthGradient):
        bare, wrapped = (analyzer(net.eval()).attribute(X, target=1) for net in (Net(), Net(wrap)))
        # Paths are counted from all outputs, so a second one doubles them.
        for name in set(bare.data_vars) - {"path_count", "log10_path_count"}:
            xr.testing.assert_equal(bare[name], wrapped[name])


def test_outputs_that_are_not_finite_are_wrong() -> None:
    with pytest.warns(NonFiniteOutputWarning, match="4 samples"):
        ds = rpp.BlockLesion(Net(broken=True).eval()).attribute(X, target=0)
    assert ds.error.values[0] == 1
    assert (ds.prediction.values[0] == -1).all()
    assert ds.prediction_changed.values[0].all()
    assert np.isfinite(ds.loss.values[1:]).all()


@pytest.mark.parametrize("chosen", [[0, 1], [3], [2, 0, 0]])
def test_the_error_that_is_shown_is_that_of_the_samples_left(chosen: list[int]) -> None:
    ds = rpp.BlockLesion(Net().eval()).attribute(X, target=torch.tensor([0, 1, 2, 3]))
    some = ds.isel(sample=chosen)
    right = 1 - some.correct.values.mean(axis=1)
    np.testing.assert_array_equal(effect_of(some, "lesion", None, "").values, right)
    ax = some.resnet_paths.plot()
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), right)
    plt.close(ax.figure)
    xr.testing.assert_identical(refreshed(ds), ds)
