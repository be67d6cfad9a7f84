"""Makes a traced graph smaller without changing what it computes: what is constant is computed once, what does nothing is
dropped, what is computed twice is shared. Fewer operations cost less to dispatch, and less to compile.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

_aten = torch.ops.aten
_FILLS = {  # constant whatever the values of the tensor that they take shape from
    _aten.new_zeros.default, _aten.new_ones.default, _aten.new_full.default, _aten.zeros_like.default,
    _aten.ones_like.default, _aten.full_like.default, _aten.zeros.default, _aten.ones.default, _aten.full.default,
    _aten.scalar_tensor.default, _aten.arange.default,
}  # fmt: skip
_RESHAPES = {
    _aten.view.default, _aten.expand.default, _aten.permute.default, _aten.alias.default, _aten.detach.default,
    _aten._to_copy.default, _aten.lift_fresh_copy.default, _aten.slice.Tensor, _aten._unsafe_view.default, _aten.clone.default,
}  # fmt: skip
_NEUTRAL = {_aten.pow.Tensor_Scalar: 1, _aten.mul.Tensor: 1, _aten.mul.Scalar: 1, _aten.div.Tensor: 1, _aten.add.Tensor: 0,
            _aten.sub.Tensor: 0}  # fmt: skip


def simplify(graph: GraphModule, *example: Tensor) -> GraphModule:
    """The same function of arguments like ``example`` with fewer nodes; a graph that writes in place stays as it is."""
    if any(n.op == "call_function" and n.target._schema.is_mutable for n in graph.graph.nodes if _is_operation(n)):
        return _drop(graph, [n for n in graph.graph.nodes if n.target is _aten.detach.default])
    _fold_constants(graph, example)
    values = _values(graph, example)
    _drop(graph, [n for n in graph.graph.nodes if _does_nothing(n, values)])
    _share(graph)
    return graph


def spell_fills(graph: GraphModule) -> GraphModule:
    """The same function where constants that are one number over and over are operations that say so.

    A compiler writes such a number into its code; as tensors they would be arguments, which cost more than the arithmetic.
    """
    graph = GraphModule(graph, copy.deepcopy(graph.graph))  # tensors are shared
    for node in [n for n in graph.graph.nodes if n.op == "get_attr"]:
        value = getattr(graph, str(node.target))
        if not isinstance(value, Tensor) or not value.numel() or not (value == value.flatten()[0]).all():
            continue
        like: dict[str, Any] = {"dtype": value.dtype, "device": value.device, "pin_memory": False}
        with graph.graph.inserting_before(node):
            fill = graph.graph.call_function(_aten.full.default, (list(value.shape), value.flatten()[0].item()), like)
        node.replace_all_uses_with(fill)
        graph.graph.erase_node(node)
    graph.recompile()
    return graph


def spell_thin_products(graph: GraphModule, example: tuple[Tensor, ...]) -> GraphModule:
    """The same function where a product with a lone column, or of a column and a row, is written as what it comes to.

    A compiler makes one loop of these and of what stands around them, where a matrix product is a call of its own.
    """
    graph = GraphModule(graph, copy.deepcopy(graph.graph))
    values = _values(graph, example)
    for node in [n for n in graph.graph.nodes if n.target is _aten.mm.default]:
        a, b = node.args
        if values[a].shape[1] != 1 and values[b].shape[1] != 1:
            continue
        with graph.graph.inserting_before(node):
            if values[a].shape[1] == 1:
                new = graph.graph.call_function(_aten.mul.Tensor, (a, b))
            else:
                row = graph.graph.call_function(_aten.t.default, (b,))
                terms = graph.graph.call_function(_aten.mul.Tensor, (a, row))
                new = graph.graph.call_function(_aten.sum.dim_IntList, (terms, [1], True))
        node.replace_all_uses_with(new)
        graph.graph.erase_node(node)
    graph.recompile()
    return graph


def _values(graph: GraphModule, example: tuple[Tensor, ...]) -> dict[Node, Any]:
    """What each node is at the example."""
    found: dict[Node, Any] = {}

    class Recorder(Interpreter):
        def run_node(self, n: Node) -> Any:
            found[n] = super().run_node(n)
            return found[n]

    with torch.no_grad():
        Recorder(graph).run(*example)
    return found


def _is_operation(node: Node) -> bool:
    return node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload)


def _fold_constants(graph: GraphModule, example: tuple[Tensor, ...]) -> None:
    values = _values(graph, example)
    constant: set[Node] = set()
    for node in graph.graph.nodes:
        if node.op == "get_attr" or (
            _is_operation(node)
            and torch.Tag.nondeterministic_seeded not in node.target.tags
            and (node.target in _FILLS or all(i in constant for i in node.all_input_nodes))
        ):
            constant.add(node)
    for node in list(graph.graph.nodes):
        known = node in constant and node.op != "get_attr" and isinstance(values[node], Tensor)
        if known and any(user not in constant for user in node.users):
            name = f"_constant_{node.name}"
            # as it lies in memory: operations that expand a number over rows are not to be spelt out
            graph.register_buffer(name, values[node])
            with graph.graph.inserting_before(node):
                node.replace_all_uses_with(graph.graph.get_attr(name))
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _does_nothing(node: Node, values: dict[Node, Any]) -> bool:
    if not _is_operation(node) or not node.args or not isinstance(node.args[0], Node):
        return False
    before, after = values[node.args[0]], values[node]
    if not isinstance(before, Tensor) or not isinstance(after, Tensor):
        return False
    same = (before.shape, before.dtype, before.stride(), before.device) == (
        after.shape, after.dtype, after.stride(), after.device)  # fmt: skip
    if not same or node.kwargs.get("alpha", 1) != 1:
        return False
    if node.target in _NEUTRAL and len(node.args) == 2:
        other = node.args[1]
        if not isinstance(other, Node):
            return bool(other == _NEUTRAL[node.target])
        return other.op == "get_attr" and bool((values[other] == _NEUTRAL[node.target]).all())
    return node.target in _RESHAPES


def _drop(graph: GraphModule, nodes: list[Node]) -> GraphModule:
    """Without ``nodes``, in the graph's order, each of which is what its first argument is."""
    for node in nodes:
        first = node.args[0]  # read now: it may have been replaced itself
        assert isinstance(first, Node)
        node.replace_all_uses_with(first)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _share(graph: GraphModule) -> None:
    """Nodes of the same operation on the same arguments become one."""
    seen: dict[Any, Node] = {}
    for node in list(graph.graph.nodes):
        if not _is_operation(node) or torch.Tag.nondeterministic_seeded in node.target.tags:
            continue
        key = (node.target, repr(node.args), repr(sorted(node.kwargs.items())))  # nodes are named once each
        if key in seen:
            node.replace_all_uses_with(seen[key])
        else:
            seen[key] = node
    graph.graph.eliminate_dead_code()
    graph.recompile()
