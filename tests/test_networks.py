"""Multilayer perceptrons: their sites, the function that they make, and the spread of that function under the prior."""

import math
from functools import cache

import numpy as np
import pytest
import torch
from pyro import poutine

import bnn_pyro as bnn
from bnn_pyro import networks
from bnn_pyro.isolation import isolated

DRAWS, SCALE, D = 6000, 1.7, 3
POINTS = torch.tensor([[0.0, 0.0, 0.0], [1.0, -2.0, 0.5], [0.3, 0.3, -1.5]], dtype=torch.float64)


def test_sites_are_standard_and_weights_are_scaled_by_the_root_of_the_fan_in():
    with isolated(seed=1, dtype=torch.float64):
        trace = poutine.trace(networks.sample_layers).get_trace((3, 5, 2), 0.7)
    layers = trace.nodes["_RETURN"]["value"]
    latent = {name: node for name, node in trace.nodes.items() if node["type"] == "sample"}
    assert list(latent) == ["w1", "b1", "w2", "b2"]
    for i, (fan_in, fan_out) in enumerate(((3, 5), (5, 2)), 1):
        w, b = latent[f"w{i}"]["value"], latent[f"b{i}"]["value"]
        assert w.shape == (fan_in, fan_out) and b.shape == (fan_out,)
        for value, node in ((w, latent[f"w{i}"]), (b, latent[f"b{i}"])):
            standard = -0.5 * (value.numpy() ** 2 + math.log(2 * math.pi))
            assert float(node["fn"].log_prob(value)) == pytest.approx(standard.sum(), rel=1e-12)
        assert np.allclose(layers[i - 1][0], 0.7 * w.numpy() / math.sqrt(fan_in), rtol=1e-15)
        assert torch.equal(layers[i - 1][1], b)


@pytest.mark.parametrize(("activation", "by_hand"), [("relu", lambda a: np.maximum(a, 0)), ("tanh", np.tanh)])
@pytest.mark.parametrize("hidden", [(), (4,), (4, 3)])
def test_the_output_is_linear_after_activated_layers(activation, by_hand, hidden):
    rng = np.random.default_rng(2)
    sizes = (D, *hidden, 2)
    layers = [(rng.normal(size=pair), rng.normal(size=pair[1])) for pair in zip(sizes, sizes[1:])]
    x = rng.normal(size=(6, D))
    h = x
    for i, (w, b) in enumerate(layers):
        h = np.einsum("ni,io->no", h, w) + b
        h = by_hand(h) if i < len(hidden) else h
    tensors = [(torch.as_tensor(w), torch.as_tensor(b)) for w, b in layers]
    assert np.allclose(networks.mlp(torch.as_tensor(x), tensors, activation), h, rtol=1e-12, atol=1e-14)


def arc_cosine(covariance):
    """E[relu(a_i) relu(a_j)] of normal a with this covariance: Cho & Saul 2009, Kernel methods for deep learning."""
    sd = np.sqrt(np.diag(covariance))
    angle = np.arccos(np.clip(covariance / np.outer(sd, sd), -1, 1))
    return np.outer(sd, sd) / (2 * np.pi) * (np.sin(angle) + (np.pi - angle) * np.cos(angle))


@cache
def prior_functions(width):
    """The network's output at POINTS, (draws, points), one hidden layer of relu."""
    out = np.empty((DRAWS, len(POINTS)))
    with isolated(seed=width, dtype=torch.float64), torch.no_grad():
        for i in range(DRAWS):
            layers = networks.sample_layers((D, width, 1), SCALE)
            out[i] = networks.mlp(POINTS, layers, "relu")[:, 0]
    return out


@pytest.mark.parametrize("width", [1, 50, 500])
def test_the_priors_covariance_is_the_closed_form_at_any_width(width):
    """a = x W + b has covariance s^2 x x' / d + 1; the output s^2 E[relu(a) relu(a')] + 1, whatever the width."""
    x = POINTS.numpy()
    expected = SCALE**2 * arc_cosine(SCALE**2 * x @ x.T / D + 1) + 1
    f = prior_functions(width)
    products = f[:, :, None] * f[:, None, :]  # the mean is zero
    error = products.std(0) / math.sqrt(DRAWS)
    assert (abs(products.mean(0) - expected) < 4.56 * error).all()
    assert (abs(f.mean(0)) < 4.56 * f.std(0) / math.sqrt(DRAWS)).all()
    assert (error < 0.1 * expected.diagonal().max()).all(), "too few draws to tell a wrong scale"


@pytest.mark.parametrize("width", [50, 500])
def test_the_priors_fourth_moment_nears_a_normal_ones_as_one_over_the_width(width):
    """f given the first layer is normal with variance V = s^2 mean(h^2) + 1: E f^4 = 3 E V^2, Var(h^2) = 5 v^2 / 4."""
    v = SCALE**2 * (POINTS.numpy() ** 2).sum(-1) / D + 1
    expected = 3 * ((SCALE**2 * v / 2 + 1) ** 2 + SCALE**4 * 1.25 * v**2 / width)
    fourth = prior_functions(width) ** 4
    assert (abs(fourth.mean(0) - expected) < 4.56 * fourth.std(0) / math.sqrt(DRAWS)).all()


def test_axes_are_named_after_the_layers_that_they_join():
    assert networks.layer_dims((4, 3)) == {
        "w1": ("feature", "hidden_1"), "b1": ("hidden_1",), "w2": ("hidden_1", "hidden_2"), "b2": ("hidden_2",),
        "w3": ("hidden_2", "output"), "b3": ("output",),
    }  # fmt: skip
    assert networks.layer_dims((), output="class") == {"w1": ("feature", "class"), "b1": ("class",)}


@pytest.mark.parametrize("hidden", [50, "50", None, (0,), (-3,), (2.0,), (True,), (5, 0), [[5]]])
def test_hidden_layers_that_are_none_are_refused(hidden):
    with pytest.raises(bnn.OptionError, match=r"^net, hidden: expected a tuple of whole numbers above 0, got "):
        networks.check_layers("net", hidden, "relu")


def test_no_hidden_layer_is_refused_only_where_one_is_needed():
    with pytest.raises(bnn.OptionError, match=r"hidden: .* got \(\)\. One layer of 50 units is \(50,\)\.$"):
        networks.check_layers("net", (), "relu")
    networks.check_layers("net", (), "relu", fewest=0)
    with pytest.raises(bnn.OptionError, match=r"No hidden layer is \(\)\."):
        networks.check_layers("net", (0,), "relu", fewest=0)
    networks.check_layers("net", [5, 3], "tanh")


@pytest.mark.parametrize("activation", ["sine", "Relu", None])
def test_activations_that_are_none_are_refused(activation):
    with pytest.raises(bnn.OptionError, match=r"^net, activation: expected 'relu' or 'tanh', got "):
        networks.check_layers("net", (5,), activation)


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, "1", True, None])
def test_what_is_no_positive_number_is_refused(value):
    with pytest.raises(bnn.OptionError, match=r"^net, prior_sd: expected a positive number, got "):
        networks.check_positive("net", fine=2, prior_sd=value)


def test_one_number_is_one_layer_and_a_list_is_a_tuple():
    for name in ("mlp_gaussian", "mlp_hetero", "mlp_categorical"):
        assert bnn.get_model(name, hidden=7) == bnn.get_model(name, hidden=[7]) == bnn.get_model(name, hidden=(7,))
