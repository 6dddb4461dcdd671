"""CNTK 2.7 in a Python it was not built for. Run in the environment of `shim env cntk`; most tests start a process."""

import ast
import importlib.util
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from shim.cntk import _edits, _install, _load, _names, _numpy, _place

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parents[1]


def python(code, *arguments, path=SOURCE, **options):
    """Run code in a fresh process without any variable but where this package is; return what happened."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={"PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
        **options,
    )


def said(code, *arguments, **options):
    result = python(code, *arguments, **options)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="session")
def site():
    return _place.checked()


@pytest.fixture
def copy(site, tmp_path):
    """An installation whose files may be altered: links to the real ones, but for those in it that are replaced."""
    place = tmp_path / "cntk"
    shutil.copytree(site, place, copy_function=os.symlink)

    def alter(name, old, new):
        content = (site / name).read_bytes()
        assert content.count(old) >= 1
        (place / name).unlink()
        (place / name).write_bytes(content.replace(old, new))
        return place

    return alter


LOAD = "import sys, pathlib, shim.cntk; shim.cntk.load(*map(pathlib.Path, sys.argv[1:]));"


def test_the_stubs_have_every_name_that_the_libraries_import(site):
    missing = set()
    for path in [site / _load.EXTENSION, *site.glob("cntk/libs/*.so*")]:
        missing |= {name for name in imported(path) if name.startswith(("MPI_", "ompi_", "_ZN3MPI"))}
    assert missing == {*_names.FUNCTIONS, *_names.DATA}


def imported(path):
    """Return the names of a library's dynamic symbols that are in no section of its own."""
    content = path.read_bytes()
    (table,), (size, count) = struct.unpack_from("<Q", content, 40), struct.unpack_from("<HH", content, 58)
    sections = list(struct.iter_unpack("<IIQQQQIIQQ", content[table : table + size * count]))
    (dynamic,) = (section for section in sections if section[1] == 11)  # SHT_DYNSYM
    strings = sections[dynamic[6]][4]
    symbols = struct.iter_unpack("<IBBHQQ", content[dynamic[4] : dynamic[4] + dynamic[5]])
    starts = [strings + name for name, _, _, section, _, _ in symbols if section == 0]
    return {content[start : content.index(b"\0", start)].decode() for start in starts}


def test_plain_import_works_in_an_empty_environment():
    assert said("import cntk; print(cntk.__version__, cntk.all_devices())").startswith("2.7 (")
    assert "layers" in said("import cntk.layers; print(cntk.layers.__name__)")
    assert said("from cntk.layers import LSTM; print(LSTM.__module__)") == "cntk.layers.blocks\n"


def test_loading_says_nothing_and_changes_nothing_outside():
    code = """
import collections, inspect, os, sys, typing, warnings
import numpy, scipy.sparse
def state():
    modules = [collections, inspect, typing, numpy, numpy.lib]
    return [{name: id(value) for name, value in vars(m).items()} for m in modules], dict(os.environ), [*sys.path], \
        [*warnings.filters], {name for name in sys.modules if name.startswith("numpy.core")}
before = state()
import cntk
after = state()
print([a == b for a, b in zip(before, after)])
"""
    result = python(code)
    assert (result.stderr, result.stdout) == ("", "[True, True, True, True, True]\n")


def test_a_second_load_is_the_first_also_from_threads():
    code = (
        LOAD
        + """
import threading, cntk
first = shim.cntk.load()
found = []
threads = [threading.Thread(target=lambda: found.append(shim.cntk.load())) for _ in range(4)]
[t.start() for t in threads], [t.join() for t in threads]
print({*map(id, found), id(first), id(cntk)} == {id(cntk)})
"""
    )
    assert said(code) == "True\n"


def test_another_module_of_that_name_is_left_alone():
    code = "import sys, types; sys.modules['cntk'] = types.ModuleType('cntk');" + LOAD
    assert "ImportError: another module called 'cntk' is loaded" in python(code).stderr


def test_not_installed_is_a_clear_error(tmp_path):
    message = f"ImportError: CNTK is not installed in this environment; run: {sys.executable} -m shim.cntk install"
    assert message in python(LOAD, tmp_path).stderr
    (tmp_path / _place.RECORD).write_text("{}")
    assert "CNTK was installed by another version of shim; run: " in python(LOAD, tmp_path).stderr


def test_two_networks_train_as_under_python_3_6():
    source = (HERE / "smoke.py").read_text(encoding="utf-8")
    nodes = ast.parse(source).body
    (losses,) = (ast.literal_eval(n.value) for n in nodes if isinstance(n, ast.Assign) and n.targets[0].id == "LOSSES")
    assert [line.split() for line in said(source).splitlines()] == [losses["conv"], losses["lstm"]]


def test_dimensions_may_be_floats_as_under_python_3_6():
    code = """
import cntk as C, numpy as np
x = C.input_variable((2.0, 6 / 2))
w = C.parameter((1, 1, 3, 3), init=1)
y = C.input_variable((1, 10, 10))
strided = C.convolution(w, y, strides=(4 / 2, np.float64(2)), auto_padding=[False, True, True])
print(x.shape, C.parameter((3.0, 4)).shape, strided.shape)
for wrong in (float("nan"), 1e30):
    try:
        C.input_variable((wrong, 2))
        print("accepted")
    except (OverflowError, TypeError, ValueError) as error:
        print("refused")
"""
    assert said(code) == "(2, 3) (3, 4) (1, 5, 5)\nrefused\nrefused\n"


def test_the_communicator_raises():
    code = """
import cntk as C
for use in (C.Communicator.num_workers, C.train.distributed.mpi_communicator):
    try:
        use()
    except RuntimeError as error:
        print(str(error).splitlines()[0])
"""
    first, second = said(code).splitlines()
    assert first == "Failed to initialize MPI with the desired level of thread support"
    assert second.startswith("MPI")


def test_user_deserializers_are_refused_since_python_3_12():
    code = """
import cntk as C
class Mine(C.io.UserDeserializer):
    pass
try:
    Mine(), print("made")
except NotImplementedError as error:
    print(error)
"""
    text = said(code)
    if sys.version_info >= (3, 12):
        assert text.startswith("cntk.io.UserDeserializer needs Python 3.11 or older")
    else:
        assert text == "made\n"


THREADS = """
import cntk as C, numpy as np, sys
x = C.input_variable((3, 8, 8))
w = C.parameter((4, 3, 3, 3), init=1)
evaluate = lambda: C.convolution(w, x, auto_padding=[False, True, True]).eval({x: np.ones((5, 3, 8, 8), "f")})
set_threads, get_threads = C.cntk_py.set_max_num_cputhreads, C.cntk_py.get_max_num_cputhreads
default = get_threads()
"""


def test_threads_are_set_once_and_before_anything_is_evaluated():
    code = (
        THREADS
        + """
set_threads(default); set_threads(1); set_threads(1)
evaluate(); set_threads(1); print(get_threads(), evaluate().shape)
try:
    set_threads(default + 1)
except RuntimeError as error:
    print(error)
"""
    )
    first, second = said(code).splitlines()
    assert first == "1 (5, 4, 8, 8)"
    assert second.startswith(
        "CNTK's number of threads can be set once, before anything is evaluated, and it has been set"
    )


def test_a_trainer_keeps_the_threads_that_the_environment_asks_for():
    code = (
        'import os; os.environ["OMP_NUM_THREADS"] = "1"'
        + THREADS
        + """
first = evaluate()
C.Trainer(y := C.layers.Dense(2)(x), C.reduce_sum(y), [C.sgd(y.parameters, C.learning_parameter_schedule(1))])
wide = C.convolution(w, x, strides=(1, 2, 2), auto_padding=[False, True, True]).eval({x: np.ones((7, 3, 8, 8), "f")})
print(default, get_threads(), first.shape, wide.shape)
"""
    )
    assert said(code) == "1 1 (5, 4, 8, 8) (7, 4, 4, 4)\n"


def test_threads_are_not_set_after_an_evaluation():
    code = (
        THREADS + "evaluate(); set_threads(default)\ntry: set_threads(default + 1)\nexcept RuntimeError as e: print(e)"
    )
    assert "and something has been evaluated in this process: " in said(code)


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one processor: there is no other number of threads")
def test_calling_the_static_type_of_swig_is_an_error():
    code = """
import cntk as C
try:
    type(C.DeviceDescriptor.cpu_device().this)()
except TypeError as error:
    print("TypeError")
"""
    assert said(code) == "TypeError\n"


@pytest.mark.skipif(sys.version_info < (3, 13), reason="Python before 3.13 does not count versions of types")
def test_python_counts_no_versions_where_swig_keeps_a_pointer():
    code = """
import ctypes
import cntk as C
this = C.DeviceDescriptor.cpu_device().this
read = lambda at: ctypes.c_uint64.from_address(id(type(this)) + at).value
tag = read(384) & 0xFFFFFFFF
for _ in range(5000):
    hasattr(this, "acquire"), hasattr(this, "nothing")
print(read(400), read(408) == id(type(this)), tag > 0, tag == read(384) & 0xFFFFFFFF)
"""
    assert said(code) == "0 True True True\n"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_results_agree_with_numpy(dtype):
    code = """
import cntk as C, numpy as np, sys
dtype = np.dtype(sys.argv[1]).type
r = np.random.RandomState(0)
a, b = r.rand(5, 3).astype(dtype), r.rand(3, 4).astype(dtype)
x = C.input_variable(3, dtype=dtype, needs_gradient=True)
w = C.parameter(init=b)
f = C.tanh(C.times(x, w))
y, dy = f.eval({x: a}), f.grad({x: a}, wrt=[x, w])
wanted = np.tanh(a @ b)
d = 1 - wanted**2
for got, want in ((y, wanted), (dy[x], d @ b.T), (dy[w], a.T @ d), (w.value, b)):
    assert got.dtype == dtype and np.abs(got - want).max() <= 8 * np.finfo(dtype).eps * np.abs(want).max()
"""
    said(code, dtype)


def test_an_altered_module_is_refused(copy):
    place = copy("cntk/internal/sanitize.py", b"collections.Iterable", b"collections.abc.Iterable")
    result = python(LOAD, place)
    assert "is not the file of CNTK 2.7: " in result.stderr
    assert result.returncode == 1


@pytest.mark.skipif(sys.version_info < (3, 12), reason="Python before 3.12 has the function, so nothing is redirected")
def test_an_extension_that_does_not_import_the_function_is_refused(copy):
    place = copy(_load.EXTENSION, b"PyUnicode_GetSize\0", b"PyUnicode_GetLen\0\0")
    assert python(LOAD, place).returncode == 1


def test_code_that_is_not_the_one_expected_is_refused(copy, site):
    content = (site / _load.EXTENSION).read_bytes()
    for at, (old, _) in _numpy.CODE.items():
        assert content[at : at + 4] == old
    place = copy(_load.EXTENSION, content[0x9FC20:0x9FC30], content[0x9FC20:0x9FC28] + bytes(8))
    code = """
import sys, pathlib, ctypes
from shim.cntk import _load, _numpy, _place, _slots, _stubs
place = pathlib.Path(sys.argv[1])
kept = [ctypes.CDLL(str(place / "stubs" / name)) for name in _stubs.SONAMES]
path = place / _load.EXTENSION
library = _slots.Library(path, ctypes.CDLL(str(path)), "PyInit__cntk_py")
try:
    library.replace(_numpy.CODE)
except _slots.UnexpectedContent as error:
    print(error)
"""
    assert "does not have the code of CNTK 2.7 at 0x9fc28" in said(code, place)


def test_a_wrong_result_refuses_to_load_and_is_remembered():
    code = """
import shim.cntk, shim.cntk._guards as guards, sys
def check(cntk): raise ImportError("x + 1 is wrong in float32")
guards.check = check
for _ in range(2):
    try:
        import cntk
    except ImportError as error:
        print(error)
print(any(name.split(".")[0] in ("cntk", "_cntk_py") for name in sys.modules))
"""
    first, second, left = said(code).splitlines()
    assert first == "x + 1 is wrong in float32"
    assert second == "CNTK cannot be loaded any more in this process: x + 1 is wrong in float32"
    assert left == "False"


def test_a_wrong_evaluation_is_seen():
    code = (
        LOAD
        + """
import cntk, numpy as np
from shim.cntk import _guards
_guards.check(cntk)
constant = cntk.constant
cntk.constant = lambda value, **options: constant(value + 1, **options)
try:
    _guards.check(cntk)
except ImportError as error:
    print(error)
"""
    )
    assert said(code).rstrip().endswith("x + 1 is wrong in float32")


@pytest.mark.parametrize("patch", ["np.__version__ = '3.0.0'", "_numpy._SIZE_IN_1 = _numpy._SIZE_IN_2 = 0x18"])
def test_a_numpy_that_is_not_known_is_refused(patch):
    result = python(f"import numpy as np; from shim.cntk import _numpy; {patch};" + LOAD)
    assert "ImportError: " in result.stderr
    assert "CNTK 2.7" in result.stderr.splitlines()[-1]


def test_errors_are_plain():
    code = (
        LOAD
        + """
import cntk as C
try:
    with shim.cntk.errors():
        C.times(C.input_variable((3, 4)), C.parameter((7, 2)))
except ValueError as error:
    print(error)
"""
    )
    result = python(code)
    assert result.stdout.startswith("Times: The 1 leading dimensions of the right operand")
    assert len(result.stdout.splitlines()) == 1
    assert result.stderr == ""


def test_importing_takes_less_than_0_6_seconds():
    code = "import time; start = time.process_time(); import cntk; print(time.process_time() - start)"
    seconds = min(float(said(code)) for _ in range(8))  # of the processor, so that a busy machine does not matter
    assert seconds < 0.6


def test_the_environment_lists_its_version():
    assert said("import importlib.metadata as m; print(m.version('cntk'))") == "2.7.post2\n"


def test_status_is_good():
    found = _install.status()
    assert found["problem"] is None
    assert found["installed"]


def test_edits_are_those_of_the_files(site):
    for name in _edits.EDITS:
        folder = site.joinpath(*name.split("."))
        path = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
        text = importlib.util.decode_source(path.read_bytes())
        ast.parse(_edits.edited(_edits.EDITS[name], text, str(path)))
        assert text.count("\n") == _edits.edited(_edits.EDITS[name], text, str(path)).count("\n")


def test_its_folder_is_not_on_the_path(site):
    code = LOAD + "print(any(str(p).startswith(sys.argv[1]) for p in sys.path))"
    assert said(code, site) == "False\n"
