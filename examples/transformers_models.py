"""Any nn.Module: models of Hugging Face transformers, unraveled, lesioned, their gradients taken apart by path length.

    python examples/transformers_models.py --models vit resnet bert gpt2 llama --attention sdpa

Small models with random weights, made from configs: nothing is downloaded, and the figures show the mechanics and say
nothing of trained models. Half a minute on one CPU core. Needs the package `transformers`.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pandas as pd
import torch
import transformers
from torch import Tensor, nn

import resnet_paths_plugin as rpp

CLASSES, TOKENS, LENGTH = 5, 32, 8
WIDTHS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
SPREAD = {"initializer_range": 0.2}
"""Of the random weights: so that branches matter."""


class Logits(nn.Module):
    """A model whose tensors go by keyword, as one whose tensors go by position; of its outputs, the logits."""

    def __init__(self, model: nn.Module, *names: str) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *tensors: Tensor) -> Tensor:
        """Return the logits, `[B, ...]`, for tensors in the order of `names`."""
        return self.model(**dict(zip(self.names, tensors, strict=True))).logits


class NextToken(Logits):
    """A language model as a classifier of the token that comes next, `[B, TOKENS]`."""

    def forward(self, *tensors: Tensor) -> Tensor:
        """Return the logits at the last place."""
        return super().forward(*tensors)[:, -1]


class Subject(NamedTuple):
    """A module, a batch of inputs with its labels, the module's further arguments, and where gradients are taken."""

    module: Logits
    inputs: Tensor
    labels: Tensor
    extra: tuple[Tensor, ...] = ()
    tap: str = "input"


def vit(samples: int, attention: str) -> Subject:
    """Return an image classifier with pre-norm layers."""
    config = transformers.ViTConfig(
        image_size=16, patch_size=4, num_labels=CLASSES, attn_implementation=attention, **WIDTHS, **SPREAD
    )
    module = Logits(transformers.ViTForImageClassification(config), "pixel_values")
    return Subject(module, torch.randn(samples, 3, 16, 16), torch.randint(CLASSES, (samples,)))


def resnet(samples: int, _: str) -> Subject:
    """Return a convolutional classifier."""
    config = transformers.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32], depths=[2, 2], layer_type="basic", num_labels=CLASSES
    )
    module = Logits(transformers.ResNetForImageClassification(config), "pixel_values")
    return Subject(module, torch.randn(samples, 3, 32, 32), torch.randint(CLASSES, (samples,)))


def bert(samples: int, attention: str) -> Subject:
    """Return a text classifier with post-norm layers; half of the texts are padded, as their mask says."""
    config = transformers.BertConfig(
        vocab_size=TOKENS, num_labels=CLASSES, attn_implementation=attention, **WIDTHS, **SPREAD
    )
    module = Logits(transformers.BertForSequenceClassification(config), "input_ids", "attention_mask")
    mask = torch.ones(samples, LENGTH, dtype=torch.int64)
    mask[::2, LENGTH // 2 :] = 0
    # Integers have no gradient: it is taken at the stem, the value that the first block reads, `[B, LENGTH, WIDTH]`.
    # The mask is an argument of the model and no input whose gradient is asked for.
    return Subject(module, texts(samples), torch.randint(CLASSES, (samples,)), (mask,), tap="stem")


def gpt2(samples: int, attention: str) -> Subject:
    """Return a language model with pre-norm layers, learned positions and tied embeddings."""
    config = transformers.GPT2Config(
        vocab_size=TOKENS, n_positions=LENGTH, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0,
        use_cache=False, attn_implementation=attention, **SPREAD,
    )  # fmt: skip
    module = NextToken(transformers.GPT2LMHeadModel(config), "input_ids")
    return Subject(module, texts(samples), torch.randint(TOKENS, (samples,)), tap="stem")


def llama(samples: int, attention: str) -> Subject:
    """Return a language model with RMS norms, rotary positions and keys that heads share."""
    config = transformers.LlamaConfig(
        vocab_size=TOKENS, num_key_value_heads=2, use_cache=False, attn_implementation=attention, **WIDTHS, **SPREAD
    )
    module = NextToken(transformers.LlamaForCausalLM(config), "input_ids")
    return Subject(module, texts(samples), torch.randint(TOKENS, (samples,)), tap="stem")


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
    net = rpp.unravel(subject.module, (subject.inputs, *subject.extra))
    batch: tuple[Any, ...] = (subject.inputs, subject.labels, subject.extra)
    lesions = rpp.BlockLesion(net).attribute(*batch)
    blocks = net.table().drop(columns=["stage", "source", "sum"])
    blocks["score drop"] = lesions.target_score_drop.mean("sample").to_numpy()
    gradients = rpp.PathLengthGradient(net).attribute(*batch, tap=subject.tap)
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
        print(f"{type(subject.module.model).__name__}: {len(blocks)} blocks")
        print(blocks.to_string(index=False, float_format="{:.3g}".format))
        print(f"\nGradient at the {subject.tap} by path length; completeness error {error:.1g}")
        print(lengths.to_string(float_format="{:.3g}".format), end="\n\n")


if __name__ == "__main__":
    main()
