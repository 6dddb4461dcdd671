"""What is special about the CNTK backend. Run it with that target's interpreter, ``.shim/env/cntk``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from shim import backends, cases, contract, models, parity
from shim.models import optimizers
from shim.protocol import Unsupported

try:
    backend = backends.load("cntk")
except backends.BackendUnavailable as error:
    pytest.skip(str(error), allow_module_level=True)

from shim.backends import _cntk_graph as graph

MODE = backend.MODES[0]


def _case(op, dims=None, dtype="float64", **options):
    return cases.case(op, "forward_backward", dims or parity.SMALL[op], dtype, **options)


def _on_device(case):
    args, dy = case.arrays()
    return [backend.to_device(a) for a in args], backend.to_device(dy)


def _fresh(script):
    """Run a script in a process of its own and return what it prints; a crash fails the test."""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


# ----------------------------------------------------------------------------------------------------- programs


@pytest.mark.parametrize("op", contract.OPS)
def test_a_second_call_with_other_values_is_right(op):
    case = _case(op)
    args, dy = case.arrays()
    run = backend.forward_backward(op)
    others = [a * 3 if a.dtype.kind == "f" else (a + 1) % (a.max() + 1) for a in args]
    run([backend.to_device(a) for a in others], backend.to_device(dy * 2))
    parity.verify(backend, case, MODE, run=run)


@pytest.mark.parametrize("op", contract.OPS)
def test_a_program_follows_its_batch_size_and_dtype(op):
    run, dims = backend.forward_backward(op), parity.SMALL[op]
    for changed, dtype in ((dims, "float64"), (dims | {"N": dims["N"] + 2}, "float64"), (dims, "float32")) * 2:
        run(*_on_device(_case(op, changed, dtype)))
        parity.verify(backend, _case(op, changed, dtype), MODE, run=run)


def test_of_two_weights_alone_the_new_one_is_used():
    args, _ = _on_device(_case("dense"))
    run = backend.forward("dense")
    first = backend.to_numpy(run(*args))
    zeros = backend.to_device(np.zeros(args[1].shape))
    np.testing.assert_array_equal(backend.to_numpy(run(args[0], zeros, args[2]))[0], backend.to_numpy(args[2]))
    np.testing.assert_array_equal(backend.to_numpy(run(*args)), first)


@pytest.mark.parametrize("op", ["embedding", "embedding_average"])
def test_the_gradient_of_a_table_is_dense(op):
    case = _case(op, {"N": 3, "T": 5, "V": 1000, "D": 7})
    args, dy = _on_device(case)
    _, (gradient,) = backend.forward_backward(op)(args, dy)
    assert not gradient.is_sparse
    found = set(np.flatnonzero(backend.to_numpy(gradient).any(axis=1)))
    assert found == set(np.unique(backend.to_numpy(args[0])))


def test_a_batch_of_nothing_but_padding_averages_to_zero():
    args = [backend.to_device(np.zeros((3, 5), np.int32)), backend.to_device(np.ones((7, 2)))]
    run = backend.forward_backward("embedding_average", {"padding_id": 0})
    y, (gradient,) = run(args, backend.to_device(np.ones((3, 2))))
    assert not backend.to_numpy(y).any()
    assert not backend.to_numpy(gradient).any()


def test_of_equal_maxima_one_gets_the_gradient():
    dy = np.array([[[[1.0], [2.0]], [[3.0], [4.0]]]])
    _, (dx,) = backend.forward_backward("max_pool2d")(
        [backend.to_device(np.zeros((1, 5, 4, 1)))], backend.to_device(dy)
    )
    dx = backend.to_numpy(dx)
    assert dx.sum() == 10
    assert (dx != 0).sum() == 4


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_what_is_not_finite_passes_the_rectifier(value):
    y = backend.to_numpy(backend.relu(backend.to_device(np.array([[value, -1.0, 2.0]]))))
    np.testing.assert_array_equal(y, [[value, 0, 2]])


# ------------------------------------------------------------------------------------- what must not end the process


def _still_right():
    parity.verify(backend, _case("dense"), MODE)


@pytest.mark.parametrize("wrong", [-1, 11, 2**31 - 1])
@pytest.mark.parametrize("op", ["embedding", "embedding_average"])
def test_ids_are_checked_at_every_call(op, wrong):
    dims = parity.SMALL["embedding_average"]
    ids, table = np.zeros((dims["N"], dims["T"]), np.int32), backend.to_device(np.ones((dims["V"], dims["D"])))
    run = backend.forward(op)
    for call in (run, run.bare):
        call(backend.to_device(ids), table)
        ids[1, 2] = wrong
        with pytest.raises(ValueError, match=f"{wrong} is outside 0..10"):
            call(backend.to_device(ids), table)
        ids[1, 2] = 0
    _still_right()


def test_training_data_is_checked():
    model = models.load("imdb_bidirectional_lstm", dropout=False)
    trainer = backend.trainer(model, model.initial(), model.optimizer, MODE)
    before = trainer.params()
    ids, labels = model.batch(0, "float32", 2)
    wrong = ids.copy()
    wrong[1, 7] = 20000
    for call in (trainer.step, trainer.evaluate):
        with pytest.raises(ValueError, match=r"ids: 20000 is outside 0\.\.19999"):
            call(backend.to_device(wrong), backend.to_device(labels))
        with pytest.raises(ValueError, match=r"labels: 2 is outside 0\.\.1"):
            call(backend.to_device(ids), backend.to_device(labels * 0 + 2))
    for name, value in trainer.params().items():
        np.testing.assert_array_equal(value, before[name])
    assert np.isfinite(backend.to_numpy(trainer.step(backend.to_device(ids), backend.to_device(labels))))


@pytest.mark.parametrize("name", ["mnist_mlp", "lstm_text_generation"])
def test_a_training_step_computes_no_gradient_of_its_batch(name):
    """It would be a product as large as that of the first layer's weights, and nobody reads it."""
    model = models.load(name)
    trainer = backend.trainer(model, model.initial(), model.optimizer, MODE)
    trainer.step(*(backend.to_device(a) for a in model.batch(0, "float32", 3)))
    ((_, function, *_),) = trainer._steps.values()
    assert len(function.arguments) == 2
    assert not any(argument.needs_gradient for argument in function.arguments)


def test_ids_that_float32_cannot_hold_are_refused():
    ids = backend.to_device(np.array([2**24 + 1], np.int32))
    assert ids.floats(np.dtype("float64")).data().to_ndarray() == 2**24 + 1
    with pytest.raises(ValueError, match="exact up to 16777216; got 16777217; use float64"):
        ids.floats(np.dtype("float32"))


def test_halves_are_refused():
    with pytest.raises(Unsupported, match="CNTK computes in float32 and float64 only on a CPU, not in float16"):
        backend.to_device(np.ones(3, np.float16))


def test_errors_of_cntk_come_without_its_stack():
    x = graph.variable((2, 3), np.dtype("float32"))
    for wrong in (np.ones((2, 5), "float32"), np.ones((2, 3))):
        with pytest.raises((ValueError, RuntimeError)) as caught:
            graph.run(graph.C.exp(x), {x: backend.to_device(wrong)}, [graph.C.exp(x).output])
        assert "[CALL STACK]" not in str(caught.value)
        assert "\n" not in str(caught.value)
    _still_right()


def test_not_a_number_leaves_nothing_behind():
    case = _case("lstm")
    args, dy = _on_device(case)
    run = backend.forward_backward("lstm")
    y, _ = run([backend.to_device(np.full(args[0].shape, np.nan)), *args[1:]], dy)
    assert np.isnan(backend.to_numpy(y)).all()
    parity.verify(backend, case, MODE, run=run)


def _interrupted(times, function, *args):
    """Call a function again and again, and interrupt it at some moment, as Ctrl-C does; return how often it ended.

    CNTK's bindings may lose an interrupt, or make another error of it.
    """
    seen = []

    def interrupt(*_):
        seen.append(True)
        raise KeyboardInterrupt

    before, ended = signal.signal(signal.SIGALRM, interrupt), 0
    try:
        for k in range(times):
            signal.setitimer(signal.ITIMER_REAL, 0.002 + 0.0003 * k)
            try:
                while len(seen) == k:
                    function(*args)
            except (KeyboardInterrupt, SystemError, TypeError, NotImplementedError):
                ended += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return ended


in_a_destructor = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@in_a_destructor
def test_an_interrupt_leaves_a_program_that_works():
    case = _case("dense")
    args, dy = _on_device(case)
    run = backend.forward_backward("dense")
    run(args, dy)
    assert _interrupted(30, run, args, dy) > 0
    parity.verify(backend, case, MODE, run=run)


@in_a_destructor
def test_an_interrupt_leaves_a_trainer_that_works():
    model, params = _tiny()
    trainer = backend.trainer(model, params, optimizers.sgd(), MODE)
    batch = backend.to_device(np.ones((4, 7))), backend.to_device(np.array([0, 1, 2, 2], np.int32))
    trainer.step(*batch)
    assert _interrupted(30, trainer.step, *batch) > 0
    assert np.isfinite(backend.to_numpy(trainer.step(*batch)))


# ------------------------------------------------------------------------------------------------------ training


def _nothing(seed, dtype, size):
    return np.ones((4, 7), dtype), np.array([0, 1, 2, 2], np.int32)


def _tiny():
    def apply(ops, params, x):
        x = ops.dense(x, params["w"], params["b"], activation="relu")
        return ops.dense(
            ops.batch_norm(ops.dropout(x, rate=0.5), *(params[k] for k in "gtmv")), params["u"], params["c"]
        )

    rng = np.random.default_rng(0)
    shapes = {"w": (7, 5), "b": (5,), "g": (5,), "t": (5,), "m": (5,), "v": (5,), "u": (5, 3), "c": (3,), "z": (3,)}
    params = {name: rng.random(shape) + 0.1 for name, shape in shapes.items()}
    others = {"dropout": True, "constants": (), "moments": (("m", "v"),), "table_gradient": "dense", "batch": _nothing}
    model = SimpleNamespace(apply=apply, loss="softmax_cross_entropy", **others)
    return model, params


@pytest.mark.parametrize("name", sorted(optimizers.STATES))
def test_a_weight_without_influence_stays(name):
    model, params = _tiny()
    trainer = backend.trainer(model, params, getattr(optimizers, name)(), MODE)
    trainer.step(backend.to_device(np.ones((4, 7))), backend.to_device(np.array([0, 1, 2, 2], np.int32)))
    after = trainer.params()
    np.testing.assert_array_equal(after["z"], params["z"])  # no op takes it
    assert not np.array_equal(after["u"], params["u"])


def test_evaluation_between_steps_changes_nothing_and_sees_the_new_weights():
    model = models.load("imdb_bidirectional_lstm", dropout=False)
    batches = [[backend.to_device(a) for a in model.batch(k, "float64", 3 + k)] for k in range(2)]
    trainers = [backend.trainer(model, model.initial(0, "float64"), model.optimizer, MODE) for _ in range(2)]
    losses, evaluations = [[], []], []
    for batch in batches:
        for trainer, seen in zip(trainers, losses, strict=True):
            seen.append(float(backend.to_numpy(trainer.step(*batch))))
        evaluations.append(float(backend.to_numpy(trainers[1].evaluate(*batches[1])[0])))
    assert losses[0] == losses[1]
    assert evaluations[0] == pytest.approx(losses[0][1], rel=1e-12)
    assert evaluations[1] != evaluations[0]


def test_thousands_of_rounds_take_no_memory():
    script = """
import gc, numpy as np, shim
from tests.backends.test_cntk import _tiny, optimizers
backend = shim.load("cntk")
backend.setup(threads=1)
model, params = _tiny()
trainer = backend.trainer(model, params, optimizers.adam(), "graph")
both = backend.forward_backward("lstm")
weights = [backend.to_device(np.ones(shape)) for shape in ((3, 8), (2, 8), (8,))]

def round():
    x, labels = backend.to_device(np.ones((4, 7))), backend.to_device(np.array([0, 1, 2, 2], np.int32))
    trainer.step(x, labels), trainer.evaluate(x, labels), trainer.params()
    both.bare([backend.to_device(np.ones((2, 3, 3))), *weights], backend.to_device(np.ones((2, 2))))

def resident():
    gc.collect()
    return int(open("/proc/self/statm").read().split()[1])

for _ in range(500):
    round()
before = resident()
for _ in range(5000):
    round()
print(resident() / before)
"""
    assert float(_fresh(script)) < 1.02


# ------------------------------------------------------------------------------------------------------ settings


def test_threads_are_set_once_and_first():
    script = """
import numpy as np, shim
b = shim.load("cntk")
b.setup(threads=1)
b.setup(threads=1)
x, w, bias = (b.to_device(np.ones(shape, "float32")) for shape in ((1, 5, 5, 1), (3, 3, 1, 2), (2,)))
b.conv2d(x, w, bias)
try:
    b.setup(threads=2)
except ValueError as error:
    print(error)
print(b.to_numpy(b.conv2d(x, w, bias)).sum(), b.describe()["threads"])
"""
    assert _fresh(script).splitlines() == [
        "CNTK runs 1 threads and cannot change to 2; set threads once, at first",
        "180.0 1",
    ]


@pytest.mark.skipif(os.cpu_count() < 2, reason="one thread is all there is")
def test_threads_are_not_changed_once_something_was_computed():
    script = """
import numpy as np, shim
b = shim.load("cntk")
threads = b.describe()["threads"]
b.relu(b.to_device(np.ones((2, 3))))
b.setup(threads=threads)
try:
    b.setup(threads=threads + 1)
except ValueError as error:
    print("refused")
"""
    assert _fresh(script) == "refused\n"


def test_settings_that_are_impossible_are_refused():
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        backend.setup(threads=0)
    with pytest.raises(ValueError, match="unknown device 'cuda'; choose from: cpu"):
        backend.setup("cuda")


def test_describes_cntk():
    described = backend.describe()
    assert described["versions"]["cntk"].startswith("2.7")
    assert described["libraries"]
