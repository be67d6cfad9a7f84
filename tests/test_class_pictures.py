"""Pictures of classes: the counts, bins and intervals drawn are those that the prediction has."""

from types import SimpleNamespace

import numpy as np
import pytest
from test_report import is_drawn

from bnn_pyro import class_pictures, results
from bnn_pyro.class_prediction import ClassPrediction
from bnn_pyro.drawing import write


def prediction(classes, n=200, seed=0):
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.full(len(classes), 0.7), n)
    made = ClassPrediction(np.array(classes), probs, np.zeros(n), np.zeros((1, 1, n), int), lambda y: y, lambda: probs)
    y = np.array([rng.choice(classes, p=p) for p in probs])
    return made, y


def axes_of(figure):
    left, matrix = figure.axes
    return left, matrix


def test_the_confusion_matrix_counts_true_and_predicted_classes():
    made, y = prediction(["cat", "dog", "an animal of another kind"])
    figure = class_pictures.calibration(made, y, "a on b by c")
    _, matrix = axes_of(figure)
    counts = np.array([[np.sum((y == t) & (made.label == p)) for p in made.classes] for t in made.classes])
    shown = np.zeros((3, 3), int)
    for text in matrix.texts:
        column, row = text.get_position()
        shown[int(row), int(column)] = int(text.get_text())
    assert (shown == counts).all() and shown.sum() == 200
    image = matrix.images[0].get_array()
    np.testing.assert_allclose(image, counts / counts.sum(1, keepdims=True))
    assert [t.get_text() for t in matrix.get_yticklabels()] == ["cat", "dog", "an animal o…"]
    assert (matrix.get_xlabel(), matrix.get_ylabel()) == ("predicted class", "true class")


def test_the_reliability_curve_has_a_point_for_each_bin_with_rows():
    made, y = prediction(["cat", "dog"])
    left, _ = axes_of(class_pictures.calibration(made, y, "a on b by c"))
    confidence, right = made.probs.max(1), made.label == y
    edges = np.linspace(0, 1, 16)
    points, heights = [], []
    for low, high in zip(edges, edges[1:]):
        inside = (confidence > low) & (confidence <= high)
        heights.append(inside.mean())
        if inside.any():
            points.append((confidence[inside].mean(), right[inside].mean()))
    curve = next(line for line in left.lines if line.get_marker() == "o")
    np.testing.assert_allclose(np.array(curve.get_data()).T, points, atol=1e-12)
    bars = [bar.get_height() for bar in left.patches]
    np.testing.assert_allclose(bars, heights, atol=1e-12)
    error = sum(h * abs(p[0] - p[1]) for h, p in zip([h for h in heights if h], points))
    assert left.get_title(loc="left") == f"accuracy {right.mean():.3f}, calibration error {error:.3f}"


@pytest.mark.parametrize("k", [2, 10, 30])
def test_any_number_of_classes_can_be_drawn(k, tmp_path):
    made, y = prediction(list(range(k)))
    figure = class_pictures.calibration(made, y, "a on b by c")
    assert is_drawn(write(figure, tmp_path / "calibration.png"))
    _, matrix = axes_of(figure)
    assert bool(matrix.texts) == (k <= class_pictures.MANY)


def posterior(observed, drawn, classes):
    idata = results.build({"posterior_predictive": {"y": drawn[None]}, "observed_data": {"y": observed}})
    return SimpleNamespace(idata=idata, data=SimpleNamespace(classes=np.array(classes), y=observed))


def test_the_check_counts_each_class_in_each_replicate(tmp_path):
    rng = np.random.default_rng(3)
    observed = rng.choice(3, 90, p=[0.2, 0.3, 0.5])
    drawn = rng.choice(3, (400, 90), p=[0.5, 0.3, 0.2])
    figure = class_pictures.class_counts(posterior(observed, drawn, ["a", "b", "c"]), "a on b", "kind")
    (axes,) = figure.axes
    np.testing.assert_array_equal([bar.get_height() for bar in axes.patches], np.bincount(observed))
    counts = np.array([[np.sum(one == c) for c in range(3)] for one in drawn])
    low, middle, high = np.quantile(counts, [0.05, 0.5, 0.95], axis=0)
    (container,) = (c for c in axes.containers if hasattr(c, "has_yerr"))
    np.testing.assert_array_equal(container.lines[0].get_ydata(), middle)
    segments = np.array(container.lines[2][0].get_segments())
    np.testing.assert_allclose(segments[:, 0, 1], low)
    np.testing.assert_allclose(segments[:, 1, 1], high)
    marked = next(line for line in axes.lines if line.get_marker() == "X")
    assert list(marked.get_xdata()) == [0, 2]  # b has the right share
    assert is_drawn(write(figure, tmp_path / "ppc.png"))


def test_the_check_of_the_right_model_marks_nothing_and_needs_draws():
    rng = np.random.default_rng(4)
    drawn = rng.choice(2, (200, 60))
    observed = np.repeat([0, 1], 30)
    figure = class_pictures.class_counts(posterior(observed, drawn, ["a", "b"]), "a on b", "kind")
    assert not [line for line in figure.axes[0].lines if line.get_marker() == "X"]
    idata = results.build({"observed_data": {"y": observed}})
    assert class_pictures.class_counts(SimpleNamespace(idata=idata), "a", "kind") is None


def test_long_names_of_classes_are_shortened():
    observed = np.repeat([0, 1], 30)
    made = posterior(observed, np.tile(observed, (5, 1)), ["a name that would cover its neighbour", "b"])
    figure = class_pictures.class_counts(made, "a on b", "kind")
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["a name that…", "b"]
