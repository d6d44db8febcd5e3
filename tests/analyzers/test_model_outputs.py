"""Outputs of Hugging Face transformers, as they are, and batches that are dicts, for every analyzer.

The oracle is the same model with its logits picked out by hand.
"""

import warnings

import pytest
import torch
import xarray as xr
from torch import nn

import resnet_paths_plugin as rpp
from resnet_paths_plugin.errors import InputError

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.slow

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "num_labels": 5}
IMAGE = {**SIZES, "image_size": 16, "patch_size": 8}
IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
IDS = torch.randint(0, 30, (4, 7), generator=torch.Generator().manual_seed(0))
MASK = torch.ones(4, 7, dtype=torch.int64).index_fill(1, torch.tensor([6]), 0)
LABELS = torch.tensor([0, 1, 2, 3])


def vit(**options):
    return transformers.ViTForImageClassification(transformers.ViTConfig(**IMAGE, **options))


MODELS = {
    "logits alone": (vit, (IMAGES,)),
    "logits and hidden states": (lambda: vit(output_hidden_states=True), (IMAGES,)),
    "logits of two heads": (
        lambda: transformers.DeiTForImageClassificationWithTeacher(transformers.DeiTConfig(**IMAGE)),
        (IMAGES,),
    ),
    "ids and a mask": (
        lambda: transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES, vocab_size=30)),
        (IDS, MASK),
    ),
}
ANALYZERS = {
    "lesions": (rpp.BlockLesion, {}),
    "reorderings": (rpp.BlockReordering, {}),
    "schedules": (rpp.BlockSchedules, {"schedules": [rpp.schedules.adjacent_swaps]}),
    "influence": (rpp.BlockInfluence, {}),
    "path lengths": (rpp.PathLengthGradient, {"tap": "stem"}),
}


class Logits(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *inputs):
        return self.model(*inputs).logits


@pytest.fixture(scope="module")
def networks():
    found = {}
    for name, (make, inputs) in MODELS.items():
        torch.manual_seed(0)
        model = make().eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found[name] = (rpp.unravel(model, inputs), rpp.unravel(Logits(model), inputs))
    return found


@pytest.mark.parametrize("analyzer", ANALYZERS)
@pytest.mark.parametrize("name", MODELS)
def test_a_model_output_gives_the_results_of_its_logits(networks, name, analyzer):
    (own, bare), (make, options) = networks[name], ANALYZERS[analyzer]
    inputs = MODELS[name][1]
    given = inputs if len(inputs) > 1 else inputs[0]
    found = make(own).attribute(given, target=LABELS, **options)
    wanted = make(bare).attribute(given, target=LABELS, **options)
    # Paths are counted from all outputs, and modules lie one deeper in the wrapper.
    for one in set(wanted.data_vars) - {"path_count", "log10_path_count"}:
        xr.testing.assert_equal(found[one].variable, wanted[one].variable)
    for batches in ([{"inputs": given, "target": LABELS}], {"inputs": given, "target": LABELS}):
        again = make(own).attribute(batches, **options)
        xr.testing.assert_equal(again, found)


def test_a_key_that_is_no_argument_is_refused_and_may_be_named_as_the_target(networks):
    own, _ = networks["logits alone"]
    for batches in ([{"pixel_values": IMAGES, "labels": LABELS}], {"pixel_values": IMAGES, "labels": LABELS}):
        with pytest.raises(InputError, match="arguments pixel_values, and those of this call have 'labels'"):
            rpp.BlockLesion(own).attribute(batches)
        assert "correct" in rpp.BlockLesion(own).attribute(batches, target="labels")
