"""Pages about what there is to fit: the list of models, one model's card, the data sets."""

from __future__ import annotations

import inspect
import sys
import warnings
from dataclasses import asdict
from typing import Any

from bnn_pyro import options
from bnn_pyro.tables import command_lines, wrapped


def model_entries(task: str | None = None) -> list[dict[str, Any]]:
    """Name, task, data set, methods and first line of each model, for ``list``."""
    from bnn_pyro.errors import unknown
    from bnn_pyro.registry import list_models, model_class

    cards = {name: model_class(name).card for name in list_models()}
    tasks = {card.task for card in cards.values()}
    if task is not None and task not in tasks:
        raise unknown("task", task, tasks)
    return [
        {
            "name": name,
            "task": card.task,
            "dataset": card.dataset,
            "inference": list(card.inference),
            "about": _module_doc(model_class(name)).partition("\n")[0],
        }
        for name, card in cards.items()
        if task is None or card.task == task
    ]


def models_page(entries: list[dict[str, Any]]) -> str:
    """The list of models as text."""
    lines = [f"{'model':<18}{'task':<16}default data"]
    for entry in entries:
        lines.append(f"{entry['name']:<18}{entry['task']:<16}{entry['dataset']}")
        lines.append(wrapped(entry["about"], "    "))
        lines.append(wrapped(f"Inference: {', '.join(entry['inference'])}.", "    "))
    return "\n".join([*lines, "", "bnn-pyro show NAME explains one; bnn-pyro fit NAME fits it."])


def dataset_entries() -> list[dict[str, Any]]:
    """What each data set is and, where its values are at hand, its size, for ``datasets``."""
    from bnn_pyro.datasets import available, dataset_card, list_datasets, load_dataset

    entries = []
    for name in list_datasets():
        entry = asdict(dataset_card(name)) | {"available": available(name)}
        if entry["available"]:
            data = load_dataset(name)
            entry |= {"train_rows": len(data.train), "test_rows": len(data.test),
                      "columns": [str(c) for c in data.train.x.columns]}  # fmt: skip
        entries.append(entry)
    return entries


def datasets_page(entries: list[dict[str, Any]]) -> str:
    """The list of data sets as text: first those at hand, then those that can be had."""
    lines = [f"{'data set':<15}{'task':<14}{'rows':>6}{'held out':>9}{'columns':>8}{'splits':>7} target"]
    for entry in entries:
        if entry["available"]:
            rows, held_out = entry["train_rows"] + entry["test_rows"], entry["test_rows"]
            counts = f"{rows:>6}{held_out:>9}{len(entry['columns']):>8}{entry['splits']:>7}"
            lines.append(f"{entry['name']:<15}{entry['task']:<14}{counts} {entry['target']}")
            lines += [wrapped(entry["about"], "    "), wrapped(f"Source: {entry['source']}.", "    ")]
    absent = [entry["name"] for entry in entries if not entry["available"]]
    if absent:
        lines += ["", wrapped(f"Not at hand: {', '.join(absent)}.")]
        lines += ["bnn-pyro datasets --fetch NAME downloads one; BNN_PYRO_DATA names their folder."]
    return "\n".join([*lines, "", "bnn-pyro fit MODEL --data NAME fits a model to one."])


def model_page(name: str) -> str:
    """A model's card, as ``show`` prints it."""
    from bnn_pyro.registry import model_class

    kind = model_class(name)
    card = kind.card
    doc = _module_doc(kind)
    parts = [
        f"{name}: {card.task}{', ' + ', '.join(card.tags) if card.tags else ''}\n\n{_reflow(doc)}",
        _sites(kind, card),
        _hyperparameters(kind),
        _methods(card),
        _published(card),
        f"{_label('Reference')}\n{wrapped(card.reference, '  ')}",
        f"{_label('Fit it')}\n"
        + command_lines(f"bnn-pyro fit {name} --data {card.dataset} --inference {_first_choice(card)}"),
    ]
    return "\n\n".join(part for part in parts if part)


def _sites(kind: type, card: Any) -> str:
    import torch

    from bnn_pyro.datasets import load_dataset
    from bnn_pyro.isolation import isolated
    from bnn_pyro.rows_to_target import make_target, training_rows
    from bnn_pyro.sites import draw_from_prior
    from bnn_pyro.units import learn_units

    model = kind()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constant columns, which matter to a fit
        data = training_rows(model, load_dataset(card.dataset).train, None, "refuse")
        model = model.for_data(data)
        units = learn_units(data, x=True, y=model.real_targets, where=model.name)
    target = make_target(model, data, units, torch.float32, "cpu")
    priors: dict[str, list[tuple[str, list[str]]]] = {}

    def latent(name: str, fn: Any) -> Any:
        priors.setdefault(name, []).append(_prior(fn))
        return draw_from_prior(name, fn)

    with isolated(seed=0, dtype=target.dtype):
        for _ in range(2):  # what differs between two draws of the prior depends on other sites
            target.conditional(latent, target.x)
    lines = [f"{_label('Latent sites')}", f"  {'site':<12}{'shape':<12}{'prior':<30}axes"]
    for site in target.sites:
        shape = "x".join(map(str, site.shape)) or "number"
        lines.append(
            f"  {site.name:<12}{shape:<12}{_prior_text(*priors[site.name]):<30}{', '.join(site.dims)}".rstrip()
        )
    if any("*" in _prior_text(*seen) for seen in priors.values()):
        lines.append("  * depends on other sites, as the formulas say.")
    size = f"{target.dim} latent numbers in all, with the default hyper-parameters on {card.dataset}"
    lines.append(wrapped(f"{size} ({data.n} training rows). Sites are in standard units.", "  "))
    return "\n".join(lines)


def _prior(fn: Any) -> tuple[str, list[str]]:
    """A distribution as a pattern such as ``"Normal({}, {})"`` and its parameters; wrappers for shape are left out."""
    kind = type(fn).__name__
    if kind in ("Independent", "ExpandedDistribution", "MaskedDistribution"):
        return _prior(fn.base_dist)
    if kind == "TransformedDistribution":
        pattern, parameters = _prior(fn.base_dist)
        for transform in fn.transforms:
            name = type(transform).__name__.removesuffix("Transform")
            power = name == "Power" and transform.exponent.numel() == 1
            pattern = f"{pattern}^{float(transform.exponent):g}" if power else f"{name}({pattern})"
        return pattern, parameters
    parameters = [
        _one_number(getattr(fn, name)) for name in getattr(type(fn), "arg_constraints", {}) if hasattr(fn, name)
    ]
    return f"{kind}({', '.join(['{}'] * len(parameters))})", parameters


def _one_number(value: Any) -> str:
    """A parameter whose entries are all the same as that number, others as ``[...]``."""
    flat = value.detach().flatten()
    return f"{float(flat[0]):g}" if flat.numel() and bool((flat == flat[0]).all()) else "[...]"


def _prior_text(one: tuple[str, list[str]], other: tuple[str, list[str]]) -> str:
    pattern, parameters = one
    return pattern.format(*(a if a == b else "*" for a, b in zip(parameters, other[1])))


def _hyperparameters(kind: type) -> str:
    types, usual, said = options.field_types(kind), options.defaults(kind), options.explanations(kind)
    if not types:
        return ""
    lines = [_label("Hyper-parameters, changed by --set NAME=VALUE")]
    for name in types:
        value = options.as_text(usual[name]) if name in usual else "required"
        lines.append(wrapped(said.get(name, ""), f"  {name + '=' + value:<20}", " " * 22))
    return "\n".join(lines)


def _methods(card: Any) -> str:
    from bnn_pyro.inference import METHODS

    lines = [_label("Inference, chosen by --inference NAME; its options too by --set")]
    for name in card.inference:
        if name in METHODS:
            usual = options.defaults(METHODS[name])
            lines.append(wrapped(" ".join(f"{k}={options.as_text(v)}" for k, v in usual.items()), f"  {name:<12}"))
        else:
            lines.append(f"  {name:<12}not in this version")
    return "\n".join(lines)


def _published(card: Any) -> str:
    if not card.published:
        return ""
    lines = [_label("Published by others")]
    for one in card.published:
        kinds = ((one.stdev, "sd over splits"), (one.stderr, "standard error"))
        spread, kind = next(((v, kind) for v, kind in kinds if v is not None), (None, ""))
        digits = max(len(f"{v:g}".partition(".")[2]) for v in (one.value, spread) if v is not None)
        value = f"{one.value:.{digits}f}" + (f" ± {spread:.{digits}f} ({kind})" if spread is not None else "")
        text = f"{one.metric} {value}; {one.splits}; {one.source}"
        lines.append(wrapped(text, f"  {one.inference} on {one.dataset:<14}", " " * 10))
    return "\n".join(lines)


def _first_choice(card: Any) -> str:
    return next((name for name in ("svi", "nuts") if name in card.inference), card.inference[0])


def _module_doc(kind: type) -> str:
    return inspect.cleandoc(sys.modules[kind.__module__].__doc__ or kind.__doc__ or "")


def _reflow(doc: str) -> str:
    """Paragraphs in lines of at most 80 columns; indented blocks (formulas) as they are, cut by nothing."""
    paragraphs = doc.split("\n\n")
    out = []
    for p in paragraphs:
        if p.startswith(" "):
            out.append("\n".join(_formula(line) for line in p.splitlines()))
        else:
            out.append(wrapped(" ".join(p.split())))
    return "\n\n".join(out)


def _formula(line: str) -> str:
    """A line of formulas; one that is too long is broken where two or more blanks part its terms."""
    line = line.strip()
    if len(line) <= 76:
        return "    " + line
    lines = [""]
    for piece in line.split("  "):
        if lines[-1] and len(lines[-1]) + len(piece) + 2 > 76:
            lines.append(piece.strip())
        else:
            lines[-1] += ("  " if lines[-1] else "") + piece
    return "\n".join("    " + one for one in lines)


def _label(text: str) -> str:
    return f"{text}\n{'-' * len(text)}"
