"""Environments: made once, whole or not at all, one failure apart from the others.

Most tests install made-up wheels from a folder, without any index; the last one installs two real versions of NumPy.
"""

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest

from shim import environments, installer
from shim.backends import BACKENDS

UV = installer.find_uv()


def make_wheel(folder, name, version, body=""):
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}/__init__.py": body,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in {**files, f"{info}/RECORD": record}.items():
            wheel.writestr(path, text)


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """Backends that are one empty wheel each, an empty home, and no index to ask."""
    wheels, package = tmp_path / "wheels", tmp_path / "package"
    pins = package / "requirements"
    wheels.mkdir()
    pins.mkdir(parents=True)
    for name in ("numpy", "torch", "helper"):
        for version in ("1.0", "2.0"):
            make_wheel(wheels, name, version)
    (pins / "_tools.txt").write_text("helper==1.0\n")
    (pins / "numpy.txt").write_text("numpy==2.0\n\n-r _tools.txt\n")
    (pins / "torch.txt").write_text("torch==2.0\n\nnumpy==2.0\n\n-r _tools.txt\n")
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("SHIM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(installer, "_PACKAGE", package)
    return tmp_path


def version_in(target, name="numpy"):
    code = f"import importlib.metadata as m; print(m.version({name!r}))"
    return subprocess.check_output([environments.python(target), "-c", code], text=True).strip()


@pytest.mark.parametrize(
    ("target", "parsed"),
    [
        ("torch", ("torch", None)),
        ("tensorflow@2.16.2", ("tensorflow", "2.16.2")),
        ("jax@0.6.0rc1", ("jax", "0.6.0rc1")),
    ],
)
def test_a_target_is_a_backend_with_an_optional_version(target, parsed):
    assert environments.parse(target) == parsed


@pytest.mark.parametrize("target", ["", "theano", "numpy@", "numpy@../1", "numpy@1.0.lock", "numpy@--pre", "@1.0"])
def test_anything_else_is_refused(target):
    with pytest.raises(ValueError, match=r"the backends are: numpy, |is not a version; write for example numpy@1"):
        environments.parse(target)


def test_home_is_in_the_checkout_unless_told_otherwise(tmp_path, monkeypatch):
    monkeypatch.delenv("SHIM_HOME", raising=False)
    assert environments.home() == environments._PACKAGE.parent / ".shim"
    monkeypatch.setattr(environments, "_PACKAGE", tmp_path / "site-packages" / "shim")
    monkeypatch.chdir(tmp_path)
    assert environments.home() == tmp_path / ".shim"
    monkeypatch.setenv("SHIM_HOME", "elsewhere")
    assert environments.home() == tmp_path / "elsewhere"


def test_source_makes_shim_importable_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setenv("SHIM_HOME", str(tmp_path))
    folder = environments.source()
    assert environments.source() == folder
    assert [entry.name for entry in folder.iterdir()] == ["shim"]
    where = subprocess.check_output(
        [sys.executable, "-c", "import os, shim; print(os.path.realpath(shim.__file__))"],
        env=os.environ | {"PYTHONPATH": str(folder)},
        cwd=tmp_path,
        text=True,
    )
    assert where.strip() == str(environments._PACKAGE / "__init__.py")


def test_an_environment_is_made_once_and_recorded(offline):
    steps = []
    assert environments.describe("torch").state == "missing"
    assert environments.ensure(["torch", "torch"], log=steps.append) == {"torch": None}
    found = environments.describe("torch")
    assert (found.state, found.version, found.reason) == ("ready", "2.0", None)
    assert found.versions == {"helper": "1.0", "numpy": "2.0", "torch": "2.0"}
    assert found.bytes > 0
    assert version_in("torch", "torch") == "2.0"
    steps.clear()
    assert environments.ensure(["torch"], log=steps.append) == {"torch": None}
    assert steps == []


def test_another_python_is_taken_as_it_is(offline, monkeypatch):
    monkeypatch.setattr(installer, "install", None)
    here = Path(sys.executable)
    assert environments.ensure(["numpy", "torch"], python=here)["numpy"] is None
    python = environments.python("numpy")
    code = "import sys; print(sys.prefix, sys.argv[1])"
    done = subprocess.run([python, "-c", code, "two words"], capture_output=True, text=True, check=True)
    assert done.stdout == f"{sys.prefix} two words\n"
    found = environments.describe("torch")
    assert found.state == "failed"
    assert found.reason.startswith("import torch fails: ")
    assert found.reason.endswith("ModuleNotFoundError: No module named 'torch'")


def test_versions_live_side_by_side(offline):
    environments.ensure(["numpy", "numpy@1.0"])
    assert (version_in("numpy"), version_in("numpy@1.0")) == ("2.0", "1.0")
    assert environments.installed() == ["numpy", "numpy@1.0"]
    assert environments.remove("numpy@1.0")
    assert not environments.remove("numpy@1.0")
    assert environments.installed() == ["numpy"]
    assert [row.target for row in environments.rows()] == list(BACKENDS)


def test_changed_pins_make_an_environment_outdated(offline):
    environments.create("numpy")
    pins = offline / "package" / "requirements" / "numpy.txt"
    pins.write_text(pins.read_text().replace("2.0", "1.0"))
    assert environments.describe("numpy").state == "outdated"
    with pytest.raises(environments.EnvironmentMissing, match="renew it with: shim env numpy"):
        environments.python("numpy")
    environments.ensure(["numpy"])
    assert version_in("numpy") == "1.0"


def test_an_environment_whose_python_is_gone_is_outdated(offline):
    environments.create("numpy")
    (environments.python("numpy").parent / "python").unlink()
    assert environments.describe("numpy").state == "outdated"


def test_pip_does_it_where_there_is_no_uv(offline, monkeypatch):
    monkeypatch.setenv("SHIM_INSTALLER", "pip")
    environments.create("numpy@1.0")
    assert version_in("numpy@1.0") == "1.0"


SPECIAL = """
import pathlib, sys, sysconfig
if sys.argv[1:] != ["install", "--version", "2.0"]:
    sys.exit("error: there is only 2.0")
site = pathlib.Path(sysconfig.get_path("purelib"))
(site / "torch.py").touch()
(site / "torch-2.0.dist-info").mkdir()
(site / "torch-2.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\\nName: torch\\nVersion: 2.0\\n")
"""


def test_what_no_package_installer_takes_is_installed_by_a_module_of_its_own(offline, monkeypatch):
    source = offline / "source"
    source.mkdir()
    (source / "special.py").write_text(SPECIAL)
    for wheel in (offline / "wheels").glob("torch-*"):
        wheel.unlink()
    monkeypatch.setattr(installer, "INSTALLED_BY", {"torch": "special"})
    monkeypatch.setattr(environments, "source", lambda: source)
    outcome = environments.ensure(["torch", "torch@1.0"])
    assert outcome == {"torch": None, "torch@1.0": "there is only 2.0"}
    assert environments.describe("torch").version == "2.0"
    assert environments.describe("torch").versions == {"helper": "1.0", "numpy": "2.0", "torch": "2.0"}


def test_a_failure_is_kept_with_its_reason_and_stops_no_other(offline):
    outcome = environments.ensure(["numpy@99.0", "numpy"])
    assert outcome["numpy"] is None
    assert "numpy==99.0" in outcome["numpy@99.0"]
    assert len(outcome["numpy@99.0"]) < 400
    assert version_in("numpy") == "2.0"
    assert environments.describe("numpy@99.0").reason == outcome["numpy@99.0"]
    assert not environments.describe("numpy@99.0").path.exists()
    with pytest.raises(
        environments.EnvironmentMissing, match=r"could not be made \(.*numpy==99.0.*try again with: shim"
    ):
        environments.python("numpy@99.0")


def test_a_failure_is_tried_again_and_then_forgotten(offline):
    environments.ensure(["numpy@99.0"])
    make_wheel(offline / "wheels", "numpy", "99.0")
    assert environments.ensure(["numpy@99.0"]) == {"numpy@99.0": None}
    assert environments.describe("numpy@99.0").reason is None


def test_a_framework_that_cannot_be_imported_is_a_failure(offline):
    make_wheel(offline / "wheels", "numpy", "3.0", "raise ImportError('libmissing.so.1: cannot open')")
    reason = environments.ensure(["numpy@3.0"])["numpy@3.0"]
    assert reason.startswith("import numpy fails: ")
    assert reason.endswith("ImportError: libmissing.so.1: cannot open")
    make_wheel(offline / "wheels", "numpy", "4.0", "import os; os.kill(os.getpid(), 4)")
    assert "killed by SIGILL" in environments.ensure(["numpy@4.0"])["numpy@4.0"]


def test_a_home_that_cannot_be_written_is_a_reason_too(offline, monkeypatch):
    (offline / "file").touch()
    monkeypatch.setenv("SHIM_HOME", str(offline / "file"))
    assert "Not a directory" in environments.ensure(["numpy"])["numpy"]


def test_unknown_targets_are_refused_before_anything_is_made(offline):
    with pytest.raises(ValueError, match="unknown backend 'theano'"):
        environments.ensure(["numpy", "theano"])
    assert environments.describe("numpy").state == "missing"


def test_progress_has_one_step_for_each_environment_made(offline):
    class Steps(list):
        def start(self, total, description):
            self.append((total, description))

        def advance(self, text):
            self.append(text)

        def stop(self):
            self.append("stop")

    environments.create("numpy")
    steps = Steps()
    environments.ensure(["numpy", "torch", "torch@99.0"], steps)
    assert steps == [(2, "environments"), "torch ready", "torch@99.0 failed", "stop"]


@pytest.mark.parametrize("damage", ["no record", "half a record"])
def test_half_an_environment_does_not_count_and_is_made_again(offline, damage):
    environments.create("numpy")
    record = environments.describe("numpy").path / environments.RECORD
    if damage == "no record":
        record.unlink()
    else:
        record.write_text(record.read_text()[:40])
    found = environments.describe("numpy")
    assert (found.state, found.reason) == ("missing", "its installation was interrupted")
    assert environments.installed() == []
    environments.create("numpy")
    assert version_in("numpy") == "2.0"


KILLED = """
import sys
from pathlib import Path
from shim import environments, installer
installer._PACKAGE = Path(sys.argv[1])
installer.find_uv = lambda: sys.argv[2]
environments.create("numpy")
"""


def is_locked():
    with (environments.home() / "env" / "numpy.lock").open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "waited 30 s in vain"
        time.sleep(0.01)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_installation_leaves_nothing_that_counts(offline, how):
    slow = offline / "uv"
    started = offline / "started"
    slow.write_text(f'#!/bin/sh\n[ "$1" = venv ] && exec {UV} "$@"\necho $$ >> {started}\nexec sleep 60\n')
    slow.chmod(0o755)
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, offline / "package", slow],
        env=os.environ | {"PYTHONPATH": str(environments._PACKAGE.parent)},
        stderr=subprocess.DEVNULL,
    )
    wait_for(lambda: started.exists() and started.read_text().endswith("\n"))
    process.send_signal(how)
    assert process.wait(30) != 0
    assert environments.describe("numpy").reason == "its installation was interrupted"
    if how == signal.SIGKILL:  # nobody could stop the installer: it holds the lock as long as it runs
        assert is_locked()
        os.kill(int(started.read_text()), signal.SIGKILL)
    wait_for(lambda: not is_locked())
    environments.create("numpy")
    assert version_in("numpy") == "2.0"


def test_a_second_process_waits_and_then_finds_the_work_done(offline):
    environments.create("numpy")
    steps = []
    with (environments.home() / "env" / "numpy.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        record = environments.describe("numpy").path / environments.RECORD
        hidden = record.rename(offline / "hidden")  # as if the first were still at work
        second = threading.Thread(target=environments.create, args=["numpy"], kwargs={"log": steps.append})
        second.start()
        wait_for(lambda: steps)
        hidden.rename(record)
    second.join(30)
    assert steps == ["waiting for another process that is installing numpy"]
    assert environments.installed() == ["numpy"]


def test_two_real_versions_of_numpy_side_by_side(tmp_path, monkeypatch):
    monkeypatch.setenv("SHIM_HOME", str(tmp_path))
    assert environments.ensure(["numpy", "numpy@1.26.4"]) == {"numpy": None, "numpy@1.26.4": None}
    assert (version_in("numpy"), version_in("numpy@1.26.4")) == ("2.4.6", "1.26.4")
