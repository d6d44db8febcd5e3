"""The files of a pruned network: its weights, an ONNX file, an exported program; each whole or not at all."""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from resnet_paths_plugin.errors import InputError, ResnetPathsError
from resnet_paths_plugin.files.file_roles import FileRoles
from resnet_paths_plugin.files.output_files import Mode, replacing, writable

_SUFFIXES = {"--output": ".safetensors", "--onnx": ".onnx", "--program": ".pt2"}
_EXTRA = ("onnx", "onnxscript")
_MOST_IN_ONNX = 1536 * 2**20
"""Bytes of weights that an ONNX file holds: protobuf ends at 2 GiB, and torch leaves a quarter of it for the rest."""
_LEAST_MOVED = 256
"""Bytes from which on a tensor may be in a file of its own: small ones, such as axes, are looked for in the model."""

Write = Callable[[Path], object]
"""Writes a file of this name."""


@dataclass(frozen=True, eq=False, kw_only=True)
class PrunedFiles:
    """The files to write.

    Attributes:
        weights: the parameters and buffers, with what it takes to build the network again.
        onnx: the network for ONNX Runtime; None for none.
        program: the network as a program of `torch.export`; None for none.
    """

    weights: Path
    onnx: Path | None = None
    program: Path | None = None

    def check(self, roles: FileRoles, mode: Mode) -> None:
        """Check before the long run that the files can be written, and take the place of no input.

        Raises:
            InputError: if a name does not end as such files do, or what ONNX takes is not installed.
            FileError: if a file cannot be written, or is read.
        """
        for option, path in self._files().items():
            if path.suffix != _SUFFIXES[option]:
                raise InputError(f"{option} {path} must end in {_SUFFIXES[option]}")
            writable(path, mode)
            roles.writes(option, path)
        if self.onnx is not None:
            writable(_data_path(self.onnx), mode)
            roles.writes("the weights of --onnx", _data_path(self.onnx))
        if self.onnx is not None and not all(map(find_spec, _EXTRA)):
            raise InputError(
                "--onnx needs the packages onnx and onnxscript: pip install 'resnet-paths-plugin[onnx]', or leave it "
                "out"
            )

    def write(self, module: nn.Module, args: tuple[Any, ...], facts: Mapping[str, str], mode: Mode) -> list[Path]:
        """Write the files, after everything that goes into them is made, and return them.

        Weights that are too large for an ONNX file come beside it, in a file of its name and `.data`.

        Args:
            module: the network, in eval mode.
            args: arguments that it takes, with a batch that may have any size.
            facts: what it takes to build the network again.
            mode: how older files are treated.

        Raises:
            ResnetPathsError: if the network cannot be exported; no file is written then.
            FileError: if a file cannot be written.
        """
        made: list[tuple[Path, Write]] = [(self.weights, lambda path: _save(module, path, facts))]
        if self.program is not None:
            made.append((self.program, _program(module, args)))
        if self.onnx is not None:
            made.extend(_onnx(module, args, self.onnx))
        for path, write in made:
            with replacing(path, writable(path, mode), mode) as temporary:
                write(temporary)
        return [path for path, _ in made]

    def _files(self) -> dict[str, Path]:
        files = {"--output": self.weights, "--onnx": self.onnx, "--program": self.program}
        return {option: path for option, path in files.items() if path is not None}


def facts_of(
    model: str, pretrained: bool, weights: Path | None, blocks: Sequence[str], ablation: str
) -> dict[str, str]:
    """Return what it takes to build a pruned network again: text by name, as safetensors has it."""
    fitted = "" if ablation == "zero" else f", ablation={ablation!r}, reference=inputs"
    return {
        "format": "pt",
        "source": f"resnet-paths-plugin {metadata.version('resnet-paths-plugin')}",
        "model": model,
        "pretrained": json.dumps(pretrained),
        "weights": "" if weights is None else weights.name,
        "deleted_blocks": json.dumps(list(blocks)),
        "ablation": ablation,
        "rebuild": f"build the model, small = rpp.unravel(model, inputs).pruned(deleted_blocks{fitted}, "
        "training=False), and safetensors.torch.load_model(small, file)",
    }


def _save(module: nn.Module, path: Path, facts: Mapping[str, str]) -> None:
    """Write the weights, with the mode that new files have here: safetensors would let nobody else read them."""
    save_model(module, str(path), dict(facts))
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)


def _free_batch(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the dims of arguments that may have any size: the first ones."""
    return tuple(pytree.tree_map(lambda leaf: {0: torch.export.Dim.AUTO} if isinstance(leaf, Tensor) else None, args))


def _program(module: nn.Module, args: tuple[Any, ...]) -> Write:
    try:
        program = torch.export.export(module, args, dynamic_shapes=_free_batch(args))
        content = io.BytesIO()
        torch.export.save(program, content)
    except Exception as error:
        raise ResnetPathsError(
            f"--program: the pruned network cannot be exported by torch: {_first_line(error)}"
        ) from error
    return lambda path: path.write_bytes(content.getvalue())


def _onnx(module: nn.Module, args: tuple[Any, ...], path: Path) -> list[tuple[Path, Write]]:
    """Return the files of an ONNX model to write in this order: its weights first where they are large."""
    try:
        program = torch.onnx.export(
            module, args, dynamo=True, dynamic_shapes=_free_batch(args), verbose=False, optimize=True
        )
    except Exception as error:
        raise ResnetPathsError(
            f"--onnx: the pruned network cannot be written as ONNX, which may lack one of its operators: "
            f"{_first_line(_first_cause(error))}. Leave --onnx out, or take --program"
        ) from error
    if program is None:
        raise ResnetPathsError("--onnx: torch returned no ONNX program. Leave --onnx out, or take --program")
    values: list[Any] = [one for one in program.model.graph.initializers.values() if one.const_value is not None]
    if sum(int(value.const_value.nbytes) for value in values) <= _MOST_IN_ONNX:
        return [(path, lambda temporary: program.save(str(temporary)))]
    data = _data_path(path)
    large = [value for value in values if value.const_value.nbytes >= _LEAST_MOVED]
    return [(data, lambda temporary: _move_out(large, temporary, data.name)), (path, partial(_save_rest, program))]


def _data_path(onnx: Path) -> Path:
    """Return the file of the weights that are too large for an ONNX file."""
    return onnx.with_name(f"{onnx.name}.data")


def _move_out(values: Sequence[Any], temporary: Path, name: str) -> None:
    """Write the weights of an ONNX model to a file, which the model will look for by another name beside itself."""
    from onnxscript import ir  # noqa: PLC0415 - an extra

    moved = ir.external_data.convert_tensors_to_external(
        [value.const_value for value in values], temporary.parent, temporary.name
    )
    for value, tensor in zip(values, moved, strict=True):
        value.const_value = ir.ExternalTensor(
            name, tensor.offset, tensor.length, tensor.dtype, shape=tensor.shape, name=tensor.name,
            base_dir=temporary.parent,
        )  # fmt: skip


def _save_rest(program: Any, temporary: Path) -> None:
    """Write an ONNX model without the weights that are in a file of their own."""
    from onnxscript import ir  # noqa: PLC0415 - an extra

    ir.save(program.model, temporary)


def _first_cause(error: BaseException) -> BaseException:
    """Return what an error was raised from, and what that was raised from, to the first."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
