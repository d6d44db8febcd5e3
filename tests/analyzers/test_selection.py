"""The chosen sets are the best by hand-patched models, and what is reported of them was not searched on."""

from itertools import combinations

import cifar
import numpy as np
import pytest
import scipy
import torch
import xarray as xr
from networks import PreActivation, Residual, randomised, without
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

import resnet_paths_plugin as rpp
from resnet_paths_plugin import demo
from resnet_paths_plugin.analyzers.coalitions import search_plan
from resnet_paths_plugin.errors import InputError, NonFiniteOutputWarning, UnknownBlockError
from resnet_paths_plugin.execution import TaskFolder
from resnet_paths_plugin.plotting.selection import describe_selection
from resnet_paths_plugin.plotting.wording import number

N = 5
FAST = {"latency": False, "n_random": 2}


def model(blocks=N):
    torch.manual_seed(1)
    return randomised(PreActivation(blocks=blocks)).eval().double()


def data(count=24):
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(count, 3, 6, 6, generator=generator, dtype=torch.float64)
    return images, torch.randint(0, 5, (count,), generator=generator)


@pytest.fixture(scope="module")
def net():
    return rpp.unravel(model(), data()[0])


@torch.no_grad()
def rise_by_hand(original, gone, images, labels, paths="blocks.{}.branch"):
    """Return the rise of the loss of each sample without some branches."""
    patched = without(original, *(paths.format(index) for index in gone))
    after, before = (functional.cross_entropy(one(images), labels, reduction="none") for one in (patched, original))
    return (after - before).numpy()


def chosen_of(ds, method, size):
    (place,) = np.flatnonzero((ds.method.values == method) & (ds.n_deleted.values == size))
    return ds.isel(selection=int(place))


def indices(row):
    return tuple(np.flatnonzero(row.deleted.values).tolist())


def test_an_exhaustive_search_chooses_the_best_of_all_hand_patched_models():
    original, (images, labels) = model(), data()
    ds = rpp.BlockSelection(original).attribute(images, labels, k=(1, 2, 3), method="exhaustive", holdout=None, **FAST)
    for size in (1, 2, 3):
        rises = {gone: rise_by_hand(original, gone, images, labels).mean() for gone in combinations(range(N), size)}
        row = chosen_of(ds, "exhaustive", size)
        assert indices(row) == min(rises, key=rises.get)
        assert float(row.searched_effect) == pytest.approx(min(rises.values()), abs=1e-10)
        steps = (ds.step_method == "exhaustive") & (ds.step_deleted.sum("block") == size)
        found = {
            tuple(np.flatnonzero(deleted)): effect
            for deleted, effect in zip(ds.step_deleted.values[steps], ds.step_effect.values[steps], strict=True)
        }
        assert found == pytest.approx(rises, abs=1e-10)
    assert "held_out_effect" not in ds


def test_what_is_reported_was_not_searched_on():
    original, (images, labels) = model(), data()
    ds = rpp.BlockSelection(original).attribute(
        images[:10], labels[:10], k=2, holdout=(images[10:], labels[10:]), n_random=3, latency=False
    )
    for row, prefix in [(ds.isel(selection=place), "") for place in range(2)] + [
        (ds.isel(random_set=place), "random_") for place in range(3)
    ]:
        gone = tuple(np.flatnonzero(row[f"{prefix}deleted"].values))
        searched = rise_by_hand(original, gone, images[:10], labels[:10])
        held_out = rise_by_hand(original, gone, images[10:], labels[10:])
        assert float(row[f"{prefix}searched_effect"]) == pytest.approx(searched.mean(), abs=1e-10)
        assert float(row[f"{prefix}held_out_effect"]) == pytest.approx(held_out.mean(), abs=1e-10)
        stderr = held_out.std(ddof=1) / np.sqrt(len(held_out))
        assert float(row[f"{prefix}held_out_effect_stderr"]) == pytest.approx(stderr, abs=1e-10)
    with torch.no_grad():
        wrong = (original(images[10:]).argmax(1) != labels[10:]).double().mean()
    assert float(ds.intact_held_out_error) == pytest.approx(float(wrong))
    assert (int(ds.n_searched_samples), int(ds.n_held_out_samples)) == (10, 14)


@pytest.mark.parametrize("halving", [1, 3])
def test_a_share_is_held_out_and_each_sample_is_on_one_side(halving, net):
    images, labels = data()
    batches = list(zip(images.split(7), labels.split(7), strict=True))

    def spied(outputs, target):
        return functional.cross_entropy(outputs, target, reduction="none")

    spied.higher_is_better = False
    ds = rpp.BlockSelection(net).attribute(
        batches, k=2, holdout=0.25, halving=halving, measure="spied", measures={"spied": spied}, seed=5, **FAST
    )
    assert (int(ds.n_searched_samples), int(ds.n_held_out_samples)) == (18, 6)
    # The whole is the mean of the two sides: no sample is left out or counted twice.
    row = chosen_of(ds, "greedy", 2)
    both = (18 * float(row.searched_effect) + 6 * float(row.held_out_effect)) / 24
    assert both == pytest.approx(rise_by_hand(model(), indices(row), images, labels).mean(), abs=1e-10)
    assert float(row.searched_effect) != pytest.approx(both, abs=1e-6)


def test_without_targets_the_divergence_from_the_intact_outputs_is_the_harm(net):
    images, _ = data()
    ds = rpp.BlockSelection(net).attribute(images, k=1, method="exhaustive", holdout=None, **FAST)
    assert ds.attrs["measure"] == "kl_divergence"
    original = model()
    with torch.no_grad():
        intact = original(images).log_softmax(1)
        divergences = [
            float(functional.kl_div(without(original, f"blocks.{gone}.branch")(images).log_softmax(1), intact,
                                    reduction="batchmean", log_target=True))
            for gone in range(N)
        ]  # fmt: skip
    assert indices(chosen_of(ds, "exhaustive", 1)) == (int(np.argmin(divergences)),)
    assert float(ds.searched_effect[0]) == pytest.approx(min(divergences), abs=1e-8)


def test_of_a_score_the_harm_is_its_fall(net):
    images, labels = data()
    ds = rpp.BlockSelection(net).attribute(
        images, labels, k=1, method="exhaustive", measure="target_score", holdout=None, **FAST
    )
    original = model()
    with torch.no_grad():
        scores = [
            one(images).gather(1, labels[:, None]).mean().item()
            for one in (original, *(without(original, f"blocks.{gone}.branch") for gone in range(N)))
        ]
    falls = scores[0] - np.array(scores[1:])
    assert float(ds.searched_effect[0]) == pytest.approx(falls.min(), abs=1e-6)


def test_the_ranking_by_influence_takes_the_least_first(net):
    images, labels = data()
    ds = rpp.BlockSelection(net).attribute(images, labels, k=(1, 3), holdout=None, **FAST)
    influence = rpp.BlockInfluence(net).attribute(images).block_influence.mean("sample").values
    order = np.argsort(influence)
    assert indices(chosen_of(ds, "influence", 1)) == (order[0],)
    assert indices(chosen_of(ds, "influence", 3)) == tuple(sorted(order[:3]))
    own = rpp.BlockInfluence(net).attribute(images).block_influence * -1
    ds = rpp.BlockSelection(net).attribute(images, labels, k=1, method="influence", proxy=own, holdout=None, **FAST)
    assert ds.method.values.tolist() == ["influence"]
    assert indices(ds.isel(selection=0)) == (order[-1],)


def test_kept_blocks_are_never_deleted_and_groups_go_as_one(net):
    images, labels = data()
    ds = rpp.BlockSelection(net).attribute(
        images, labels, k=(1, 2), method=("exhaustive", "evolutionary"), keep=["blocks.0", 3], **FAST
    )
    for name in ("deleted", "random_deleted", "step_deleted"):
        assert not ds[name].sel(block=["blocks.0", "blocks.3"]).any()
    ds = rpp.BlockSelection(net).attribute(images, labels, k=1, level="group", **FAST)
    assert ds.n_deleted_units.values.tolist() == [1, 1]


def test_blocks_with_projections_and_stages_are_left_alone_where_asked():
    digits, labels = (part[:24] for part in demo.load_digits())
    network = rpp.unravel(demo.DigitsResNet(blocks_per_stage=2).eval(), digits)
    ds = rpp.BlockSelection(network).attribute(
        digits, labels, k=2, method="exhaustive", only_movable=True, per_stage=1, **FAST
    )
    movable = np.array([block.movable for block in network.blocks])
    assert not ds.step_deleted.values[:, ~movable].any()
    by_stage = ds.step_deleted.groupby("block_stage").sum()
    assert int(by_stage.max()) == 1


def test_costs_are_those_of_the_pruned_network(net):
    images, labels = data()
    ds = rpp.BlockSelection(net).attribute(images, labels, k=(1, 3), n_random=1, latency_batch_size=4)
    for row, prefix in ((ds.isel(selection=1), ""), (ds.isel(random_set=0), "random_")):
        small = net.pruned(np.flatnonzero(row[f"{prefix}deleted"].values).tolist())
        assert int(row[f"{prefix}parameters"]) == sum(one.numel() for one in small.parameters())
        with FlopCounterMode(display=False) as counter:
            small(images[:1])
        assert 2 * int(row[f"{prefix}multiply_adds"]) == counter.get_total_flops()
        assert 0 < float(row[f"{prefix}latency"]) < 1
    # By hand: the stem, ten convolutions and the head, each at 36 positions but the last.
    assert int(ds.intact_multiply_adds) == 36 * (3 * 4 * 9 + 2 * N * 4 * 4 * 9) + 4 * 5
    assert ds.latency.attrs["batch_size"] == 4
    assert ds.latency.attrs["threads"] == torch.get_num_threads()


def test_stand_ins_are_fitted_on_the_samples_searched(net):
    images, labels = data()
    searched, held_out = images[:16], images[16:]
    ds = rpp.BlockSelection(net).attribute(
        searched, labels[:16], k=2, holdout=(held_out, labels[16:]), ablation="mean", **FAST
    )
    gone = indices(ds.isel(selection=0))
    original = model()
    values = {}
    hooks = [
        original.get_submodule(f"blocks.{index}.branch").register_forward_hook(
            lambda _, __, out, index=index: values.update({index: out})
        )
        for index in gone
    ]
    with torch.no_grad():
        before = functional.cross_entropy(original(searched), labels[:16])
        for hook in hooks:
            hook.remove()
        means = {index: value.mean(0, keepdim=True) for index, value in values.items()}
        for index in gone:
            original.get_submodule(f"blocks.{index}.branch").register_forward_hook(
                lambda _, __, out, index=index: means[index].expand_as(out)
            )
        rise = functional.cross_entropy(original(searched), labels[:16]) - before
        rise_held_out = functional.cross_entropy(original(held_out), labels[16:])
        rise_held_out -= functional.cross_entropy(model()(held_out), labels[16:])
    assert float(ds.searched_effect[0]) == pytest.approx(float(rise), abs=1e-10)
    assert float(ds.held_out_effect[0]) == pytest.approx(float(rise_held_out), abs=1e-10)
    small = net.pruned(list(gone), ablation="mean", reference=searched)
    assert int(ds.parameters[0]) == sum(one.numel() for one in small.parameters())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"k": N + 1}, "more than the network has"),
        ({"k": N}, "every one"),
        ({"k": 0}, "at least 1"),
        ({"k": -2}, "at least 1"),
        ({"k": "2"}, "number of blocks"),
        ({"k": True}, "number of blocks"),
        ({"k": ()}, "k is empty"),
        ({"k": 3, "keep": [0, 1, 2]}, "choose at most 2"),
        ({"keep": range(N)}, "keep fewer"),
        ({"method": "best"}, "method must be"),
        ({"method": ()}, "method is empty"),
        ({"holdout": 1.5}, "between 0 and 1"),
        ({"holdout": 0}, "between 0 and 1"),
        ({"holdout": 0.001}, "leaves none"),
        ({"holdout": True}, "share of the samples"),
        ({"holdout": (1, 2, 3)}, "has 3 entries"),
        ({"halving": 9}, "without samples"),
        ({"halving": 0}, "halving"),
        ({"beam_width": 0}, "beam_width"),
        ({"population": 1.5}, "population"),
        ({"n_random": -1}, "n_random"),
        ({"proxy": "depth"}, "proxy must be"),
        ({"per_stage": 0}, "per_stage"),
        ({"measure": "perplexity"}, "perplexity"),
        ({"ablation": "resample"}, "no network of its own"),
        ({"seed": -1}, "seed"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_to_do(options, told, net):
    images, labels = data()
    before = {name: value.clone() for name, value in net.model.state_dict().items()}
    with pytest.raises(InputError, match=told):
        rpp.BlockSelection(net).attribute(images, labels, **{**FAST, **options})
    assert all(torch.equal(value, before[name]) for name, value in net.model.state_dict().items())


def test_an_unknown_block_and_too_many_sets_are_refused(net, monkeypatch):
    images, labels = data()
    with pytest.raises(UnknownBlockError):
        rpp.BlockSelection(net).attribute(images, labels, keep="blocks.9")
    monkeypatch.setattr(search_plan, "MOST_SETS", 9)
    with pytest.raises(InputError, match="k=2 measures 10 sets, more than 9: choose a smaller k"):
        rpp.BlockSelection(net).attribute(images, labels, k=2, method="exhaustive")


def test_batches_that_change_from_pass_to_pass_are_refused(net):
    class Shuffled:
        def __iter__(self):
            images, labels = data()
            order = torch.randperm(len(images))
            return iter([(images[order], labels[order])])

    with pytest.raises(InputError, match="without shuffling"):
        rpp.BlockSelection(net).attribute(Shuffled(), **FAST)
    with pytest.raises(InputError, match="one-shot"):
        rpp.BlockSelection(net).attribute(iter([data()]), **FAST)


def test_a_killed_search_goes_on_to_the_same_result(net, tmp_path, monkeypatch):
    images, labels = data()
    options = {"k": (2, 3), "method": ("beam", "evolutionary"), "halving": 2, "generations": 3, **FAST}
    whole = rpp.BlockSelection(net).attribute(images, labels, **options)
    run = rpp.RunOptions(checkpoint=tmp_path / "chosen.nc")
    written = TaskFolder.write
    calls = []

    def killed(self, *args, **kwargs):
        calls.append(args[0])
        if len(calls) == 9:
            raise KeyboardInterrupt
        return written(self, *args, **kwargs)

    monkeypatch.setattr(TaskFolder, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        rpp.BlockSelection(net).attribute(images, labels, run=run, **options)
    calls.clear()

    def counted(self, *args, **kwargs):
        calls.append(args[0])
        return written(self, *args, **kwargs)

    monkeypatch.setattr(TaskFolder, "write", counted)
    resumed = rpp.BlockSelection(net).attribute(images, labels, run=run, **options)
    xr_names = [name for name in whole.data_vars if "latency" not in name]
    assert all(resumed[name].identical(whole[name]) for name in xr_names)
    assert "search 1-00000000" not in calls
    assert calls
    assert not (tmp_path / "chosen.nc.partial").exists()


@pytest.mark.zoo
@cifar.needs_cifar
def test_on_a_trained_network_the_best_pairs_and_triples_are_found():
    original = cifar.trained(20)
    images, labels = (part[:48] for part in cifar.images_and_labels())
    ds = rpp.BlockSelection(original).attribute(
        images, labels, k=(2, 3), method=("exhaustive", "beam"), holdout=None, latency=False
    )
    names = ds.block.values.tolist()
    for size in (2, 3):
        rises = {
            gone: rise_by_hand(original, [names[index] for index in gone], images, labels, "{}.bn2").mean()
            for gone in combinations(range(9), size)
        }
        best = chosen_of(ds, "exhaustive", size)
        assert indices(best) == min(rises, key=rises.get)
        assert float(best.searched_effect) == pytest.approx(min(rises.values()), abs=1e-5)
        assert indices(chosen_of(ds, "beam", size)) == indices(best)
        assert (
            ds.random_searched_effect.values[ds.random_n_deleted.values == size] >= best.searched_effect.item()
        ).all()


@pytest.mark.slow
def test_a_network_that_freezes_its_batch_costs_what_the_same_network_costs_that_does_not():
    original, (images, labels) = model(), data()

    class Frozen(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = model()

        def forward(self, x):
            return self.net(torch.stack([image * 1 for image in x]))

    batches = list(zip(images.split(6), labels.split(6), strict=True))
    expected = rpp.BlockSelection(original).attribute(images, labels, method="exhaustive", holdout=None, **FAST)
    found = rpp.BlockSelection(Frozen()).attribute(batches, method="exhaustive", holdout=None, n_random=2)
    assert found.latency.attrs["batch_size"] == 6
    for name in ("multiply_adds", "parameters", "intact_multiply_adds"):
        np.testing.assert_array_equal(found[name], expected[name])
    np.testing.assert_allclose(found.searched_effect, expected.searched_effect, atol=1e-10)


@pytest.mark.parametrize("option", ["higher_is_better", "only_movable", "latency"])
def test_a_word_is_no_truth_value(net, option):
    with pytest.raises(InputError, match=f"{option} must be True or False"):
        rpp.BlockSelection(net).attribute(*data(), **{option: "no"})


def test_one_sample_held_out_has_no_standard_error(net):
    images, labels = data()
    ds = rpp.BlockSelection(net).attribute(
        images[:6], labels[:6], holdout=(images[6:7], labels[6:7]), latency=False, n_random=0
    )
    assert np.isnan(ds.held_out_effect_stderr).all()
    rise = rise_by_hand(model(), indices(ds.isel(selection=0)), images[6:7], labels[6:7])
    assert float(ds.held_out_effect[0]) == pytest.approx(rise.item(), abs=1e-10)
    sentence = describe_selection(ds)
    assert "95 % interval" not in sentence
    assert "nan" not in sentence


def test_the_sentence_quotes_students_interval_over_the_samples_held_out(net):
    ds = rpp.BlockSelection(net).attribute(*data(), latency=False, n_random=0)
    last = ds.isel(selection=int(ds.n_deleted.values.argmax()))
    low, high = scipy.stats.t.interval(
        0.95, int(ds.n_held_out_samples) - 1, float(last.held_out_effect), float(last.held_out_effect_stderr)
    )
    assert f"95 % interval {number(low)} to {number(high)})" in describe_selection(ds)


def test_what_is_no_number_on_samples_held_out_is_warned_of(net):
    images, labels = data()

    def odd(outputs, target):
        return torch.where(target == 4, float("inf"), 0.0) + outputs[:, 0]

    odd.higher_is_better = True
    with pytest.warns(NonFiniteOutputWarning, match="on samples held out"):
        rpp.BlockSelection(net).attribute(
            images, 0 * labels, measure="odd", measures={"odd": odd}, holdout=(images[:3], 0 * labels[:3] + 4), **FAST
        )


class Guarded(torch.nn.Module):
    """One block takes away a large value, whose square overflows without it."""

    guard = 1

    def __init__(self):
        super().__init__()
        self.stem, self.head = torch.nn.Linear(4, 4), torch.nn.Linear(3, 5)
        self.blocks = torch.nn.ModuleList(Residual(torch.nn.Linear(4, 4)) for _ in range(4))
        with torch.no_grad():
            self.stem.weight[3] = 0
            self.stem.bias[3] = 1e30
            for index, block in enumerate(self.blocks):
                block.branch.weight[:, 3] = block.branch.weight[3] = block.branch.bias[3] = 0
                block.branch.weight[3, 3] = -1.0 if index == self.guard else 0.0

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x[:, :3]) + x[:, 3:] ** 2


@pytest.fixture(scope="module")
def guarded():
    torch.manual_seed(0)
    model = Guarded().eval()
    x, labels = torch.randn(12, 4), torch.arange(12) % 5
    assert torch.isfinite(model(x)).all()
    assert not torch.isfinite(without(model, "blocks.1.branch")(x)).any()
    return model, x, labels


METHODS = ["exhaustive", "greedy", "beam", "evolutionary", "influence"]


@pytest.mark.parametrize("measure", ["loss", "target_score"])  # NaN, and infinitely better
@pytest.mark.parametrize("method", METHODS)
def test_a_set_whose_outputs_overflow_is_never_chosen_and_said_to_be_left_out(method, measure, guarded):
    model, x, labels = guarded
    net = rpp.unravel(model, x)
    proxy = xr.DataArray([3.0, 1.0, 0.0, 2.0], {"block": [block.name for block in net.blocks]}, ["block"])
    options = {"k": (1, 2), "method": method, "measure": measure, "proxy": proxy, "population": 4, "halving": 2}
    with pytest.warns(NonFiniteOutputWarning, match=r"left out \(blocks\.1.*no set for k=2 by 'influence'"):
        ds = rpp.BlockSelection(net).attribute(x, labels, **options, latency=False, n_random=0)
    assert not ds.deleted.values[:, Guarded.guard].any()
    assert np.isfinite(ds.searched_effect).all()
    assert np.isfinite(ds.held_out_effect).all()
    sizes = zip(ds.method.values.tolist(), ds.n_deleted.values.tolist(), strict=True)
    assert sorted(sizes) == sorted({(method, 1), (method, 2), ("influence", 1)} - {("influence", 2)})
    np.testing.assert_array_equal(ds.step_left_out, ds.step_deleted.values[:, Guarded.guard])
    np.testing.assert_array_equal(ds.step_left_out, ~np.isfinite(ds.step_effect))
    assert " are left out, as their effect is NaN or infinite." in describe_selection(ds)


def test_where_no_set_has_a_finite_effect_the_reason_is_said(guarded):
    model, x, labels = guarded
    keep = [f"blocks.{index}" for index in range(4) if index != Guarded.guard]
    with pytest.raises(InputError, match="none of them can be chosen"):
        rpp.BlockSelection(model).attribute(x, labels, keep=keep, **FAST)
    broken = without(model, "blocks.1.branch")
    with pytest.raises(InputError, match="for the intact network"):
        rpp.BlockSelection(broken).attribute(x, labels, **FAST)


@pytest.mark.parametrize("method", ["exhaustive", "evolutionary"])
def test_a_search_of_each_size_anew_costs_what_the_size_alone_costs(net, method):
    options = {"method": method, "population": 3, "generations": 2, **FAST}
    images, labels = data()
    together = rpp.BlockSelection(net).attribute(images, labels, k=(1, 2, 3), **options)
    for size in (1, 2, 3):
        alone = chosen_of(rpp.BlockSelection(net).attribute(images, labels, k=size, **options), method, size)
        row = chosen_of(together, method, size)
        assert indices(row) == indices(alone)
        assert (int(row.n_tried), float(row.search_cost)) == (int(alone.n_tried), float(alone.search_cost))
        if method == "exhaustive":
            assert int(row.n_tried) == row.search_cost == len(list(combinations(range(N), size)))
