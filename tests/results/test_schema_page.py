"""The page of the schema is what the schema says, and the schema lists what studies hold: no more, no less."""

import re

import numpy as np
import pytest
import schema_page
import torch
from networks import Highway, Residual, mlp, randomised
from torch import nn

import resnet_paths_plugin as rpp
from resnet_paths_plugin import demo
from resnet_paths_plugin.results import schema

pytestmark = pytest.mark.slow

ESTIMATORS = ("exact", "sampled", "signs")


def images():
    return torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 3])


def digits(**options):
    data, _ = images()
    return rpp.unravel(demo.DigitsResNet(blocks_per_stage=2).eval(), data, **options)


class OfPositions(nn.Module):
    """Residual blocks with scores for each of 8 positions, which lie along the last dimension or the second."""

    def __init__(self, *, last):
        super().__init__()
        self.stem, self.blocks, self.last = nn.Linear(3, 5), nn.ModuleList([Residual(mlp(5)) for _ in range(2)]), last

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return x if self.last else x.mT


def of_tasks(analyze):
    """Return results of a study on a network of each task."""
    x, labels = torch.randn(4, 8, 3), torch.randint(5, (4, 8))
    targets = {"next_token": labels, "segmentation": labels, "regression": torch.randn(4, 8, 5), "embedding": None}
    return [
        analyze(rpp.unravel(OfPositions(last=task != "segmentation").eval(), x, task=task), x, target)
        for task, target in targets.items()
    ]


def studies():
    """Return results of each analyzer which hold, together, all that it can compute."""
    data, labels = images()
    named = rpp.NamedBatches([(data, labels)], ["a", "b", "c", "d"])
    net = digits()
    lesions = rpp.BlockLesion(net).attribute(data, target=labels)
    gated = randomised(Highway()).eval()
    lengths = rpp.PathLengthGradient(net)
    return {
        "BlockLesion": [
            lesions,
            rpp.BlockLesion(net).attribute(named, ablation="linear"),
            *of_tasks(lambda network, *data: rpp.BlockLesion(network).attribute(*data)),
        ],
        "BlockReordering": [
            rpp.BlockReordering(net).attribute(data, target=labels),
            rpp.BlockReordering(net).attribute(named),
            *of_tasks(lambda network, *data: rpp.BlockReordering(network).attribute(*data)),
        ],
        "BlockSchedules": [
            rpp.BlockSchedules(digits(optimize="fold_batch_norm")).attribute(
                named, schedules=rpp.schedules.adjacent_swaps
            ),
            *of_tasks(
                lambda network, *data: rpp.BlockSchedules(network).attribute(
                    *data, schedules=rpp.schedules.adjacent_swaps
                )
            ),
        ],
        "BlockInfluence": [
            rpp.BlockInfluence(net).attribute(named, lesions=lesions),
            rpp.BlockInfluence(gated).attribute(torch.randn(4, 3, 6, 6), target=(0, 0, 0), objective="score"),
        ],
        "BlockSelection": [
            rpp.BlockSelection(net).attribute(data, labels, n_random=1, latency_batch_size=2, ablation="linear")
        ],
        "BlockInteraction": [
            rpp.BlockInteraction(net).attribute(data, target=labels, value="loss", per_sample=True),
        ],
        "BlockShapley": [
            rpp.BlockShapley(net).attribute(
                data, target=labels, value="loss", method="permutation", budget=200, order=2, per_sample=True
            ),
        ],
        "PathLengthGradient": [
            lengths.attribute(data, target=labels, estimator=ESTIMATORS, draws=2, keep_maps=True),
            lengths.attribute(named, max_length=2),
            lengths.attribute(named, tap="parameters", per_sample=True),
            lengths.attribute(data, target=labels, tap="parameters", max_length=2),
        ],
        "BlockContribution": [rpp.BlockContribution(net).attribute(named, keep_maps=True)],
        "PathParticipation": [rpp.PathParticipation(net).attribute(named)],
    }


@pytest.fixture(scope="module")
def results():
    torch.manual_seed(0)
    return studies()


def test_the_page_is_what_the_schema_says():
    assert schema_page.PAGE.read_text(encoding="utf-8") == schema_page.page(), "run python -m tests.support.schema_page"


@pytest.mark.parametrize("study", schema.STUDIES)
def test_a_study_holds_the_variables_of_the_schema(study, results):
    # Gradients at parameters have a completeness error for each block, all others for each sample.
    found = {name: values for ds in reversed(results[study]) for name, values in ds.data_vars.items()}
    coords = {name: values for ds in results[study] for name, values in ds.coords.items()}
    listed = schema.STUDIES[study]
    assert found.keys() == listed.variables.keys()
    assert coords.keys() == listed.coords.keys()
    for name, where in {**listed.variables, **listed.coords}.items():
        values = {**found, **coords}[name]
        assert values.dims == tuple(
            dim for one in where.dims for dim in (("channel", "height", "width") if one == "*" else (one,))
        ), name
        quantity = schema.QUANTITIES[name.removeprefix("intact_")]
        assert np.issubdtype(values.dtype, quantity.dtype), name
        assert values.attrs.get("units") in ((None,) if quantity.dtype is np.str_ else (quantity.units, "nat")), name


def test_what_a_study_without_targets_lacks_is_said():
    data, _ = images()
    options_of = {"BlockLesion": {"ablation": "linear"}, "BlockSchedules": {"schedules": rpp.schedules.adjacent_swaps}}
    for study, options in options_of.items():
        ds = getattr(rpp, study)(digits()).attribute(data, **options)
        listed = schema.STUDIES[study].variables
        assert {*ds.data_vars} == {
            name for name, where in listed.items() if not {"targets", "task"} & {*re.findall(r"\w+", where.needs)}
        }


def test_the_attributes_are_those_of_the_schema(results):
    found = {name for group in results.values() for ds in group for name in ds.attrs}
    assert {name for name in found if not name.startswith("argument_")} == schema.ATTRIBUTES.keys()
