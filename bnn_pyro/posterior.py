"""The posterior: draws of a network's weights, what they predict, whether to believe them, and their ArviZ groups."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, dataclass, is_dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bnn_pyro import labels
from bnn_pyro.class_prediction import ClassPrediction, counts_classes, predict_classes
from bnn_pyro.data import Data, collect, holds_both, inputs_to_tensors
from bnn_pyro.draws import Draws
from bnn_pyro.errors import DataError, ModelError, OptionError, ShapeError, warn
from bnn_pyro.inference import MCMC, Adaptation, Method
from bnn_pyro.isolation import check_seed, derive_seed
from bnn_pyro.model import Model
from bnn_pyro.prediction import Prediction, log_predictive_density, predict, predictive_mean
from bnn_pyro.scores import score
from bnn_pyro.target import Target
from bnn_pyro.units import Units, warn_of_outliers

if TYPE_CHECKING:
    from bnn_pyro.diagnose import Verdict

VERSIONS = ("bnn-pyro", "torch", "pyro-ppl", "arviz", "numpy")


@dataclass(repr=False)
class Posterior:
    """What ``fit`` returns and ``load`` reads back.

    Attributes:
        model, data, units, target: What was fitted: the model, rows in original units, the maps to standard units, and
            the log density in those.
        method, seed: How.
        draws: Unconstrained draws (chain, draw, dim) and their record.
        warnings: Sentences that ``fit`` warned with.
        keep: Sites that the ArviZ groups ``posterior`` and ``prior`` hold; None for all.
    """

    model: Model
    data: Data
    units: Units
    target: Target
    method: Method
    draws: Draws
    seed: int
    warnings: list[str]
    keep: tuple[str, ...] | None = None

    def __repr__(self) -> str:
        chains, draws, dim = self.draws.z.shape
        return (
            f"Posterior({self.model.name} by {self.method.name}: {chains} x {draws} draws of {dim} latent numbers, "
            f"{self.n} rows; .diagnose() .predict(x) .score(x, y) .idata)"
        )

    @property
    def n(self) -> int:
        """Rows that were fitted: all, where ``data`` is a sample of rows that were streamed."""
        return int(self.draws.info.get("streamed_rows", self.data.n))

    @cached_property
    def idata(self) -> Any:
        """All ArviZ groups: InferenceData (ArviZ 0.2x) or DataTree (1.x). Built when first asked for."""
        from bnn_pyro.groups import build_groups  # waits for ArviZ, which what fits and predicts need not

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            made = build_groups(self)
        for w in caught:
            self.warnings.append(str(w.message))
            warn(str(w.message))
        return made

    @property
    def attrs(self) -> dict[str, Any]:
        """What was asked and what it cost; JSON where a value is no number or string."""
        info = {k: v for k, v in self.draws.info.items() if v != ""}
        return {
            "model": self.model.name,
            "hyperparameters": _json(asdict(self.model) if is_dataclass(self.model) else {}),
            "inference": self.method.name,
            "settings": _json(self.method.settings()),
            "seed": self.seed,
            "dtype": str(self.target.dtype).removeprefix("torch."),
            "device": str(self.target.device),
            "data_checksum": self.data.checksum(),
            "standardize_x": bool(self.units.x),
            "standardize_y": self.units.y is not None,
            "versions": _json({name: _version(name) for name in VERSIONS}),
            "complete": self.draws.complete,
            **({} if self.keep is None else {"keep": _json(self.keep)}),
            **info,
        }

    @property
    def adaptation(self) -> Adaptation:
        """What the warmup of MCMC has learnt, and where its chains ended.

        ``fit(..., adaptation=posterior.adaptation, warmup=0)`` samples on from there, whatever ``init``; the noise is other
        than that of the draws so far, for the same seed too.
        Raises: OptionError for a posterior of another kind, by Pyro's NUTS, whose chains learn a metric each, or of several
            devices.
        """
        if not isinstance(self.method, MCMC):
            raise OptionError(
                f"{self.model.name}, adaptation: expected a posterior by MCMC, got one by {self.method.name}."
            )
        if self.draws.info.get("engine") == "pyro":
            raise OptionError(
                f"{self.model.name}, adaptation: expected a posterior by engine='compiled', got one by Pyro's NUTS, whose "
                "chains learn a mass matrix each."
            )
        if (parts := self.draws.info.get("parts", 1)) > 1:
            raise OptionError(
                f"{self.model.name}, adaptation: expected a posterior of one device, got one of {parts}, which have learnt a "
                "mass matrix each. Warm up on one."
            )
        state = self.draws.state
        mass, length = state["inverse_mass_matrix"], state.get("trajectory_length")
        return Adaptation(state["step_size"], mass, length, self.draws.z[:, -1].clone())

    def predict(self, x: Any, seed: int | None = None) -> Prediction | ClassPrediction:
        """The posterior predictive at rows x, given in original units and with the columns of the training rows (or a part
        of a data set, such as ``data.test``).

        A ``Prediction`` (mean, sd, intervals), or a ``ClassPrediction`` (class probabilities) where y is a label.

        Args:
            seed: Of the noise in ``draws``; None derives it from the fit's, so that the same call gives the same numbers.
        Raises: DataError or ShapeError for rows that do not go with the training rows, naming both.
        """
        self._check_rows_fixed()
        inputs = self._inputs(x)
        if seed is not None:
            check_seed(seed)
        seed = derive_seed(self.seed if seed is None else seed, "predict")
        z = self.draws.z.to(self.target.device)
        classes = self._classes(inputs)
        if classes is None:
            return predict(self.target, self.units, z, inputs, seed)
        return predict_classes(self.target, self.units, z, inputs, seed, classes)

    def predictive_mean(self, x: Any) -> np.ndarray:
        """``predict(x).mean``, without the draws that a ``Prediction`` holds: (n,) or (n, k), for numbers only."""
        self._check_rows_fixed()
        inputs = self._inputs(x)
        if self._classes(inputs) is not None:
            raise ModelError(f"{self.model.name}: expected a likelihood of numbers, got one of classes. Use predict.")
        return predictive_mean(self.target, self.units, self.draws.z.to(self.target.device), inputs)

    def log_predictive_density(self, x: Any, y: Any) -> np.ndarray:
        """Pointwise log density of the predictive mixture at held-out rows, original units: (n,) nats."""
        self._check_rows_fixed()
        z = self.draws.z.reshape(-1, self.draws.z.shape[-1]).to(self.target.device)
        inputs = self._inputs(x)
        classes = self._classes(inputs)
        if classes is not None:
            y = labels.encode(y, classes, f"{self.model.name}, y")
        return log_predictive_density(self.target, self.units, z, inputs, y)

    def score(self, x: Any, y: Any = None) -> dict[str, tuple[float, float]]:
        """Scores on held-out rows with standard errors, by name: see ``bnn_pyro.scores``."""
        if y is None:
            if not holds_both(x):
                raise DataError(f"{self.model.name}, score, y: expected targets, got none. Call score(x, y).")
            x, y = x.x, x.y
        return score(self.predict(x), y, pointwise=not self.target.joint)

    @cached_property
    def verdict(self) -> Verdict:
        from bnn_pyro.diagnose import diagnose

        return diagnose(self)

    def diagnose(self) -> Verdict:
        """Whether to believe this posterior, with reasons and remedies: see ``bnn_pyro.diagnose``."""
        return self.verdict

    def summary(self, group: str = "function_space", var_names: list[str] | None = None) -> Any:
        """ArviZ's table of a group, by default of function space, where convergence can be judged."""
        from bnn_pyro import results

        return results.summary(self.idata, group=group, var_names=var_names)

    def save(self, directory: str | Path, *, overwrite: bool = False, extra: dict[str, Any] | None = None) -> Path:
        """Writes a run directory that ``bnn_pyro.load`` reads back exactly; ``extra`` tables go into its run.toml."""
        from bnn_pyro.files import save_run

        return save_run(self, directory, overwrite=overwrite, extra=extra or {})

    def _classes(self, inputs: Any) -> np.ndarray | None:
        """The labels that the likelihood tells apart; 0, 1, ... for a user's program, None where y is no label."""
        if self.target.predicted is None:
            return None
        count = counts_classes(self.target, self.draws.z[0, 0].to(self.target.device), inputs)
        known = self.data.classes
        if count is not None and known is not None and count != len(known):
            raise ModelError(
                f"{self.model.name}: expected a likelihood of {len(known)} classes, as the labels have, got one of {count}. "
                "Let for_data give the model their number."
            )
        return np.arange(count) if count is not None and known is None else known

    def _inputs(self, x: Any) -> Any:
        x = x.x if holds_both(x) else x
        given = collect(x, where=f"{self.model.name}, predict", like=self.data)
        _check_like(self.data, given, self.model.name)
        floating = self.model.card is not None
        known = _of_kind(self.data.x, given.x)
        warn_of_outliers(self.units, known, self.data, f"{self.model.name}, predict", x)
        return inputs_to_tensors(self.units.inputs(known), self.target.dtype, self.target.device, floating)

    def _check_rows_fixed(self) -> None:
        by_row = [s.name for s in self.target.sites if s.by_row]
        if by_row:
            raise OptionError(
                f"{self.model.name}, predict: expected latent sites outside the data plate, got {by_row} inside: each "
                "training row has its own value and a new row has none. posterior.idata has the training rows' predictive."
            )


def _check_like(training: Data, given: Data, name: str) -> None:
    where = f"{name}, predict"
    if isinstance(training.x, dict) != isinstance(given.x, dict):
        kinds = ["a dict" if isinstance(d.x, dict) else "an array" for d in (training, given)]
        raise ShapeError(f"{where}: expected x as {kinds[0]}, as in fit, got {kinds[1]}.")
    pairs: list[tuple[str, Any, Any]] = [("x", training.x, given.x)]
    if isinstance(training.x, dict) and isinstance(given.x, dict):
        pairs = [(f"x[{k!r}]", v, given.x.get(k)) for k, v in training.x.items()]
    for label, old, new in pairs:
        if new is None:
            raise ShapeError(f"{where}: expected {label}, as in fit, got none.")
        if old.shape[1:] != new.shape[1:]:
            expected = ("n", *old.shape[1:])
            turned = new.ndim == old.ndim == 2 and new.shape[0] == old.shape[1]
            remedy = "It looks transposed: pass its .T." if turned else "Pass the columns that were fitted."
            raise ShapeError(
                f"{where}: expected {label} of shape ({', '.join(map(str, expected))}), as in fit, got {new.shape}. {remedy}"
            )


def _of_kind(training: Any, given: Any) -> Any:
    """Given arrays as floats where the training rows were floats, and without inputs that those did not have."""
    if isinstance(training, dict):
        return {name: _of_kind(old, given[name]) for name, old in training.items()}
    return given.astype(np.float64) if training.dtype.kind == "f" else given


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=_described)


def _described(value: Any) -> Any:
    """An array as lists, a function by its name (its text holds an address, another one in each run), else its text."""
    return value.tolist() if hasattr(value, "tolist") else getattr(value, "__name__", str(value))


def _version(name: str) -> str:
    try:
        return version(name)
    except ModuleNotFoundError:  # a bare checkout is no installed distribution
        from bnn_pyro.version import __version__

        return __version__
