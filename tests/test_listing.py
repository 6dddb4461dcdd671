"""Tables of what there is, made without importing a framework."""

from shim import environments, listing
from shim.backends import BACKENDS


def test_backends_are_listed_with_the_devices_and_modes_of_their_modules(tmp_path, monkeypatch):
    monkeypatch.setenv("SHIM_HOME", str(tmp_path))
    rows = {row["target"]: row for row in listing.backends()}
    assert list(rows) == list(BACKENDS)
    for row in rows.values():
        assert row["state"] == "missing"
        assert row["versions"] == {}
        assert "cpu" in row["devices"]
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
