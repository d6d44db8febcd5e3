"""Five models of transformers, wrapped: their tensors go by position, and one output comes back."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import transformers
from torch import Tensor, nn

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
