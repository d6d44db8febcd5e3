"""Small results made by hand, and what it takes to compare them with what a file gives back."""

import hypothesis.strategies as st
import numpy as np
import torch

from resnet_paths_plugin.graph.blocks import ResidualBlock
from resnet_paths_plugin.plugins.model_description import ModelDescription
from resnet_paths_plugin.results import datasets, provenance
from resnet_paths_plugin.results.block_coords import block_coords


def make_block(index, name="layer1.0", stage=0):
    return ResidualBlock(
        index=index,
        name=name,
        module="layer1",
        group="layer1",
        skip_kind="identity",
        branch_type="convolution",
        stage=stage,
        depth=2,
        source_shape=(16, 8, 8),
        sum_shape=(16, 8, 8),
        source="x",
        skip="x",
        branch="f",
        sum="y",
    )


def make_attrs(**changes):
    given = {
        "title": "Lesions of resnet18",
        "summary": "Every block deleted once.",
        "analyzer": "BlockLesion",
        "model_class": torch.nn.Sequential,
        "description": ModelDescription(library="timm", library_version="1.0", architecture="resnet18"),
        "weights_digest": "sha256:00ff",
        "plugins": ["timm 1.0", "torchvision 0.29"],
        "device": torch.device("cpu"),
        "dtype": torch.float32,
        "seed": 0,
        "arguments": {"lesions": None, "n_deleted": range(1, 21), "draws": 1},
    }
    return provenance.provenance(**{**given, **changes})


def make_lesion(**changes):
    blocks = [make_block(0, "layer1.0"), make_block(1, "schicht/ü.0", stage=None)]
    entries = {
        "loss": (("lesion", "sample"), np.array([[0.5, np.nan, np.inf], [1, 2, 3]], np.float32)),
        "correct": (("lesion", "sample"), np.array([[True, False, True], [False, False, False]])),
        "prediction": (("lesion", "sample"), np.array([[1, 2, 3], [4, 5, 6]])),
        "error": ("lesion", np.array([1 / 3, 1.0])),
        "deleted": (("lesion", "block"), np.eye(2, dtype=bool)),
        "n_deleted": ("lesion", [1, 1]),
        "intact_loss": ("sample", np.zeros(3)),
        "intact_error": ((), 0.0),
        "sharpness": (("lesion", "sample"), np.ones((2, 3))),
    }
    coords = {**block_coords(blocks), "lesion": ("lesion", ["layer1.0", "layer1.0+schicht/ü.0"])}
    return datasets.build({**entries, **changes}, coords=coords, attrs=make_attrs())


plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
