"""A traced graph compiled to machine code by torch's inductor, its tensors as arguments.

The graph goes to inductor's inner compiler, the last of the passes behind ``torch.compile``, which is private: a call costs
half as much, and compiling skips what recorded Python code needs. Tensors that the graph holds, such as a target's rows,
become arguments, so that the code of one program and shape is found again on disk whatever the rows are.
"""

from __future__ import annotations

import contextlib
import copy
import threading
import traceback
import warnings
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

import torch
from torch import Tensor
from torch.func import functionalize
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

# On a CPU, values that more than a few operations went into are stored once, instead of computed anew wherever they are used.
# The code is the same whatever torch's threads now are, and takes those there are when it runs; made for two threads, it
# shares out the outermost loop alone.
CPU_SETTINGS = {"realize_opcount_threshold": 8, "cpp.dynamic_threads": True, "cpp.threads": 2}


_trials: list[threading.Thread] = []  # one, once it has begun


def try_compiler() -> None:
    """Has torch try out the C++ compiler in a thread, so that it is done by the time a program has been traced.

    Torch builds and loads a small program for some of the processor's instructions, once a process, and waits for each. All
    modules are imported here, as two threads that import the same ones can get them half made. ``inductor`` waits for the
    thread, and meets whatever error there was.
    """
    if _trials:
        return
    try:
        from torch._inductor import codecache, config, cpp_builder, cpu_vec_isa  # noqa: F401
        from torch.utils import _filelock  # noqa: F401
    except ImportError:  # another torch has moved them
        return

    def find_instructions() -> None:
        with contextlib.suppress(Exception), config.patch({"cpp.vec_isa_ok": trusts_compiler(config)}):
            cpu_vec_isa.pick_vec_isa()

    # the user's settings of torch belong to a context
    trial = threading.Thread(target=copy_context().run, args=(find_instructions,))
    trial.start()
    _trials.append(trial)


class Compiled:
    """``code`` of inductor's, called with tensors that its graph held as its last arguments."""

    def __init__(self, code: Any, tensors: list[Tensor]):
        self.code, self.tensors = code, tensors

    def __call__(self, *args: Tensor) -> Any:
        return self.code([*args, *self.tensors])  # which empties the list, to free what is no longer needed


def inductor(graph: GraphModule, example: tuple[Tensor, ...]) -> Callable:
    """Compiled code of ``graph`` for arguments of the shapes, strides and dtypes of ``example``; no gradients through it."""
    lifted, tensors = lift_tensors(graph)
    arguments = (*example, *tensors)
    from torch._inductor import config

    with torch.no_grad():
        try:
            from torch._guards import TracingContext, tracing
            from torch._inductor.compile_fx import compile_fx_inner
            from torch._inductor.decomposition import select_decomp_table
        except ImportError:  # another torch has moved them
            slow = torch.compile(lifted)
            return lambda *args: slow(*args, *tensors)
        traced = make_fx(lifted, decomposition_table=select_decomp_table(), tracing_mode="fake")(*arguments)
        fake = [n.meta["val"] for n in traced.graph.nodes if n.op == "placeholder"]
        for trial in _trials:
            trial.join()
        settings: dict[str, Any] = {"size_asserts": False}
        if arguments[0].device.type == "cpu":
            settings |= {**CPU_SETTINGS, "cpp.vec_isa_ok": trusts_compiler(config)}
        with (
            config.patch(settings),
            tracing(TracingContext(fake[0].fake_mode)),
            warnings.catch_warnings(),
        ):
            warnings.filterwarnings("ignore", "TensorFloat32 tensor cores")  # not for samplers, which need all digits
            code: Any = compile_fx_inner(traced, fake)
    return Compiled(code, tensors)


def trace_in_place(function: Callable[[], object]) -> GraphModule:
    """The graph of what ``function``, which takes nothing, does to tensors; to find out, it is called once."""

    def call() -> tuple[Tensor, ...]:
        function()
        return ()

    with torch.no_grad():
        return make_fx(call, tracing_mode="real")()


def compile_in_place(graph: GraphModule) -> Callable[[], object]:
    """Compiled code of what ``trace_in_place`` gave, for a device.

    Not for a CPU: where loops are fused, the C++ that torch 2.11 and 2.13 make may read a tensor before it is changed.
    """
    lifted, tensors = lift_tensors(graph)
    pure = functionalize(lifted, remove="mutations")  # what changes is written at the end
    with torch.no_grad():
        code = inductor(make_fx(pure, tracing_mode="fake")(*tensors), tuple(tensors))
    return lambda: code(*tensors)


def trusts_compiler(config: Any) -> bool:
    """Whether the compiler is taken to know the processor's vector instructions: yes, but a setting of the user's own stands.

    Where it is not, torch builds and loads a program for each set of instructions first, once a process, which takes as long
    as compiling a small graph. A compiler too old for them fails on the graph, and ``compile_gradient`` says so.
    """
    return True if config.cpp.vec_isa_ok is None else bool(config.cpp.vec_isa_ok)


def lift_tensors(graph: GraphModule) -> tuple[GraphModule, list[Tensor]]:
    """The same function with the tensors that it holds as its last arguments, and these."""
    graph = GraphModule(graph, copy.deepcopy(graph.graph))  # tensors are shared
    arguments: dict[str, Node] = {}
    tensors: list[Tensor] = []
    body = next(n for n in graph.graph.nodes if n.op != "placeholder")
    for node in [n for n in graph.graph.nodes if n.op == "get_attr"]:
        name = str(node.target)
        if name not in arguments:
            with graph.graph.inserting_before(body):
                arguments[name] = graph.graph.placeholder(f"held_{len(tensors)}")
            tensors.append(getattr(graph, name))
        node.replace_all_uses_with(arguments[name])
        graph.graph.erase_node(node)
    graph.recompile()
    return graph, tensors


def sentence(error: Exception) -> str:
    """The first line of what was raised, a compiler's first error in it, and the notes that say at which site.

    Raises: the error itself where memory ran out, for which nothing slower makes up.
    """
    if isinstance(error, torch.OutOfMemoryError):
        raise error
    first, *others = "".join(traceback.format_exception_only(error)).strip().splitlines()
    causes = [line.strip() for line in others if "error: " in line]
    notes = getattr(error, "__notes__", [])
    return " ".join([first, *causes[:1], *notes])
