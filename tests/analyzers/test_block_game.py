"""The game over blocks: its values against copies patched by hand; each coalition once; executors and checkpoints."""

import functools
import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from known_networks import CASES
from networks import PreActivation, Transformer, randomised, without
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import CheckpointError, InputError, NonFiniteOutputWarning
from resnet_paths_plugin.execution import TaskFolder

IMAGES = (3, 6, 6)
LABELS = torch.tensor([0, 3, 1, 4, 4, 2, 0])
ALL = np.array(list(itertools.product([False, True], repeat=3)))


@functools.cache
def network(seed=0):
    """A network with three blocks `blocks.0` to `blocks.2`, its model, and images; all in float64."""
    model = randomised(PreActivation(), seed).double().eval()
    x = torch.randn(7, *IMAGES, generator=torch.Generator().manual_seed(3)).double()
    return rpp.unravel(model, x), model, x


def game(value="target_score", **options):
    net, _, x = network()
    return rpp.BlockGame(net, x, options.pop("target", LABELS), value=value, **options)


def by_hand(coalition):
    """Return the logits of a copy in which the branches outside of a coalition return zeros."""
    _, model, x = network()
    gone = [f"blocks.{at}.branch" for at in np.flatnonzero(~coalition)]
    with torch.no_grad():
        return without(model, *gone)(x)


def plain(value, logits, intact):
    rows = torch.arange(7)
    return {
        "target_score": logits[rows, LABELS],
        "loss": functional.cross_entropy(logits, LABELS, reduction="none"),
        "correct": (logits.argmax(1) == LABELS).double(),
        "target_score_drop": intact[rows, LABELS] - logits[rows, LABELS],
        "prediction_changed": (logits.argmax(1) != intact.argmax(1)).double(),
        "kl_divergence": functional.kl_div(logits.log_softmax(1), intact.softmax(1), reduction="none").sum(1),
    }[value].numpy()


class Counted:
    """A measure that counts on how many outputs it is called, and stops at some call."""

    version = "1"
    higher_is_better = True

    def __init__(self, at=None):
        self.calls, self.at = 0, at

    def __call__(self, outputs, target):
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt
        return outputs[torch.arange(len(target)), target]


def energy(outputs, _):
    return outputs["coarse"].square().sum((1, 2, 3))


# Values


@pytest.mark.parametrize(
    "value", ["target_score", "loss", "correct", "target_score_drop", "prediction_changed", "kl_divergence"]
)
def test_each_value_is_the_measure_of_a_copy_patched_by_hand(value):
    values = game(value)
    intact = by_hand(np.ones(3, dtype=bool))
    expected = np.stack([plain(value, by_hand(row), intact) for row in ALL])
    np.testing.assert_allclose(values(ALL), expected.mean(1), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(values.per_sample(ALL), expected, rtol=1e-9, atol=1e-12)
    assert values(ALL).dtype == values.per_sample(ALL).dtype == np.float64
    assert values.players == ("blocks.0", "blocks.1", "blocks.2")


@pytest.mark.parametrize(
    ("value", "sign"),
    [("target_score", 1), ("correct", 1), ("loss", -1), ("kl_divergence", -1), ("target_score_drop", -1),
     ("prediction_changed", -1)],
)  # fmt: skip
def test_effects_are_positive_where_a_deletion_harms(value, sign):
    values = game(value)
    expected = sign * (values(np.ones(3, dtype=bool)) - values(~ALL))
    np.testing.assert_array_equal(values.effects(ALL), expected)
    np.testing.assert_allclose(values.effects(ALL, per_sample=True).mean(1), expected, atol=1e-12)


def test_a_measure_of_ones_own_says_which_way_is_better():
    own = Counted()
    assert game("own", measures={"own": own}).higher_is_better
    assert not game("own", measures={"own": own}, higher_is_better=False).higher_is_better
    silent = game("silent", measures={"silent": lambda outputs, target: outputs.sum(1)})
    assert silent(ALL).shape == (8,)
    with pytest.raises(InputError, match="pass higher_is_better=True"):
        silent.effects(ALL)


def test_groups_are_players():
    model = randomised(Transformer()).double().eval()
    x = torch.randn(7, *IMAGES, generator=torch.Generator().manual_seed(3)).double()
    values = rpp.BlockGame(model, x, LABELS, level="group")
    assert values.players == ("layers.0", "layers.1")
    with torch.no_grad():
        expected = without(model, "layers.1.attn", "layers.1.mlp")(x)[torch.arange(7), LABELS].mean()
    np.testing.assert_allclose(values(np.array([True, False])), [expected], rtol=1e-9)


@pytest.mark.parametrize("ablation", ["mean", "resample", "linear"])
def test_deleted_branches_are_replaced_as_a_lesion_study_does(ablation):
    net, _, x = network()
    lesions = rpp.BlockLesion(net).attribute(x, LABELS, lesions=[[0], [0, 2]], ablation=ablation, seed=4)
    values = game("loss", ablation=ablation, seed=4)
    values(ALL[:2])  # what an earlier call needed does not change the next
    deleted = np.array([[True, False, False], [True, False, True]])
    np.testing.assert_allclose(values.per_sample(~deleted), lesions["loss"], rtol=1e-5)


def test_batches_of_a_loader_give_the_values_of_their_samples():
    net, _, x = network()
    loader = DataLoader(TensorDataset(x, LABELS), batch_size=3)
    values = rpp.BlockGame(net, loader, value="loss", internal_batch_size=2)
    np.testing.assert_allclose(values.per_sample(ALL), game("loss").per_sample(ALL), rtol=1e-12)


# Each coalition once


def test_no_coalition_is_run_twice():
    counted = Counted()
    values = game("own", measures={"own": counted})
    values(ALL[[1, 4, 1, 1]])
    assert (counted.calls, values.n_evaluated) == (2, 2)
    values(ALL)
    assert (counted.calls, values.n_evaluated) == (8, 8)
    values.per_sample(ALL[::-1])
    values.effects(ALL)
    assert (counted.calls, values.n_evaluated) == (8, 8)


def test_values_do_not_depend_on_what_is_evaluated_beside_them():
    whole, single = game()(ALL), game()
    assert [single(row).item() for row in reversed(ALL)][::-1] == whole.tolist()


def test_the_model_is_left_as_it_was():
    _, model, x = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state, expected = torch.get_rng_state(), model(x)
    values = game(ablation="resample")
    values(ALL)
    with pytest.raises(InputError):
        values(np.ones((2, 4), dtype=bool))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model(x), expected)


# Where it runs, and what is kept


def test_an_executor_gives_the_same_values():
    with ThreadPoolExecutor(2) as executor:
        values = game(internal_batch_size=2, run=rpp.RunOptions(executor=executor))
        assert values(ALL).tolist() == game(internal_batch_size=2)(ALL).tolist()


def test_a_game_goes_on_from_what_an_earlier_one_has_evaluated(tmp_path):
    run = rpp.RunOptions(checkpoint=tmp_path / "game.nc")
    first, second = Counted(), Counted()
    begun = game("own", measures={"own": first}, run=run)
    begun(ALL[:3])
    begun(ALL[5:])
    gone_on = game("own", measures={"own": second}, run=run)
    assert gone_on(ALL).tolist() == game("own", measures={"own": Counted()})(ALL).tolist()
    assert (first.calls, second.calls) == (6, 2)
    assert begun(ALL).tolist() == gone_on(ALL).tolist()
    assert first.calls == 6
    gone_on.remove_checkpoint()
    assert not list(tmp_path.iterdir())


def test_a_call_that_was_interrupted_goes_on_from_its_finished_tasks(tmp_path):
    run = rpp.RunOptions(checkpoint=tmp_path / "game.nc")
    stopping, counted = Counted(at=20), Counted()
    with pytest.raises(KeyboardInterrupt):
        game("own", measures={"own": stopping}, internal_batch_size=2, run=run)(ALL)
    values = game("own", measures={"own": counted}, internal_batch_size=2, run=run)
    assert values(ALL).tolist() == game("own", measures={"own": Counted()}, internal_batch_size=2)(ALL).tolist()
    assert counted.calls == 32 - 16  # 4 chunks of 8 coalitions, of which two were finished
    assert sorted(path.name for path in (tmp_path / "game.nc.partial").glob("*.task")) == ["evaluated-00000000.task"]


def other_data(options):
    net, _, x = network()
    return rpp.BlockGame(net, x + 1, LABELS, **options)


def other_model(options):
    net, _, _ = network(1)
    return rpp.BlockGame(net, network()[2], LABELS, **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (other_data, "made from other data"),
        (other_model, "weights_digest was"),
        (lambda options: game("loss", **options), "value was target_score and is loss"),
        (lambda options: game(ablation="mean", **options), "ablation was zero and is mean"),
    ],
    ids=["data", "model", "measure", "ablation"],
)
def test_a_checkpoint_of_another_game_is_refused(make, message, tmp_path):
    options = {"run": rpp.RunOptions(checkpoint=tmp_path / "game.nc")}
    kept = game(**options)(ALL[:4])
    with pytest.raises(CheckpointError, match=message):
        make(options)(ALL)
    assert game(**options)(ALL[:4]).tolist() == kept.tolist()


def test_a_folder_of_the_callers_keeps_what_is_evaluated(tmp_path):
    folder = TaskFolder(tmp_path / "kept")
    first, second = Counted(), Counted()
    for counted in (first, second):
        game("own", measures={"own": counted}, run=rpp.RunOptions(checkpoint=folder))(ALL)
    assert (first.calls, second.calls) == (8, 0)


# Bad input


@pytest.mark.parametrize(
    ("coalitions", "message"),
    [
        (np.ones((2, 4), dtype=bool), r"3 players\), not of shape \(2, 4\)"),
        (np.ones(2, dtype=bool), r"not of shape \(2,\)"),
        (np.ones((1, 2, 3), dtype=bool), r"not of shape \(1, 2, 3\)"),
        (np.ones((2, 3)), r"not float64: convert them with \.astype\(bool\)"),
        ([[1, 0, 1]], "not int64"),
        ("all", "must be a boolean matrix"),
    ],
)
def test_bad_coalitions_are_refused(coalitions, message):
    with pytest.raises(InputError, match=message):
        game()(coalitions)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"value": "accuracy"}, "one of 'target_score', 'loss', .* not 'accuracy'"),
        ({"value": "prediction"}, "not 'prediction'"),
        ({"value": "loss", "target": None}, "value='loss' needs a target: the class of each sample"),
        ({"value": "correct", "target": None}, "needs a target"),
        ({"target": None}, "value='target_score' needs a target"),
        ({"target": 7}, "target 7 is out of range"),
        ({"level": "stage"}, "level must be"),
        ({"ablation": "noise"}, "ablation must be"),
        ({"seed": -1}, "seed must be"),
        ({"internal_batch_size": 0}, "internal_batch_size"),
        ({"perturbations_per_eval": 0}, "perturbations_per_eval"),
        ({"higher_is_better": "yes"}, "higher_is_better must be"),
        ({"run": "here"}, "run must be RunOptions"),
    ],
)
def test_bad_options_are_refused_before_anything_is_run(options, message):
    with pytest.raises(InputError, match=message):
        game(**options)


def test_outputs_of_another_form_need_a_measure_of_ones_own():
    case = CASES["feature pyramid"]
    model, (x,) = case.model(), case.inputs()
    with pytest.raises(InputError, match="name a measure of your own"):
        rpp.BlockGame(model, x, value="kl_divergence", measures={"energy": energy})
    values = rpp.BlockGame(model, x, value="energy", measures={"energy": energy})
    intact = np.ones(values.n_players, dtype=bool)
    np.testing.assert_allclose(values(intact), [energy(model(x), None).mean().item()], rtol=1e-5)


def test_an_iterator_that_can_be_read_once_is_refused():
    net, _, x = network()
    with pytest.raises(InputError, match="a one-shot iterator can be read once"):
        rpp.BlockGame(net, iter([(x, LABELS)]))


def test_samples_that_differ_between_calls_are_refused():
    net, _, x = network()
    torch.manual_seed(0)
    values = rpp.BlockGame(net, DataLoader(TensorDataset(x, LABELS), batch_size=7, shuffle=True))
    values(ALL[:2])
    torch.manual_seed(1)
    with pytest.raises(InputError, match="a DataLoader without shuffling"):
        values(ALL)
    assert values.n_evaluated == 2


def test_weights_that_changed_between_calls_are_refused():
    model = randomised(PreActivation()).double().eval()
    values = rpp.BlockGame(model, network()[2], LABELS)
    values(ALL[:2])
    with torch.no_grad():
        model.head.weight.mul_(2)
    with pytest.raises(InputError, match="the weights of PreActivation were changed"):
        values(ALL)
    assert values(ALL[:2]).shape == (2,)  # these are known


def test_values_that_are_no_numbers_are_warned_of():
    values = game("odd", measures={"odd": lambda outputs, _: outputs.sum(1) * float("nan")})
    with pytest.warns(NonFiniteOutputWarning, match="under 8 of 8 coalitions"):
        values(ALL)
