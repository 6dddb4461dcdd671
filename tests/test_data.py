"""The data loaders: Keras' preparation, where files come from, and files that are damaged or hostile."""

import functools
import hashlib
import http.server
import os
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from shim import data
from shim.data import download, imdb, mnist

EMBEDDED = Path(data.__file__).parent / "embedded"


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path):
    """Start without files and without a network."""
    monkeypatch.delenv("SHIM_DATA", raising=False)
    monkeypatch.setenv("SHIM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SHIM_OFFLINE", "1")


@pytest.fixture(scope="module")
def reviews():
    """25,000 + 25,000 short made-up reviews, as lists of word ranks."""
    rng = np.random.default_rng(0)

    def draw():
        lists = np.empty(imdb.COUNT, object)
        lengths = np.minimum(rng.geometric(0.1, imdb.COUNT), 150)
        lengths[:4] = 98, 99, 100, 101
        flat = rng.integers(1, 30000, lengths.sum())
        for k, end in enumerate(np.cumsum(lengths)):
            lists[k] = flat[end - lengths[k] : end].tolist()
        return lists

    labels = [rng.integers(0, 2, imdb.COUNT) for _ in range(2)]
    return {"x_train": draw(), "y_train": labels[0], "x_test": draw(), "y_test": labels[1]}


@pytest.fixture(scope="module")
def imdb_folder(tmp_path_factory, reviews):
    folder = tmp_path_factory.mktemp("imdb")
    np.savez(folder / "imdb.npz", **reviews)
    return folder


@pytest.fixture(scope="module")
def mnist_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mnist")
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in mnist.COUNTS.items():
        arrays[f"x_{part}"] = np.zeros((count, 28, 28), np.uint8)
        arrays[f"x_{part}"][:, 3, 5] = rng.integers(0, 256, count)
        arrays[f"y_{part}"] = rng.integers(0, 10, count).astype(np.uint8)
    np.savez_compressed(folder / "mnist.npz", **arrays)
    return folder


def _as_keras_does(reviews):
    """keras.datasets.imdb.load_data(num_words=20000) and pad_sequences(maxlen=100), one review at a time."""
    rng = np.random.RandomState(113)
    prepared = []
    for part in ("train", "test"):
        order = np.arange(len(reviews[f"x_{part}"]))
        rng.shuffle(order)
        rows = np.zeros((len(order), 100), np.int32)
        for row, ranks in zip(rows, reviews[f"x_{part}"][order], strict=True):
            ids = [1] + [rank + 3 for rank in ranks]
            ids = [i if i < 20000 else 2 for i in ids][-100:]
            row[100 - len(ids) :] = ids
        prepared += [rows, reviews[f"y_{part}"][order]]
    return prepared


def test_imdb_is_prepared_as_keras_does(monkeypatch, imdb_folder, reviews):
    monkeypatch.setenv("SHIM_DATA", str(imdb_folder))
    loaded = data.load("imdb", "float64")
    assert (loaded.source, loaded.origin) == ("real", str(imdb_folder / "imdb.npz"))
    actual = [loaded.x_train, loaded.y_train, loaded.x_test, loaded.y_test]
    for array, wanted in zip(actual, _as_keras_does(reviews), strict=True):
        assert array.dtype == np.int32
        np.testing.assert_array_equal(array, wanted)


def test_short_reviews_are_padded_in_front_and_long_ones_lose_their_beginning():
    ids, offsets = np.array([4, 5, 6, 7, 8, 9, 30, 11]), np.array([0, 2, 5, 5, 8])
    expected = [[0, 1, 4, 5], [1, 6, 7, 8], [0, 0, 0, 1], [1, 9, 2, 11]]
    np.testing.assert_array_equal(imdb.pad(ids, offsets, steps=4, vocabulary=20), expected)
    np.testing.assert_array_equal(imdb.pad(ids, offsets, steps=2, vocabulary=20), [[4, 5], [7, 8], [0, 1], [2, 11]])


def test_padding_takes_no_python_work_per_word():
    offsets = np.arange(imdb.COUNT + 1) * 235
    start = time.perf_counter()
    assert imdb.pad(np.ones(offsets[-1], np.int64), offsets).shape == (25000, 100)
    assert time.perf_counter() - start < 1.5


def test_mnist_is_flattened_and_scaled(monkeypatch, mnist_folder):
    monkeypatch.setenv("SHIM_DATA", str(mnist_folder))
    loaded = data.load("mnist", "float64")
    with np.load(mnist_folder / "mnist.npz") as arrays:
        np.testing.assert_array_equal(loaded.x_test, arrays["x_test"].reshape(10000, 784) / 255)
        np.testing.assert_array_equal(loaded.y_test, arrays["y_test"])
    assert loaded.source == "real"
    assert (loaded.x_train.shape, loaded.x_train.dtype, loaded.y_train.dtype) == ((60000, 784), "float64", "int32")
    assert loaded.x_train.max() == 1


@pytest.mark.parametrize(
    ("name", "shape", "test_shape", "classes"),
    [("mnist", (60000, 784), (10000, 784), 10), ("imdb", (25000, 100), (25000, 100), 2)],
)
def test_embedded_data_have_the_shapes_and_counts_of_the_real_ones(name, shape, test_shape, classes):
    loaded = data.load(name)
    assert loaded.source == "embedded"
    assert "repeated" in loaded.origin
    assert (loaded.x_train.shape, loaded.x_test.shape) == (shape, test_shape)
    assert (loaded.y_train.shape, loaded.y_test.shape) == (shape[:1], test_shape[:1])
    assert set(loaded.y_train) == set(range(classes))
    assert abs(np.bincount(loaded.y_train).max() * classes / len(loaded.y_train) - 1) < 0.15  # no class is rare


def test_embedded_sentences_look_like_reviews():
    x = data.load("imdb").x_train
    assert (x == 1).sum(axis=1).tolist() == [1] * len(x)  # one start mark each
    assert 3 < x.max() < 20000
    assert not np.any((x[:, 1:] == 0) & (x[:, :-1] != 0))  # padding only in front


def test_embedded_data_carry_their_notices():
    text = (EMBEDDED / "README.md").read_text()
    for words in ("LeCun", "Cortes", "Attribution-ShareAlike 3.0", "Pang", "Lee", "Attribution 4.0"):
        assert words in text
    assert {p.name for p in EMBEDDED.glob("*.npz")} == {mnist.EMBEDDED, imdb.EMBEDDED}


def test_the_given_folder_comes_before_the_cache(monkeypatch, mnist_folder, tmp_path):
    cache = tmp_path / "home" / "data"
    cache.mkdir(parents=True)
    assert data.find("mnist") is None
    (cache / "mnist.npz").write_bytes((mnist_folder / "mnist.npz").read_bytes())
    assert data.find("mnist") == cache / "mnist.npz"
    monkeypatch.setenv("SHIM_DATA", str(mnist_folder))
    assert data.find("mnist") == mnist_folder / "mnist.npz"
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("SHIM_DATA", str(tmp_path / "empty"))
    assert data.find("mnist") == cache / "mnist.npz"


def test_a_folder_that_is_none_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("SHIM_DATA", str(tmp_path / "gone"))
    with pytest.raises(data.DataError, match=r"SHIM_DATA=.*gone is not a folder; set it to one with imdb.npz"):
        data.load("imdb")


def test_unknown_names_are_answered_with_the_choices():
    with pytest.raises(ValueError, match="unknown data set 'cifar'; the data sets are: mnist, imdb"):
        data.load("cifar")


@pytest.mark.parametrize("name", ["mnist", "imdb"])
@pytest.mark.parametrize("kept", [0, 0.3, 0.999])
def test_a_truncated_file_is_named_with_the_mending_command(monkeypatch, tmp_path, name, kept, request):
    whole = (request.getfixturevalue(f"{name}_folder") / f"{name}.npz").read_bytes()
    (tmp_path / f"{name}.npz").write_bytes(whole[: int(kept * len(whole))])
    monkeypatch.setenv("SHIM_DATA", str(tmp_path))
    with pytest.raises(data.DataError, match=rf"{tmp_path}/{name}.npz.*replace the file, or .* run: unset SHIM_DATA"):
        data.load(name)


def test_a_flipped_byte_in_the_cache_is_noticed(imdb_folder, tmp_path):
    damaged = bytearray((imdb_folder / "imdb.npz").read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    path = tmp_path / "home" / "data" / "imdb.npz"
    path.parent.mkdir(parents=True)
    path.write_bytes(damaged)
    with pytest.raises(data.DataError, match=rf"cannot read {path}.*run: rm {path}"):
        data.load("imdb")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_train": np.zeros((60000, 28, 27), np.uint8)}, r"x_train has shape \(60000, 28, 27\), expected"),
        ({"x_test": np.zeros((10000, 28, 28), np.float32)}, "x_test has dtype float32, expected integers"),
        ({"y_test": np.full(10000, 10)}, r"y_test has values in 10\.\.10, expected 0\.\.9"),
        ({"y_train": None}, "it has no array called y_train"),
    ],
)
def test_a_file_of_something_else_is_refused(monkeypatch, tmp_path, mnist_folder, change, message):
    with np.load(mnist_folder / "mnist.npz") as arrays:
        arrays = {name: value for name, value in (dict(arrays) | change).items() if value is not None}
    np.savez_compressed(tmp_path / "mnist.npz", **arrays)
    monkeypatch.setenv("SHIM_DATA", str(tmp_path))
    with pytest.raises(data.DataError, match=message):
        data.load("mnist")


@pytest.mark.parametrize(
    ("review", "message"),
    [
        ([1, "two"], "does not hold IMDB"),
        (7, "does not hold IMDB"),
        ([0, 5], r"word ranks in 0\.\."),
        ([2**31], r"word ranks in"),
        ([2**70], "does not hold IMDB"),
        ([None], "does not hold IMDB"),
    ],
)
def test_reviews_that_are_no_lists_of_ranks_are_refused(monkeypatch, tmp_path, reviews, review, message):
    lists = reviews["x_train"].copy()
    lists[123] = review
    np.savez(tmp_path / "imdb.npz", **reviews | {"x_train": lists})
    monkeypatch.setenv("SHIM_DATA", str(tmp_path))
    with pytest.raises(data.DataError, match=message):
        data.load("imdb")


class _Hostile:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("function", "argument", "name"),
    [
        (os.system, "touch {}", "posix.system"),
        (eval, "open('{}', 'w')", "builtins.eval"),
        (__import__, "antigravity", "builtins.__import__"),
    ],
)
@pytest.mark.parametrize("protocol", [3, 4])
def test_a_file_that_asks_to_run_code_is_refused(monkeypatch, tmp_path, reviews, function, argument, name, protocol):
    marker = tmp_path / "ran"
    lists = reviews["x_test"].copy()
    lists[3] = _Hostile(function, (argument.format(marker),))
    monkeypatch.setattr(pickle, "dump", functools.partial(_dump, pickle.dump, protocol))
    np.savez(tmp_path / "imdb.npz", **reviews | {"x_test": lists})
    monkeypatch.setenv("SHIM_DATA", str(tmp_path))
    with pytest.raises(data.DataError, match=r"it asks to call \S+, which no data file needs, and was refused"):
        data.load("imdb")
    assert not marker.exists()


def _dump(dump, forced, value, file, protocol=None, **options):
    dump(value, file, protocol=forced, **options)


def test_hostile_files_would_have_run(tmp_path):
    marker = tmp_path / "ran"
    pickle.loads(pickle.dumps(_Hostile(os.system, (f"touch {marker}",))))
    assert marker.exists()


class _Recorder:
    def __init__(self):
        self.calls = []

    def start(self, total, description):
        self.calls.append(("start", total, description))

    def advance(self, text):
        self.calls.append(("advance",))

    def stop(self):
        self.calls.append(("stop",))


@pytest.fixture
def server(tmp_path):
    """A web server on this machine; ``server.url`` serves the folder ``server.folder``."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        running.url, running.folder = f"http://127.0.0.1:{running.server_port}/", folder
        yield running
        running.shutdown()
        thread.join()


def test_a_download_is_checked_and_shown(server, tmp_path):
    content = os.urandom(300_000)
    (server.folder / "some.npz").write_bytes(content)
    progress = _Recorder()
    sha256 = hashlib.sha256(content).hexdigest()
    path = download.fetch("some.npz", sha256, tmp_path / "a" / "b", progress, server.url)
    assert path == tmp_path / "a" / "b" / "some.npz"
    assert path.read_bytes() == content
    assert progress.calls[0] == ("start", 100, "downloading some.npz")
    assert progress.calls.count(("advance",)) == 100
    assert progress.calls[-1] == ("stop",)


def test_a_download_with_another_checksum_is_not_kept(server, tmp_path):
    (server.folder / "some.npz").write_bytes(b"something else")
    with pytest.raises(download.DownloadFailed, match="its checksum is not that of Keras' file"):
        download.fetch("some.npz", "0" * 64, tmp_path / "cache", None, server.url)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_file_that_is_not_there_is_reported(server, tmp_path):
    with pytest.raises(download.DownloadFailed, match=r"some\.npz: 404"):
        download.fetch("some.npz", "0" * 64, tmp_path / "cache", _Recorder(), server.url)


def test_without_network_embedded_data_are_used_at_once_and_said_so(monkeypatch):
    monkeypatch.delenv("SHIM_OFFLINE")
    monkeypatch.setattr(download, "BASE_URL", "http://127.0.0.1:1/")
    monkeypatch.setattr(download.fetch, "__defaults__", (None, "http://127.0.0.1:1/"))
    said, start = [], time.perf_counter()
    assert data.fetch("mnist", log=said.append) is None
    assert time.perf_counter() - start < 5
    assert "cannot download http://127.0.0.1:1/mnist.npz" in said[0]
    assert "accuracy is not" in said[0]
    assert "set SHIM_DATA" in said[0]


def test_offline_no_download_is_tried(capsys):
    assert data.fetch("imdb") is None
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "embedded data take the place of imdb.npz (SHIM_OFFLINE is set)" in captured.err


def test_a_file_that_is_there_is_not_fetched(monkeypatch, mnist_folder):
    monkeypatch.setenv("SHIM_DATA", str(mnist_folder))
    said = []
    assert data.fetch("mnist", log=said.append) == mnist_folder / "mnist.npz"
    assert said == []


def test_reading_needs_nothing_but_numpy():
    code = (
        "import sys; from shim import data; data.load('mnist'); data.load('imdb');"
        "print({'pooch', 'requests', 'scipy', 'rich', 'click'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def _real(name):
    folder = os.environ.get("SHIM_DATA", "")
    return Path(folder) / f"{name}.npz" if folder and (Path(folder) / f"{name}.npz").exists() else None


REAL = {name: _real(name) for name in data.names()}


@pytest.mark.skipif(REAL["imdb"] is None, reason="set SHIM_DATA to a folder with imdb.npz to check the real file")
def test_real_imdb_has_the_known_facts():
    arrays = imdb.read(REAL["imdb"], "")
    assert arrays["x_train"][:7].tolist() == [14, 22, 16, 43, 530, 973, 1622]
    lengths = np.concatenate([np.diff(arrays["off_train"]), np.diff(arrays["off_test"])]) + 1  # with the start mark
    assert lengths[0] == 218
    assert (lengths.mean(), lengths.std()) == (pytest.approx(234.75892), pytest.approx(172.911495))
    assert len(np.unique(np.concatenate([arrays["x_train"], arrays["x_test"]]))) + 1 == 88585
    assert arrays["y_train"][:10].tolist() == [1, 0, 0, 1, 0, 0, 1, 0, 1, 0]


@pytest.mark.skipif(REAL["mnist"] is None, reason="set SHIM_DATA to a folder with mnist.npz to check the real file")
def test_real_mnist_has_the_known_facts(monkeypatch):
    monkeypatch.setenv("SHIM_DATA", str(REAL["mnist"].parent))
    loaded = data.load("mnist")
    assert loaded.y_train[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert loaded.x_train.mean() == pytest.approx(0.1306604762738429, rel=1e-5)
