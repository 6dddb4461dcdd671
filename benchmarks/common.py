"""What the benchmarks share: backends, cases, profiles, and how a case gets ready for the clock.

``SHIM_BENCH_PROFILE`` chooses how much is measured: ``fast`` takes one shape of each op, ``regular`` (the default) the
layers of the models, ``thorough`` also larger ones, in three processes each. Cases outside the profile are skipped and
not dropped: a benchmark keeps its parameters, and with them its history.
"""

from __future__ import annotations

import os

#: The values of the first parameter, in the order of the pages. They are written as for ``shim bench``: a version or a
#: mode makes another one, ``tensorflow@2.16.2`` or ``tensorflow:xla``. Append only.
TARGETS = ["numpy", "tensorflow", "jax", "torch", "cntk"]

#: profile -> attributes of a benchmark. Eight samples are the least for asv's interval of a median.
PROFILES = {
    "fast": {"rounds": 1, "repeat": (8, 10, 0.5), "sample_time": 0.01, "warmup_time": 0.5},
    "regular": {"rounds": 1, "repeat": (8, 30, 2.0), "sample_time": 0.02, "warmup_time": 1.0},
    "thorough": {"rounds": 3, "repeat": (8, 60, 4.0), "sample_time": 0.05, "warmup_time": 2.0},
}

# (op, shape, the least profile that measures it). Append only: results are kept under these names.
SHAPES = [
    ("dense", "N5-I7-O3-activation=relu", "fast"),
    ("dense", "N128-I784-O512-activation=relu", "fast"),
    ("dense", "N128-I512-O512-activation=relu", "regular"),
    ("dense", "N128-I512-O10", "regular"),
    ("dense", "N32-I128-O1", "regular"),
    ("dense", "N128-I9216-O128-activation=relu", "thorough"),
    ("conv2d", "N3-H7-W5-C3-R3-S3-O5-padding=same", "regular"),
    ("conv2d", "N32-H15-W15-C64-R3-S3-O64-activation=relu", "fast"),
    ("conv2d", "N128-H28-W28-C1-R3-S3-O32-activation=relu", "regular"),
    ("conv2d", "N128-H26-W26-C32-R3-S3-O64-activation=relu", "thorough"),
    ("lstm", "N3-T5-I7-H5", "regular"),
    ("lstm", "N128-T40-I57-H128", "fast"),
    ("lstm", "N128-T40-I300-H128", "thorough"),
    ("bilstm", "N32-T100-I128-H64", "fast"),
    ("embedding_average", "N5-T7-V11-D3", "regular"),
    ("embedding_average", "N32-T400-V20000-D50", "fast"),
    ("embedding_average", "N32-T400-V1205419-D50", "thorough"),
    ("embedding", "N32-T100-V20000-D128", "fast"),
]
DIRECTIONS = ["forward", "forward_backward"]

# (model, batch and options, the least profile that measures it). Append only.
MODELS = [
    ("mnist_mlp", "N128", "fast"),
    ("imdb_bidirectional_lstm", "N32", "fast"),
    ("imdb_fasttext", "N32-ngrams=1", "fast"),
    ("imdb_fasttext", "N32-pairs=100000", "regular"),
    ("mnist_cnn", "N128", "regular"),
    ("cifar10_cnn", "N32", "regular"),
    ("lstm_text_generation", "N128", "regular"),
    ("text_generator", "N128", "regular"),
    ("imdb_fasttext", "N32", "thorough"),
]


def chosen_profile() -> str:
    """Return the profile asked for; raise ``ValueError`` with the choices if there is no such profile."""
    profile = os.environ.get("SHIM_BENCH_PROFILE") or "regular"
    if profile not in PROFILES:
        raise ValueError(f"SHIM_BENCH_PROFILE={profile!r} is unknown; the profiles are: {', '.join(PROFILES)}")
    return profile


PROFILE = chosen_profile()


def case_ids(op: str) -> list[str]:
    """Return the ids of an op's cases, forward before forward and backward."""
    return [f"{op}/{d}/{shape}/float32" for name, shape, _ in SHAPES if name == op for d in DIRECTIONS]


def outside_profile(op: str, profile: str = PROFILE) -> list[str]:
    """Return the ids of the cases that a profile leaves out."""
    return [
        f"{op}/{d}/{shape}/float32"
        for name, shape, least in SHAPES
        if name == op and _is_outside(least, profile)
        for d in DIRECTIONS
    ]


def _is_outside(least: str, profile: str) -> bool:
    order = list(PROFILES)
    return order.index(least) > order.index(profile)


def model_ids(direction: str) -> list[str]:
    """Return the ids of the models' cases."""
    return [f"{model}/{direction}/{shape}/float32" for model, shape, _ in MODELS]


def models_outside_profile(direction: str, profile: str = PROFILE) -> list[str]:
    """Return the ids of the models' cases that a profile leaves out."""
    return [f"{model}/{direction}/{shape}/float32" for model, shape, least in MODELS if _is_outside(least, profile)]


def grid(*axes: list[str]) -> list[list[str]]:
    """Return the parameters of a benchmark: the backend, and whatever follows it."""
    return [TARGETS, *axes]


def load(target: str):
    """Return a target's backend module, set up, and its mode; skip the benchmark where the backend is not there.

    It is not there in an environment without its framework, nor in a commit before it was written.
    """
    from shim import backends

    name, _, mode = target.partition(":")
    try:
        backend = backends.load(name.partition("@")[0])
    except (backends.BackendUnavailable, ValueError) as error:
        raise NotImplementedError(str(error)) from None
    backend.setup(threads=len(os.sched_getaffinity(0)))
    return backend, mode or backend.MODES[0]


def parse(case_id: str):
    """Return the case with this id; skip the benchmark in a commit that does not have the op."""
    from shim import cases

    try:
        return cases.parse(case_id)
    except ValueError as error:
        raise NotImplementedError(str(error)) from None


class Benchmark:
    """What every benchmark has. An explicit version keeps the history when the code of a benchmark is edited;
    raise it when a benchmark measures something else than before."""

    version = "1"
    timeout = 120.0


class Timed(Benchmark):
    """A benchmark of the kind ``timeop_``: its case is prepared and, before the clock starts, checked."""

    version = "2"  # threads are pinned
    param_names = ["backend", "case"]  # noqa: RUF012 - asv takes nothing but lists
    left_out: tuple[str, ...] | list[str] = ()
    rounds = PROFILES[PROFILE]["rounds"]
    repeat = PROFILES[PROFILE]["repeat"]
    sample_time = PROFILES[PROFILE]["sample_time"]
    warmup_time = PROFILES[PROFILE]["warmup_time"]
    prepared = None

    def setup(self, target, case_id):
        """Build the case, call it once, and compare it with the contract."""
        if case_id in self.left_out:
            raise NotImplementedError(f"not in the profile {PROFILE}")
        case, (backend, mode) = parse(case_id), load(target)
        from shim import environments, parity
        from shim.measure import clock

        self.prepared = clock.prepare(backend, case, mode)
        run = None if case.is_model else self.prepared.run
        parity.verify(backend, case, mode, run, environments.home() / "references")

    def call(self):
        """Make one synchronised call."""
        self.prepared.synchronize(self.prepared.call())
