"""What travels to another process: a network as `torch.export` stores it, and the work to do with it.

The user's model is not pickled. The receiver gets the captured operators with the weights, and the facts of the blocks.
"""

import hashlib
import io
import json
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass

from resnet_paths_plugin.errors import CaptureError, InputError
from resnet_paths_plugin.graph.batch_conditions import BatchConditions
from resnet_paths_plugin.graph.blocks import ResidualBlock
from resnet_paths_plugin.graph.capture import capture
from resnet_paths_plugin.graph.functionalize import functional_program
from resnet_paths_plugin.graph.layers import detect_layers
from resnet_paths_plugin.graph.traced_modes import AUTOCAST, AutocastInterpreter, autocast_as_facts, note_autocast
from resnet_paths_plugin.network.unraveled import UnraveledNetwork

_FACTS = "network.json"


def packed(network: UnraveledNetwork) -> bytes:
    """Return a network with its weights as bytes; the model is captured once more.

    Raises:
        CaptureError: if `torch.export` cannot store the captured model.
    """
    program = functional_program(network.exported())  # a file keeps neither modes nor which values share memory
    facts = {
        "blocks": [asdict(block) for block in network.blocks],
        "units": network.units,
        "optimize": network.optimize,
        "graph": network.graph_digest(),
        "name": network.name,
        "conditions": network.graph.conditions.facts(),
        "n_inputs": network.graph.n_inputs,
        "autocast": autocast_as_facts(program.graph),
    }
    file = io.BytesIO()
    try:
        facts["strides"] = _made_plain(program)
        torch.export.save(program, file, extra_files={_FACTS: json.dumps(facts)})
    except Exception as error:
        raise CaptureError(
            f"torch.export cannot store {network.name}, so that it cannot be sent to another process or device: "
            f"{error}. Run the study where the model is, with a ThreadPoolExecutor or without an executor"
        ) from error
    return file.getvalue()


def unpacked(payload: bytes, device: torch.device | str | None = None) -> UnraveledNetwork:
    """Return the network that was packed, on a device; None leaves it on its own.

    Raises:
        InputError: if the device is not there.
        CaptureError: if what arrives is not what was sent, as between different versions of torch.
    """
    extra: dict[str, Any] = {_FACTS: ""}
    program = torch.export.load(io.BytesIO(payload), extra_files=extra)
    facts = json.loads(extra[_FACTS])
    _laid_out(program, facts["strides"])
    complete = note_autocast(program.graph, facts["autocast"])
    if device is not None:
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"a worker has no device {str(device)!r}: {error}") from error
        program = move_to_device_pass(program, torch.device(device))
    graph = capture(_model_of(program), (), program, n_inputs=facts["n_inputs"])
    graph = replace(graph, conditions=BatchConditions.restored(program, facts["conditions"]))
    if facts["units"] == "layers":
        graph, _ = detect_layers(graph)
    blocks = [_block(block) for block in facts["blocks"]]
    network = UnraveledNetwork(graph, blocks, units=facts["units"], optimize=facts["optimize"], verify=False)
    if not complete or network.graph_digest() != facts["graph"]:
        raise CaptureError(
            f"{facts['name']} did not arrive at a worker as it was sent: give the workers the same version of torch, "
            "and unravel the model again if its modules have changed since"
        )
    return network


def _model_of(program: ExportedProgram) -> nn.Module:
    """Return a program as a module, whose operators run under the autocast that they were traced under."""
    model: nn.Module = program.module(check_guards=False)
    if isinstance(model, fx.GraphModule) and any(AUTOCAST in node.meta for node in model.graph.nodes):
        model.forward = AutocastInterpreter(model).run  # of this one alone
    return model


def key_of(payload: bytes) -> str:
    """Return what payload is known by."""
    return hashlib.sha256(payload).hexdigest()


def _made_plain(program: ExportedProgram) -> dict[str, tuple[int, ...]]:
    """Give every tensor of a program a storage of its own, contiguous, as its file keeps no other; return the strides.

    How values lie in memory (channels last, say) decides how convolutions round.
    """
    strides: dict[str, tuple[int, ...]] = {}
    for tensors in (program.state_dict, program.constants):
        for name, tensor in tensors.items():
            if isinstance(tensor, Tensor):
                if not tensor.is_contiguous():
                    strides[name] = tensor.clone().stride()
                tensors[name] = _like(tensor, tensor.detach().clone(memory_format=torch.contiguous_format))
    return strides


def _laid_out(program: ExportedProgram, strides: dict[str, list[int]]) -> None:
    """Lay the tensors of a program out as they were."""
    for tensors in (program.state_dict, program.constants):
        for name in strides.keys() & tensors.keys():
            plain = tensors[name].detach()
            laid_out = torch.empty_strided(plain.shape, strides[name], dtype=plain.dtype, device=plain.device)
            tensors[name] = _like(tensors[name], laid_out.copy_(plain))


def _like(tensor: Tensor, values: Tensor) -> Tensor:
    """Return values as a parameter where the tensor is one."""
    return nn.Parameter(values, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else values


def _block(facts: dict[str, Any]) -> ResidualBlock:
    shapes = {name: tuple(fact) for name, fact in facts.items() if isinstance(fact, list)}
    block: dict[str, Any] = {**facts, **shapes}
    return ResidualBlock(**block)
