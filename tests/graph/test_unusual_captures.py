"""Captures of unusual parts: they run and equal the model, or the refusal names the operation and the user's line.

The oracles are the model's own outputs and autograd's gradients.
"""

import copy
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import resnet_paths_plugin as rpp

X = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """Three residual blocks and a head; subclasses change one thing."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.f: Any = nn.ModuleList(nn.Linear(5, 5) for _ in range(3))
        self.h: Any = nn.Linear(5, 4)
        self.eval()

    def branch(self, f: nn.Module, x: Tensor) -> Tensor:
        return torch.tanh(f(x))

    def forward(self, x: Tensor) -> Tensor:
        for f in self.f:
            x = x + self.branch(f, x)
        return self.h(x)  # type: ignore[no-any-return]


def assert_runs(model: nn.Module, x: Tensor = X, blocks: int = 3) -> None:
    """Check outputs, the sum of all path gradients, and a lesion of everything, against the model."""
    net = rpp.unravel(model, x)
    assert len(net.blocks) == blocks
    with torch.no_grad():
        assert torch.equal(net(x), model(x))
    assert rpp.BlockLesion(net).attribute(x, 0).sizes["lesion"] == blocks
    found = rpp.PathLengthGradient(net).attribute(x, target=1, keep_maps=True)
    given = x.clone().requires_grad_()
    (own,) = torch.autograd.grad(model(given)[:, 1].sum(), given)
    np.testing.assert_allclose(found.gradient.sum("path_length"), own, rtol=1e-4, atol=1e-5)
    assert float(found.completeness_error.max()) < 1e-5


def refusal(model: nn.Module, x: Tensor = X) -> str:
    with pytest.raises(rpp.ResnetPathsError) as caught:
        rpp.unravel(model, x)
    return str(caught.value)


def line_of(function: Callable[..., Any]) -> str:
    lines, first = inspect.getsourcelines(function)
    (at,) = [at for at, text in enumerate(lines) if text.rstrip().endswith("# the line")]
    return f"{__file__}:{first + at} in "


# --- inference mode


class InferencePart(Net):
    def branch(self, f: nn.Module, x: Tensor) -> Tensor:
        with torch.inference_mode():
            gate = torch.sigmoid(f(x))
        return gate.clone() * torch.tanh(f(x))


class InferenceOff(Net):
    def branch(self, f: nn.Module, x: Tensor) -> Tensor:
        with torch.inference_mode(mode=False):
            return torch.tanh(f(x))


@pytest.mark.parametrize("kind", [InferencePart, InferenceOff])
def test_gradients_stop_where_a_forward_is_in_inference_mode(kind: type[Net]) -> None:
    assert_runs(kind())
    model = kind()
    model.zero_grad()
    rpp.unravel(model, X).sampling(n_active=3)(X).sum().backward()
    found = [one.grad.clone() for one in model.parameters() if one.grad is not None]
    model.zero_grad()
    model(X).sum().backward()
    for one, other in zip(found, [one.grad for one in model.parameters() if one.grad is not None], strict=True):
        torch.testing.assert_close(one, other)


class InferenceForward(Net):
    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def test_a_forward_in_inference_mode_has_lesions_and_no_path_gradients() -> None:
    model = InferenceForward()
    net = rpp.unravel(model, X)
    found = rpp.BlockLesion(net).attribute(X, 0)
    np.testing.assert_allclose(found.intact_target_score, model(X)[:, 0], rtol=1e-6)
    with pytest.raises(rpp.ResnetPathsError, match="no gradient"):
        rpp.PathLengthGradient(net).attribute(X, target=0)


def test_inference_mode_is_as_before_after_a_capture() -> None:
    enter, leave = torch.inference_mode.__enter__, torch.inference_mode.__exit__
    rpp.unravel(InferencePart(), X)
    assert (torch.inference_mode.__enter__, torch.inference_mode.__exit__) == (enter, leave)
    with torch.inference_mode():
        assert (X + 1).is_inference()


def test_inputs_made_in_inference_mode_run_in_every_study() -> None:
    with torch.inference_mode():
        x = X + 0
    assert x.is_inference()
    model = Net()
    net = rpp.unravel(model, x)
    assert torch.equal(net(x), model(X))
    assert rpp.BlockLesion(model).attribute(x, 0).sizes["lesion"] == 3
    expected = rpp.PathLengthGradient(model).attribute(X, target=0).gradient_norm
    for given in (x, [(x, torch.zeros(4, dtype=torch.long))]):
        target = 0 if given is x else None
        found = rpp.PathLengthGradient(model).attribute(given, target=target)
        np.testing.assert_array_equal(found.gradient_norm, expected)
    assert rpp.BlockInfluence(model).attribute(x, target=0).sizes["block"] == 3


def test_studies_run_within_inference_mode() -> None:
    model, other = Net(), Net()
    expected = rpp.PathLengthGradient(model).attribute(X, target=0).gradient_norm
    with torch.inference_mode():
        found = rpp.PathLengthGradient(other).attribute(X + 0, target=0).gradient_norm
        assert rpp.BlockReordering(model).attribute(X + 0, 0).sizes["reordering"] > 0
        assert rpp.BlockInfluence(model).attribute(X + 0, target=0).sizes["block"] == 3
        assert torch.is_inference_mode_enabled()
    np.testing.assert_array_equal(found, expected)


def test_parameters_made_in_inference_mode_are_named_and_a_copy_runs() -> None:
    with torch.inference_mode():
        model = Net()
    assert "'f.0.weight' was made under torch.inference_mode" in refusal(model)
    assert_runs(copy.deepcopy(model))


# --- `.data`


class DataRead(Net):
    def branch(self, f: nn.Module, x: Tensor) -> Tensor:
        return torch.tanh(f(x)) * f.weight.data.norm() + f(x).data


class ShortcutA(nn.Module):
    """A skip that is padded with zeros by way of `.data`, as MONAI's ResNet has it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.f, self.g, self.h = nn.Linear(5, 5), nn.Linear(5, 8), nn.Linear(8, 4)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = x + torch.tanh(self.f(x))
        zeros = torch.zeros(x.size(0), 3, dtype=x.dtype, device=x.device)
        return self.h(torch.cat([x.data, zeros], dim=1) + torch.tanh(self.g(x)))  # type: ignore[no-any-return]


@pytest.mark.parametrize(("kind", "blocks"), [(DataRead, 6), (ShortcutA, 2)])
def test_data_of_a_tensor_has_no_gradient(kind: type[nn.Module], blocks: int) -> None:
    assert_runs(kind(), blocks=blocks)


class DataSet(Net):
    def branch(self, f: nn.Module, x: Tensor) -> Tensor:
        f.weight.data = f.weight.data * 1.0  # the line
        return torch.tanh(f(x))


class DataClamped(Net):
    def branch(self, f: nn.Module, x: Tensor) -> Tensor:
        f.weight.data.clamp_(-0.1, 0.1)  # the line
        return torch.tanh(f(x))


class DataAssigned(Net):
    def branch(self, f: nn.Module, x: Tensor) -> Tensor:
        f.weight.data[0] = 0.0  # the line
        return torch.tanh(f(x))


@pytest.mark.parametrize(
    ("kind", "operation"),
    [(DataSet, "data.__set__"), (DataClamped, "clamp_"), (DataAssigned, "__setitem__")],
)
def test_a_model_that_writes_data_is_refused_with_the_line_and_left_as_it_is(kind: type[Net], operation: str) -> None:
    model = kind()
    before = copy.deepcopy(model.state_dict())
    told = refusal(model)
    assert f"operation: torch.Tensor.{operation}" in told
    assert line_of(kind) in told
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


class DataOfAValue(Net):
    def branch(self, f: nn.Module, x: Tensor) -> Tensor:
        y = torch.tanh(f(x))
        y.data.clamp_(max=0.1)
        return y


def test_a_value_whose_data_is_written_is_right_or_refused() -> None:
    model = DataOfAValue()
    net = rpp.unravel(model, X)
    assert torch.equal(net(X), model(X))
    with pytest.raises(rpp.CaptureMismatchError, match="backward of its own"):
        rpp.PathLengthGradient(net).attribute(X, target=0)


# --- quantised, lazy, meta, scripted, attention


def _dynamic() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(Net(), {nn.Linear}, dtype=torch.qint8)  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore")  # torch's, that this way of quantising will go
def test_an_eager_quantised_model_is_refused_with_module_and_line() -> None:
    told = refusal(_dynamic())
    assert "eager-quantised" in told
    assert "operation: torch.ao.nn.quantized.dynamic.modules.linear.Linear" in told
    assert f"f.0 (Linear), {__file__}:" in told
    assert "torchao" in told


class Int8Linear(nn.Module):
    """Weights in eight bits that each call scales back, as weight-only quantisation does."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.scale: Tensor
        self.register_buffer("scale", weight.abs().amax(1, keepdim=True) / 127)
        self.weight: Tensor
        self.register_buffer("weight", (weight / self.scale).round().to(torch.int8))
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)


def test_weights_in_eight_bits_run() -> None:
    model = Net()
    model.f = nn.ModuleList(Int8Linear(f) for f in model.f)
    assert_runs(model)


class LazyBlocks(Net):
    def __init__(self) -> None:
        super().__init__()
        self.f = nn.ModuleList(nn.LazyLinear(5) for _ in range(3))


def test_a_lazy_model_is_asked_to_run_once_and_stays_lazy() -> None:
    model = LazyBlocks()
    for refused in (lambda: rpp.unravel(model, X), lambda: rpp.BlockLesion(model).attribute(X, 0)):
        with pytest.raises(rpp.ResnetPathsError, match=r"f\.0 \(LazyLinear\) is lazy.*Run one forward first"):
            refused()
    assert all(type(f) is nn.LazyLinear for f in model.f)
    model(X)
    assert_runs(model)


def test_a_model_on_meta_shows_its_blocks_and_no_study() -> None:
    with torch.device("meta"):
        model = Net()
    assert "on the meta device, and the inputs are not" in refusal(model)
    assert len(rpp.unravel(model, X.to("meta")).blocks) == 3
    for analyzer in (rpp.BlockLesion, rpp.BlockReordering, rpp.PathLengthGradient, rpp.BlockInfluence):
        with pytest.raises(rpp.ResnetPathsError, match="no values"):
            analyzer(model).attribute(X, target=0)


class NoGradient(Net):
    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(super().forward(x))


NO_GRADIENT: dict[str, Callable[[Tensor], Tensor]] = {
    "one hot": lambda y: nn.functional.one_hot(y.argmax(1), 4).float(),
    "detached": lambda y: y.detach(),
    "compared": lambda y: (y > 0).float(),
}


@pytest.mark.parametrize("change", NO_GRADIENT.values(), ids=NO_GRADIENT)
def test_outputs_without_a_gradient_have_lesions_and_a_refusal_of_path_gradients(
    change: Callable[[Tensor], Tensor],
) -> None:
    model = NoGradient(change)
    assert rpp.BlockLesion(model).attribute(X, 0).sizes["lesion"] == 3
    assert rpp.BlockInfluence(model).attribute(X, target=0).sizes["block"] == 3
    with pytest.raises(rpp.ResnetPathsError, match="outputs have no gradient"):
        rpp.PathLengthGradient(model).attribute(X, target=0)


def test_outputs_that_a_target_does_not_fit_are_refused() -> None:
    model = NoGradient(lambda y: y.argmax(1))
    with pytest.raises(rpp.ResnetPathsError, match="selects no number per sample"):
        rpp.PathLengthGradient(model).attribute(X, target=0)


def test_rounded_outputs_have_gradients_of_zero() -> None:
    found = rpp.PathLengthGradient(NoGradient(torch.round)).attribute(X, target=0)
    assert float(found.gradient_norm.max()) == 0
    assert float(found.completeness_error.max()) == 0


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("part", ["head", "block", "sequential"])
def test_scripted_parts_run_and_keep_their_flags(part: str) -> None:
    model = Net()
    if part == "head":
        model.h = torch.jit.script(model.h)
    elif part == "block":
        model.f[1] = torch.jit.script(model.f[1])
    else:
        model.h = torch.jit.script(nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 4)))
    assert_runs(model.train())
    assert all(module.training for module in model.modules())
    model.eval()
    assert_runs(model)


def test_a_parametrization_that_was_removed_is_told_and_an_analyzer_captures_anew() -> None:
    model = Net()
    parametrizations.weight_norm(model.f[0])
    assert_runs(model)
    net, lesion = rpp.unravel(model, X), rpp.BlockLesion(model)
    lesion.attribute(X, 0)
    parametrize.remove_parametrizations(model.f[0], "weight")
    for study in (
        lambda: net(X),
        lambda: net.restricted([1])(X),
        lambda: rpp.PathLengthGradient(net).attribute(X, target=0),
        lambda: rpp.BlockInfluence(net).attribute(X, target=0),
    ):
        with pytest.raises(rpp.CaptureMismatchError, match="changed since it was unraveled"):
            study()
    again = lesion.attribute(X, 0)
    np.testing.assert_allclose(again.intact_target_score, model(X)[:, 0].detach(), rtol=1e-6)


class Flex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.ModuleList(nn.Linear(16, 48) for _ in range(2))
        self.h = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        from torch.nn.attention.flex_attention import flex_attention

        for each in self.qkv:
            q, k, v = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in each(x).chunk(3, -1))
            x = x + flex_attention(q, k, v).transpose(1, 2).flatten(2)  # the line
        return self.h(x.mean(1))  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore")
def test_flex_attention_on_a_cpu_is_named_with_the_line() -> None:
    told = refusal(Flex().eval(), torch.randn(4, 16, 16))
    assert "operation: torch.nn.attention.flex_attention.flex_attention" in told
    assert line_of(Flex) in told
    assert "its own forward fails" not in told


class LengthAttention(nn.Module):
    """Attention that reshapes by `len(q)`, as rtdl's FT-Transformer does."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.v, self.k = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8, bias=False)

    def _heads(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        return x.reshape(batch, tokens, 2, 4).transpose(1, 2).reshape(batch * 2, tokens, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(y), self.v(y)
        size, tokens = len(q), q.shape[1]
        weights = torch.softmax(self._heads(q) @ self._heads(k).transpose(1, 2) / 2, -1)
        mixed = weights @ self._heads(v)
        return mixed.reshape(size, 2, tokens, 4).transpose(1, 2).reshape(size, tokens, 8)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.first = nn.Parameter(torch.randn(5, 8)), nn.Parameter(torch.randn(8))
        self.attention = nn.ModuleList(LengthAttention() for _ in range(2))
        self.h = nn.Linear(8, 4)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x[..., None] * self.tokens, self.first.expand(len(x), 1, -1)], 1)
        x = x + self.attention[0](x, x)
        x = x[:, -1:] + self.attention[1](x[:, -1:], x)
        return self.h(x[:, -1])  # type: ignore[no-any-return]


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 2, 4])
def test_attention_that_asks_for_its_length_runs_and_trains(batch: int) -> None:
    model = Tokens()
    assert_runs(model, X[:batch], blocks=2)
    net = rpp.unravel(model, X[:batch])
    assert torch.equal(net(X), model(X))
    net.sampling(n_active=2)(X).sum().backward()
