"""The derivative of scaled dot-product attention for a bank of rows, one row at a time: its scores fit the cache."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from resnet_paths_plugin.engine.calls import Call
from resnet_paths_plugin.graph.operators import aten


class Attention:
    """Carries gradients from the value, `[R, *, L, E']`, to queries, keys and values; tangents on.

    Args:
        query: shape `[*, L, E]`.
        key: shape `[*, S, E]`.
        value: shape `[*, S, E']`.
        mask: what is added to the scores, of a shape that broadcasts to `[*, L, S]`, or None.
        scale: what products of queries and keys are multiplied by.
        operands: for each operand, which of query, key and value (0, 1, 2) it is; one may be several of them.
    """

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scale: float,
        operands: Sequence[Sequence[int]],
    ) -> None:
        self._batch, self._operands = query.shape[:-2], operands
        scores = query @ key.mT * scale
        weights = aten._safe_softmax.default(scores if mask is None else scores + mask, -1)  # noqa: SLF001 - its name
        self._weights = weights.reshape(-1, *weights.shape[-2:])
        # The scale stands with queries and keys, of which there are fewer numbers than of scores.
        self._query, self._key = (self._matrices(one) * scale for one in (query, key))
        self._value = self._matrices(value)
        self._attended = torch.bmm(self._weights, self._value)

    def _matrices(self, rows: Tensor) -> Tensor:
        return rows.reshape(-1, *rows.shape[-2:])

    def pull(self, bank: Tensor) -> list[Tensor]:
        """Return the gradients at each operand."""
        wanted = sorted({place for places in self._operands for place in places})
        shapes = {0: self._query.shape[-2:], 1: self._key.shape[-2:], 2: self._value.shape[-2:]}
        found = {place: _room(bank, self._batch, shapes[place]) for place in wanted}
        scores = torch.empty_like(self._weights)
        for at, row in enumerate(bank):
            matrices = self._matrices(row)
            if found.keys() & {0, 1}:
                # The sum over keys of weights times their gradients is the product of value and gradient.
                along = (matrices * self._attended).sum(-1, keepdim=True)
                torch.bmm(matrices, self._value.mT, out=scores).sub_(along).mul_(self._weights)
            for place, rows in found.items():
                if place == 0:
                    pulled = torch.bmm(scores, self._key)
                else:
                    pulled = torch.bmm(*(scores.mT, self._query) if place == 1 else (self._weights.mT, matrices))
                rows[at] = pulled.view(rows.shape[1:])
        return [sum((found[place] for place in places[1:]), found[places[0]]) for places in self._operands]

    def push(self, banks: Sequence[Tensor | None]) -> Tensor | None:
        """Return the tangents at the value."""
        some = next((bank for bank in banks if bank is not None), None)
        if some is None:
            return None
        found = _room(some, self._batch, self._attended.shape[-2:])
        for at in range(some.shape[0]):
            total: Tensor | None = None
            scores: Tensor | None = None
            for bank, places in zip(banks, self._operands, strict=True):
                for place in places if bank is not None else ():
                    matrices = self._matrices(bank[at])  # type: ignore[index]  # it is not None
                    if place == 2:
                        moved = torch.bmm(self._weights, matrices)
                        total = moved if total is None else total.add_(moved)
                    else:
                        pair = (matrices, self._key.mT) if place == 0 else (self._query, matrices.mT)
                        scores = torch.bmm(*pair) if scores is None else scores.baddbmm_(*pair)
            if scores is not None:
                scores.mul_(self._weights)
                scores.addcmul_(self._weights, scores.sum(-1, keepdim=True), value=-1)
                moved = torch.bmm(scores, self._value)
                total = moved if total is None else total.add_(moved)
            if total is not None:
                found[at] = total.view(found.shape[1:])
        return found


def _room(bank: Tensor, batch: torch.Size, matrix: torch.Size) -> Tensor:
    """Return room for rows `[R, *batch, *matrix]`, in which the matrices' rows follow the rows of the bank.

    Heads mostly are parts of longer vectors: these lie side by side then.
    """
    if len(batch) == 2:
        shape = (bank.shape[0], batch[0], matrix[0], batch[1], matrix[1])
        return bank.new_empty(shape).transpose(2, 3)
    return bank.new_empty((bank.shape[0], *batch, *matrix))


def attention(call: Call) -> Attention | None:
    """Return the derivative of a call on a CPU; None where the call has options or shapes that are not served."""
    defaults: tuple[Any, ...] = (None, 0.0, False)
    query, key, value, mask, dropout, causal = call.args + defaults[len(call.args) - 3 :]
    operands = [[at for at in range(3) if call.node.args[at] is operand] for operand in call.operands]
    unusual = dropout or call.kwargs.get("enable_gqa") or not (query.shape[:-2] == key.shape[:-2] == value.shape[:-2])
    if unusual or not all(operands) or any(other in call.operands for other in call.node.args[3:]):
        return None
    if query.device.type != "cpu" or query.ndim < 3:
        return None
    if causal:
        mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool).tril()
    if mask is not None and mask.dtype is torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, -torch.inf)
    scale = call.kwargs.get("scale")
    return Attention(query, key, value, mask, 1 / math.sqrt(query.shape[-1]) if scale is None else scale, operands)
