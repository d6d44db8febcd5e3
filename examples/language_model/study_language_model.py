"""Study the language model that lies beside this file: which layers it needs, in which order, and how paths lead to it.

    python examples/language_model/study_language_model.py

It runs on text that the model was never trained on and prints tables: lesions of attention and MLP by layer, layers
skipped, reversed, swapped and run in parallel (Sun et al. 2025, Transformer Layers as Painters), what predicts a
layer's effect (block influence, as in Men et al. 2024, ShortGPT), direct effects, path lengths, and the perplexity of
pruned models on text held out from the choice. A minute or two on one CPU core. Needs the package `transformers`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor
from torch.nn import functional
from train_language_model import LENGTH, text, tokens

import resnet_paths_plugin as rpp

HERE = Path(__file__).parent
PAIRED_LAYERS = 2


def held_out(samples: int, seed: int = 0) -> Tensor:
    """Return pieces of text that the model was not trained on, `[samples, LENGTH]`, each after the byte 0."""
    data = tokens(text(held_out=True))
    starts = torch.randint(len(data) - LENGTH, (samples,), generator=torch.Generator().manual_seed(seed))
    pieces = torch.stack([data[start : start + LENGTH] for start in starts.tolist()])
    pieces[:, 0] = 0
    return pieces


def layers_of(net: rpp.UnraveledNetwork) -> list[str]:
    """Return the layers, each a group of an attention and an MLP."""
    return list(dict.fromkeys(block.group for block in net.blocks))


def lesions(net: rpp.UnraveledNetwork, ids: Tensor) -> pd.DataFrame:
    """Return what deleting the attention, the MLP or all of each layer costs, in nats per byte."""
    single = rpp.BlockLesion(net).attribute({"input_ids": ids}, ids)
    mean = rpp.BlockLesion(net).attribute({"input_ids": ids}, ids, ablation="mean")
    whole = rpp.BlockLesion(net).attribute({"input_ids": ids}, ids, level="group")
    rows = {}
    for at, layer in enumerate(layers_of(net)):
        names = [block.name for block in net.blocks if block.group == layer]
        rises = {
            f"{net.block(name).branch_type}{suffix}": _rise(study, name)
            for name in names
            for suffix, study in (("", single), (", mean", mean))
        }
        rows[at] = {**rises, "layer": _rise(whole, whole.lesion.values[at])}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("layer of")


def _rise(study: xr.Dataset, lesion: str) -> float:
    found = study.sel(lesion=lesion)
    return float((found.loss - found.intact_loss).mean())


def orders(net: rpp.UnraveledNetwork, ids: Tensor) -> pd.DataFrame:
    """Return what other orders of the layers cost: swaps, and the middle layers reversed, in parallel or skipped."""
    n = len(layers_of(net))
    families = {
        "two neighbours swapped": lambda one: rpp.schedules.adjacent_swaps(one, level="group"),
        **{
            f"{length} layers {what}": _ranges(family, length)
            for what, family in (
                ("skipped", rpp.schedules.skipped_ranges),
                ("reversed", rpp.schedules.reversed_ranges),
                ("in parallel", rpp.schedules.parallel_ranges),
            )
            for length in (PAIRED_LAYERS, n // 2)
        },
    }
    rows = {}
    for name, family in families.items():
        found = rpp.BlockSchedules(net).attribute({"input_ids": ids}, ids, schedules=family(net))
        rises = (found.loss - found.intact_loss).mean("sample").values
        rows[name] = {"least": rises.min(), "median": np.median(rises), "most": rises.max(), "places": len(rises)}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("change")


def _ranges(family, length):  # noqa: ANN001, ANN202 - families take different options
    return lambda net: family(net, lengths=length, level="group")


def predictors(net: rpp.UnraveledNetwork, ids: Tensor) -> pd.DataFrame:
    """Return the rank correlation of what predicts a block's effect with its true effect."""
    truth = rpp.BlockLesion(net).attribute({"input_ids": ids}, ids)
    found = rpp.BlockInfluence(net).attribute(
        {"input_ids": ids}, ids, objective="cross_entropy", vector_dim=-1, lesions=truth
    )
    return found.rank_correlation.to_series().sort_values(ascending=False).to_frame("rank correlation")


def paths(net: rpp.UnraveledNetwork, ids: Tensor) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the share of the gradient by the number of attentions and of MLPs, and the direct effect of each block."""
    few = {"input_ids": ids[:8]}
    gradient = rpp.PathLengthGradient(net).attribute(
        few, ids[:8], objective="cross_entropy", tap="stem", grade="branch_type"
    )
    norms = gradient.gradient_norm.mean("sample")
    shares = (norms / norms.sum()).transpose("path_length_attention", "path_length_mlp").to_pandas()
    direct = rpp.BlockContribution(net).attribute(few, ids[:8], freeze_norms=True)
    table = pd.DataFrame(
        {
            "direct": direct.direct.mean("sample").to_series(),
            "indirect": direct.indirect.mean("sample").to_series(),
        }
    )
    return shares, table


def pruned(net: rpp.UnraveledNetwork, chosen_on: Tensor, judged_on: Tensor, most: int) -> pd.DataFrame:
    """Return the perplexity of models without some blocks, chosen by their own effects, on text not used to choose."""
    search = rpp.BlockSelection(net).attribute(
        {"input_ids": chosen_on}, chosen_on, k=range(1, most + 1), method="greedy", holdout=None, n_random=0
    )
    rows = {}
    for at in range(search.sizes["selection"]):
        names = search.block.values[search.deleted.values[at]].tolist()
        small = net.pruned(names, training=False)
        rows[len(names)] = {"perplexity": _perplexity(small, judged_on), "deleted": ", ".join(map(_short, names))}
    intact = {"perplexity": _perplexity(net, judged_on), "deleted": ""}
    return pd.DataFrame.from_dict({0: intact, **rows}, orient="index").rename_axis("blocks deleted")


def _perplexity(model: torch.nn.Module, ids: Tensor) -> float:
    with torch.no_grad():
        scores = model(input_ids=ids).logits[:, :-1].flatten(0, 1)
    return float(functional.cross_entropy(scores, ids[:, 1:].flatten()).exp())


def _short(name: str) -> str:
    return name.removeprefix("model.layers.")


def patching(net: rpp.UnraveledNetwork, clean: bytes, corrupted: bytes) -> pd.DataFrame:
    """Return how far each block's branch, taken from the clean text, brings the corrupted one's answer back.

    The answer is the last byte of the clean text against that of the corrupted one: the difference of their scores
    after all bytes before; 0 is the corrupted text's difference, 1 the clean one's.
    """
    texts = tokens(b"\0" + clean + b"\0" + corrupted).reshape(2, -1)
    answers = texts[:, -1]
    net = rpp.unravel(net.model, {"input_ids": texts[:, :-1]}, task="next_token")
    sources = {}
    with torch.no_grad():
        for block in net.blocks:
            alone = net.lesioned([block], ablation="mean", reference={"input_ids": texts[:1, :-1]})
            sources[block.name] = alone.schedule
    def difference(module: torch.nn.Module, row: int) -> float:
        with torch.no_grad():
            scores = module(input_ids=texts[row : row + 1, :-1]).logits[0, -1]
        return float(scores[answers[0]] - scores[answers[1]])

    low, high = difference(net, 1), difference(net, 0)
    rows = {
        _short(name): (difference(net.scheduled(schedule), 1) - low) / (high - low) for name, schedule in sources.items()
    }
    return pd.Series(rows).to_frame("recovered").rename_axis("block")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="Studies of a small language model.")
    parser.add_argument("--samples", type=int, default=32, help="pieces of text")
    parser.add_argument("--most-deleted", type=int, default=6, help="blocks that are deleted at most")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    model = rpp.load_model(f"transformers/{HERE}", pretrained=True)
    ids = held_out(options.samples)
    net = rpp.unravel(model, {"input_ids": ids})
    intact = rpp.BlockLesion(net).attribute({"input_ids": ids}, ids, lesions=[[]]) if False else None
    del intact
    print(f"{net.name}: {len(net.blocks)} blocks in {len(layers_of(net))} layers; {len(ids)} pieces of {LENGTH} bytes")
    print(f"perplexity per byte {_perplexity(net, ids):.3f}\n")
    shares, direct = paths(net, ids)
    for title, table in (
        ("Rise of the loss when a branch or a layer is deleted, in nats per byte", lesions(net, ids)),
        ("Rise of the loss when layers change places", orders(net, ids)),
        ("What predicts the effect of deleting a block", predictors(net, ids)),
        ("Share of the gradient's norms by attentions (rows) and MLPs (columns) on the path", shares.iloc[:6, :6]),
        ("What each block adds to the label's score, with the final norm held constant", direct),
        ("Blocks deleted greedily; perplexity on other text", pruned(net, ids, held_out(64, seed=1), options.most_deleted)),
        (
            "Branches of 'return the index' put into 'return the value' bring back",
            patching(net, b"sort the list of keys and return the k", b"sort the list of keys and return the v"),
        ),
    ):
        print(f"{title}\n{table.to_string(float_format='{:.3f}'.format)}\n")


if __name__ == "__main__":
    main()
