"""Train the language model that lies beside this file: a Llama of 12 layers that reads bytes, on one CPU core.

    python examples/language_model/train_language_model.py --out retrained     # the training, with what it was run with
    python examples/language_model/train_language_model.py --held-out text.txt # only the text that it never saw

The text ships with Python: the language reference that `help()` shows, and the docstrings of the standard library.
Which documents are held out is decided by their names, so that it is the same under each version of Python.
"""

import argparse
import ast
import hashlib
import json
import math
import pydoc_data.topics
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

BYTES = 256
LENGTH = 128
SEPARATOR = b"\0"
"""Between two documents, and so before each text: the token that begins and ends it."""

HELD_OUT_SHARE = 16
"""One document of so many is held out."""

SHORTEST = 200
"""Documents of fewer bytes say too little."""

NOT_DOCUMENTED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3", "pydoc_data", "turtledemo"}


def documents() -> Iterator[tuple[str, bytes]]:
    """Yield the name and the text of each document, in the order of their names."""
    for topic, text in sorted(pydoc_data.topics.topics.items()):
        yield f"topics/{topic}", text.encode()
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        module = path.relative_to(library)
        if not NOT_DOCUMENTED.intersection(module.parts):
            yield f"docstrings/{module.as_posix()}", docstrings(path).encode()


def docstrings(path: Path) -> str:
    """Return the docstrings of a module, of its classes and of its functions, with a line between two of them."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    try:
        nodes = [node for node in ast.walk(ast.parse(path.read_bytes())) if isinstance(node, documented)]
    except SyntaxError:  # templates are no code
        return ""
    return "\n\n".join(text for node in nodes if (text := ast.get_docstring(node)))


def is_held_out(name: str) -> bool:
    """Whether a document is kept from the training."""
    return hashlib.sha256(name.encode()).digest()[0] % HELD_OUT_SHARE == 0


def text(*, held_out: bool) -> bytes:
    """Return the text of all documents that are held out, or of all others."""
    chosen = [one for name, one in documents() if len(one) >= SHORTEST and is_held_out(name) is held_out]
    return SEPARATOR + SEPARATOR.join(chosen)


def tokens(data: bytes) -> Tensor:
    """Return bytes as tokens, `[T]`, int64."""
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).long()


def new_model() -> LlamaForCausalLM:
    """Return the model with random weights."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=BYTES,
            hidden_size=80,
            intermediate_size=208,
            num_hidden_layers=12,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            tie_word_embeddings=True,
            bos_token_id=SEPARATOR[0],
            eos_token_id=SEPARATOR[0],
            initializer_range=0.05,
            dtype="float32",  # of the model that is read, whatever the file holds
        )
    )


@torch.no_grad()
def loss_on(model: LlamaForCausalLM, stream: Tensor) -> float:
    """Return the mean loss for each byte, in nats, of a text in pieces of `LENGTH` tokens."""
    pieces = stream[: stream.numel() // LENGTH * LENGTH].view(-1, LENGTH).split(64)
    losses = [model(input_ids=piece, labels=piece, use_cache=False).loss.item() * len(piece) for piece in pieces]
    return sum(losses) / sum(len(piece) for piece in pieces)


def learning_rate(step: int, steps: int) -> float:
    """Return the share of the highest learning rate: up within 100 steps, then down along a cosine to a twentieth."""
    return min((step + 1) / 100, 0.05 + 0.95 * (1 + math.cos(math.pi * step / steps)) / 2)


def train(model: LlamaForCausalLM, stream: Tensor, *, steps: int, batch: int) -> None:
    """Train on pieces drawn at random; say how far it is."""
    weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    groups = [{"params": weights, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, steps))
    model.train()
    shown = 0.0
    for step in range(1, steps + 1):
        starts = torch.randint(0, stream.numel() - LENGTH, (batch, 1))
        piece = stream[starts + torch.arange(LENGTH)]
        loss = model(input_ids=piece, labels=piece, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        shown += loss.item()
        if step % 100 == 0:
            print(f"step {step:5d}  loss {shown / 100:.3f}", flush=True)
            shown = 0.0
    model.eval()


def save(model: LlamaForCausalLM, folder: Path) -> None:
    """Write the configuration and the weights, these rounded to half precision and without what is tied."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    state = {
        name: tensor.half().contiguous() for name, tensor in model.state_dict().items() if name != "lm_head.weight"
    }
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    """Train, and write the model with a record of the training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for the trained model")
    parser.add_argument("--held-out", type=Path, help="file for the text that the model is not trained on")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.held_out:
        options.held_out.write_bytes(text(held_out=True))
    if not options.out:
        return
    torch.manual_seed(options.seed)
    torch.set_num_threads(1)
    seen, unseen = text(held_out=False), text(held_out=True)
    model = new_model()
    before, start = loss_on(model.eval(), tokens(unseen)), time.process_time()
    train(model, tokens(seen), steps=options.steps, batch=options.batch)
    seconds = time.process_time() - start
    save(model, options.out)
    written = LlamaForCausalLM.from_pretrained(options.out)
    record = {
        "bytes_of_text": len(seen),
        "bytes_held_out": len(unseen),
        "bytes_trained_on": options.steps * options.batch * LENGTH,
        "sha256_of_text": hashlib.sha256(seen).hexdigest(),
        "held_out_loss_before": round(before, 4),
        "held_out_loss": round(loss_on(written, tokens(unseen)), 4),
        "loss_on_text": round(loss_on(written, tokens(seen[: len(unseen)])), 4),
        "processor_seconds": round(seconds),
    }
    (options.out / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
