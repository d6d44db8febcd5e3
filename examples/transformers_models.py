"""Any nn.Module: models of Hugging Face transformers, unraveled, lesioned, their gradients taken apart by path length.

    python examples/transformers_models.py --models vit resnet bert gpt2 llama --attention sdpa

Small models with random weights, made from configs: nothing is downloaded, and the figures show the mechanics and say
nothing of trained models. Half a minute on one CPU core. Needs the package `transformers`.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pandas as pd
import torch
import transformers
from torch import Tensor, nn

import resnet_paths_plugin as rpp

CLASSES, TOKENS, LENGTH = 5, 32, 8
WIDTHS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
SPREAD = {"initializer_range": 0.2}
"""Of the random weights: so that branches matter."""


class Subject(NamedTuple):
    """A model, its arguments by name, labels, what it is for, and where gradients are taken."""

    model: nn.Module
    inputs: dict[str, Tensor]
    labels: Tensor
    task: str = "classification"
    tap: str = "input"


def vit(samples: int, attention: str) -> Subject:
    """Return an image classifier with pre-norm layers."""
    config = transformers.ViTConfig(
        image_size=16, patch_size=4, num_labels=CLASSES, attn_implementation=attention, **WIDTHS, **SPREAD
    )
    model = transformers.ViTForImageClassification(config)
    return Subject(model, {"pixel_values": torch.randn(samples, 3, 16, 16)}, torch.randint(CLASSES, (samples,)))


def resnet(samples: int, _: str) -> Subject:
    """Return a convolutional classifier."""
    config = transformers.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32], depths=[2, 2], layer_type="basic", num_labels=CLASSES
    )
    model = transformers.ResNetForImageClassification(config)
    return Subject(model, {"pixel_values": torch.randn(samples, 3, 32, 32)}, torch.randint(CLASSES, (samples,)))


def bert(samples: int, attention: str) -> Subject:
    """Return a text classifier with post-norm layers; half of the texts are padded, as their mask says."""
    config = transformers.BertConfig(
        vocab_size=TOKENS, num_labels=CLASSES, attn_implementation=attention, **WIDTHS, **SPREAD
    )
    mask = torch.ones(samples, LENGTH, dtype=torch.int64)
    mask[::2, LENGTH // 2 :] = 0
    # Integers have no gradient: it is taken at the stem, the value that the first block reads, `[B, LENGTH, WIDTH]`.
    inputs = {"input_ids": texts(samples), "attention_mask": mask}
    model = transformers.BertForSequenceClassification(config)
    return Subject(model, inputs, torch.randint(CLASSES, (samples,)), tap="stem")


def gpt2(samples: int, attention: str) -> Subject:
    """Return a language model with pre-norm layers, learned positions and tied embeddings."""
    config = transformers.GPT2Config(
        vocab_size=TOKENS, n_positions=LENGTH, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0,
        use_cache=False, attn_implementation=attention, **SPREAD,
    )  # fmt: skip
    ids = texts(samples)
    return Subject(transformers.GPT2LMHeadModel(config), {"input_ids": ids}, ids, task="next_token", tap="stem")


def llama(samples: int, attention: str) -> Subject:
    """Return a language model with RMS norms, rotary positions and keys that heads share."""
    config = transformers.LlamaConfig(
        vocab_size=TOKENS, num_key_value_heads=2, use_cache=False, attn_implementation=attention, **WIDTHS, **SPREAD
    )
    ids = texts(samples)
    return Subject(transformers.LlamaForCausalLM(config), {"input_ids": ids}, ids, task="next_token", tap="stem")


def texts(samples: int) -> Tensor:
    """Draw token ids, `[samples, LENGTH]`."""
    return torch.randint(TOKENS, (samples, LENGTH))


SUBJECTS: dict[str, Callable[[int, str], Subject]] = {
    "vit": vit, "resnet": resnet, "bert": bert, "gpt2": gpt2, "llama": llama,
}  # fmt: skip


def build(name: str, samples: int, attention: str) -> Subject:
    """Return a model and its batch, always the same for the same arguments."""
    torch.manual_seed(0)
    return SUBJECTS[name](samples, attention)


def study(subject: Subject) -> tuple[pd.DataFrame, pd.DataFrame, float]:
    """Return the table of blocks with each lesion's effect, that of path lengths, and the completeness error."""
    net = rpp.unravel(subject.model, subject.inputs, task=subject.task)
    lesions = rpp.BlockLesion(net).attribute(subject.inputs, subject.labels)
    blocks = net.table().drop(columns=["stage", "source", "sum"])
    blocks["loss rise"] = (lesions.loss - lesions.intact_loss).mean("sample").to_numpy()
    gradients = rpp.PathLengthGradient(net).attribute(
        subject.inputs, subject.labels, objective="cross_entropy", tap=subject.tap
    )
    lengths = gradients.path_count.astype(int).to_series().to_frame("paths")
    lengths["gradient norm"] = gradients.gradient_norm.mean("sample").to_series()
    return blocks, lengths, gradients.completeness_error.max().item()


def main(arguments: Sequence[str] | None = None) -> None:
    """Print two tables for each model."""
    parser = argparse.ArgumentParser(description="Residual blocks and paths of transformers' models.")
    parser.add_argument("--models", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS))
    parser.add_argument("--attention", choices=["sdpa", "eager"], default="sdpa", help="transformers' implementation")
    parser.add_argument("--samples", type=int, default=4)
    options = parser.parse_args(arguments)
    for name in options.models:
        subject = build(name, options.samples, options.attention)
        blocks, lengths, error = study(subject)
        print(f"{type(subject.model).__name__}: {len(blocks)} blocks")
        print(blocks.to_string(index=False, float_format="{:.3g}".format))
        print(f"\nGradient at the {subject.tap} by path length; completeness error {error:.1g}")
        print(lengths.to_string(float_format="{:.3g}".format), end="\n\n")


if __name__ == "__main__":
    main()
