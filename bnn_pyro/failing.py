"""Decompositions that fail for some chains of a batch: NaN for these, and no error for all.

torch factorises a batch of matrices, and raises an error where any could not be: ``linalg.cholesky_ex`` and a check of what it
says of each. Far out, a program's covariance may well be singular. There a chain is to turn back, and the others go on.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import GraphModule, Node

_aten = torch.ops.aten
_CHECK = _aten._linalg_check_errors.default
_RESHAPES = {_aten.view.default, _aten._unsafe_view.default, _aten.alias.default, _aten.detach.default}


def nan_where_it_fails(graph: GraphModule) -> GraphModule:
    """The same function, of a graph that ``make_fx`` made, where matrices that cannot be decomposed become NaN."""
    for check in [n for n in graph.graph.nodes if n.target is _CHECK]:
        info = check.args[0]
        while info.target in _RESHAPES:
            info = info.args[0]
        if info.target is not operator.getitem:
            continue  # it is something else that is checked: an error, as ever
        _mark(graph, *info.args)
        graph.graph.erase_node(check)
    graph.recompile()
    return graph


def _mark(graph: GraphModule, decomposition: Node, place: int) -> None:
    """Puts NaN where result ``place`` of a decomposition, a number for each matrix, is not 0."""
    results = [n for n in decomposition.users if n.target is operator.getitem and n.args[1] != place]
    values = decomposition.meta["val"]

    def call(operation: Any, like: Any, *args: Any) -> Node:
        node = graph.graph.call_function(operation, args)
        node.meta["val"] = like
        return node

    with graph.graph.inserting_after(decomposition):
        info = call(operator.getitem, values[place], decomposition, place)
    with graph.graph.inserting_after(info):
        failed = call(_aten.ne.Scalar, values[place] != 0, info, 0)
    for result in results:
        value = values[result.args[1]]
        if not value.is_floating_point():
            continue  # pivots
        mask = last = failed
        for _ in range(value.ndim - values[place].ndim):
            with graph.graph.inserting_after(last):
                mask = last = call(_aten.unsqueeze.default, mask.meta["val"].unsqueeze(-1), mask, -1)
        users = list(result.users)
        with graph.graph.inserting_after(result):
            marked = call(_aten.masked_fill.Scalar, value, result, mask, float("nan"))
        for user in users:
            user.replace_input_with(result, marked)
