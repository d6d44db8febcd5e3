"""Texts, read from a file or a folder, cut into sequences of tokens as a language model takes them.

It reads only: plain UTF-8, or JSON Lines whose objects have a key `text`.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnet_paths_plugin.errors import FileError, InputError
from resnet_paths_plugin.files import limits

SUFFIXES = frozenset({".jsonl", ".md", ".rst", ".txt"})
"""Suffixes, in small letters, of the files of a folder that are read as texts."""

NOT_COUNTED = -100
"""The label of what is no token of the text."""

BYTES = 256
LARGEST_TEXT = 2**30
_FEWEST_TOKENS = 2
_BATCH = 16


@dataclass(frozen=True, slots=True)
class Text:
    """A document and its name."""

    name: str
    content: str


@dataclass(frozen=True, slots=True)
class Texts:
    """Documents.

    Attributes:
        origin: where they come from, for messages.
        documents: the documents, none of them empty.
    """

    origin: str
    documents: tuple[Text, ...]


def read_texts(path: Path) -> Texts:
    """Read a text file, a JSON Lines file, or all of these in a folder.

    Raises:
        FileError: if the file or folder is missing, no UTF-8, too large, or holds no text.
    """
    if path.is_dir():
        files = sorted(
            file for file in path.rglob("*")
            if file.suffix.lower() in SUFFIXES and file.is_file() and not _is_hidden(file.relative_to(path))
        )  # fmt: skip
        if not files:
            raise FileError(f"{path} holds no texts ({', '.join(sorted(SUFFIXES))})")
        found = [text for file in files for text in _documents(file, file.relative_to(path).as_posix())]
    elif path.is_file():
        found = _documents(path, path.name)
    else:
        raise FileError(f"there is no file or folder {path}: give a text file, a .jsonl file, or a folder of such")
    documents = tuple(text for text in found if text.content)
    if not documents:
        raise FileError(f"{path} holds no text: all of it is empty")
    return Texts(str(path), documents)


def as_bytes(text: str) -> list[int]:
    """Return the bytes of a text as tokens."""
    return list(text.encode())


class TextBatches:
    """Sequences of tokens as a language model takes them: `(inputs, labels)`, made anew each time they are iterated.

    Each document is cut into sequences of one length, the last of which is filled up on the right: what fills it is
    masked and does not count. Iterating yields a dict of `input_ids` and `attention_mask`, int64, shape `[B, T]`, and
    labels, the tokens themselves, not shifted, with -100 for what does not count.

    Args:
        texts: the documents.
        tokenize: returns the tokens of a text.
        length: tokens of a sequence, `T`.
        limit: how many sequences to take, drawn at random; None for all.
        seed: of that draw.
        batch_size: sequences per batch; None takes 16.
        origin: what the tokens are, in words.

    Raises:
        InputError: if no document has two tokens.
    """

    tap = "stem"
    """Where gradients are taken: tokens, which are integers, have none."""

    def __init__(
        self,
        texts: Texts,
        tokenize: Callable[[str], Sequence[int]],
        length: int,
        *,
        limit: int | None = None,
        seed: int = 0,
        batch_size: int | None = None,
        origin: str = "tokens of the model's tokenizer",
    ) -> None:
        self.texts, self.length, self.batch_size, self.origin = texts, length, batch_size or _BATCH, origin
        pieces: list[NDArray[np.int64]] = []
        names: list[str] = []
        for text in texts.documents:
            tokens = np.asarray(tokenize(text.content), dtype=np.int64)
            starts = [at for at in range(0, len(tokens), length) if len(tokens) - at >= _FEWEST_TOKENS]
            pieces += [tokens[at : at + length] for at in starts]
            names += [f"{text.name}, token {at}" for at in starts]
        if not pieces:
            raise InputError(f"{texts.origin} holds no document of {_FEWEST_TOKENS} tokens: nothing to predict")
        chosen = list(range(len(pieces)))
        if limit is not None and limit < len(pieces):
            chosen = sorted(np.random.default_rng(seed).permutation(len(pieces))[:limit].tolist())
        self._pieces = [pieces[at] for at in chosen]
        self.sample_names: tuple[str, ...] | None = tuple(names[at] for at in chosen)
        self.class_names = None

    def __len__(self) -> int:
        return math.ceil(len(self._pieces) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        for start in range(0, len(self._pieces), self.batch_size):
            pieces = self._pieces[start : start + self.batch_size]
            ids = np.zeros((len(pieces), self.length), dtype=np.int64)
            mask = np.zeros_like(ids)
            for row, piece in enumerate(pieces):
                ids[row, : len(piece)], mask[row, : len(piece)] = piece, 1
            tokens, real = torch.from_numpy(ids), torch.from_numpy(mask)
            yield {"input_ids": tokens, "attention_mask": real}, tokens.masked_fill(real == 0, NOT_COUNTED)

    def __repr__(self) -> str:
        return self.counted

    @property
    def counted(self) -> str:
        """How many sequences there are and where they come from, in words."""
        return f"{len(self._pieces)} sequences of {self.length} tokens of {self.texts.origin}"

    @property
    def described(self) -> str:
        """What is done to the texts, in words."""
        filled = sum(len(piece) < self.length for piece in self._pieces)
        return f"{len(self.texts.documents)} documents, {self.origin}; {filled} sequences filled up on the right"

    @property
    def targets(self) -> NDArray[np.int64]:
        """One number for each sequence, its place."""
        return np.arange(len(self._pieces))

    @property
    def dataset(self) -> NDArray[np.int64]:
        """What tells how many sequences there are, as the `dataset` of a `DataLoader` does."""
        return self.targets

    def head(self, count: int) -> "TextBatches":
        """Return the first `count` sequences, in one batch."""
        few = object.__new__(TextBatches)
        few.texts, few.length, few.batch_size, few.origin = self.texts, self.length, count, self.origin
        few.class_names = None
        few._pieces = self._pieces[:count]
        few.sample_names = self.sample_names and self.sample_names[:count]
        return few

    def check(self, n_tokens: int) -> None:
        """Check that the model knows all tokens.

        Raises:
            InputError: if it does not.
        """
        most = max(int(piece.max()) for piece in self._pieces)
        if most >= n_tokens:
            raise InputError(
                f"{self.texts.origin} has token {most}, and the model knows {n_tokens}, 0..{n_tokens - 1}: it was made "
                "for the tokens of another tokenizer"
            )


def _documents(file: Path, name: str) -> list[Text]:
    size = file.stat().st_size
    if size > LARGEST_TEXT:
        raise FileError(
            f"{file} has {limits.format_bytes(size)}, more than {limits.format_bytes(LARGEST_TEXT)}: split it, and "
            "study some of it"
        )
    try:
        content = file.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise FileError(
            f"{file} is no UTF-8 text (byte {error.start} is {error.object[error.start]:#04x}): convert it"
        ) from error
    if file.suffix.lower() != ".jsonl":
        return [Text(name, content)]
    return [
        Text(f"{name}, line {number}", _text_of(line, file, number))
        for number, line in enumerate(content.splitlines(), start=1)
        if line.strip()
    ]


def _text_of(line: str, file: Path, number: int) -> str:
    try:
        found = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise FileError(f"{file}, line {number}: no JSON ({error})") from error
    text = found.get("text") if isinstance(found, dict) else None
    if not isinstance(text, str):
        raise FileError(f"{file}, line {number}: expected an object with a text under the key 'text'")
    return text


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
