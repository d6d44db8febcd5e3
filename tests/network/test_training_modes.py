"""Training on all blocks is the model's own training; what a graph cannot repeat in training mode is refused."""

import copy

import pytest
import timm
import torch
import torchvision
from dropping_networks import Dropping, assert_same_tensors, dropping, gradients, images, loss_of
from networks import PreActivation, assert_same_state, randomised, state_of
from torch import nn

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import CaptureError, ResnetPathsError

pytestmark = pytest.mark.slow


# --- the model's own training mode


def assert_trains_as_the_model_itself(model, x, steps=2):
    own = copy.deepcopy(model).train()
    net = rpp.unravel(model, x)
    sampler = net.sampling(len(net.blocks), include_projections=True)
    assert len(sampler.sampled) > 1
    for step in range(steps):
        found = []
        for module in (own, sampler):
            torch.manual_seed(step)
            module.zero_grad()
            outputs = module(x)
            loss_of(outputs).backward()
            found.append(outputs)
        assert torch.equal(*found)
        assert_same_tensors(gradients(own), gradients(model), step)
        assert_same_tensors(own.state_dict(), model.state_dict(), step)
        for module in (own, model):
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.sub_(0.01 * parameter.grad if parameter.grad is not None else 0)


def test_all_blocks_of_resnet18_train_bit_for_bit_as_the_model_itself():
    assert_trains_as_the_model_itself(
        torchvision.models.resnet18(num_classes=7).eval(), images(size=32, dtype=torch.float32)
    )


def test_a_vision_transformer_with_dropout_draws_and_trains_as_the_model_itself():
    model = torchvision.models.VisionTransformer(32, 16, 2, 2, 8, 16, dropout=0.2, attention_dropout=0.1, num_classes=5)
    assert_trains_as_the_model_itself(model, images(size=32, dtype=torch.float32))


def test_stochastic_depth_and_batch_norms_of_the_models_own_work_as_in_the_model():
    model = timm.create_model("test_resnet", drop_path_rate=0.5, drop_rate=0.2, num_classes=5)
    assert_trains_as_the_model_itself(model, images(size=64, dtype=torch.float32))


def test_layers_in_eval_mode_stay_frozen_where_the_model_is_in_training_mode():
    model = dropping().train()
    model.stem.eval()
    by_hand = copy.deepcopy(model)
    sampler = rpp.unravel(model, images()).sampling(4)
    assert torch.equal(sampler(images()), by_hand(images()))
    assert_same_tensors(by_hand.state_dict(), model.state_dict(), "frozen")
    assert model.stem[1].num_batches_tracked == 0
    assert model.blocks[0].norm1.num_batches_tracked == 1


def test_a_model_in_eval_mode_is_captured_as_its_own_train_would_set_it():
    class PartlyFrozen(Dropping):
        def train(self, mode=True):
            super().train(mode)
            self.stem.eval()
            for parameter in self.stem.parameters():
                parameter.requires_grad_(False)
            return self

    torch.manual_seed(1)
    model = randomised(PartlyFrozen()).double()
    for parameter in model.requires_grad_().modules():
        parameter.training = False
    before = state_of(model)
    sampler = rpp.unravel(model, images()).sampling(2)
    assert_same_state(before, state_of(model))
    sampler(images())
    assert model.stem[1].num_batches_tracked == 0
    assert model.blocks[2].norm1.num_batches_tracked == 1


# --- models that training mode cannot capture


class Averaging(nn.Module):
    """Keeps a moving average on itself while training."""

    def __init__(self, assign):
        super().__init__()
        self.linear = nn.Linear(7, 7)
        self.register_buffer("average", torch.zeros(7))
        self.assign = assign

    def forward(self, x):
        y = self.linear(x)
        if self.training:
            if self.assign:
                self.average = 0.9 * self.average + 0.1 * y.detach().mean(0)
            else:
                self.average.mul_(0.9).add_(y.detach().mean(0), alpha=0.1)
        return x + y - self.average


def spectral():
    linear = nn.utils.parametrizations.spectral_norm(nn.Linear(7, 7))

    class Spectral(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = linear

        def forward(self, x):
            return x + self.linear(x)

    return Spectral()


def cumulative():
    model = PreActivation()
    model.blocks[1].branch[0][0].momentum = None
    return model


def forgotten():
    class Forgotten(PreActivation):
        """Runs a batch norm whose value nobody reads."""

        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x):
            self.norm(x)
            return super().forward(x)

    return Forgotten()


def through_a_view():
    class ThroughAView(PreActivation):
        def forward(self, x):
            x = x.clone()
            x[:, 0] += 1
            x[:, 1] += x[:, 0]
            return super().forward(x)

    return ThroughAView()


@pytest.mark.parametrize(
    ("build", "x", "message"),
    [
        (lambda: Averaging(assign=True), torch.randn(3, 7), "average"),
        (lambda: Averaging(assign=False), torch.randn(3, 7), "average"),
        (spectral, torch.randn(3, 7), r"weight\.0\._u"),
        (cumulative, torch.randn(3, 3, 6, 6), "momentum=None"),
        (forgotten, torch.randn(3, 3, 6, 6), "norm.num_batches_tracked"),
        (through_a_view, torch.randn(3, 3, 6, 6), "through views"),
    ],
    ids=[
        "assigned buffer",
        "buffer changed in place",
        "spectral norm",
        "cumulative average",
        "unread batch norm",
        "views",
    ],
)
def test_what_a_graph_cannot_repeat_in_training_mode_is_refused_and_leaves_the_model_alone(build, x, message):
    model = build()
    net = rpp.unravel(model, x)
    before = state_of(model)
    with pytest.raises(CaptureError, match=message):
        net.sampling(1)
    assert_same_state(before, state_of(model))


def test_other_blocks_in_training_mode_are_refused():
    class Auxiliary(PreActivation):
        def forward(self, x):
            y = super().forward(x)
            return y + self.head(y @ self.head.weight) if self.training else y

    net = rpp.unravel(Auxiliary(), images(dtype=torch.float32))
    with pytest.raises(ResnetPathsError, match="other residual blocks in training mode"):
        net.sampling(1)


def test_a_batch_norm_that_runs_twice_counts_twice():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(7)
            self.first, self.second = nn.Linear(7, 7), nn.Linear(7, 7)

        def forward(self, x):
            x = x + self.first(self.norm(x))
            return x + self.second(self.norm(x))

    model = Shared()
    x = torch.randn(3, 7)
    own = copy.deepcopy(model)
    net = rpp.unravel(model, x)
    net.sampling(2)(x)
    own(x)
    assert_same_tensors(own.state_dict(), model.state_dict(), "both")
    net.sampling(1)(x)
    assert model.norm.num_batches_tracked == 3


def test_a_batch_norm_of_parameters_counts_once_in_each_batch():
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.prompts = nn.Parameter(torch.randn(4, 7))
            self.norm = nn.BatchNorm1d(7)
            self.blocks = nn.ModuleList(nn.Linear(7, 7) for _ in range(2))

        def forward(self, x):
            x = x + self.norm(self.prompts).mean(0)
            for block in self.blocks:
                x = x + block(x)
            return x

    model = Normed()
    own = copy.deepcopy(model)
    sampler = rpp.unravel(model, torch.randn(3, 7)).sampling(1)
    for batch in range(2):
        sampler(torch.randn(3 + batch, 7))
        own(torch.randn(3, 7))
    assert_same_tensors(own.state_dict(), model.state_dict(), "statistics")
