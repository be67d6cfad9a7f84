"""scikit-learn estimators over ``bnn_pyro.fit``: for pipelines, cross-validation and searches over settings.

    search = GridSearchCV(BNNRegressor(options={"steps": 1000}), {"hyperparameters__hidden": [(10,), (50,)]})
    mean, std = search.fit(X, y).best_estimator_.predict(X_new, return_std=True)

What was fitted is in ``posterior_``, so ``diagnose()``, ``idata`` and ``save`` are at hand as ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets

from bnn_pyro.class_prediction import ClassPrediction
from bnn_pyro.errors import BNNError, DataError, ModelError
from bnn_pyro.estimator_core import Estimator


class BNNRegressor(RegressorMixin, Estimator):
    """A Bayesian neural network that predicts a number, as a scikit-learn regressor.

    Inputs and target are put into standard units inside (for zoo models), so no scaler is needed in front.

    Args:
        model: Name of a zoo model, a ``Model``, or a Pyro program ``model(x, y=None)``.
        hyperparameters: Of a model given by name, such as ``{"hidden": (50,)}``.
        inference: ``"svi"``, ``"nuts"``, ``"map"``, or a value such as ``bnn.SVI(steps=500)``.
        options: Settings of a method given by name, such as ``{"steps": 500}``; ``standardize``, ``progress`` and
            ``backend`` of ``bnn_pyro.fit`` may stand there too.
        missing: What to do with missing values: ``"refuse"``, ``"drop"`` their rows in fit, or ``"impute"`` (see ``fit``).
        dtype: ``"float64"``, in which predictions do not depend on the rows beside, or ``"float32"``.
        random_state: An int is the seed; None is 0, so that a call repeated gives the same; a RandomState is drawn from.
    Attributes:
        posterior_: The ``bnn_pyro.Posterior``: draws, ``diagnose()``, ``idata``, ``save``.
        model_: The model that was fitted.
        n_features_in_, feature_names_in_: Columns of X, the latter if they had names.

    A fitted estimator can be pickled unless its program is a lambda or local function (``bnn_pyro.load`` reads saved
    posteriors without pickle). ``fit`` takes no sample weights.
    """

    _kind = "regression"
    _y_numeric = True

    def __init__(
        self,
        model: Any = "mlp_gaussian",
        *,
        hyperparameters: Mapping[str, Any] | None = None,
        inference: Any = "svi",
        options: Mapping[str, Any] | None = None,
        missing: str = "refuse",
        dtype: Any = "float64",
        random_state: Any = None,
    ):
        self.model = model
        self.hyperparameters = hyperparameters
        self.inference = inference
        self.options = options
        self.missing = missing
        self.dtype = dtype
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> BNNRegressor:
        """Fits to rows X (n, d), an array or data frame (text columns become columns of 0 and 1), and numbers y (n,).

        Raises: ValueError in scikit-learn's words for data, in ours (BNNError is one) for settings, before any work.
        """
        self._fit(X, y)
        return self

    def predict(self, X: Any, return_std: bool = False, return_interval: float | None = None) -> Any:
        """The predictive mean of y at rows X, (n,), in units of y; with ``return_std`` also its standard deviation.

        Args:
            return_std: Return ``mean, std``, each (n,); noise is included.
            return_interval: A probability p: return ``lower, upper``, each (n,), as well, last: the central interval that
                holds y with probability p. Its bounds are quantiles of draws, so they have Monte Carlo error.
        """
        if not return_std and return_interval is None:
            rows = self._new_rows(X)  # first, as it says so where nothing was fitted
            return self.posterior_.predictive_mean(rows)
        prediction = self._predict(X)
        if isinstance(prediction, ClassPrediction):
            raise ModelError(
                f"{self.model_.name}: expected a likelihood of numbers, got one of classes. Use posterior_.predict."
            )
        extra = (prediction.std,) if return_std else ()
        if return_interval is not None:
            extra = (*extra, *prediction.interval(return_interval))
        return (prediction.mean, *extra)


class BNNClassifier(ClassifierMixin, Estimator):
    """A Bayesian neural network that predicts a class, as a scikit-learn classifier.

    Inputs are put into standard units inside (for zoo models), so no scaler is needed in front. The parameters are those
    of ``BNNRegressor``; ``model`` is the name of a zoo model of classification, or such a ``Model``.

    Attributes:
        classes_: Labels, (k,), sorted: the columns of ``predict_proba``.
        posterior_, model_, n_features_in_, feature_names_in_: As for ``BNNRegressor``.
    """

    _kind = "classification"
    _y_numeric = False

    def __init__(
        self,
        model: Any = "mlp_categorical",
        *,
        hyperparameters: Mapping[str, Any] | None = None,
        inference: Any = "svi",
        options: Mapping[str, Any] | None = None,
        missing: str = "refuse",
        dtype: Any = "float64",
        random_state: Any = None,
    ):
        self.model = model
        self.hyperparameters = hyperparameters
        self.inference = inference
        self.options = options
        self.missing = missing
        self.dtype = dtype
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> BNNClassifier:
        """Fits to rows X (n, d), an array or data frame (text columns become columns of 0 and 1), and labels y (n,).

        Raises: ValueError in scikit-learn's words for data, in ours (BNNError is one) for settings, before any work.
        """
        self._fit(X, y)
        classes = self.posterior_.data.classes
        assert classes is not None, "_model refuses models without classes"
        self.classes_ = classes.astype(self._label_dtype)
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities of the classes at rows X under the predictive mixture, (n, k), in the order of ``classes_``."""
        return self._predict(X).probs

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Logarithms of ``predict_proba``, (n, k) nats."""
        with np.errstate(divide="ignore"):  # a probability may underflow to 0
            return np.log(self.predict_proba(X))

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class at rows X, (n,)."""
        probs = self.predict_proba(X)  # first, as it says so where nothing was fitted
        return self.classes_[probs.argmax(1)]

    def _check_target(self, model: Any, y: np.ndarray) -> None:
        check_classification_targets(y)
        self._label_dtype = y.dtype
        if model.class_count == 2 and len(np.unique(y)) > 2:
            raise DataError(
                f"{type(self).__name__}, y: expected two classes, got {len(np.unique(y))}. Only binary classification is "
                f"supported by this {model.name}. Use model='mlp_categorical'."
            )

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        with suppress(BNNError):  # tags are read before fit says what is wrong
            tags.classifier_tags.multi_class = self._model().class_count != 2
        return tags
