"""What is installed, and with which of the machine's settings; see test_environments.py for installing itself."""

import os

import pytest

from shim import installer
from shim.backends import BACKENDS


@pytest.fixture
def pins(tmp_path, monkeypatch):
    folder = tmp_path / "requirements"
    folder.mkdir()
    (folder / "_tools.txt").write_text("# tools\nhelper==1.0\n")
    (folder / "numpy.txt").write_text("numpy==2.0\n\n-r _tools.txt\n")
    (folder / "torch.txt").write_text("# the framework\ntorch==2.0\n\nnumpy==2.0\n\n-r _tools.txt\n")
    monkeypatch.setattr(installer, "_PACKAGE", tmp_path)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_has_exact_pins_and_the_test_tools(backend):
    pins = installer.requirements(backend)
    assert all("==" in pin for pin in pins)
    assert {"numpy", "asv_runner", "hypothesis", "psutil", "pytest", "threadpoolctl"} <= {
        p.split("==")[0] for p in pins
    }
    assert "asv_runner==0.3.2" in pins  # see benchmarks/: other versions time something else


def test_a_version_replaces_the_first_paragraph_and_frees_the_others_but_not_the_tools(pins):
    assert installer.requirements("torch") == ["torch==2.0", "numpy==2.0", "helper==1.0"]
    assert installer.requirements("torch", "1.0") == ["torch==1.0", "numpy", "helper==1.0"]
    assert installer.requirements("null", "1.0") == ["numpy==1.0", "helper==1.0"]  # no file of its own


def test_a_version_keeps_platform_markers():
    pins = installer.requirements("tensorflow", "2.16.2")
    assert pins[0] == 'tensorflow-cpu==2.16.2; sys_platform == "linux" and platform_machine == "x86_64"'
    assert "numpy" in pins


def test_pip_settings_come_from_its_files_and_its_variables(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    config = tmp_path / "pip.conf"
    config.write_text(
        "[global]\nindex-url = https://one.example/simple\nfind-links = /never\n"
        "extra-index-url =\n    https://two.example/simple\n    https://three.example/simple\n[install]\nproxy = p:1\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    monkeypatch.setenv("PIP_FIND_LINKS", "/a /b")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    settings = installer.pip_settings()
    settings.pop("constraint", None)  # from a configuration of the whole machine, which pip always reads
    assert settings["find-links"] == ["/a", "/b"]
    assert settings["proxy"] == ["p:1"]
    options = installer.uv_options(settings)
    assert list(zip(options[2::2], options[3::2], strict=False)) == [
        ("--default-index", "https://one.example/simple"),
        ("--index", "https://two.example/simple"),
        ("--index", "https://three.example/simple"),
        ("--find-links", "/a"),
        ("--find-links", "/b"),
    ]
    assert options[-1] == "--no-index"


@pytest.mark.parametrize("ask", ["false", "0", ""])
def test_an_index_is_used_unless_forbidden(ask):
    assert "--no-index" not in installer.uv_options({"no-index": ask.split()})


UV_SAYS = """
Using Python 3.11.7 environment at: env
error: No solution found when resolving dependencies
  cause: Because there is no version of numpy==99.0 and you require
         numpy==99.0, we can conclude that your requirements are unsatisfiable.
"""
OLDER_UV_SAYS = """
  \N{MULTIPLICATION SIGN} No solution found when resolving dependencies:
  ╰─▶ Because there is no version of numpy==99.0 and you require
      numpy==99.0, we can conclude that your requirements are unsatisfiable.
"""
PIP_SAYS = """
Looking in links: wheels
ERROR: Ignored the following versions that require a different python version: 1.21.2 Requires-Python >=3.7,<3.11
ERROR: Could not find a version that satisfies the requirement numpy==99.0 (from versions: 1.0, 2.0)
ERROR: No matching distribution found for numpy==99.0

[notice] A new release of pip is available: 23.2.1 -> 26.0
"""
UNSOLVED = (
    "Because there is no version of numpy==99.0 and you require "
    "numpy==99.0, we can conclude that your requirements are unsatisfiable."
)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (UV_SAYS, f"No solution found when resolving dependencies {UNSOLVED}"),
        (OLDER_UV_SAYS, f"No solution found when resolving dependencies: {UNSOLVED}"),
        (
            PIP_SAYS,
            "Could not find a version that satisfies the requirement numpy==99.0 "
            "No matching distribution found for numpy==99.0",
        ),
        ("Collecting numpy\nTraceback\nOSError: [Errno 28] No space left on device\n", "OSError: [Errno 28] No space"),
        ("", "it ended with status 1 and no message"),
    ],
)
def test_the_reason_of_a_failure_is_what_the_installer_said_last(said, reason):
    assert reason in installer.reason(1, said.splitlines())


def test_a_killed_installer_is_named_by_its_signal():
    assert installer.reason(-9, ["Downloading"]) == "Downloading (killed by SIGKILL)"
