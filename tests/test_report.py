"""Pictures: valid PNG files that are not blank, drawn without touching matplotlib's global state."""

from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest

from bnn_pyro import report, results
from bnn_pyro.drawing import density, write


def pixels(path):
    from matplotlib.image import imread

    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    return imread(path)


def is_drawn(path):
    """Blank paper has no variance, and a drawing that lost its content has few colours."""
    image = pixels(path)[..., :3]
    return image.std() > 0.02 and len(np.unique((image * 255).astype(int).reshape(-1, 3), axis=0)) > 50


def prediction(n=30, seed=0):
    rng = np.random.default_rng(seed)
    mean = rng.normal(100.0, 40.0, n)
    return SimpleNamespace(
        mean=mean, epistemic=np.full(n, 25.0), aleatoric=np.full(n, 900.0),
        interval=lambda p: (mean - 50.0, mean + 50.0),
    )  # fmt: skip


def legend_texts(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_predictions_label_both_uncertainties_and_count_rows_outside():
    made = prediction()
    y = made.mean.copy()
    y[:4] += 60.0
    figure = report.predictions(made, y, "a on b by c", "progression")
    (axes,) = figure.axes
    texts = legend_texts(axes)
    assert any("epistemic sd" in t for t in texts) and any("aleatoric" in t for t in texts)
    assert "observed, outside (4)" in texts and "observed (26 inside)" in texts
    assert axes.get_ylabel() == "progression, original units"


def test_predictions_stand_in_the_order_of_the_mean():
    made = prediction()
    (axes,) = report.predictions(made, made.mean, "a on b by c", "y").axes
    line = next(one for one in axes.lines if one.get_label() == "predicted mean")
    assert (np.diff(line.get_ydata()) >= 0).all()


def test_the_elbo_axes_show_the_settled_part():
    steps = np.arange(4000)
    rng = np.random.default_rng(1)
    kl = 50.0 + rng.normal(size=4000)
    likelihood = -300.0 - 1e6 * np.exp(-steps / 20.0) + rng.normal(size=4000)
    history = {"elbo": likelihood - kl, "expected_log_likelihood": likelihood, "kl": kl}
    figure = report.elbo(history, "a on b by svi")
    low, high = figure.axes[0].get_ylim()
    assert -370.0 < low < -350.0 < high < -330.0


@pytest.mark.parametrize("steps", [1, 2, 9, 60])
def test_the_elbo_of_a_few_steps_can_be_drawn(steps, tmp_path):
    values = np.linspace(-9.0, -3.0, steps)
    history = {"elbo": values, "expected_log_likelihood": values, "kl": 0 * values}
    assert is_drawn(write(report.elbo(history, "a"), tmp_path / "elbo.png"))


def test_the_predictive_check_draws_the_observed_density():
    rng = np.random.default_rng(2)
    y = rng.normal(10.0, 1.0, 200)
    idata = results.build(
        {"posterior_predictive": {"y": rng.normal(0.0, 1.0, (1, 80, 200))}, "observed_data": {"y": y}}
    )
    (axes,) = report.predictive_check(idata, "a", "kg").axes
    grid, observed = axes.lines[-1].get_data()
    assert abs(grid[observed.argmax()] - 10.0) < 0.5
    _, replicates = axes.lines[-2].get_data()
    assert abs(grid[replicates.argmax()]) < 0.5


def test_the_predictive_check_is_left_out_without_draws():
    idata = results.build({"observed_data": {"y": np.zeros(3)}})
    assert report.predictive_check(idata, "a", "kg") is None


def test_equal_values_have_no_density_and_no_error():
    assert (density(np.full(20, 3.0), np.linspace(0.0, 5.0, 10)) == 0).all()


def test_drawing_leaves_matplotlib_as_it_was(tmp_path):
    from matplotlib import pyplot

    before, backend, open_ = dict(matplotlib.rcParams), matplotlib.rcParams._get("backend"), pyplot.get_fignums()
    made = prediction()
    path = write(report.predictions(made, made.mean, "a", "y"), tmp_path / "predictions.png")
    assert is_drawn(path)
    assert dict(matplotlib.rcParams) == before and matplotlib.rcParams._get("backend") == backend
    assert pyplot.get_fignums() == open_  # another test may have left some


def test_a_picture_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    made = prediction()
    figure = report.predictions(made, made.mean, "a", "y")

    def refuse(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(figure, "savefig", refuse)
    with pytest.raises(OSError, match="No space"):
        write(figure, tmp_path / "predictions.png")
    assert list(tmp_path.iterdir()) == []
