"""Shapley values and interactions of blocks, against their definitions on networks patched by hand, and shapiq."""

import functools
import itertools
import sys
from concurrent.futures import ThreadPoolExecutor
from math import factorial

import numpy as np
import pytest
import torch
from cifar import images_and_labels, needs_cifar, trained
from networks import PreActivation, Transformer, randomised, without
from scipy import stats
from torch.nn import functional

import resnet_paths_plugin as rpp
from resnet_paths_plugin.analyzers.coalitions.shapley_values import SampledOrders, shapley_interactions, shapley_values
from resnet_paths_plugin.errors import CheckpointError, InputError, StaleResultWarning
from resnet_paths_plugin.results.derived import refreshed

LABELS = torch.tensor([0, 3, 1, 4, 4, 2, 0])


@functools.cache
def network(kind=PreActivation):
    model = randomised(kind()).double().eval()
    x = torch.randn(7, 3, 6, 6, generator=torch.Generator().manual_seed(3)).double()
    return rpp.unravel(model, x), model, x


def study(**options):
    net, _, x = network()
    return rpp.BlockShapley(net).attribute(x, LABELS, **options)


def by_hand(value):
    """Return the measure of each coalition of three blocks on each sample, from copies patched by hand."""
    _, model, x = network()
    found = {}
    for players in subsets(range(3)):
        copy = without(model, *(f"blocks.{at}.branch" for at in range(3) if at not in players))
        with torch.no_grad():
            logits = copy(x)
        scores = logits[torch.arange(7), LABELS]
        loss = functional.cross_entropy(logits, LABELS, reduction="none")
        found[players] = {"target_score": scores, "loss": loss}[value].numpy()
    return found


def subsets(players):
    return [frozenset(some) for size in range(len(players) + 1) for some in itertools.combinations(players, size)]


def defined_values(v, n):
    """Return Shapley values as their definition says: sums over subsets, of values by coalition."""
    found = []
    for i in range(n):
        others = [player for player in range(n) if player != i]
        found.append(
            sum(
                factorial(len(s)) * factorial(n - len(s) - 1) / factorial(n) * (v[s | {i}] - v[s])
                for s in subsets(others)
            )
        )
    return np.array(found)


def defined_interactions(v, n):
    """Return Shapley interaction indices as their definition says (Grabisch and Roubens 1999)."""
    found = np.full((n, n), np.nan)
    for i, j in itertools.permutations(range(n), 2):
        others = [player for player in range(n) if player not in {i, j}]
        found[i, j] = sum(
            factorial(len(s))
            * factorial(n - len(s) - 2)
            / factorial(n - 1)
            * (v[s | {i, j}] - v[s | {i}] - v[s | {j}] + v[s])
            for s in subsets(others)
        )
    return found


# ResNet-20 as others trained it


@functools.cache
def resnet20():
    """Return ResNet-20 in float64, the middle of two images, labels, and the loss of all 512 coalitions by hand."""
    model = trained(20).double()
    images, labels = images_and_labels()
    x, y = images[:2, :, 8:24, 8:24].double(), labels[:2]
    blocks = [*model.layer1, *model.layer2, *model.layer3]
    left = set()
    handles = [
        block.bn2.register_forward_hook(lambda *call, at=at: call[2] if at in left else torch.zeros_like(call[2]))
        for at, block in enumerate(blocks)
    ]
    found = {}
    with torch.no_grad():
        for players in subsets(range(9)):
            left.clear()
            left.update(players)
            found[players] = float(functional.cross_entropy(model(x), y))
    for handle in handles:
        handle.remove()
    return model, x, y, found


@functools.cache
def shares_of_resnet20():
    model, x, y, _ = resnet20()
    return rpp.BlockShapley(model).attribute(x, y, value="loss", order=2)


@needs_cifar
def test_exact_values_of_resnet20_are_those_of_512_networks_patched_by_hand():
    _, _, _, v = resnet20()
    found = shares_of_resnet20()
    assert found.n_coalitions == 512
    np.testing.assert_allclose(found["shapley_value"], defined_values(v, 9), atol=1e-6)
    np.testing.assert_allclose(found["shapley_interaction"], defined_interactions(v, 9), atol=1e-6)
    assert abs(float(found["efficiency_error"])) < 1e-9
    np.testing.assert_array_equal(found["shapley_stderr"], 0)
    whole = frozenset(range(9))
    alone = [v[whole - {at}] - v[whole] for at in range(9)]
    np.testing.assert_allclose(found["single_effect"], alone, atol=1e-9)


@needs_cifar
def test_shapiqs_exact_computer_agrees():
    shapiq = pytest.importorskip("shapiq")
    model, x, y, _ = resnet20()
    game = rpp.BlockGame(model, x, y, value="loss")
    computer = shapiq.ExactComputer(game, n_players=game.n_players)
    values, pairs = computer("SV", 1), computer("SII", 2)
    found = shares_of_resnet20()
    np.testing.assert_allclose(found["shapley_value"], [values[(at,)] for at in range(9)], atol=1e-9)
    for i, j in itertools.combinations(range(9), 2):
        assert float(found["shapley_interaction"][i, j]) == pytest.approx(pairs[(i, j)], abs=1e-9)


@needs_cifar
def test_estimates_lie_within_their_intervals_as_often_as_these_say():
    _, _, _, v = resnet20()
    table = np.array([v[frozenset(np.flatnonzero(number >> np.arange(9) & 1))] for number in range(512)])
    exact, pairs = shapley_values(table), 50

    def stored(coalitions):
        return table[coalitions @ (1 << np.arange(9))]

    estimates = [SampledOrders.drawn(9, pairs, seed).estimate(stored, 1) for seed in range(100)]
    reach = stats.t.ppf(0.975, pairs - 1)
    within = [np.abs(one.values[:, 0] - exact) <= reach * one.stderr for one in estimates]
    assert 0.9 <= np.mean(within) <= 0.99


# Small networks


@pytest.mark.parametrize("value", ["target_score", "loss"])
def test_exact_values_are_their_definition_sample_by_sample(value):
    v = by_hand(value)
    found = study(value=value, order=2, per_sample=True)
    means = {players: values.mean() for players, values in v.items()}
    np.testing.assert_allclose(found["shapley_value"], defined_values(means, 3), rtol=1e-9)
    np.testing.assert_allclose(found["shapley_value_per_sample"], defined_values(v, 3), rtol=1e-9)
    np.testing.assert_allclose(found["shapley_interaction"], defined_interactions(means, 3), rtol=1e-9)
    assert list(found["block"].values) == list(found["other_block"].values) == ["blocks.0", "blocks.1", "blocks.2"]
    assert (found["shapley_value"].attrs["measure"], found["shapley_value"].attrs["units"]) == (
        value,
        "nat" if value == "loss" else "1",
    )


def test_all_orders_of_three_players_give_the_exact_values():
    v = {players: values.mean() for players, values in by_hand("loss").items()}
    every = np.array(list(itertools.permutations(range(3))))
    table = np.array([v[frozenset(np.flatnonzero(number >> np.arange(3) & 1))] for number in range(8)])
    found = SampledOrders(every).estimate(lambda coalitions: table[coalitions @ (1 << np.arange(3))], 2)
    np.testing.assert_allclose(found.values[:, 0], defined_values(v, 3), rtol=1e-9)
    np.testing.assert_allclose(found.interactions, defined_interactions(v, 3), rtol=1e-9)
    np.testing.assert_allclose(shapley_interactions(table), defined_interactions(v, 3), rtol=1e-9)


def test_estimates_from_orders_add_up_and_say_how_sure_they_are():
    exact = study(value="loss")
    found = study(value="loss", method="permutation", budget=100, order=2, per_sample=True, seed=5)
    assert found["n_orders"] == 2 * 12  # two orders of three blocks have four coalitions of their own, twice at order 2
    assert found["n_coalitions"] == 8
    assert abs(float(found["efficiency_error"])) < 1e-9
    apart = np.abs(found["shapley_value"] - exact["shapley_value"])
    assert (apart <= stats.t.ppf(0.999, 11) * found["shapley_stderr"] + 1e-12).all()
    np.testing.assert_allclose(found["shapley_value_per_sample"].mean("sample"), found["shapley_value"], rtol=1e-9)
    again = study(value="loss", method="permutation", budget=100, order=2, per_sample=True, seed=5)
    np.testing.assert_array_equal(found["shapley_value"], again["shapley_value"])


def test_auto_is_exact_where_the_budget_allows():
    assert "n_orders" not in study(budget=8)
    assert "n_orders" not in study(method="exact", budget=8)
    net, _, x = network(Transformer)
    found = rpp.BlockShapley(net).attribute(x, LABELS, budget=15)
    assert found["n_orders"] == 2 * 2


def test_groups_are_players():
    net, model, x = network(Transformer)
    found = rpp.BlockShapley(net).attribute(x, LABELS, level="group", order=2)
    v = {}
    for players in subsets(range(2)):
        gone = [f"layers.{at}.{part}" for at in range(2) if at not in players for part in ("attn", "mlp")]
        with torch.no_grad():
            v[players] = float(without(model, *gone)(x)[torch.arange(7), LABELS].mean())
    np.testing.assert_allclose(found["shapley_value"], defined_values(v, 2), rtol=1e-9)
    np.testing.assert_allclose(found["shapley_interaction"], defined_interactions(v, 2), rtol=1e-9)
    assert list(found["block"].values) == ["layers.0", "layers.1"]
    assert list(found["block_branch_type"].values) == ["attention+mlp"] * 2


def test_what_a_silent_measure_means_is_left_open():
    found = study(value="own", measures={"own": lambda outputs, target: outputs.sum(1)})
    assert "single_effect" not in found
    assert "higher_is_better" not in found["shapley_value"].attrs
    assert "single_effect" in study(value="own", measures={"own": lambda o, t: o.sum(1)}, higher_is_better=True)


# Approximators of shapiq


@pytest.mark.filterwarnings("ignore:Not all budget is required:UserWarning")  # there are only eight coalitions
@pytest.mark.parametrize(
    ("method", "order"),
    [("KernelSHAP", 1), ("SVARM", 1), ("PermutationSamplingSV", 1), ("OwenSamplingSV", 1), ("StratifiedSamplingSV", 1),
     ("UnbiasedKernelSHAP", 1), ("KernelSHAPIQ", 2), ("SVARMIQ", 2), ("SHAPIQ", 2), ("PermutationSamplingSII", 2)],
)  # fmt: skip
def test_approximators_of_shapiq_run_on_a_game_as_it_is(method, order):
    pytest.importorskip("shapiq")
    exact = study(value="loss", order=2)
    found = study(value="loss", method=method, order=order, budget=200, seed=1)
    scale = float(np.abs(exact["shapley_value"]).max())
    np.testing.assert_allclose(found["shapley_value"], exact["shapley_value"], atol=0.35 * scale)
    assert np.isnan(found["shapley_stderr"]).all()
    assert ("shapley_interaction" in found) == (order == 2)
    assert found["n_coalitions"] <= 8
    again = study(value="loss", method=method, order=order, budget=200, seed=1)
    np.testing.assert_array_equal(found["shapley_value"], again["shapley_value"])


def test_an_approximator_that_is_not_there_or_does_not_estimate_this_is_refused():
    pytest.importorskip("shapiq")
    with pytest.raises(InputError, match=r"an approximator of shapiq, one of .*SVARMIQ.*, not 'Guess'"):
        study(method="Guess")
    with pytest.raises(InputError, match="OwenSamplingSV does not estimate Shapley interaction indices"):
        study(method="OwenSamplingSV", order=2)
    with pytest.raises(InputError, match="values of each sample come with method='exact'"):
        study(method="SVARM", per_sample=True)


def test_without_shapiq_its_approximators_are_refused_with_the_way_to_have_them(monkeypatch):
    monkeypatch.setitem(sys.modules, "shapiq", None)
    with pytest.raises(InputError, match=r"pip install 'resnet-paths-plugin\[interactions\]'"):
        study(method="KernelSHAP")


# Where it runs, and what is kept


def timeless(ds):
    return ds.drop_attrs().assign_attrs(
        {name: value for name, value in ds.attrs.items() if name not in {"date_created", "history"}}
    )


def test_a_checkpoint_holds_the_result_and_a_call_goes_on_from_what_is_finished(tmp_path):
    run = rpp.RunOptions(checkpoint=tmp_path / "shares.nc")
    calls = []

    def counted(outputs, target):
        calls.append(len(outputs))
        if len(calls) == 6:
            raise KeyboardInterrupt
        return outputs[torch.arange(len(target)), target]

    counted.version, counted.higher_is_better = "1", True
    options = {"value": "own", "measures": {"own": counted}, "internal_batch_size": 4}
    expected = study(**options | {"value": "target_score"})
    with pytest.raises(KeyboardInterrupt):
        study(**options, run=run)
    with pytest.raises(CheckpointError, match="value was own and is loss"):
        study(**options | {"value": "loss"}, run=run)
    found = study(**options, run=run)
    np.testing.assert_allclose(found["shapley_value"], expected["shapley_value"], rtol=1e-12)
    assert found.identical(rpp.load(tmp_path / "shares.nc"))
    assert [path.name for path in tmp_path.iterdir()] == ["shares.nc"]
    found.close()


def test_an_executor_gives_the_same_values():
    with ThreadPoolExecutor(2) as executor:
        found = study(value="loss", internal_batch_size=2, run=rpp.RunOptions(executor=executor))
    np.testing.assert_array_equal(found["shapley_value"], study(value="loss", internal_batch_size=2)["shapley_value"])


def test_what_is_going_to_be_run_is_said_before(capsys):
    study(show_progress=True)
    assert "8 coalitions of 3 players: about 2 forward passes" in capsys.readouterr().err


def test_means_over_other_samples_are_left_out_of_a_selection():
    found = study(per_sample=True)
    with pytest.warns(StaleResultWarning, match="shapley_value"):
        few = refreshed(found.isel(sample=slice(3)))
    assert "shapley_value" not in few
    assert few.sizes["sample"] == 3


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "exact", "budget": 7}, r"all 2\^3 = 8 coalitions, about 3 forward passes .* budget=8"),
        ({"method": "permutation", "budget": 9}, "10 coalitions, and the budget is 9"),
        ({"method": "permutation", "budget": 9, "order": 2}, "18 coalitions"),
        ({"order": 3}, "order must be 1"),
        ({"order": True}, "order must be 1"),
        ({"budget": 0}, "budget must be a positive integer"),
        ({"budget": None}, "budget must be a positive integer"),
        ({"budget": 10**7}, "at most 1,000,000"),
        ({"value": "accuracy"}, "value must be the name of a measure"),
        ({"value": "loss", "measures": {"mine": 3}}, "must be callable"),
        ({"seed": -1}, "seed must be"),
        ({"level": "stage"}, "level must be"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        study(**options)


def _drops(lesions):
    return lesions["target_score_drop"].astype(np.float64).mean("sample")


@pytest.mark.parametrize(("order", "budget"), [(1, 22), (1, 24), (1, 32), (1, 60), (2, 42), (2, 60)])
def test_single_deletions_are_in_the_budget_too(order, budget):
    net, _, x = network(functools.partial(PreActivation, blocks=6))
    found = rpp.BlockShapley(net).attribute(x, LABELS, method="permutation", order=order, budget=budget)
    assert int(found["n_coalitions"]) <= budget
    if "single_effect" in found:
        alone = rpp.BlockLesion(net).attribute(x, LABELS)
        np.testing.assert_allclose(found["single_effect"], _drops(alone), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["exact", "permutation"])
def test_one_block_has_all_of_the_measure_and_no_pair(method):
    net, _, x = network(functools.partial(PreActivation, blocks=1))
    found = rpp.BlockShapley(net).attribute(x, LABELS, method=method, order=2)
    np.testing.assert_allclose(found["shapley_value"], _drops(rpp.BlockLesion(net).attribute(x, LABELS)), rtol=1e-4)
    assert np.isnan(found["shapley_interaction"]).all()


@pytest.mark.filterwarnings("ignore:Not all budget is required:UserWarning")
def test_a_mistake_in_a_measure_is_told_as_it_is_under_shapiq():
    pytest.importorskip("shapiq")
    net, _, x = network()

    def wrong(_, __):
        raise ValueError("mistake in the measure")

    with pytest.raises((ValueError, InputError), match="mistake in the measure") as caught:
        rpp.BlockShapley(net).attribute(
            x, LABELS, value="wrong", measures={"wrong": wrong}, method="SVARM", higher_is_better=True, budget=40
        )
    assert "does not estimate" not in str(caught.value)


def test_no_coalitions_have_no_values_and_a_list_is_no_measure():
    net, _, x = network()
    assert rpp.BlockGame(net, x, LABELS).per_sample(np.zeros((0, 3), dtype=bool)).shape == (0, 7)
    with pytest.raises(InputError, match="name of one measure"):
        rpp.BlockGame(net, x, LABELS, value=["loss"])
    with pytest.raises(InputError, match="per_sample must be True or False"):
        study(per_sample="no")
