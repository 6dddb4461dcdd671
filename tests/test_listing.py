"""Tables of what there is, made without importing a framework."""

import fake_backends
import pytest

from shim import environments, listing
from shim.backends import BACKENDS


def test_backends_are_listed_with_the_devices_and_modes_of_their_modules(tmp_path, monkeypatch):
    monkeypatch.setenv("SHIM_HOME", str(tmp_path))
    rows = {row["target"]: row for row in listing.backends()}
    assert list(rows) == list(BACKENDS)
    for row in rows.values():
        assert row["state"] == "missing"
        assert row["versions"] == {}
        assert set(row["devices"]) & {"cpu", "cuda"}
        assert row["modes"]
    assert rows["null"]["modes"] == ["null"]
    assert rows["torch"]["modes"][0] == "eager"


def test_the_table_shows_the_framework_before_numpy_and_keeps_the_reason(tmp_path, monkeypatch):
    versions = {"absl-py": "2.1", "keras": "3.0", "numpy": "2.0", "tensorflow-cpu": "2.20"}
    found = environments.Environment(
        "tensorflow", "outdated", tmp_path, "2.20", versions, "3.11.7", 1_500_000_000, "why"
    )
    monkeypatch.setattr(environments, "rows", lambda targets: [found])
    (row,) = listing.table()
    assert row["versions"] == "tensorflow-cpu 2.20, numpy 2.0"
    assert (row["size"], row["bytes"], row["reason"]) == ("1500 MB", 1_500_000_000, "why")


@pytest.mark.parametrize(
    ("backend", "found"),
    [
        ("gpu", {"device": "A GPU, driver 1.2", "reason": None}),
        ("no_gpu", {"device": None, "reason": "RuntimeError: no driver; install one"}),
        ("good", {"device": None, "reason": None}),  # it needs no GPU, so it is not asked
    ],
)
def test_a_backend_that_needs_a_gpu_is_asked_for_it(tmp_path, monkeypatch, backend, found):
    fake_backends.install(tmp_path, monkeypatch)
    row = environments.Environment(backend, "ready", tmp_path)
    monkeypatch.setattr(environments, "rows", lambda targets: [row])
    (shown,) = listing.backends()
    assert {key: shown[key] for key in found} == found
