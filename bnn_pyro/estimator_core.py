"""What the two scikit-learn estimators share: parameters to arguments of ``fit``, and rows checked as scikit-learn does."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_array, check_consistent_length, check_is_fitted, column_or_1d, validate_data

from bnn_pyro.data import unmasked
from bnn_pyro.errors import OptionError, unknown, warn
from bnn_pyro.fitting import fit
from bnn_pyro.frames import MISSING
from bnn_pyro.isolation import check_seed
from bnn_pyro.labels import shown
from bnn_pyro.model import Model
from bnn_pyro.registry import check_hyperparameters, get_model, model_class

# Parameters that are dicts: a search reaches into them by names such as ``hyperparameters__hidden``.
_DICTIONARIES = ("hyperparameters", "options")

# Settings of ``fit`` that are parameters here, and so stand in no ``options``.
_PARAMETERS = {
    "dtype": "dtype",
    "inference": "inference",
    "missing": "missing",
    "model": "model",
    "seed": "random_state",
}


class Estimator(BaseEstimator):
    """A scikit-learn estimator around a posterior; its parameters are set by the subclasses' ``__init__``."""

    _kind: ClassVar[str]
    _y_numeric: ClassVar[bool]

    model: Any
    hyperparameters: Any
    inference: Any
    options: Any
    missing: str
    dtype: Any
    random_state: Any

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters by name; ``deep`` adds what stands in the dicts, as ``hyperparameters__hidden`` or ``options__steps``."""
        params = super().get_params(deep)
        for name in _DICTIONARIES if deep else ():
            if isinstance(params[name], Mapping):
                params |= {f"{name}__{key}": value for key, value in params[name].items()}
        return params

    def set_params(self, **params: Any) -> Any:
        """Sets parameters; ``hyperparameters__hidden=(50,)`` sets that one in a new dict, and the others stay.

        Raises: UnknownNameError for a misspelt hyper-parameter of a model given by name; ValueError for a parameter.
        """
        nested: dict[str, dict[str, Any]] = {name: {} for name in _DICTIONARIES}
        for key in list(params):
            name, _, inner = key.partition("__")
            if inner and name in nested:
                nested[name][inner] = params.pop(key)
        super().set_params(**params)
        for name, changes in nested.items():
            if changes:
                where = f"{type(self).__name__}, {name}"
                setattr(self, name, {**_dictionary(getattr(self, name), where), **changes})
        if nested["hyperparameters"] and isinstance(self.model, str):
            check_hyperparameters(self.model, nested["hyperparameters"])
        return self

    def _fit(self, X: Any, y: Any) -> None:
        model, options, seed = self._model(), self._options(), self._seed()
        X, y = self._training_rows(X, y)
        self._check_target(model, y)
        given: dict[str, Any] = {
            "inference": self.inference,
            "seed": seed,
            "dtype": self.dtype,
            "missing": self.missing,
        }
        self.posterior_ = fit(model, X, y, **{"progress": False, **given, **options})
        self.model_ = self.posterior_.model
        verdict = self.posterior_.verdict
        if verdict.verdict == "not converged":
            what = f"{type(self).__name__}: {verdict.reasons[0]} {'; '.join(verdict.remedies)}"
            warn(f"{what.rstrip()}. posterior_.diagnose() says more.", ConvergenceWarning)

    def _check_target(self, model: Any, y: np.ndarray) -> None:
        """Raises: DataError or ValueError for a y (n,) that the model cannot have."""

    def _model(self) -> Any:
        """The model or program to fit. Raises: OptionError or UnknownNameError for one of another task, or none."""
        name, model = type(self).__name__, self.model
        hyperparameters = _dictionary(self.hyperparameters, f"{name}, hyperparameters")
        if not isinstance(model, str | Model) and (isinstance(model, type) or not callable(model)):
            raise OptionError(
                f"{name}, model: expected a zoo model's name or a model, got {shown(model)}. "
                "bnn.list_models() shows the names."
            )
        task = model_class(model).card.task if isinstance(model, str) else getattr(model, "task", None)
        if (task == "classification") != (self._kind == "classification"):
            what = shown(model if isinstance(model, str) else getattr(model, "name", "a program"))
            other = "BNNClassifier" if task == "classification" else "BNNRegressor, or bnn.fit"
            raise OptionError(
                f"{name}, model: expected a model of {self._kind}, got {what}{f' ({task})' if task else ''}. Use {other}."
            )
        if isinstance(model, str):
            return get_model(model, **hyperparameters)
        if hyperparameters:
            raise OptionError(
                f"{name}, hyperparameters: expected None beside a model that is no name, got {shown(hyperparameters)}. "
                "Pass them to the model itself, or give its name."
            )
        return model

    def _options(self) -> dict[str, Any]:
        name = type(self).__name__
        options = _dictionary(self.options, f"{name}, options")
        for option in options:
            if option in _PARAMETERS:
                raise OptionError(
                    f"{name}, options: expected settings of the inference method, got {option!r}. Write "
                    f"{name}({_PARAMETERS[option]}=...)."
                )
        if self.missing not in MISSING:
            raise unknown("value of missing", self.missing, MISSING)
        return options

    def _seed(self) -> int:
        state = self.random_state
        if isinstance(state, np.random.RandomState):
            return int(state.randint(2**31 - 1))
        if state is None:
            return 0
        seed = int(state) if isinstance(state, Integral) and not isinstance(state, bool) else state
        check_seed(seed)
        return seed

    def _training_rows(self, X: Any, y: Any) -> tuple[Any, np.ndarray]:
        """X as an array, or as a data frame if it has names, text or gaps; y (n,)."""
        X, y = unmasked(X), unmasked(y)
        if _needs_encoding(X):
            X, y = validate_data(self, X, y, skip_check_array=True)
            y = column_or_1d(
                check_array(y, ensure_2d=False, dtype="numeric" if self._y_numeric else None, input_name="y"), warn=True
            )
            check_consistent_length(X, y)
            return X, y
        finite = True if self.missing == "refuse" else "allow-nan"
        fewest = 1 if self._y_numeric else 2  # one row shows one class
        X, y = validate_data(self, X, y, ensure_all_finite=finite, ensure_min_samples=fewest, y_numeric=self._y_numeric)
        names = getattr(self, "feature_names_in_", None)
        if names is None and self.missing != "refuse":
            names = [f"x{i}" for i in range(X.shape[1])]
        return (X if names is None else pd.DataFrame(X, columns=names)), y

    def _new_rows(self, X: Any) -> Any:
        """X for the posterior to predict at; its columns must be those of the training rows."""
        check_is_fitted(self, "posterior_")
        X = unmasked(X)
        encoding = self.posterior_.data.encoding
        text = encoding is not None and any(column.kind == "category" for column in encoding.columns)
        if text:
            X = validate_data(self, X, reset=False, skip_check_array=True)
            if not isinstance(X, pd.DataFrame):
                X = check_array(X, dtype=None, ensure_all_finite=False, input_name="X")
        else:
            finite = "allow-nan" if self.missing == "impute" else True
            X = validate_data(self, X, reset=False, ensure_all_finite=finite)
        if encoding is not None and not isinstance(X, pd.DataFrame):
            X = pd.DataFrame(X, columns=[column.name for column in encoding.columns])
        return X

    def _predict(self, X: Any) -> Any:
        """The posterior's prediction at X, rows as for ``_new_rows``."""
        rows = self._new_rows(X)  # first, as it says so where nothing was fitted
        return self.posterior_.predict(rows)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.input_tags.allow_nan = self.missing == "impute"
        tags.input_tags.categorical = True
        return tags


def _dictionary(value: Any, where: str) -> dict[str, Any]:
    """A dict of settings, with numbers of numpy, as searches draw them, made Python's own."""
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise OptionError(f"{where}: expected a dict of names and values, or None, got {shown(value)}.")
    return {key: v.item() if isinstance(v, np.generic) else v for key, v in value.items()}


def _needs_encoding(X: Any) -> bool:
    """Whether X is a data frame with a column that is no number, such as text."""
    if isinstance(X, pd.DataFrame):
        number = pd.api.types.is_numeric_dtype
        return not all(number(dtype) and not pd.api.types.is_complex_dtype(dtype) for dtype in X.dtypes)
    return False
