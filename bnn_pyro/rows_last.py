"""Turns a batched graph so that the rows of data are the last axis of what stands between its matrix products.

``vmap`` over chains makes (chains, rows, units) of a layer's values. Units are few, and seldom a multiple of what a processor
takes at a time, so that a loop over them is mostly its own end; rows are many. Where the rows are the longest axis of a batched
product, it is computed the other way around,

    a b = (b' a')',

and the transposition is carried through all that is done number by number, up to a sum or another product, which take
either form. No number changes but by the order of sums. A product of two matrices stays as it is: there, what a loop gains
is less than the product of a network's gradient loses. So does what is not on a CPU, where nothing of this was measured.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch.fx import GraphModule, Node

from bnn_pyro.simplify import is_operation, tensor_like, writes

_aten = torch.ops.aten
_SUMS = {_aten.sum.dim_IntList, _aten.logsumexp.default, _aten.mean.dim, _aten.amax.default, _aten.amin.default}
_STRIDED = {_aten.as_strided.default, _aten.as_strided_scatter.default}


def rows_last(graph: GraphModule) -> GraphModule:
    """The same function with turned products, of a graph whose nodes have shapes; one without such products as it is.

    A graph that writes in place, or that asks how a tensor lies in memory, stays as it is too.
    """
    nodes = list(graph.graph.nodes)
    fixed = any(writes(n) or n.target in _STRIDED for n in nodes)
    return graph if fixed or not any(_has_long_rows(n) for n in nodes) else _Turning(graph).graph


def _has_long_rows(node: Node) -> bool:
    if node.target is not _aten.bmm.default or tensor_like(node).device.type != "cpu":
        return False
    a, b = _shapes(*node.args)
    return a[1] > max(b[1:])


def _shapes(*nodes: Any) -> list[torch.Size]:
    return [tensor_like(n).shape for n in nodes]


class _Turning:
    """``graph`` is a copy that has been turned: by the last two axes of values, whatever stands before these."""

    def __init__(self, graph: GraphModule):
        self.graph = GraphModule(graph, copy.deepcopy(graph.graph))  # tensors are shared
        self._sources: dict[Node, Node] = {}  # of nodes that are transposed views of turned ones
        for node in list(self.graph.graph.nodes):
            if node.target is _aten.view.default:  # what is turned lies otherwise in memory
                node.target = _aten.reshape.default
            if is_operation(node):
                with self.graph.graph.inserting_before(node):
                    self._turn(node)
        self.graph.graph.eliminate_dead_code()
        self.graph.recompile()

    def _turn(self, node: Node) -> None:
        args: Any = node.args
        if _has_long_rows(node):
            self._replace(node, (self._turned(args[1]), self._turned(args[0])))
        elif not any(n in self._sources for n in node.all_input_nodes):
            return
        elif node.target in _SUMS and len(args) > 1 and args[1]:
            values, axes, *more = args
            (shape,) = _shapes(values)
            kept = bool(more and more[0]) or not _last_two(axes, shape)
            self._replace(node, (self._turned(values), _turned_axes(axes, shape), *more), kept)
        elif node.target is _aten.squeeze.dims:
            values, axes = args
            (shape,) = _shapes(values)
            if all(shape[axis] == 1 for axis in axes):
                self._replace(node, (self._turned(values), _turned_axes(axes, shape)), not _last_two(axes, shape))
        elif _goes_number_by_number(node):
            self._replace(node, tuple(map(self._turned, args)))

    def _turned(self, node: Any) -> Any:
        """A node's transpose, (..., columns, rows), without a view of a view; numbers are what they are."""
        if not isinstance(node, Node) or not tensor_like(node).ndim:
            return node
        if node in self._sources:
            return self._sources[node]
        if tensor_like(node).ndim == 1:
            node = self._call(_aten.unsqueeze.default, (node, 0), tensor_like(node).unsqueeze(0))
        return self._call(_aten.transpose.int, (node, -2, -1), tensor_like(node).transpose(-2, -1))

    def _replace(self, node: Node, args: tuple, view: bool = True) -> None:
        """By the same operation on turned arguments; ``view`` says that its result is turned, too."""
        before = tensor_like(node)
        new = self._call(node.target, args, before.transpose(-2, -1) if view else before, node.kwargs)
        if view:
            source, new = new, self._call(_aten.transpose.int, (new, -2, -1), before)
            self._sources[new] = source
        node.replace_all_uses_with(new)
        self.graph.graph.erase_node(node)

    def _call(self, operation: Any, args: tuple, value: Any, kwargs: dict[str, Any] | None = None) -> Node:
        node = self.graph.graph.call_function(operation, args, kwargs)
        node.meta["val"] = value
        return node


def _goes_number_by_number(node: Node) -> bool:
    operation: Any = node.target
    by_number = torch.Tag.pointwise in operation.tags  # which no random operation is
    return by_number and tensor_like(node).ndim >= 2 and not any(isinstance(v, Node) for v in node.kwargs.values())


def _last_two(axes: Any, shape: torch.Size) -> set[int]:
    """Those of ``axes`` that are rows or columns."""
    return {axis % len(shape) for axis in axes} & {len(shape) - 2, len(shape) - 1}


def _turned_axes(axes: Any, shape: torch.Size) -> list[int]:
    rows, columns = len(shape) - 2, len(shape) - 1
    return [{rows: columns, columns: rows}.get(axis % len(shape), axis % len(shape)) for axis in axes]
