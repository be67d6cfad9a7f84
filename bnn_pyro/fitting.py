"""``fit``: joins a model, rows and an inference method into a posterior."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bnn_pyro.compiled import BACKENDS
from bnn_pyro.data import Data, Inputs, collect, inputs_to_tensors, refuse_not_finite, to_tensor
from bnn_pyro.draws import Draws
from bnn_pyro.dropout import check_dropout, fit_dropout
from bnn_pyro.ensemble import check_ensemble, fit_ensemble
from bnn_pyro.errors import DataError, ModelError, OptionError, printable, unknown, warn
from bnn_pyro.inference import MAP, MCMC, NUTS, SVI, Ensemble, Laplace, MCDropout, Method, Prior, make_method
from bnn_pyro.isolation import check_seed, derive_seed, isolated
from bnn_pyro.labels import encode
from bnn_pyro.laplace import as_fitted, check_laplace, fit_laplace
from bnn_pyro.minibatches import check_batches
from bnn_pyro.model import BNN, Model
from bnn_pyro.posterior import Posterior
from bnn_pyro.prior import sample_prior
from bnn_pyro.pyro_nuts import sample_nuts
from bnn_pyro.sampling import sample
from bnn_pyro.starts import check_rows_part, prior_point
from bnn_pyro.structure import build_empty_target, build_target
from bnn_pyro.survey import StreamedBatches, all_rows_units, open_stream
from bnn_pyro.svi import fit_guide
from bnn_pyro.target import Target
from bnn_pyro.units import Units, learn_units, warn_of_units

ENGINES = ("auto", "compiled", "eager", "pyro")
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def fit(
    model: Any,
    x: Any,
    y: Any = None,
    *,
    inference: str | Method = "nuts",
    seed: int = 0,
    standardize: bool | None = None,
    dtype: str | torch.dtype | None = None,
    device: str = "cpu",
    engine: str = "auto",
    backend: str = "auto",
    progress: bool = True,
    missing: str | None = None,
    keep: Sequence[str] | None = None,
    **options: Any,
) -> Posterior:
    """Fits a Bayesian neural network and returns its posterior.

    Args:
        model: A model of the zoo, a ``BNN``, or a Pyro program ``model(x, y=None)``.
        x: Rows: an array, tensor or data frame (n, ...), a dict of arrays that share the row axis, or the part of a data
            set that holds x and y (``data.train``). Text columns of a data frame become columns of 0 and 1. No rows at
            all give the prior, with a warning. For SVI and MAP, rows may stay where they are: memory-mapped arrays, with
            ``batch_size=``, or a torch ``DataLoader`` of pairs (x, y). They are read once before the first step, and scores,
            verdict and ArviZ groups are of 1,000 of them, or of a batch if that has more.
        y: Targets (n,), or (n, k) where the observed site has event shape (k,). For a model of classes, labels (n,) of any
            kind; a pandas Categorical may declare classes that these rows lack. For a regression, numbers (bools count as
            0 and 1).
        inference: A name of ``bnn.list_inference()``, such as ``"nuts"`` or ``"svi"``, or a value such as ``NUTS(chains=4)``.
        seed: All randomness comes from it; torch's, numpy's and Pyro's global state is the same after as before.
        standardize: Put inputs (and real targets) into standard units, learnt on these rows; None for the model's default.
        dtype: ``"float32"`` or ``"float64"``; None is the method's: float64 for ``"laplace"``, whose mode float32 cannot tell
            well enough, else float32.
        device: ``"cpu"``, or ``"auto"``, which is the same for now.
        engine: ``"compiled"``: this library's samplers, all chains at once; ``"eager"``: the same, with nothing compiled;
            ``"pyro"``: Pyro's own SVI and NUTS. ``"auto"`` is the first.
        backend: How gradients are computed: ``"inductor"``, ``"eager"`` (the traced graph), ``"pyro"`` (the program),
            or ``"auto"``, which compiles from 3,000 latent numbers times rows on (see ``bnn_pyro.compiled``).
        progress: Show a bar on a terminal.
        missing: What to do with missing values of a data frame: ``"refuse"`` them, ``"drop"`` their rows, or ``"impute"`` the
            median or most frequent value and add a column that says where; None for what ``load_table`` was told, or to refuse.
        keep: Names of the sites that the ArviZ groups ``posterior`` and ``prior`` hold, in memory and in ``posterior.nc``,
            which the weights of a large network would fill; None for all. ``keep=()`` leaves the total log likelihood there,
            for ``az.loo``. Function space, predictions and verdict are the same: they come from all draws of the flat
            vector, which ``posterior.draws.z`` and the file ``state.safetensors`` hold in full.
        **options: The method's settings, such as ``chains=4, warmup=500, draws=500``.
    Raises: BNNError, in one sentence and before any sampling, for data, models or options that cannot be used.
    """
    bnn = as_model(model).fresh()
    method = _method(inference, options)
    torch_dtype, torch_device = find_dtype(dtype or method.dtype), find_device(device)
    for kind, given, known in (("engine", engine, ENGINES), ("backend", backend, BACKENDS)):
        if given not in known:
            raise unknown(kind, given, known)
    engine, backend = choose_engine(method, engine, backend)
    _check_flags(standardize, progress)
    _check_names(keep)
    check_seed(seed)
    stream, method = open_stream(bnn, x, y, method, engine, seed)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if stream is not None:
            x, y = stream.x, stream.y
        data = training_rows(bnn, x, y, missing)
        bnn = bnn.for_data(data)
        wanted = bnn.standardize if standardize is None else standardize
        units = learn_units(data, x=wanted, y=wanted and _has_units(bnn, data), where=bnn.name)
        if stream is not None:
            units = all_rows_units(stream, units)
            if data.n < stream.n:
                warn(
                    f"{bnn.name}: the {stream.n} rows stay where they are; scores, verdict and ArviZ groups are of {data.n} of "
                    "them, drawn evenly, and there is no k-hat."
                )
        if bnn.card is not None and not wanted:
            warn_of_units(data, bnn.real_targets, bnn.name)
        if data.n == 0:
            warn(f"{bnn.name}: no rows, so the posterior is the prior; its draws are drawn from there.")
            method = Prior(draws=getattr(method, "chains", getattr(method, "members", 1)) * getattr(method, "draws", 1))
    notes = [str(w.message) for w in caught]
    for note in notes:
        warn(note)
    target = make_target(bnn, data, units, torch_dtype, torch_device)
    kept = None if keep is None else _known_sites(keep, target)
    if units.y is not None and target.predicted is None:
        raise OptionError(
            f"{bnn.name}, standardize: expected one observed site, got {len(target.observed)}: which of them y's standard "
            "deviation belongs to is not known. Standardise the data yourself and pass standardize=False."
        )
    if isinstance(method, MCMC) and method.init == "ensemble":
        check_rows_part(target)
    if isinstance(method, SVI | MAP | Ensemble | MCDropout) and method.batch_size is not None:
        check_batches(target, method.batch_size)

    if isinstance(method, Ensemble):
        check_ensemble(target, method)
    if isinstance(method, MCDropout):
        check_dropout(target, method)
    if isinstance(method, Laplace):
        check_laplace(target)

    began = time.perf_counter()
    if stream is not None:
        assert isinstance(method, SVI | MAP) and method.batch_size is not None, "checked by open_stream"
        encode = partial(_encode, bnn, units, data.classes, torch_dtype, torch_device)
        batches = StreamedBatches(stream, method.batch_size, derive_seed(seed, "batches"), encode)
        draws = fit_guide(target, method, bnn.guide, seed, engine, backend, progress, batches)
        draws.info["streamed_rows"] = stream.n
    else:
        draws = _infer(target, method, bnn, seed, engine, backend, progress)
    if draws.params:
        target = replace(target, params=draws.params)
    if isinstance(method, Laplace):
        target = as_fitted(target, draws)
        draws.info["log_evidence"] -= data.n * units.log_jacobian
    draws.info |= {"engine": engine, "wall_time": time.perf_counter() - began}
    return Posterior(bnn, data, units, target, method, draws, seed, notes, kept)


def make_target(bnn: Model, data: Data, units: Any, dtype: torch.dtype, device: Any, params: Any = None) -> Target:
    """The target of a model on rows in original units."""
    assert data.y is not None, "checked by training_rows"
    x, y = _to_tensors(bnn, units, dtype, device, data.x, data.y)
    if units.y is None:
        _refuse_rounding(data.y, y, dtype, f"{bnn.name}, y")
    else:
        _refuse_extreme(units.y, dtype, f"{bnn.name}, y")
    for label, tensor in (
        [*((f"x[{k!r}]", v) for k, v in x.items()), ("y", y)] if isinstance(x, dict) else [("x", x), ("y", y)]
    ):
        if tensor.is_floating_point():  # a number may be finite in float64 and not in float32
            remedy = "Pass dtype='float64', or rescale." if dtype != torch.float64 else "Rescale those columns."
            refuse_not_finite(
                tensor.cpu().numpy(), label, bnn.name, data.columns, f"numbers that {dtype} can hold", remedy
            )
    build = build_target if data.n else build_empty_target
    return build(bnn.model, x, y, name=bnn.name, dims=bnn.dims(), dtype=dtype, params=params)


def _to_tensors(
    bnn: Model, units: Units, dtype: torch.dtype, device: Any, x: Any, y: np.ndarray
) -> tuple[Inputs, Tensor]:
    """Rows in original units, their labels as codes, as the model takes them."""
    floating = bnn.card is not None  # zoo models take floats; a user's program gets integers as it passed them
    inputs = inputs_to_tensors(units.inputs(x), dtype, device, floating)
    return inputs, to_tensor(units.targets(y), dtype, device, floating=floating and bnn.task != "classification")


def _encode(
    bnn: Model, units: Units, classes: Any, dtype: torch.dtype, device: Any, x: Any, y: np.ndarray
) -> tuple[Inputs, Tensor]:
    """``_to_tensors`` of rows as a user gave them."""
    return _to_tensors(bnn, units, dtype, device, x, y if classes is None else encode(y, classes, f"{bnn.name}, y"))


def _refuse_rounding(y: np.ndarray, tensor: Tensor, dtype: torch.dtype, where: str) -> None:
    """Raises: DataError for whole numbers, in their own units, that the dtype cannot hold; an observed site casts to it."""
    if y.dtype.kind not in "iu":
        return
    whole = torch.as_tensor(y.astype(np.int64))  # int64 compares exactly where float64 would round, too
    changed = np.flatnonzero(
        (tensor.cpu().to(dtype).to(torch.int64) != whole).reshape(len(y), -1 if len(y) else 1).any(1)
    )
    if len(changed):
        raise DataError(
            f"{where}: expected whole numbers that {dtype} can hold, got {y[changed[0]]} at row {changed[0]}. "
            "Pass dtype='float64', or standardise."
        )


def _refuse_extreme(moments: tuple[np.ndarray, np.ndarray], dtype: torch.dtype, where: str) -> None:
    """Raises: DataError where predictions, or their variances, would overflow or vanish in the units of y."""
    limit = 1e30 if dtype == torch.float32 else 1e150
    mean, sd = (np.abs(moment) for moment in moments)
    if float(np.max(mean)) > limit or float(np.max(sd)) > limit or float(np.min(sd)) < 1 / limit:
        remedy = "Pass dtype='float64', or rescale." if dtype == torch.float32 else "Rescale."
        raise DataError(
            f"{where}: expected a spread between {1 / limit:g} and {limit:g}, for predictions in {dtype}, got a mean of "
            f"size {np.max(mean):.3g} and standard deviations from {np.min(sd):.3g} to {np.max(sd):.3g}. {remedy}"
        )


def _has_units(bnn: Model, data: Data) -> bool:
    """Whether y is a real number: said by a zoo model's task, and for a user's program by its values being floats."""
    return bnn.real_targets and (bnn.card is not None or (data.y is not None and data.y.dtype.kind == "f"))


def as_model(model: Any) -> Model:
    """A model of the zoo or a ``BNN`` as it is, a Pyro program as a ``BNN``. Raises: ModelError for anything else."""
    if isinstance(model, Model):
        return model
    if callable(model) and not (isinstance(model, type) and issubclass(model, Model)):
        return BNN(model)
    remedy = "Write bnn.get_model('linear'), or pass a program."
    if isinstance(model, str):
        remedy = f"Write bnn.get_model({printable(model)})."
    elif isinstance(model, type):
        remedy = f"Write {model.__name__}()."
    raise ModelError(
        f"fit, model: expected a model of the zoo, a BNN, or a Pyro program model(x, y=None), got {printable(model)}. {remedy}"
    )


def _check_flags(standardize: Any, progress: Any) -> None:
    """Raises: OptionError for a flag that is no truth value, such as the text 'no', which Python takes for True."""
    for name, value, also in (("standardize", standardize, ", or None"), ("progress", progress, "")):
        if not (isinstance(value, bool) or (value is None and also)):
            raise OptionError(f"fit, {name}: expected True or False{also}, got {value!r}.")


def _check_names(keep: Any) -> None:
    """Raises: OptionError unless ``keep`` is a list of names, or None. A lone name would be taken letter by letter."""
    if keep is not None and not (isinstance(keep, list | tuple) and all(isinstance(name, str) for name in keep)):
        remedy = f" Write keep=[{printable(keep)}]." if isinstance(keep, str) else ""
        raise OptionError(
            f"fit, keep: expected a list of sites' names, or None for all, got {printable(keep)}.{remedy}"
        )


def _known_sites(keep: Sequence[str], target: Target) -> tuple[str, ...]:
    """``keep`` without repeats. Raises: UnknownNameError for a name that the group ``posterior`` would not have."""
    with isolated(seed=0, dtype=target.dtype), torch.no_grad():
        known = list(target.constrain(prior_point(target)))
    for name in keep:
        if name not in known:
            raise unknown(f"site in keep of {target.name}", name, known, f"Its sites are {', '.join(known)}.")
    return tuple(dict.fromkeys(keep))


def choose_engine(method: Method, engine: str, backend: str) -> tuple[str, str]:
    """The engine and backend that run a method. Raises: OptionError where the engine that was asked for has it not."""
    if isinstance(method, Prior):
        return "pyro", backend
    if isinstance(method, SVI | MAP) and backend == "pyro":
        engine = "pyro"
    if engine == "pyro" and isinstance(method, SVI | MAP):
        for option in method.beyond_pyro():
            raise OptionError(f"engine='pyro': expected {method.name} without {option}. Use engine='compiled'.")
    elif engine == "pyro" and not isinstance(method, NUTS):
        raise OptionError(f"engine: expected 'compiled' or 'eager' for {method.name}, which Pyro runs not, got 'pyro'.")
    if engine == "pyro" and isinstance(method, MCMC) and (method.thin > 1 or method.adaptation is not None):
        raise OptionError("engine='pyro': expected NUTS without thin and adaptation. Use engine='compiled'.")
    if engine == "eager":
        if backend == "inductor":
            raise OptionError(
                "engine='eager': expected backend 'auto' or 'eager', got 'inductor'. Drop one of the two."
            )
        backend = "eager" if backend == "auto" else backend
    return ("pyro" if engine == "pyro" else "compiled"), backend


def _infer(target: Target, method: Method, bnn: Model, seed: int, engine: str, backend: str, progress: bool) -> Draws:
    if isinstance(method, Prior):
        return sample_prior(target, method, seed)
    if isinstance(method, NUTS) and engine == "pyro":
        return sample_nuts(target, method, seed, backend, progress)
    if isinstance(method, MCMC):
        return sample(target, method, seed, backend, progress)
    if isinstance(method, Ensemble):
        return fit_ensemble(target, method, seed, backend, progress)
    if isinstance(method, MCDropout):
        return fit_dropout(target, method, seed, backend, progress)
    if isinstance(method, Laplace):
        return fit_laplace(target, method, seed, backend, progress)
    assert isinstance(method, SVI | MAP), "make_method knows no other"
    return fit_guide(target, method, bnn.guide, seed, engine, backend, progress)


def _method(inference: str | Method, options: dict) -> Method:
    return make_method(
        inference,
        options,
        also=("seed", "standardize", "dtype", "device", "engine", "backend", "progress", "missing", "keep"),
    )


def training_rows(bnn: Model, x: Any, y: Any, missing: str | None = None) -> Data:
    """What a user passed to ``fit`` as rows, checked: x and y, or one object that holds both."""
    told = getattr(x, "missing", None)  # a part of a table says; a data frame may have a column of that name
    missing = missing or (told if isinstance(told, str) else "refuse")
    labels = bnn.task == "classification"
    how: dict[str, Any] = {"where": bnn.name, "missing": missing, "classes": labels, "empty": True}
    how |= {"count": bnn.class_count} if labels else {}
    if y is None and hasattr(x, "x") and hasattr(x, "y"):
        data = collect(x.x, x.y, **how)
        columns = data.columns or getattr(x, "columns", None)
        return replace(data, columns=columns, target=data.target or getattr(x, "target", None))
    if y is None:
        raise DataError(f"{bnn.name}, y: expected targets, got none. Call fit(x, y), or fit(data.train).")
    return collect(x, y, **how)


def find_dtype(dtype: str | torch.dtype) -> torch.dtype:
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise unknown("dtype", name, DTYPES)
    return DTYPES[name]


def find_device(device: str | torch.device) -> torch.device:
    """``"cpu"`` or ``"auto"`` as a device of torch. Raises: UnknownNameError or OptionError for another."""
    name = str(device)
    if name.partition(":")[0] == "cuda":
        raise OptionError(
            f"device: expected 'cpu' or 'auto', got {name!r}: Pyro's engines run on the CPU here. Use 'cpu'."
        )
    if name not in ("cpu", "auto"):
        raise unknown("device", name, ("cpu", "auto"))
    return torch.device("cpu")
