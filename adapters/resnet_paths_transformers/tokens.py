"""The tokens of a text, by the tokenizer that lies beside a trained model."""

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import nn

from resnet_paths_transformers.library import library

_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")


def tokenizer_of(model: nn.Module) -> Callable[[str], Sequence[int]] | None:
    """Return what makes tokens of a text, without special ones; None where the model was loaded with no tokenizer."""
    source = str(getattr(model, "name_or_path", "") or "")
    if not source or (Path(source).is_dir() and not any((Path(source) / name).is_file() for name in _FILES)):
        return None

    def tokenize(text: str) -> Sequence[int]:
        tokenizer = library().AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        found: Sequence[int] = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        return found

    return tokenize
