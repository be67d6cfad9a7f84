"""Makes a traced graph smaller without changing what it computes: what is constant is computed once, what does nothing is
dropped, what is computed twice is shared. Fewer operations cost less to dispatch, and less to compile.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

LARGE = 1_000_000  # numbers of a tensor that is not held where one number says it
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


def simplify(graph: GraphModule) -> GraphModule:
    """The same function with fewer nodes, of a graph that ``make_fx`` made; one that has to write in place stays as it is."""
    for node in graph.graph.nodes:
        if writes(node) and (plain := _without_writing(node)):
            node.target = plain
    if any(writes(n) for n in graph.graph.nodes):
        return _drop(graph, [n for n in graph.graph.nodes if n.target is _aten.detach.default])
    _fold_constants(graph)
    _drop(graph, [n for n in graph.graph.nodes if _does_nothing(n)])
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
        with graph.graph.inserting_before(node):
            node.replace_all_uses_with(_full(graph, value))
        graph.graph.erase_node(node)
    graph.recompile()
    return graph


def _full(graph: GraphModule, value: Tensor) -> Node:
    """An operation that makes a tensor of one number, over and over."""
    like: dict[str, Any] = {"dtype": value.dtype, "device": value.device, "pin_memory": False}
    node = graph.graph.call_function(_aten.full.default, (list(value.shape), value.flatten()[0].item()), like)
    node.meta["val"] = value
    return node


def _thin(value: Any) -> Any:
    """A large tensor of one number as a view of that number."""
    if not isinstance(value, Tensor) or value.numel() < LARGE:
        return value
    first = value[(0,) * value.ndim]
    return first.clone().expand(value.shape) if bool((value == first).all()) else value


def spell_thin_products(graph: GraphModule) -> GraphModule:
    """The same function where a product with a lone column, or of a column and a row, is written as what it comes to.

    A compiler makes one loop of these and of what stands around them, where a matrix product is a call of its own.
    """
    graph = GraphModule(graph, copy.deepcopy(graph.graph))
    for node in [n for n in graph.graph.nodes if n.target is _aten.mm.default]:
        a, b = node.args
        columns = [getattr(tensor_like(n), "shape", (0, 0))[1] for n in (a, b)]
        if 1 not in columns:
            continue
        with graph.graph.inserting_before(node):
            if columns[0] == 1:
                new = graph.graph.call_function(_aten.mul.Tensor, (a, b))
            else:
                row = graph.graph.call_function(_aten.t.default, (b,))
                row.meta["val"] = tensor_like(b).t()
                terms = graph.graph.call_function(_aten.mul.Tensor, (a, row))
                terms.meta["val"] = tensor_like(a)  # of that shape
                new = graph.graph.call_function(_aten.sum.dim_IntList, (terms, [1], True))
            new.meta["val"] = tensor_like(node)
        node.replace_all_uses_with(new)
        graph.graph.erase_node(node)
    graph.recompile()
    return graph


def write_back(graph: GraphModule, count: int) -> GraphModule:
    """The same function where its first ``count`` results are written to its first ``count`` arguments, and not returned."""
    graph = GraphModule(graph, copy.deepcopy(graph.graph))
    (output,) = (n for n in graph.graph.nodes if n.op == "output")
    arguments = [n for n in graph.graph.nodes if n.op == "placeholder"][:count]
    results = output.args[0]
    with graph.graph.inserting_before(output):
        for argument, result in zip(arguments, results[:count], strict=True):
            graph.graph.call_function(_aten.copy_.default, (argument, result))
    output.args = (tuple(results[count:]),)
    graph.recompile()
    return graph


def tensor_like(node: Node) -> Any:
    """A tensor of the shape, strides and dtype that a node's has, perhaps without values; None where that is not known."""
    if node.op == "get_attr":
        return getattr(node.graph.owning_module, str(node.target))
    return node.meta.get("val")


def _blank(node: Node) -> Any:
    """A real tensor like a node's, of any values."""
    like = tensor_like(node)
    if not isinstance(like, Tensor):
        return like
    return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=like.device)


def is_operation(node: Node) -> bool:
    return node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload)


def writes(node: Node) -> bool:
    """Whether it changes a tensor that it is given."""
    operation: Any = node.target
    return is_operation(node) and operation._schema.is_mutable


def _without_writing(node: Node) -> Any:
    """The operation that makes what ``node`` writes, where nobody else sees what is written on; else None.

    torch's own functions write on what they have just made, as ``binary_cross_entropy_with_logits`` does for 1 - y.
    """
    name, overload = str(node.target).removeprefix("aten.").split(".")
    plain = getattr(getattr(_aten, name.removesuffix("_"), None), overload, None)
    on = node.args[0] if node.args else None
    if plain is None or plain is node.target or not isinstance(on, Node) or len(on.users) > 1 or not is_operation(on):
        return None
    makes: Any = on.target
    is_new = all(result.alias_info is None for result in makes._schema.returns)
    dtypes = {getattr(tensor_like(n), "dtype", None) for n in (node, *node.all_input_nodes)}
    return plain if is_new and len(dtypes) == 1 else None


def _fold_constants(graph: GraphModule) -> None:
    """Nodes that no argument has a part in become tensors that the graph holds."""
    values: dict[Node, Any] = {}
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            values[node] = getattr(graph, str(node.target))
        elif is_operation(node) and torch.Tag.nondeterministic_seeded not in node.target.tags:
            fill = node.target in _FILLS
            if fill or all(i in values for i in node.all_input_nodes):
                args, kwargs = (
                    map_arg(a, lambda n: values[n] if n in values else _blank(n)) for a in (node.args, node.kwargs)
                )
                with torch.no_grad():
                    values[node] = _thin(node.target(*args, **kwargs))
    for node in list(graph.graph.nodes):
        known = node.op != "get_attr" and isinstance(values.get(node), Tensor)
        if known and any(user not in values for user in node.users):
            value, name = values[node], f"_constant_{node.name}"
            with graph.graph.inserting_before(node):
                if value.numel() >= LARGE and not any(value.stride()):
                    node.replace_all_uses_with(_full(graph, value))
                else:  # as it lies in memory: operations that expand a number over rows are not to be spelt out
                    graph.register_buffer(name, value)
                    node.replace_all_uses_with(graph.graph.get_attr(name))
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _does_nothing(node: Node) -> bool:
    if not is_operation(node) or not node.args or not isinstance(node.args[0], Node):
        return False
    before, after = tensor_like(node.args[0]), tensor_like(node)
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
        return other.op == "get_attr" and bool((tensor_like(other) == _NEUTRAL[node.target]).all())
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
        if not is_operation(node) or torch.Tag.nondeterministic_seeded in node.target.tags:
            continue
        key = (node.target, repr(node.args), repr(sorted(node.kwargs.items())))  # nodes are named once each
        if key in seen:
            node.replace_all_uses_with(seen[key])
        else:
            seen[key] = node
    graph.graph.eliminate_dead_code()
    graph.recompile()
