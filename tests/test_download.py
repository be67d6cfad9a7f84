"""Downloads from a server of our own: what is right is kept, anything else leaves nothing behind."""

import gzip
import hashlib
import http.server
import io
import socket
import threading
import time
import zipfile

import numpy as np
import pytest

import bnn_pyro as bnn
from bnn_pyro import data_folder, download, embedded
from bnn_pyro.datasets import available, fetch_dataset, load_dataset
from bnn_pyro.download import SOURCES, Source, as_csv
from bnn_pyro.folder_cards import FOLDER, FolderSet

VALUES = np.column_stack([np.arange(20) + 0.5, np.arange(20.0) ** 2])
TEXT = "\n".join(f"{a:.7e} {b}" for a, b in VALUES).encode()


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers with ``server.answer``: (status, headers, body)."""

    def do_GET(self):
        self.server.asked.append(self.path)
        status, headers, body = self.server.answer
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.answer = [], (200, {"Content-Length": str(len(TEXT))}, TEXT)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def cache(server, tmp_path, monkeypatch):
    """An empty cache, and a made-up set ``group/tiny`` whose source is the server."""
    monkeypatch.delenv("BNN_PYRO_DATA", raising=False)
    monkeypatch.setenv("BNN_PYRO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    table = b"a,b\n" + b"".join(f"{i}.5,{i * i}\n".encode() for i in range(20))
    train = np.array([np.random.default_rng([0, k]).permutation(20) for k in range(3)])
    card = embedded.DataCard(
        "group/tiny", "regression", "b", "Made up.", "here", hashlib.sha256(table).hexdigest(), where="folder", splits=3
    )
    entry = FolderSet(card, "a,b", data_folder.sum_of([train[:, :18], train[:, 18:]]))
    monkeypatch.setitem(FOLDER, "group/tiny", entry)
    url = f"http://127.0.0.1:{server.server_port}/tiny.txt"
    monkeypatch.setitem(SOURCES, "group/tiny", Source(url, download._plain))
    return tmp_path / "cache"


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()) if folder.exists() else []


def refused(kind, cache, pattern):
    """The fetch fails with one sentence of this kind and leaves no file, not even a hidden folder."""
    with pytest.raises(kind, match=pattern) as caught:
        fetch_dataset("group/tiny")
    text = str(caught.value)
    assert text.startswith("data set 'group/tiny'") and "\n" not in text and "expected" in text and "got" in text
    assert files(cache) == [] and not list(cache.rglob(".fetch-*")) and not available("group/tiny")
    return text


def test_what_is_right_is_kept_and_not_fetched_again(server, cache):
    with pytest.raises(bnn.DataError, match="fetch_dataset"):
        load_dataset("group/tiny")
    assert server.asked == []
    assert fetch_dataset("group/tiny") == cache / "group" / "tiny"
    assert files(cache) == ["group/tiny/data.csv", "group/tiny/splits.npz"] and server.asked == ["/tiny.txt"]
    data = load_dataset("group/tiny", split=2)
    order = np.random.default_rng([0, 2]).permutation(20)
    assert (
        data.train.y.tolist() == (order[:18] ** 2).tolist() and data.test.x["a"].tolist() == (order[18:] + 0.5).tolist()
    )
    fetch_dataset("group/tiny")
    assert server.asked == ["/tiny.txt"] and not list(cache.rglob(".fetch-*"))


def test_a_damaged_copy_is_fetched_again(server, cache):
    fetch_dataset("group/tiny")
    path = cache / "group" / "tiny" / "data.csv"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(bnn.DataError, match="Remove it and fetch it again"):
        load_dataset("group/tiny")
    fetch_dataset("group/tiny")
    assert len(server.asked) == 2 and len(load_dataset("group/tiny").train) == 18


def test_other_values(server, cache):
    other = TEXT.replace(b"4.5000000e+00", b"4.5000001e+00")
    server.answer = (200, {}, other)
    assert "values with SHA-256" in refused(bnn.DataError, cache, "the source has changed")


@pytest.mark.parametrize(
    "body", [b"<html>log in</html>", b"", b"1 2\n3\n", b"nan 1\n", b"inf 1\n", b"\xff\xfe", b"1 2 3\n"]
)
@pytest.mark.filterwarnings("ignore:loadtxt. input contained no data")
def test_something_else(server, cache, body):
    server.answer = (200, {"Content-Length": str(len(body))}, body)
    refused(bnn.DataError, cache, "expected the table of the card|expected values with SHA-256")


def test_rows_in_another_order_are_other_values(server, cache):
    server.answer = (200, {}, b"\n".join(TEXT.split(b"\n")[::-1]))
    refused(bnn.DataError, cache, "expected values with SHA-256")


@pytest.mark.parametrize("status", [404, 403, 500, 304])
def test_statuses(server, cache, status):
    server.answer = (status, {"Content-Length": "0"}, b"")
    text = refused(bnn.RunError, cache, f"got HTTP status {status}")
    assert "set BNN_PYRO_DATA to a folder that holds the set" in text and text.count("tiny.txt") == 1


def test_nobody_answers(server, cache, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/tiny.txt"
    monkeypatch.setitem(SOURCES, "group/tiny", Source(url, download._plain))
    refused(bnn.RunError, cache, "expected an answer, got .*refused")


def test_a_connection_that_breaks_off(server, cache):
    server.answer = (200, {"Content-Length": str(len(TEXT))}, TEXT[:-50])
    refused(bnn.RunError, cache, f"expected {len(TEXT)} bytes, got {len(TEXT) - 50}: the connection broke off")


def test_too_large_whether_announced_or_not(server, cache, monkeypatch):
    monkeypatch.setattr(download, "LIMIT", len(TEXT) - 1)
    refused(bnn.RunError, cache, f"expected at most {len(TEXT) - 1} bytes")
    server.answer = (200, {}, TEXT)  # ends with the connection
    refused(bnn.RunError, cache, f"expected at most {len(TEXT) - 1} bytes")
    monkeypatch.setattr(download, "LIMIT", len(TEXT))
    fetch_dataset("group/tiny")


def test_too_slow(server, cache, monkeypatch):
    monkeypatch.setattr(download, "DEADLINE", -1.0)
    refused(bnn.RunError, cache, "only .* bytes in")
    monkeypatch.undo()


def test_silence(cache, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/tiny.txt"
        monkeypatch.setitem(SOURCES, "group/tiny", Source(url, download._plain))
        start = time.monotonic()
        refused(bnn.RunError, cache, "timed out")
        assert time.monotonic() - start < 5


@pytest.mark.parametrize("to", ["https://127.0.0.1:9/x", "file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_a_redirection_to_another_kind_of_address(server, cache, to):
    server.answer = (302, {"Location": to, "Content-Length": "0"}, b"")
    refused(bnn.RunError, cache, f"got a redirection from .* to {to}|'{to}' is not allowed")
    assert server.asked == ["/tiny.txt"]


def test_a_cache_that_cannot_be_written(server, cache):
    cache.write_text("a file where the folder should be")
    with pytest.raises(bnn.RunError, match=r"expected to write below .*Set BNN_PYRO_CACHE to a folder"):
        fetch_dataset("group/tiny")
    assert cache.read_text().startswith("a file")


def test_the_disk_is_full_half_way(server, cache, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(download.np, "savez_compressed", full)
    refused(bnn.RunError, cache, "No space left on device")


def test_splits_by_another_rule_are_refused(server, cache, monkeypatch):
    monkeypatch.setattr(download, "tenth", lambda n, k: embedded.tenth(n, k + 1))
    refused(bnn.DataError, cache, "splits with SHA-256")


def test_global_random_state_is_left_alone():
    np.random.seed(7)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    download.splits_by_rule("uci/boston", 506)
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


def test_all_sources_are_encrypted_and_none_is_missing():
    assert set(SOURCES) == set(FOLDER)
    assert all(source.url.startswith("https://") for source in SOURCES.values())


# ---- the formats of the real sources, written from the data folder


def published(name, values):
    """The bytes of a source, as it publishes these values (n, columns of data.csv)."""
    if name.startswith("uci/") or name == "airfoil":
        separator = "\t" if name == "airfoil" else " "
        return "\n".join(separator.join(f" {v:.17e}" for v in row) for row in values).encode()
    if name == "german_credit":
        return "\n".join("".join(f"{int(v):4d}" for v in [*row[:-1], row[-1] + 1]) + " " for row in values).encode()
    if name == "ionosphere":
        lines = [",".join([f"{r[0]:g}", "0", *(f"{v:.5f}" for v in r[1:-1]), "bg"[int(r[-1])]]) for r in values]
        return ("\n".join(lines) + "\n\n").encode()
    if name == "mcycle":
        return (
            '"rownames","times","accel"\n' + "\n".join(f'"{i}",{a:g},{b:g}' for i, (a, b) in enumerate(values))
        ).encode()
    assert name == "bikesharing"
    head = "instant,dteday,season,yr,mnth,hr,holiday,weekday,workingday,weathersit,temp,atemp,hum,windspeed"
    lines = [
        f"{r[0]:.0f},2011-01-01,4," + ",".join(f"{v:g}" for v in r[1:12]) + f",3,{r[12] - 3:g},{r[12]:g}"
        for r in values
    ]
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("day.csv", "nothing")
        archive.writestr("hour.csv", "\r\n".join([head + ",casual,registered,cnt", *lines, ""]))
    return packed.getvalue()


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_real_sets_come_back_bit_for_bit(name, data_folder, server, cache, monkeypatch):
    folder = data_folder / name
    path = folder / "data.csv"
    text = path.read_bytes() if path.exists() else gzip.decompress((folder / "data.csv.gz").read_bytes())
    header, *lines = text.decode().splitlines()
    values = np.loadtxt(lines, delimiter=",")
    assert as_csv(header, values) == text and header == FOLDER[name].header
    body = published(name, values)
    server.answer = (200, {"Content-Length": str(len(body))}, body)
    url = f"http://127.0.0.1:{server.server_port}/x"
    monkeypatch.setitem(SOURCES, name, Source(url, SOURCES[name].parse))
    assert (fetch_dataset(name) / "data.csv").read_bytes() == text
    fetched = load_dataset(name, split=1)
    monkeypatch.setenv("BNN_PYRO_DATA", str(data_folder))
    original = load_dataset(name, split=1)
    assert fetched.train.x.equals(original.train.x) and fetched.test.y.equals(original.test.y)
