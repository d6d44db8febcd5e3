"""Models that do what models seldom do: second arguments, terms added twice, in-place inputs, stored activations."""

import copy
import pickle
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import InputError, ScheduleError, StochasticModelWarning, UnsupportedMethodError


class Chain(nn.Module):
    """Two blocks of a form that a function gives, and what happens before and after them."""

    def __init__(self, block, before=lambda x: x, classes=3):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.head = nn.Linear(4, classes)
        self.block, self.before = block, before

    def forward(self, x):
        x = self.before(x)
        for layer in self.layers:
            x = self.block(x, layer)
        return self.head(x)


def plain(x, layer):
    return x + torch.tanh(layer(x))


def images(dtype=torch.float64):
    return torch.randn(5, 4, dtype=dtype)


def ordinary(model, x, column=0):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(model(x)[:, column].sum(), x)[0]


def test_additional_arguments_are_not_attributed_to():
    class Conditioned(Chain):
        def forward(self, x, t, steps):
            return super().forward(x * t[:, None]) + steps[:, None]

    model, x, t = Conditioned(plain).double(), images(), torch.rand(5, dtype=torch.float64)
    steps = torch.arange(5)
    found = rpp.PathLengthGradient(model).attribute(x, 0, (t, steps), keep_maps=True)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(model(x, t, steps)[:, 0].sum(), x)
    np.testing.assert_allclose(found.gradient.values.sum(0), gradient, rtol=1e-5)
    assert found.completeness_error.max() < 1e-12


def test_arguments_may_be_variadic():
    class Variadic(Chain):
        def forward(self, x, *factors):
            for factor in factors:
                x = x * factor[:, None]
            return super().forward(x)

    model, x, factors = Variadic(plain).double(), images(), (torch.rand(5).double(), torch.rand(5).double())
    net = rpp.unravel(model, (x, *factors))
    assert len(net.blocks) == 2
    assert torch.equal(net(x[:3], *(f[:3] for f in factors)), model(x[:3], *(f[:3] for f in factors)))
    found = rpp.PathLengthGradient(net).attribute(x, 0, factors, keep_maps=True)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(model(x, *factors)[:, 0].sum(), x)
    np.testing.assert_allclose(found.gradient.values.sum(0), gradient, rtol=1e-5)


def test_an_empty_vector_among_the_parts_of_a_concatenation_changes_nothing():
    def cached(x, layer):  # as a cache of keys that holds nothing yet
        return x + torch.tanh(torch.cat([x.new_zeros(0), layer(x)], 1)[:, :4])

    model, twin, x = Chain(cached).double(), Chain(plain).double(), images()
    twin.load_state_dict(model.state_dict())
    net = rpp.unravel(model, x)
    assert torch.equal(net(x), model(x))
    assert torch.equal(net.lesioned(0)(x), rpp.unravel(twin, x).lesioned(0)(x))
    found, expected = (rpp.PathLengthGradient(one).attribute(x, 0) for one in (net, twin))
    np.testing.assert_allclose(found.gradient_norm, expected.gradient_norm, rtol=1e-12)


@pytest.mark.parametrize("estimator", ["exact", "sampled", "signs"])
def test_a_value_that_is_added_twice_is_one_term(estimator):
    twice = Chain(lambda x, layer: x + x + torch.tanh(layer(x))).double()
    scaled = Chain(lambda x, layer: 2 * x + torch.tanh(layer(x))).double()
    scaled.load_state_dict(twice.state_dict())
    x = images()
    found, expected = (
        rpp.PathLengthGradient(model).attribute(x, 0, estimator=estimator, draws=4) for model in (twice, scaled)
    )
    name = {"exact": "gradient_norm", "sampled": "path_gradient_norm", "signs": "path_gradient_rms"}[estimator]
    np.testing.assert_allclose(found[name], expected[name], rtol=1e-12)
    np.testing.assert_array_equal(found.path_count, expected.path_count)


def test_a_branch_that_is_added_twice_is_one_block():
    def doubled(x, layer):
        branch = torch.tanh(layer(x))
        return x + branch + branch

    model, x = Chain(doubled).double(), images()
    net = rpp.unravel(model, x)
    assert len(net.blocks) == 2
    assert torch.equal(net(x), model(x))
    torch.testing.assert_close(net.lesioned([0, 1])(x), model.head(x))
    assert rpp.PathLengthGradient(net).attribute(x, 0).completeness_error.max() < 1e-12


def test_dropping_the_inner_block_of_a_long_skip_leaves_the_outer_one():
    class Long(Chain):
        def forward(self, x):
            body = torch.tanh(self.layers[0](x))
            return self.head(x + (body + self.layers[1](torch.relu(body))))

    class DropInner:
        @rpp.hookimpl
        def resnet_paths_review_blocks(self, model, blocks):
            return [replace(block) for block in blocks[1:]]

    model, x = Long(plain).double(), images()
    both = rpp.unravel(model, x)
    assert len(both.blocks) == 2
    manager = rpp.create_plugin_manager()
    manager.register(DropInner())
    net = rpp.unravel(model, x, plugin_manager=manager)
    assert [block.name for block in net.blocks] == [both.blocks[1].name]
    assert torch.equal(net(x), model(x))
    torch.testing.assert_close(net.lesioned(0)(x), model.head(x))


def test_a_model_that_works_in_place_on_its_input_is_studied_and_the_input_kept():
    model, x = Chain(plain, before=lambda x: functional.relu(x, inplace=True)).double(), images()
    before = x.clone()
    found = rpp.PathLengthGradient(model).attribute(x, 0)
    assert found.completeness_error.max() < 1e-12
    assert torch.equal(x, before)


def test_the_stem_may_be_the_input_itself():
    model, x = Chain(plain).double(), images()
    found = rpp.PathLengthGradient(model).attribute(x, 0, tap="stem", keep_maps=True)
    np.testing.assert_allclose(found.gradient.values.sum(0), ordinary(model, x), rtol=1e-5)


def test_what_a_forward_pass_stores_is_gone_after_capture_and_analysis():
    class Storing(Chain):
        def forward(self, x):
            self.last = x
            self.seen.append(1)
            return super().forward(x)

    model = Storing(plain).double()
    model.seen, model.last = [], None
    rpp.PathLengthGradient(model).attribute(images(), 0)
    assert model.last is None


def test_a_model_that_draws_in_eval_mode_is_warned_of():
    model = Chain(lambda x, layer: x + functional.dropout(layer(x), 0.5, training=True))
    with pytest.warns(StochasticModelWarning, match="draws random numbers"):
        rpp.unravel(model, images(torch.float32))


def test_a_single_column_is_no_distribution_over_classes():
    model, x = Chain(plain, classes=1), images(torch.float32)
    with pytest.raises(InputError, match="measures="):
        rpp.BlockLesion(model).attribute(x)
    found = rpp.BlockLesion(model).attribute(x, measures={"logit": lambda outputs, target: outputs[:, 0]})
    np.testing.assert_allclose(found.intact_logit, model(x)[:, 0].detach(), rtol=1e-6)


def test_an_analyzer_follows_its_module_to_another_dtype_and_shape():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            return (x + self.conv(x)).mean((2, 3))

    model = Pooled()
    analyzer = rpp.BlockLesion(model)
    assert analyzer.attribute(torch.randn(2, 3, 8, 8)).sizes["lesion"] == 1
    assert analyzer.attribute(torch.randn(2, 3, 6, 6)).sizes["lesion"] == 1
    model.double()
    assert analyzer.attribute(torch.randn(2, 3, 8, 8).double()).attrs["dtype"] == "torch.float64"


def test_group_lesions_say_how_many_groups_they_delete():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            x = x + torch.tanh(self.one(x))
            return x + torch.tanh(self.two(x))

    model = nn.Sequential(Layer(), Layer(), Layer(), nn.Linear(4, 3))
    found = rpp.BlockLesion(model).attribute(images(torch.float32), n_deleted=[1, 2], draws=2, level="group")
    assert found.n_deleted_units.values.tolist() == [1, 1, 2, 2]
    assert found.n_deleted.values.tolist() == [2, 2, 4, 4]


def test_the_effective_range_of_a_part_is_left_out():
    found = rpp.PathLengthGradient(Chain(plain)).attribute(images(torch.float32), 0, max_length=1)
    assert "effective_length_low" not in found


def test_maps_need_the_exact_estimator():
    with pytest.raises(InputError, match="add 'exact'"):
        rpp.PathLengthGradient(Chain(plain)).attribute(images(torch.float32), 0, estimator="signs", keep_maps=True)


def test_arrays_are_refused_with_the_way_to_convert_them():
    with pytest.raises(InputError, match=r"torch\.from_numpy"):
        rpp.BlockLesion(Chain(plain)).attribute(np.zeros((2, 4), np.float32))


def test_schedules_of_blocks_that_are_not_there_are_refused():
    net = rpp.unravel(Chain(plain), images(torch.float32))
    for rows in ({5: ()}, {0: ((7, 1.0),)}):
        with pytest.raises(ScheduleError, match="counted from 0"):
            rpp.Schedule.from_rows(net, rows)


@pytest.mark.parametrize("use", [copy.deepcopy, pickle.dumps, lambda net: list(net.modules())])
def test_what_a_network_cannot_do_is_said(use):
    with pytest.raises(UnsupportedMethodError, match="unravel"):
        use(rpp.unravel(Chain(plain), images(torch.float32)))


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.f, self.g = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        x = x + self.f(x).relu()
        return x + self.g(x).relu()


class Shared(nn.Module):
    """A layer that runs three times, one that runs once, and sums of the model's own."""

    def __init__(self):
        super().__init__()
        self.layer, self.last, self.own = Layer(), Layer(), nn.Linear(6, 6)

    def forward(self, x):
        for _ in range(3):
            x = self.layer(x)
        x = self.last(x)
        return x + self.own(x).relu()


def test_each_run_of_a_shared_module_is_a_group():
    torch.manual_seed(0)
    model, x = Shared(), torch.randn(5, 6)
    net = rpp.unravel(model, x)
    found = rpp.BlockLesion(net).attribute(x, 0, level="group")
    assert found["lesion"].values.tolist() == ["layer:1", "layer:2", "layer:3", "last", "(model)"]
    assert found.n_deleted.values.tolist() == [2, 2, 2, 2, 1]
    with torch.no_grad():
        h = model.last(model.layer(model.layer(x)))  # two runs of three
        expected = h + model.own(h).relu()
    np.testing.assert_allclose(found.target_score[1], expected[:, 0], rtol=1e-5)
    moved = rpp.BlockReordering(net).attribute(x, 0, n_swaps=1, level="group")
    assert moved.sizes["reordering"] == 1


def test_what_a_model_collects_while_it_runs_is_as_before():
    class Collects(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 6)
            self.seen, self.cache = [0], {"a": 1}

        def forward(self, x):
            y = x + self.layer(x).relu()
            self.seen.append(y)
            self.cache["b"] = y
            return y

    model = Collects()
    seen, cache = model.seen, model.cache
    rpp.unravel(model, torch.randn(3, 6))
    assert model.seen is seen
    assert model.cache is cache
    assert seen == [0]
    assert cache == {"a": 1}


def test_a_scripted_module_is_refused_and_stays_as_it_is():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torch.jit is on its way out
        model = torch.jit.script(nn.Linear(6, 6)).train()
    with pytest.raises(InputError, match="pass the module that it was made from"):
        rpp.unravel(model, torch.randn(3, 6))
    assert model.training
