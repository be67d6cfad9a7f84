"""``fit``: joins a model, rows and an inference method into a posterior."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from bnn_pyro.arguments import (
    ENGINES,
    as_model,
    check_flag,
    check_names,
    choose_engine,
    find_devices,
    find_dtype,
    find_method,
    known_sites,
)
from bnn_pyro.compiled import BACKENDS
from bnn_pyro.devices import choose_device
from bnn_pyro.dispatch import infer
from bnn_pyro.dropout import check_dropout
from bnn_pyro.ensemble import check_ensemble
from bnn_pyro.errors import OptionError, unknown, warn
from bnn_pyro.inference import MAP, MCMC, SVI, Ensemble, Laplace, MCDropout, Method, Prior
from bnn_pyro.inference.adaptation import check_adaptation
from bnn_pyro.isolation import check_seed, derive_seed
from bnn_pyro.laplace import as_fitted, check_laplace
from bnn_pyro.minibatches import check_batches
from bnn_pyro.parts import Asked, infer_in_parts
from bnn_pyro.posterior import Posterior
from bnn_pyro.rows_to_target import encode_rows, has_units, make_target, training_rows
from bnn_pyro.starts import check_rows_part, learnt_params
from bnn_pyro.survey import StreamedBatches, all_rows_units, open_stream
from bnn_pyro.svi import fit_guide
from bnn_pyro.units import learn_units, warn_of_units


def fit(
    model: Any,
    x: Any,
    y: Any = None,
    *,
    inference: str | Method = "nuts",
    seed: int = 0,
    standardize: bool | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | Sequence[str] = "cpu",
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
        device: ``"cpu"``; ``"cuda"`` or ``"cuda:1"``, a GPU; or ``"auto"``, which takes a GPU where there is one and a step
            has work enough for it (see ``bnn_pyro.devices``). ``attrs`` say which it was, and why. Draws are on the CPU
            afterwards; predictions are made where the fit was. Several, as ``"cuda:0,cuda:1"`` or a list, divide chains or
            members among processes, one a device; each part adapts on its own chains, which for the same devices and seed
            give the same draws. Inside ``joblib.parallel_config("dask")`` the processes are a cluster's.
        engine: ``"compiled"``: this library's samplers, all chains at once; ``"eager"``: the same, with no gradient compiled;
            ``"pyro"``: Pyro's own SVI and NUTS. ``"auto"`` is the first.
        backend: How gradients are computed: ``"inductor"``, ``"eager"`` (the traced graph), ``"pyro"`` (the program),
            or ``"auto"``, which compiles from 3,000 latent numbers times rows on (see ``bnn_pyro.compiled``).
        progress: Show a bar on a terminal.
        missing: What to do with missing values of a data frame: ``"refuse"`` them, ``"drop"`` their rows, or ``"impute"`` the
            median or most frequent value and add a column that says where; None for what ``load_table`` was told, or to refuse.
        keep: Names of the sites that the ArviZ groups ``posterior`` and ``prior`` hold, in memory and in ``posterior.nc``,
            which the weights of a large network would fill; None for all. ``keep=()`` leaves the total log likelihood there,
            for ``az.loo``. Function space, predictions and verdict are the same: they come from all draws of the flat
            vector, which ``posterior.draws.z`` and the file ``state.safetensors`` hold in full. The groups of each row, such
            as ``log_likelihood`` (chains, draws, n), are as large as ever: ``thin=`` makes them smaller.
        **options: The method's settings, such as ``chains=4, warmup=500, draws=500``.
    Raises: BNNError, in one sentence and before any sampling, for data, models or options that cannot be used.
    """
    bnn = as_model(model).fresh()
    method = find_method(inference, options)
    torch_dtype = find_dtype(dtype or method.dtype)
    devices, asked = find_devices(device, method, bnn.name)
    for kind, given, known in (("engine", engine, ENGINES), ("backend", backend, BACKENDS)):
        if given not in known:
            raise unknown(kind, given, known)
    engine, backend = choose_engine(method, engine, backend)
    check_flag("fit, standardize", standardize, or_none=True)
    check_flag("fit, progress", progress)
    check_names(keep)
    check_seed(seed)
    stream, method = open_stream(bnn, x, y, method, engine, seed)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if stream is not None:
            x, y = stream.x, stream.y
        data = training_rows(bnn, x, y, missing)
        bnn = bnn.for_data(data)
        wanted = bnn.standardize if standardize is None else standardize
        units = learn_units(data, x=wanted, y=wanted and has_units(bnn, data), where=bnn.name)
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
    target, device_reason = make_target(bnn, data, units, torch_dtype, asked or torch.device("cpu")), ""
    if asked is None:
        chosen, device_reason = choose_device(target, method, engine)
        target = target if chosen == target.device else make_target(bnn, data, units, torch_dtype, chosen)
    kept = None if keep is None else known_sites(keep, target)
    if units.y is not None and target.predicted is None:
        raise OptionError(
            f"{bnn.name}, standardize: expected one observed site, got {len(target.observed)}: which of them y's standard "
            "deviation belongs to is not known. Standardise the data yourself and pass standardize=False."
        )
    if isinstance(method, MCMC) and method.adaptation is not None:
        check_adaptation(method.adaptation, target.dim, bnn.name)
    if isinstance(method, MCMC) and (fixed := learnt_params(target)):
        warn(
            f"{bnn.name}, {method.name}: latent sites are sampled, and pyro.param {', '.join(map(repr, fixed))} stays as the "
            "program begins it. Give it a prior, or learn it by inference='svi'."
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
        encode = partial(encode_rows, bnn, units, data.classes, torch_dtype, target.device)
        batches = StreamedBatches(stream, method.batch_size, derive_seed(seed, "batches"), encode)
        draws = fit_guide(target, method, bnn.guide, seed, engine, backend, progress, batches)
        draws.info["streamed_rows"] = stream.n
    elif len(devices) > 1 and not isinstance(method, Prior):
        unmoved = as_model(model).fresh().for_data(data)  # the target's program is on this process's device
        common = Asked(unmoved, data, units, torch_dtype, engine, backend)
        draws = infer_in_parts(common, method, devices, seed, progress)
    else:
        draws = infer(target, method, bnn, seed, engine, backend, progress)
    draws.info["device_reason"] = device_reason
    if draws.params:
        target = replace(target, params=draws.params)
    if isinstance(method, Laplace):
        target = as_fitted(target, draws)
        draws.info["log_evidence"] -= data.n * units.log_jacobian
    draws.info |= {"engine": engine, "wall_time": time.perf_counter() - began}
    return Posterior(bnn, data, units, target, method, draws, seed, notes, kept)
