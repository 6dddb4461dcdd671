"""The data loaders: Keras' preparation, where files come from, and files that are damaged or hostile."""

import functools
import hashlib
import http.server
import io
import itertools
import os
import pickle
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from shim import data
from shim.data import cifar10, download, imdb, mnist, text

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
    ids, offsets = imdb.mark(np.array([4, 5, 6, 7, 8, 9, 30, 11]), np.array([0, 2, 5, 5, 8]), vocabulary=20)
    expected = [[0, 1, 4, 5], [1, 6, 7, 8], [0, 0, 0, 1], [1, 9, 2, 11]]
    np.testing.assert_array_equal(imdb.pad(ids, offsets, steps=4), expected)
    np.testing.assert_array_equal(imdb.pad(ids, offsets, steps=2), [[4, 5], [7, 8], [0, 1], [2, 11]])


def _with_pairs_as_in_the_example(train, test, vocabulary):
    """Keras' example imdb_fasttext: create_ngram_set, the numbers of the pairs, and add_ngram."""
    pairs = set()
    for review in train:
        pairs.update(itertools.pairwise(review))
    number = {pair: vocabulary + 1 + k for k, pair in enumerate(sorted(pairs))}  # the example has no order at all

    def add(reviews):
        return [r + [number[p] for p in itertools.pairwise(r) if p in number] for r in reviews]

    return add(train), add(test)


def _split(ids, offsets):
    return [part.tolist() for part in np.split(ids, offsets[1:-1])]


def test_pairs_of_neighbours_are_added_as_in_the_example():
    rng, parts = np.random.default_rng(0), []
    for count in (50, 40):
        lengths = rng.integers(0, 12, count)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        parts.append(imdb.mark(rng.integers(3, 25, offsets[-1]), offsets, vocabulary=20))
    wanted = _with_pairs_as_in_the_example(*(_split(*part) for part in parts), 20)
    known, ends = None, []
    for part, reviews in zip(parts, wanted, strict=True):
        ids, offsets, known = imdb.add_pairs(*part, known, vocabulary=20)
        assert _split(ids, offsets) == reviews
        ends.append(offsets[-1])
    assert ends[1] > len(parts[1][0])  # test reviews have pairs too
    assert (np.diff(known) > 0).all()


def test_the_most_frequent_pairs_are_kept():
    offsets = np.array([0, 6, 9])
    ids = np.array([3, 4, 3, 4, 5, 6, 5, 6, 4], np.int32)
    known = imdb.frequent_pairs(ids, offsets, 2, vocabulary=10)
    assert known.tolist() == [34, 56]
    merged, ends, _ = imdb.add_pairs(ids, offsets, known, vocabulary=10)
    assert _split(merged, ends) == [[3, 4, 3, 4, 5, 6, 11, 11, 12], [5, 6, 4, 12]]


def test_reviews_with_pairs_are_cut_to_their_end(monkeypatch, imdb_folder):
    monkeypatch.setenv("SHIM_DATA", str(imdb_folder))
    start = time.perf_counter()
    loaded = data.load("imdb", steps=400, ngrams=2)
    assert time.perf_counter() - start < 10  # it stays far below without Python work per word
    assert loaded.x_train.shape == loaded.x_test.shape == (25000, 400)
    assert loaded.x_train.max() < imdb.WITH_PAIRS
    pairs = loaded.x_train > imdb.VOCABULARY
    assert pairs[:, -1].mean() > 0.9
    few = data.load("imdb", steps=400, ngrams=2, pairs=500).x_train
    assert few.max() == imdb.VOCABULARY + 500
    assert ((few > imdb.VOCABULARY).sum(axis=1) < pairs.sum(axis=1)).any()
    with pytest.raises(ValueError, match="ngrams must be 1 or 2, got 3"):
        data.load("imdb", ngrams=3)


def test_padding_takes_no_python_work_per_word():
    offsets = np.arange(imdb.COUNT + 1) * 235
    start = time.perf_counter()
    assert imdb.pad(*imdb.mark(np.ones(offsets[-1], np.int64), offsets), 100).shape == (25000, 100)
    assert time.perf_counter() - start < 2


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
    [
        ("mnist", (60000, 784), (10000, 784), 10),
        ("imdb", (25000, 100), (25000, 100), 2),
        ("cifar10", (50000, 32, 32, 3), (10000, 32, 32, 3), 9),
    ],
)
def test_embedded_data_have_the_shapes_and_counts_of_the_real_ones(name, shape, test_shape, classes):
    loaded = data.load(name)
    assert loaded.source == "embedded"
    assert "10,000" in loaded.origin or "repeated" in loaded.origin
    assert (loaded.x_train.shape, loaded.x_test.shape) == (shape, test_shape)
    assert (loaded.y_train.shape, loaded.y_test.shape) == (shape[:1], test_shape[:1])
    assert set(loaded.y_train) == set(range(classes))
    assert abs(np.bincount(loaded.y_train).max() * classes / len(loaded.y_train) - 1) < 0.15  # no class is rare


def test_embedded_sentences_look_like_reviews():
    x = data.load("imdb").x_train
    assert (x == 1).sum(axis=1).tolist() == [1] * len(x)  # one start mark each
    assert 3 < x.max() < 20000
    assert not np.any((x[:, 1:] == 0) & (x[:, :-1] != 0))  # padding only in front


def test_embedded_photographs_are_drawn_from_a_seed_and_test_ones_from_elsewhere():
    first, again = (cifar10.embedded(EMBEDDED / cifar10.EMBEDDED) for _ in range(2))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    train, test = ({bytes(x) for x in first[f"x_{part}"][:9000] if np.ptp(x) > 50} for part in ("train", "test"))
    assert not train & test  # but for squares of a black sky


def test_embedded_text_has_the_shapes_of_the_real_one():
    loaded = data.load("nietzsche")
    assert loaded.source == "embedded"
    assert (loaded.x_train.shape, loaded.x_train.dtype, loaded.y_train.dtype) == ((200285, 40), "int32", "int32")
    assert (loaded.x_test.shape, loaded.y_test.shape) == ((0, 40), (0,))
    assert 40 < loaded.x_train.max() < 57
    np.testing.assert_array_equal(loaded.x_train[1:9, :37], loaded.x_train[:8, 3:])  # a window every 3 characters
    np.testing.assert_array_equal(loaded.y_train[:8], loaded.x_train[1:9, 37])


def test_embedded_data_carry_their_notices():
    notices = (EMBEDDED / "README.md").read_text()
    authors = ("LeCun", "Cortes", "Pang", "Lee", "NASA", "SpaceX", "danielbuechele", "vultilion", "Austen")
    for words in (*authors, "Attribution-ShareAlike 3.0", "Attribution 4.0", "Attribution 2.0", "ublic domain"):
        assert words in notices
    shipped = {p.name for p in EMBEDDED.iterdir()} - {"README.md"}
    assert shipped == {module.EMBEDDED for module in (mnist, imdb, cifar10, text)}
    assert all(name in notices for name in shipped)


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
    with pytest.raises(ValueError, match="unknown data set 'cifar'; the data sets are: mnist, imdb, cifar10"):
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


def test_a_header_that_promises_more_than_memory_holds_is_refused(monkeypatch, tmp_path, mnist_folder):
    with zipfile.ZipFile(tmp_path / "mnist.npz", "w") as archive, np.load(mnist_folder / "mnist.npz") as arrays:
        for name in arrays:
            with archive.open(f"{name}.npy", "w") as member:
                header = {"descr": "|u1", "fortran_order": False, "shape": (2**50, 28, 28)}
                np.lib.format.write_array_header_1_0(member, header)
    monkeypatch.setenv("SHIM_DATA", str(tmp_path))
    with pytest.raises(data.DataError, match=rf"{tmp_path}/mnist\.npz"):
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
    progress, path = _Recorder(), tmp_path / "a" / "b" / "some.npz"
    known = hashlib.sha256(content).hexdigest()
    assert download.fetch(f"{server.url}some.npz", known, path, progress) == path
    assert path.read_bytes() == content
    assert progress.calls[0] == ("start", 100, "downloading some.npz")
    assert progress.calls.count(("advance",)) == 100
    assert progress.calls[-1] == ("stop",)


def test_a_download_with_another_checksum_is_not_kept(server, tmp_path):
    (server.folder / "some.npz").write_bytes(b"something else")
    with pytest.raises(download.DownloadFailed, match="its checksum is not the known one"):
        download.fetch(f"{server.url}some.npz", "0" * 64, tmp_path / "cache" / "some.npz")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_file_that_is_not_there_is_reported(server, tmp_path):
    with pytest.raises(download.DownloadFailed, match=r"some\.npz: 404"):
        download.fetch(f"{server.url}some.npz", "0" * 64, tmp_path / "cache" / "some.npz", _Recorder())


@pytest.fixture
def served(server, monkeypatch):
    """Let the text be downloaded from the server of the tests."""
    content = ("Wer mit Ungeheuern kämpft " * 50).encode()
    (server.folder / "nietzsche.txt").write_bytes(content)
    monkeypatch.delenv("SHIM_OFFLINE")
    monkeypatch.setattr(text, "URL", f"{server.url}nietzsche.txt")
    monkeypatch.setattr(text, "SHA256", hashlib.sha256(content).hexdigest())
    return content


@pytest.mark.parametrize("there", [None, b"", b"half of it"])
def test_a_file_that_is_missing_or_damaged_in_the_cache_is_downloaded(served, tmp_path, there):
    path = tmp_path / "home" / "data" / "nietzsche.txt"
    if there is not None:
        path.parent.mkdir(parents=True)
        path.write_bytes(there)
    said = []
    assert data.fetch("nietzsche", log=said.append) == path
    assert path.read_bytes() == served
    assert said == ([] if there is None else [f"nietzsche: {path} is damaged: its checksum is not the known one"])


def test_a_damaged_file_that_cannot_be_replaced_is_an_error(monkeypatch, tmp_path):
    path = tmp_path / "home" / "data" / "nietzsche.txt"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half of it")
    with pytest.raises(
        data.DataError, match=rf"{path} is damaged and cannot be replaced \(SHIM_OFFLINE.* run: rm {path}"
    ):
        data.fetch("nietzsche", log=lambda text: None)
    assert path.read_bytes() == b"half of it"


def test_without_network_embedded_data_are_used_at_once_and_said_so(monkeypatch):
    monkeypatch.delenv("SHIM_OFFLINE")
    monkeypatch.setattr(mnist, "URL", "http://127.0.0.1:1/mnist.npz")
    said, start = [], time.perf_counter()
    assert data.fetch("mnist", log=said.append) is None
    assert time.perf_counter() - start < 5
    assert "cannot download http://127.0.0.1:1/mnist.npz" in said[0]
    assert "accuracy is not" in said[0]
    assert "set SHIM_DATA" in said[0]


def test_the_table_says_where_each_data_set_comes_from(monkeypatch, mnist_folder):
    monkeypatch.setenv("SHIM_DATA", str(mnist_folder))
    rows = {row["name"]: row for row in data.table()}
    assert tuple(rows) == data.names()
    path = mnist_folder / "mnist.npz"
    assert (rows["mnist"]["source"], rows["mnist"]["path"], rows["mnist"]["known"]) == ("file", str(path), False)
    assert rows["mnist"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert rows["cifar10"]["source"] == "embedded"
    assert rows["cifar10"]["bytes"] == (EMBEDDED / cifar10.EMBEDDED).stat().st_size


# ------------------------------------------------------------------------------------------------------- CIFAR-10


def _python_2_pickle(pixels, labels):
    """Write {"data": array, "labels": list} as Python 2 and its NumPy do, byte strings and all."""

    def string(value):
        return b"T" + len(value).to_bytes(4, "little") + value

    def number(value):
        return b"J" + value.to_bytes(4, "little", signed=True)

    new = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + string(b"b") + b"tR"
    dtype = (
        b"cnumpy\ndtype\n("
        + string(b"u1")
        + b"K\x00K\x01tR(K\x03"
        + string(b"|")
        + b"NNN"
        + 2 * number(-1)
        + b"K\x00tb"
    )
    shape = b"(" + b"".join(map(number, pixels.shape)) + b"t"
    array = new + b"(K\x01" + shape + dtype + b"I00\n" + string(pixels.tobytes()) + b"tb"
    listed = b"(" + b"".join(number(int(label)) for label in labels) + b"l"
    return b"\x80\x02(" + string(b"data") + array + string(b"labels") + listed + b"d."


def _tar(path, members):
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture(scope="module")
def cifar_batches():
    rng = np.random.default_rng(0)
    pixels = np.zeros((cifar10.BATCH, 3072), np.uint8)
    batches = {}
    for k, name in enumerate(cifar10.BATCHES["train"] + cifar10.BATCHES["test"]):
        pixels[:, 1024 * 2 + 32 * 3 + 5] = rng.integers(0, 256, cifar10.BATCH)  # blue, row 3, column 5
        batches[name] = pixels.copy(), np.full(cifar10.BATCH, k)
    return batches


@pytest.fixture(scope="module")
def cifar10_folder(tmp_path_factory, cifar_batches):
    folder = tmp_path_factory.mktemp("cifar10")
    members = {name: _python_2_pickle(*batch) for name, batch in cifar_batches.items()}
    _tar(folder / "cifar-10-python.tar.gz", members)
    return folder


def test_cifar10_is_read_from_pickles_of_python_2(monkeypatch, cifar10_folder, cifar_batches):
    monkeypatch.setenv("SHIM_DATA", str(cifar10_folder))
    loaded = data.load("cifar10")
    assert (loaded.source, loaded.x_train.dtype, loaded.y_train.dtype) == ("real", "float32", "int32")
    assert np.array_equal(loaded.y_train, np.repeat(np.arange(5), 10000))
    blue = cifar_batches["data_batch_3"][0][:, 1024 * 2 + 32 * 3 + 5]
    np.testing.assert_array_equal(loaded.x_train[20000:30000, 3, 5, 2], blue / np.float32(255))
    assert np.count_nonzero(loaded.x_test) == np.count_nonzero(loaded.x_test[:, 3, 5, 2])


@pytest.mark.parametrize("kept", [0, 0.3, 0.999])
def test_a_truncated_archive_is_named(monkeypatch, tmp_path, cifar10_folder, kept):
    whole = (cifar10_folder / "cifar-10-python.tar.gz").read_bytes()
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(whole[: int(kept * len(whole))])
    monkeypatch.setenv("SHIM_DATA", str(tmp_path))
    with pytest.raises(data.DataError, match=r"cifar-10-python\.tar\.gz.*replace the file"):
        data.load("cifar10")


def test_an_archive_that_asks_to_run_code_is_refused(monkeypatch, tmp_path):
    marker = tmp_path / "ran"
    hostile = pickle.dumps({b"data": _Hostile(os.system, (f"touch {marker}",))}, protocol=2)
    _tar(tmp_path / "cifar-10-python.tar.gz", {"data_batch_1": hostile})
    monkeypatch.setenv("SHIM_DATA", str(tmp_path))
    with pytest.raises(data.DataError, match=r"it asks to call \S+, which no data file needs, and was refused"):
        data.load("cifar10")
    assert not marker.exists()


def test_the_first_images_of_cifar10_are_repeated_and_called_a_part(monkeypatch, tmp_path):
    rng = np.random.default_rng(0)
    arrays = {f"x_{part}": rng.integers(0, 256, (n, 32, 32, 3), np.uint8) for part, n in (("train", 300), ("test", 70))}
    arrays |= {f"y_{part}": rng.integers(0, 10, (n, 1), np.uint8) for part, n in (("train", 300), ("test", 70))}
    np.savez(tmp_path / "cifar10_small.npz", **arrays)
    monkeypatch.setenv("SHIM_DATA", str(tmp_path))
    loaded = data.load("cifar10")
    assert loaded.source == "part"
    assert (loaded.x_train.shape, loaded.y_test.shape) == ((50000, 32, 32, 3), (10000,))
    np.testing.assert_array_equal(loaded.x_train[300:600], loaded.x_train[:300])


def test_augmentation_shifts_and_mirrors_and_repeats_the_edge():
    x = np.arange(32 * 32.0).reshape(1, 32, 32, 1).repeat(400, axis=0)
    moved = cifar10.augment(x, np.random.default_rng(0))
    again = cifar10.augment(x, np.random.default_rng(0))
    np.testing.assert_array_equal(moved, again)
    assert moved.shape == x.shape
    rows, columns = np.divmod(moved[:, 16, 16, 0], 32)
    mirrored = moved[:, 16, 17, 0] < moved[:, 16, 16, 0]
    assert 0.4 < mirrored.mean() < 0.6
    for shift in (rows - 16, columns - np.where(mirrored, 15, 16)):
        assert set(shift) == {-3, -2, -1, 0, 1, 2, 3}
    assert moved.min() == 0
    assert np.array_equal(np.diff(moved[:, :, 0, 0], axis=1) >= 0, np.ones((400, 31), bool))


# ----------------------------------------------------------------------------------------------------------- text


def test_characters_are_lower_cased_and_numbered_in_order():
    arrays = text.encode("Abcä,\nB")
    assert arrays["ids"].tolist() == [2, 3, 4, 5, 1, 0, 3]
    assert arrays["ids"].dtype == np.int32
    assert [chr(point) for point in arrays["alphabet"]] == ["\n", ",", "a", "b", "c", "ä"]
    assert [text.windows(n) for n in (40, 41, 43, 44, 600893)] == [0, 1, 1, 2, 200285]


@pytest.mark.parametrize("content", [b"", b"short", b"\xff\xfe"])
def test_another_text_is_refused(monkeypatch, tmp_path, content):
    (tmp_path / "nietzsche.txt").write_bytes(content)
    monkeypatch.setenv("SHIM_DATA", str(tmp_path))
    with pytest.raises(data.DataError, match=rf"{tmp_path}/nietzsche\.txt"):
        data.load("nietzsche")


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
        "import sys; from shim import data; [data.load(name) for name in data.names()];"
        "print({'pooch', 'requests', 'scipy', 'rich', 'click'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def _real(name):
    folder = Path(os.environ.get("SHIM_DATA") or os.devnull)
    return next((folder / f for f in data._MODULES[name].FILES if (folder / f).exists()), None)


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


@pytest.mark.skipif(REAL["imdb"] is None, reason="set SHIM_DATA to a folder with imdb.npz to check the real file")
def test_pairs_of_real_reviews_have_the_known_numbers(monkeypatch):
    monkeypatch.setenv("SHIM_DATA", str(REAL["imdb"].parent))
    loaded = data.load("imdb", steps=400, ngrams=2)
    assert loaded.x_train.max() + 1 == 1205230
    assert (loaded.x_train != 0).sum(axis=1).mean() == pytest.approx(321.6, abs=0.1)
    assert 1 - ((loaded.x_train > 0) & (loaded.x_train < 20000)).any(axis=1).mean() == pytest.approx(0.139, abs=0.001)


@pytest.mark.skipif(REAL["nietzsche"] is None, reason="set SHIM_DATA to a folder with nietzsche.txt to check it")
def test_real_nietzsche_has_the_known_facts(monkeypatch):
    monkeypatch.setenv("SHIM_DATA", str(REAL["nietzsche"].parent))
    loaded = data.load("nietzsche")
    assert (loaded.source, loaded.x_train.shape, loaded.x_train.max()) == ("real", (200285, 40), 56)
    assert hashlib.sha256(REAL["nietzsche"].read_bytes()).hexdigest() == text.SHA256
