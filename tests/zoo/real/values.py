"""Values for a model's parameters and statistics that hide nothing, and keep a deep network within range.

As initialised, many a last layer is zero, a layer's scale is 1e-6 and a batch norm is an identity: each would let an
error in a branch pass. Values drawn blindly let the sums of a deep network without normalisation grow beyond float32.
"""

import math

import torch
from torch import nn

SMALL = 1e-2
"""Largest element of a parameter that is taken to be initialised as zero."""


def randomise(model, inputs, seed=0):
    """Give every constant parameter random values, and every batch norm statistics near those of its own input.

    Args:
        model: in eval mode; it is changed.
        inputs: the arguments whose statistics the batch norms get.
        seed: of the values.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                _draw(module, name, parameter, generator)
        norms = [
            module
            for module in model.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
        ]
        _measure(model, norms, inputs)
        for norm in norms:
            mean, variance = norm.running_mean, norm.running_var
            # The variance of a channel that the few samples leave without any would divide by nothing.
            variance.clamp_(min=0.1 * float(variance.mean()))
            mean += _uniform(mean, -0.3, 0.3, generator) * variance.sqrt()
            variance *= _uniform(variance, 0.6, 1.4, generator)
    return model


def _draw(module, name, parameter, generator):
    """Draw what is constant or next to zero; leave what the library has drawn."""
    low, high = float(parameter.min()), float(parameter.max())
    small = max(abs(low), abs(high)) < SMALL
    if small and name == "weight" and parameter.ndim > 1 and isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
        spread = math.sqrt(3 / parameter[0].numel())
        parameter.copy_(_uniform(parameter, -spread, spread, generator))
    elif "bias" in name and (small or low == high):
        parameter.copy_(_uniform(parameter, -0.2, 0.2, generator))
    elif low == high or small:
        # A gain keeps its sign and about its size; a layer's scale is made one that shows.
        parameter.copy_(_uniform(parameter, 0.4, 1.2, generator) * (1.0 if small else low))


def _measure(model, norms, inputs):
    """Run once, so that each batch norm has the statistics of what it is given."""
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.training, norm.momentum = True, 1.0
    try:
        model(*inputs)
    finally:
        for norm, momentum in zip(norms, kept, strict=True):
            norm.training, norm.momentum = False, momentum


def _uniform(like, low, high, generator):
    return torch.empty(like.shape).uniform_(low, high, generator=generator)
