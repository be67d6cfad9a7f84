"""Which device a fit runs on, and what fits into its memory: foreseen, before work starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bnn_pyro.batching import bytes_made
from bnn_pyro.errors import OptionError, unknown
from bnn_pyro.inference import MAP, MCMC, NUTS, SVI, Ensemble, MCDropout
from bnn_pyro.target import Target

# Latent numbers * rows * chains of a gradient (or members of a step), from which on "auto" takes a GPU. A step of a sampler is
# some 150 operations of at least 3 us each there, in which two cores of a CPU get through five million; no GPU was measured.
GPU_FROM = 20_000_000
KEPT = 0.9  # share of a device's memory that may be planned with
STATE = 0.5  # ... and of that for what chains remember between gradients
BUFFERS = 2**31  # bytes of random numbers made ahead, and of draws on their way to the host
# Vectors of a chain's length that a sampler has at once: those of its state and what comes and goes beside them, momenta
# ahead, and positions on their way. NUTS has seven more for each doubling, of which five come and go.
OTHERS = 36
SLOTS = 7


def device_names(device: str | torch.device | Sequence[str]) -> tuple[str, ...]:
    """The names in ``"cuda:0,cuda:1"``, or in a list of such. What is there is not looked at: it may be on other machines.

    Raises: UnknownNameError for another name, OptionError for "auto" beside others.
    """
    given = device if isinstance(device, list | tuple) else str(device).split(",")
    names = tuple(str(name).strip() for name in given)
    for name in names or ("",):
        kind, _, number = name.partition(":")
        if not (name in ("cpu", "auto", "cuda") or (kind == "cuda" and number.isdecimal())):
            raise unknown("device", name, ("cpu", "cuda", "auto"))
    if len(names) > 1 and "auto" in names:
        raise OptionError(
            f"device: expected names of devices, got 'auto' among {len(names)}. Name each, or 'auto' alone."
        )
    return names


def find_device(name: str) -> torch.device | None:
    """What one of ``device_names`` is to torch; None for ``"auto"``. Raises: OptionError for a GPU that is not there."""
    if name == "auto":
        return None
    kind, _, number = name.partition(":")
    return torch.device("cpu") if kind == "cpu" else _find_cuda(name, int(number) if number else None)


def nearest_device(names: Sequence[str]) -> torch.device | None:
    """Where this process computes if the fit is on several: on the first, or on the CPU where that is elsewhere."""
    try:
        return find_device(names[0])
    except OptionError:
        if len(names) == 1:
            raise
        return torch.device("cpu")


def _find_cuda(name: str, number: int | None) -> torch.device:
    if not torch.cuda.is_available():
        build = f"torch {torch.__version__} is built for CUDA {torch.version.cuda}" if torch.version.cuda else (
            f"torch {torch.__version__} is built without CUDA"
        )  # fmt: skip
        raise OptionError(f"device: expected 'cpu' or 'auto', got {name!r}: {build}, and finds no GPU. Use 'cpu'.")
    count = torch.cuda.device_count()
    number = torch.cuda.current_device() if number is None else number
    if number >= count:
        raise OptionError(f"device: expected 'cuda:0' to 'cuda:{count - 1}', got {name!r}. Use 'cuda'.")
    return torch.device("cuda", number)


def choose_device(target: Target, method: Any, engine: str) -> tuple[torch.device, str]:
    """What ``"auto"`` is for a target on the CPU, and why."""
    if not torch.cuda.is_available():
        return target.device, "torch finds no GPU"
    if engine == "pyro" or not isinstance(method, MCMC | SVI | MAP | Ensemble | MCDropout):
        return target.device, f"{method.name} does one thing at a time, for which a GPU is slower"
    rows = getattr(method, "batch_size", None) or target.n
    copies = next((getattr(method, k) for k in ("chains", "members", "particles") if hasattr(method, k)), 1)
    work = target.dim * rows * copies
    compared = f"{target.dim} latent numbers x {rows} rows x {copies} at once"
    if work < GPU_FROM:
        return target.device, f"{compared} is less than the {GPU_FROM:.0e} from which on a GPU is faster"
    return torch.device("cuda", torch.cuda.current_device()), f"{compared} is at least {GPU_FROM:.0e}"


def chains_at_once(target: Target, z: Tensor, method: MCMC, memory: int) -> int:
    """Chains whose gradients fit into a device of ``memory`` bytes together: all, or a power of two.

    Args:
        z: A point (dim,) on the device.
    Raises: OptionError where even what chains remember does not fit.
    """
    planned = KEPT * memory - BUFFERS
    slots = SLOTS * method.max_tree_depth if isinstance(method, NUTS) else 0
    metric = 2 * target.dim**2 * (4 + 8) if method.dense_mass else 0
    each = target.dim * (OTHERS + slots) * z.element_size() + (8 * target.dim**2 if method.dense_mass else 0)
    most = int((STATE * planned - metric) // each)
    if most < method.chains:
        raise OptionError(
            f"{target.name}, {method.name}, chains: expected at most {max(most, 0)} in the {memory / 2**30:.0f} GiB of "
            f"{target.device}, at {each / 2**20:.3g} MiB each, got {method.chains}. Use fewer, or device='cpu'."
        )
    gradient = 3 * bytes_made(lambda: target.log_density(z))
    fit = int((1 - STATE) * planned // gradient)
    return method.chains if fit >= method.chains else 2 ** max(fit.bit_length() - 1, 0)


def memory_of(device: torch.device) -> int:
    """Bytes of all memory of a CUDA device: what is free now would give another answer the next time."""
    return torch.cuda.get_device_properties(device).total_memory


def out_of_memory(where: str, device: torch.device) -> OptionError:
    """What to say when a device had less room than foreseen, such as beside another process."""
    free, total = torch.cuda.mem_get_info(device)
    return OptionError(
        f"{where}: expected room on {device}, got none: {free / 2**30:.1f} of {total / 2**30:.1f} GiB are free, beside "
        f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB that this process has taken. Use fewer chains, members or "
        "rows (batch_size=), or device='cpu'."
    )
