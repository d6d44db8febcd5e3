"""Arguments by name: models called by keywords, with dicts for inputs and batches."""

from collections import UserDict
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch
import xarray as xr
from networks import Residual, mlp
from torch import nn
from torch.utils.data import DataLoader

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import InputError
from resnet_paths_plugin.graph.keywords import Keywords, packed, rearranged, signature_of

WIDTH, CLASSES = 6, 4


class Body(nn.Module):
    """Two residual blocks of values that a mask scales, and class scores."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([Residual(mlp(WIDTH)) for _ in range(2)])
        self.head = nn.Linear(WIDTH, CLASSES)

    def scores(self, x, mask):
        x = x * mask
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Either(Body):
    """Takes its arguments by position or by name, with a flag and an argument that has a default."""

    def forward(self, x, mask=None, *, scale=1.0, unused=None):
        assert unused is None
        return self.scores(x, 1.0 if mask is None else mask) * scale


class ByNameOnly(Body):
    def forward(self, *, mask, x):
        return self.scores(x, mask)


class AnyNames(Body):
    def forward(self, **given):
        return {"scores": self.scores(given["x"], given["mask"]), "inputs": given["x"]}


@pytest.fixture
def data():
    torch.manual_seed(1)
    return {"x": torch.randn(5, WIDTH), "mask": torch.rand(5, WIDTH)}


@pytest.fixture
def labels():
    return torch.tensor([0, 1, 2, 3, 0])


def by_position(model, data):
    return model.scores(data["x"], data["mask"])


@pytest.mark.parametrize("kind", [Either, ByNameOnly])
@pytest.mark.parametrize("wrap", [dict, UserDict])
def test_a_model_called_by_name_equals_itself(kind, wrap, data):
    model = kind().eval()
    net = rpp.unravel(model, wrap(data))
    assert len(net.blocks) == 2
    expected = by_position(model, data)
    assert torch.equal(net(**data), expected)
    assert torch.equal(net(mask=data["mask"][:3], x=data["x"][:3]), expected[:3])  # in any order, for any batch
    for view in (net.lesioned([1]), net.restricted([0, 1, 2]), net.pruned([1])):
        assert view(**data).shape == expected.shape
    assert torch.equal(net.lesioned([1])(**data), net.pruned([1])(mask=data["mask"], x=data["x"]))
    assert torch.equal(net.sampling(n_active=2).eval()(**data), expected)
    with torch.no_grad():
        expected = model.head(model.blocks[0](data["x"] * data["mask"]))
    assert torch.equal(net.lesioned([1])(**data), expected)


def test_arguments_by_position_and_by_name_are_the_same_ones(data):
    model = Either().eval()
    x, mask = data.values()
    for example in (data, (x, mask), ((x,), {"mask": mask})):
        net = rpp.unravel(model, example)
        outputs = [
            net(x, mask),
            net(x, mask=mask),
            net(x=x, mask=mask),
            net(x, mask, scale=1.0),
            net(x, mask, unused=None),
        ]
        assert all(torch.equal(one, outputs[0]) for one in outputs[1:])
        gradient = net.restricted([1])
        assert gradient(x.clone().requires_grad_(), mask=mask).requires_grad


def test_a_flag_is_fixed_and_need_not_be_given_again(data):
    model = Either().eval()
    net = rpp.unravel(model, {**data, "scale": 2.0})
    assert torch.equal(net(**data), 2 * by_position(model, data))
    with pytest.raises(InputError, match=r"was 2\.0 when the network was captured and is 3\.0 now"):
        net(**data, scale=3.0)


def test_other_arguments_are_refused_with_both_lists(data):
    net = rpp.unravel(Either(), data)
    with pytest.raises(InputError, match=r"captured with the arguments x, mask, and those of this call lack 'mask'"):
        net(data["x"])
    with pytest.raises(InputError, match=r"have 'scale'.*unravel the model again"):
        net(**data, scale=2.0)
    with pytest.raises(InputError, match="got an unexpected keyword argument 'y'"):
        net(**data, y=1)


@pytest.mark.parametrize("value", [[[1.0, 2.0]] * 5, torch.rand(5, WIDTH).numpy()])
def test_numbers_that_are_no_tensor_are_refused_by_name(value, data):
    with pytest.raises(InputError, match=r"argument 'mask' is a .*return_tensors='pt'"):
        rpp.unravel(Either(), {**data, "mask": value})
    with pytest.raises(InputError, match="argument 'mask' is a "):
        rpp.BlockLesion(Either()).attribute({**data, "mask": value})


def test_batches_that_are_dicts_equal_pairs(data, labels):
    model = ByNameOnly().eval()
    samples = [{name: value[at] for name, value in {**data, "labels": labels}.items()} for at in range(5)]
    expected = rpp.BlockLesion(rpp.unravel(Either().eval(), tuple(data.values()))).attribute((*data.values(),), labels)
    given = {
        "one dict": ({**data, "labels": labels}, "labels"),
        "one dict and a target": (data, labels),
        "a loader": (DataLoader(samples, batch_size=2), "labels"),
        "an iterable": ((batch for batch in DataLoader(samples, batch_size=3)), "labels"),
        "pairs": ([(data, labels)], None),
        "a function": ([{**data}], lambda batch: labels if "x" in batch else None),
        "arguments": (((), data), labels),
    }
    for name, (inputs, target) in given.items():
        found = rpp.BlockLesion(model).attribute(inputs, target)
        xr.testing.assert_allclose(found.target_score, expected.target_score, rtol=1e-5)
        assert found.error.equals(expected.error), name


def test_a_function_takes_the_target_out_of_longer_batches(data, labels):
    model = nn.Sequential(Residual(mlp(WIDTH)), nn.Linear(WIDTH, CLASSES)).eval()
    found = rpp.BlockLesion(model).attribute([(data["x"], labels, "a.png")], lambda batch: batch[1])
    assert found.correct.equals(rpp.BlockLesion(model).attribute(data["x"], labels).correct)


def test_a_function_of_one_batch_leaves_all_its_inputs(data, labels):
    model = Either().eval()
    expected = rpp.BlockLesion(model).attribute((*data.values(),), labels).target_score
    for inputs in ((*data.values(),), ((data["x"],), {"mask": data["mask"]})):
        assert rpp.BlockLesion(model).attribute(inputs, lambda _: labels).target_score.equals(expected)


def test_one_tensor_has_no_output_to_choose(data, labels):
    with pytest.raises(InputError, match="output=0 chooses among several outputs, and the model returns one tensor"):
        rpp.BlockLesion(rpp.unravel(Either(), data, output=0)).attribute(data, labels)


def test_a_key_that_is_not_there_is_refused_with_those_that_are(data):
    with pytest.raises(InputError, match="target='label' is no key of the batch, which has 'x', 'mask'"):
        rpp.BlockLesion(ByNameOnly()).attribute(data, "label")
    with pytest.raises(InputError, match="names a key of batches that are dicts, and a batch is a Tensor"):
        rpp.BlockLesion(Either()).attribute([data["x"]], "label")


def test_additional_arguments_go_by_name_too(data, labels):
    model = Either().eval()
    expected = rpp.PathLengthGradient(model).attribute((*data.values(),), labels).gradient_norm
    inputs = {"x": data["x"]}
    more = {"mask": data["mask"]}
    found = rpp.PathLengthGradient(model).attribute(inputs, labels, more).gradient_norm
    alone = rpp.PathLengthGradient(model).attribute(data["x"], labels, (data["mask"],)).gradient_norm
    assert found.equals(alone)
    assert not found.equals(expected)  # of both inputs
    with pytest.raises(InputError, match="pass these by name as well"):
        rpp.PathLengthGradient(model).attribute(inputs, labels, (data["mask"],))


def test_a_reference_may_be_a_dict(data):
    net = rpp.unravel(ByNameOnly().eval(), data)
    x, mask = data["x"], data["mask"]
    other = rpp.unravel(Either().eval(), (x, mask))
    expected = other.lesioned([0], ablation="mean", reference=(x, mask))(x, mask)
    truth = rpp.BlockLesion(other).attribute((x, mask), ablation="mean", reference=(x, mask)).kl_divergence
    for reference in (data, [data]):
        assert torch.equal(net.lesioned([0], ablation="mean", reference=reference)(**data), expected)
        found = rpp.BlockLesion(net).attribute(data, ablation="mean", reference=reference).kl_divergence
        assert found.equals(truth)
    labels = torch.zeros(5, dtype=torch.int64)
    for reference in ({**data, "labels": labels}, [{**data, "labels": labels}]):  # as the loader of the inputs yields
        found = rpp.BlockLesion(net).attribute(
            [{**data, "labels": labels}], "labels", ablation="mean", reference=reference
        )
        assert found.kl_divergence.equals(truth)


def test_one_output_of_several_is_chosen(data, labels):
    model = AnyNames().eval()
    expected = rpp.BlockLesion(Either().eval()).attribute((*data.values(),), labels)
    for output in ("scores", lambda outputs: outputs["scores"]):
        net = rpp.unravel(model, data, output=output)
        assert rpp.BlockLesion(net).attribute(data, labels).target_score.equals(expected.target_score)
        lengths = rpp.PathLengthGradient(net).attribute(data, labels)
        assert float(lengths.completeness_error.max()) < 1e-5
    with pytest.raises(
        InputError, match=r"output='logits' is not among the model's outputs, a dict of 'scores', 'inputs'"
    ):
        rpp.BlockLesion(rpp.unravel(model, data, output="logits")).attribute(data, labels)
    with pytest.raises(InputError, match="unravel the model itself again with another task or output"):
        rpp.unravel(rpp.unravel(model, data), output="scores")


def test_integers_beside_floats_by_name(labels):
    class Mixed(Body):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(7, WIDTH)

        def forward(self, ids, shift):
            return self.scores(self.embed(ids) + shift, 1.0)

    model = Mixed().eval()
    given = {"ids": torch.randint(7, (5,)), "shift": torch.randn(5, WIDTH)}
    found = rpp.PathLengthGradient(model).attribute(given, labels, keep_maps=True)
    shift = given["shift"].clone().requires_grad_()
    scores = model(given["ids"], shift).gather(1, labels[:, None]).sum()
    (expected,) = torch.autograd.grad(scores, shift)
    whole = torch.from_numpy(found.gradient.sum("path_length").values)
    torch.testing.assert_close(whole, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_study_by_name_on_workers_equals_one_here(data, labels):
    net = rpp.unravel(AnyNames().eval(), data, output="scores", task="classification")
    here = rpp.BlockLesion(net).attribute(data, labels)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        there = rpp.BlockLesion(net).attribute(data, labels, run=rpp.RunOptions(executor=executor))
    assert there.drop_attrs().equals(here.drop_attrs())


def test_keywords_are_flattened_as_torch_has_them():
    args = packed((1,), {"b": 2, "a": 3})
    leaves, spec = torch.utils._pytree.tree_flatten(args)
    assert leaves == [1, 2, 3]
    assert torch.utils._pytree.tree_unflatten(leaves, spec) == (1, Keywords(b=2, a=3))

    class Model(nn.Module):
        def forward(self, one, *more, a, b=2, **others):
            raise NotImplementedError

    captured = (1, 2, 3, Keywords(c=5, a=4))
    assert rearranged(signature_of(Model()), (1, 2, 3, Keywords(a=4, c=5)), captured) == captured
