"""Rows that stay in files or come from a loader: the same fit as of rows in memory, and what is said of them."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import bnn_pyro as bnn
from bnn_pyro import minibatches
from bnn_pyro import survey as surveys
from bnn_pyro.permutation import permute
from bnn_pyro.streams import Loaded, Mapped, find_source
from bnn_pyro.survey import Moments, survey

N, SIZE = 230, 20
QUIET = {"progress": False, "seed": 3}


def rows(n=N, seed=0):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(n, 3)) * [1.0, 5.0, 0.1] + [0.0, 40.0, 2.0]
    y = 10.0 * x[:, 2] + 0.2 * x[:, 1] + 0.5 * generator.normal(size=n)
    return x.astype("float32"), y


@pytest.fixture
def mapped(tmp_path):
    """Writes arrays to files, and gives them memory-mapped."""

    def write(*arrays):
        for i, array in enumerate(arrays):
            np.save(tmp_path / f"{i}.npy", array)
        return [np.load(tmp_path / f"{i}.npy", mmap_mode="r") for i in range(len(arrays))]

    return write


def loader(x, y, **settings):
    return DataLoader(TensorDataset(torch.as_tensor(x), torch.as_tensor(y)), **settings)


# ---- an order without a table --------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 5, 16, 17, 1000, 4096, 10007])
def test_an_order_has_each_row_once_and_seeds_differ(n):
    order = permute(np.arange(n), n, seed=1)
    assert sorted(order) == list(range(n))
    assert np.array_equal(permute(np.arange(n)[::-1], n, seed=1), order[::-1])
    if n >= 16:
        assert not np.array_equal(order, permute(np.arange(n), n, seed=2))
        assert not np.array_equal(order, np.arange(n))


def test_an_order_is_random():
    """Where rows come to stand, over seeds, and neighbours, within one."""
    n, seeds = 40, 2000
    orders = np.stack([permute(np.arange(n), n, seed) for seed in range(seeds)])
    counts = np.stack([np.bincount(column, minlength=n) for column in orders.T])
    chi = ((counts - seeds / n) ** 2 / (seeds / n)).sum()
    assert stats.chi2.sf(chi, (n - 1) ** 2) > 1e-3
    large = permute(np.arange(100_000), 100_000, seed=7)
    assert abs(np.corrcoef(large[:-1], large[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(large, np.arange(100_000))[0, 1]) < 0.02


# ---- batches -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("read_ahead", [1, 100])
def test_each_epoch_of_mapped_rows_has_each_row_once_and_x_with_its_y(mapped, read_ahead, monkeypatch):
    monkeypatch.setattr(minibatches, "MOST_AHEAD", read_ahead)
    x, y = mapped(np.arange(N, dtype=float)[:, None] * 2, np.arange(N))
    batches = find_source(x, y).batches(SIZE, seed=4)
    seen = [next(batches) for _ in range(2 * N // SIZE)]
    assert all(len(b) == SIZE and np.array_equal(a[""][:, 0], 2.0 * b) for a, b in seen)
    places = np.concatenate([b for _, b in seen])
    assert sorted(places[:N]) == sorted(places[N : 2 * N]) == list(range(N))
    assert not np.array_equal(places[:N], places[N : 2 * N])
    again = find_source(x, y).batches(SIZE, seed=4)
    assert all(np.array_equal(next(again)[1], b) for _, b in seen)
    assert not np.array_equal(next(find_source(x, y).batches(SIZE, seed=5))[1], seen[0][1])


@pytest.mark.parametrize("own", [7, 20, 64, 1000])
def test_batches_of_a_loader_are_cut_anew_without_losing_a_row(own):
    y = np.arange(N)
    source = Loaded(loader(y[:, None] * 2.0, y, batch_size=own), named=False)
    batches = source.batches(SIZE, seed=0)
    seen = [next(batches) for _ in range(2 * N // SIZE)]
    assert all(np.array_equal(a[""][:, 0], 2.0 * b) for a, b in seen)
    assert np.array_equal(np.concatenate([b for _, b in seen]), np.tile(y, 2)[: len(seen) * SIZE])


# ---- the first reading -------------------------------------------------------------------------------------------


def test_moments_in_parts_are_those_of_all():
    x = np.random.default_rng(0).normal(size=(1000, 4)) * [1, 1e-6, 1e6, 0] + [1e6, 0, 0, 3]
    moments = Moments()
    for part in np.split(x, [1, 2, 40, 500]):
        moments.add(part)
    mean, sd = moments.mean_and_sd()
    assert np.allclose(mean, x.mean(0), rtol=1e-12) and np.allclose(sd, [*x[:, :3].std(0), 1.0], rtol=1e-9)


def test_the_sample_is_drawn_evenly():
    y = np.arange(60)
    source = Loaded(loader(y[:, None] * 1.0, y, batch_size=7), named=False)
    counts = np.zeros(60)
    for seed in range(800):
        stream = survey(source, "here", False, seed, sample=12)
        assert stream.n == 60 and len(set(stream.y)) == 12 and np.array_equal(stream.x[:, 0], stream.y)
        counts[stream.y] += 1
    expected = 800 * 12 / 60
    assert stats.chi2.sf(((counts - expected) ** 2 / (expected * (1 - 12 / 60))).sum(), 59) > 1e-3


# ---- fits --------------------------------------------------------------------------------------------------------


def settings(**more):
    return {"inference": "svi", "steps": 1500, "lr": 0.02, "draws": 400, **QUIET, **more}


def check_same(streamed, other):
    """Two fits of one model to the same rows in other orders."""
    z, w = streamed.draws.z[0].double(), other.draws.z[0].double()
    sd = w.std(0)
    assert (((z.mean(0) - w.mean(0)) / sd).abs() < 0.6).all() and ((z.std(0) / sd).log().abs() < 0.4).all()


@pytest.mark.parametrize("kind", ["mapped", "loader", "iterable"])
def test_a_streamed_fit_is_the_fit_of_rows_in_memory(kind, mapped, monkeypatch):
    monkeypatch.setattr(surveys, "SAMPLE", 60)
    x, y = rows()
    model = bnn.get_model("linear")
    expected = bnn.fit(model, x, y, batch_size=SIZE, **settings())
    if kind == "mapped":
        given, more = mapped(x, y), {"batch_size": SIZE}
    elif kind == "loader":
        given, more = (loader(x, y, batch_size=SIZE, shuffle=True),), {}
    else:

        class Lines(IterableDataset):
            def __iter__(self):
                order = torch.randperm(N)
                return iter([(x[i], y[i]) for i in order])

        given, more = (DataLoader(Lines(), batch_size=16),), {"batch_size": SIZE}
    with pytest.warns(UserWarning, match="the 230 rows stay where they are; .* are of 60 of them"):
        found = bnn.fit(model, *given, **settings(**more))
    assert found.draws.info["streamed_rows"] == found.n == N and found.data.n == 60
    assert np.allclose(found.units.x[""][0], x.astype(float).mean(0), rtol=1e-10)
    assert np.allclose(found.units.y[1], y.std(), rtol=1e-10)
    check_same(found, expected)
    assert "log_p" not in found.draws.stats and found.diagnose().verdict == "approximate"
    assert abs(found.score(x, y)["test_rmse"][0] / expected.score(x, y)["test_rmse"][0] - 1) < 0.02
    assert found.idata["log_likelihood"]["y"].shape == (1, 400, 60)
    again = bnn.fit(model, *given, **settings(**more))
    assert torch.equal(again.draws.z, found.draws.z)


def test_a_streamed_classifier_knows_classes_that_its_sample_lacks(mapped, monkeypatch):
    monkeypatch.setattr(surveys, "SAMPLE", 30)
    generator = np.random.default_rng(0)
    x = generator.normal(size=(3000, 2)).astype("float32")
    y = np.where(x[:, 0] > 0, "right", "left").astype("<U5")
    y[[700, 2900]] = "rare"
    posterior = bnn.fit(bnn.get_model("mlp_categorical", hidden=(3,)), *mapped(x, y), batch_size=64, inference="svi", steps=800,
                        draws=50, **QUIET)  # fmt: skip
    assert posterior.data.n == 64 and posterior.data.classes.tolist() == ["left", "rare", "right"]
    assert posterior.score(x, y)["test_accuracy"][0] > 0.95


def test_map_and_dicts_of_inputs(mapped, tmp_path):
    x, y = rows()
    x, y = (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()

    def program(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        group = pyro.sample("group", dist.Normal(0.0, 1.0).expand([4]).to_event(1))
        with pyro.plate("data", len(x["a"])):
            pyro.sample("y", dist.Normal(x["a"] @ w + group[x["g"]], 1.0), obs=y)

    codes = np.arange(N) % 4
    a, g, target = mapped(x, codes, y)
    found = bnn.fit(program, {"a": a, "g": g}, target, batch_size=SIZE, inference="map", steps=1500, **QUIET)
    expected = bnn.fit(program, {"a": x, "g": codes}, y, inference="map", steps=1500, **QUIET)
    assert torch.allclose(found.draws.z, expected.draws.z, atol=0.1)
    found.save(tmp_path / "run")
    loaded = bnn.load(tmp_path / "run", model=program)
    assert torch.equal(loaded.draws.z, found.draws.z) and loaded.n == N


# ---- what is refused -----------------------------------------------------------------------------------------------


class Once(IterableDataset):
    """Can be gone through once, however often it is asked."""

    def __init__(self, x, y):
        self.rows = iter(list(zip(torch.as_tensor(x), torch.as_tensor(y), strict=True)))

    def __iter__(self):
        return self.rows


class Strange(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, i):
        return torch.zeros(2)


def lettered(rows):
    return np.array(["a"] * len(rows)), np.zeros(len(rows))


def holed(x):
    return np.where(np.arange(len(x))[:, None] == 77, np.nan, x)


# What is passed for rows (x, y), options beside SVI's, and what is said.
REFUSED = {
    "nuts": (lambda x, y: (loader(x, y, batch_size=8),), {"inference": "nuts"}, "for a DataLoader, got nuts"),
    "ensemble": (lambda x, y: (loader(x, y, batch_size=8),), {"inference": "ensemble"}, "got ensemble"),
    "pyro": (lambda x, y: (loader(x, y, batch_size=8),), {"engine": "pyro"}, "engine='pyro' and svi"),
    "laplace": (
        lambda x, y: (loader(x, y, batch_size=8),),
        {"guide": "laplace"},
        "linear, guide: expected one that takes rows in batches, got guide='laplace'.* Use guide='multivariate'",
    ),
    "y": (lambda x, y: (loader(x, y, batch_size=8), y), {}, "expected none beside a DataLoader"),
    "pairs": (lambda x, y: (DataLoader(Strange(), batch_size=4),), {}, r"pairs \(x, y\), got one of Tensor"),
    "no size": (lambda x, y: (loader(x, y, batch_size=None),), {}, "batch_size: expected a number"),
    "too large": (lambda x, y: (loader(x, y, batch_size=8),), {"batch_size": N + 1}, "at most the 230 training rows"),
    "nan": (
        lambda x, y: (loader(holed(x), y, batch_size=8),),
        {},
        "the rows from 72 on: .* got nan at row 5, column 0",
    ),
    "once": (lambda x, y: (DataLoader(Once(x, y), batch_size=8),), {}, "that can be gone through again and again"),
    "one batch once": (lambda x, y: (DataLoader(Once(x[:8], y[:8]), batch_size=8),), {}, "again and again"),
    "text": (lambda x, y: (loader(x, y, batch_size=8, collate_fn=lettered),), {}, "x: expected numbers, got <U1"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_streamed_is_refused_before_work(what):
    given, options, message = REFUSED[what]
    with pytest.raises(bnn.BNNError, match=message):
        bnn.fit(bnn.get_model("linear"), *given(*rows()), **{"inference": "svi", **QUIET, **options})


def test_labels_of_a_loader_with_an_axis_too_many_are_refused_as_those_in_memory_are():
    x, y = rows(SIZE)
    labels = (y > y.mean())[:, None]
    for given in ((x, labels), (loader(x, labels, batch_size=SIZE),)):
        with pytest.raises(
            bnn.ShapeError, match=r"^logistic, y: expected labels of shape \(n,\), got \(20, 1\)\. Pass y\.resh"
        ):
            bnn.fit(bnn.get_model("logistic"), *given, inference="svi", **QUIET)


def test_a_laplace_guide_of_batches_in_memory_has_the_hessian_of_all_rows():
    x, y = rows(2500)

    def program(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(w * x[:, 0], 0.5), obs=y)

    found = bnn.fit(program, x, y, guide="laplace", batch_size=100, **settings(steps=20, draws=4000))
    sd = (1.0 + (x[:, 0].astype(float) ** 2).sum() / 0.25) ** -0.5
    assert float(found.draws.z.std()) == pytest.approx(sd, rel=4.5 / 8000**0.5)


def test_mapped_rows_without_batches_are_rows_in_memory(mapped):
    x, y = mapped(*rows())
    posterior = bnn.fit(bnn.get_model("linear"), x, y, inference="svi", steps=20, draws=5, **QUIET)
    assert posterior.data.n == N and "streamed_rows" not in posterior.draws.info
    assert isinstance(find_source(x, y), Mapped) and find_source(np.array(x), np.array(y)) is None


def test_a_shuffled_loader_leaves_torchs_generator_as_it_was():
    before = torch.get_rng_state()
    bnn.fit(
        bnn.get_model("linear"),
        loader(*rows(), batch_size=8, shuffle=True),
        inference="svi",
        steps=20,
        draws=5,
        **QUIET,
    )
    assert torch.equal(torch.get_rng_state(), before)
