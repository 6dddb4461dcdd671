"""Installing CNTK: whole or not at all. A made-up wheel stands in for the real one, in an environment without pip."""

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from shim.cntk import _edits, _errors, _place, _slots
from shim.cntk.__main__ import main

SOURCE = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(_place.unsupported() is not None, reason=str(_place.unsupported()))

#: runs `python -m shim.cntk` on the made-up wheel, which cannot be loaded, with other parts replaced on request. Unless
#: pip is asked for, a copy stands in for it.
RUN = """
import sys
import runpy
from shim.cntk import _install
_install.SHA256 = _install._place.CONTENT["sha256"] = sys.argv[1]
_install._fails = lambda site: None
copy = "import shutil, sys; shutil.copy({wheel!r}, sys.argv[-1])"
pip, _install._pip = _install._pip, lambda: [sys.executable, "-c", copy]
exec(sys.argv[2])
sys.argv[1:] = sys.argv[3:]
runpy.run_module("shim.cntk", run_name="__main__")
"""


class Scratch:
    """A fresh environment, and a folder of wheels as the only index."""

    def __init__(self, folder):
        self.prefix, self.wheels = folder / "env", folder / "wheels"
        self.wheels.mkdir()
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", self.prefix], check=True)
        self.wheel = self.wheels / _place.WHEEL
        with zipfile.ZipFile(self.wheel, "w") as archive:
            archive.writestr("cntk/__init__.py", "x = 1\n")
            archive.writestr("cntk/libs/libopencv_core.so", "left out")
            archive.writestr("cntk/data", bytes(2_000_000))
            archive.writestr("cntk-2.7.dist-info/METADATA", "Metadata-Version: 2.1\nName: cntk\nVersion: 2.7.post2\n")
            archive.writestr("cntk-2.7.dist-info/WHEEL", "Wheel-Version: 1.0\n")
        self.sha256 = hashlib.sha256(self.wheel.read_bytes()).hexdigest()
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
        self.environ = {
            **kept,
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_FIND_LINKS": str(self.wheels),
            "PIP_NO_INDEX": "1",
            "PYTHONPATH": str(SOURCE),
        }

    def command(self, *arguments, patch=""):
        return [
            self.prefix / "bin" / "python",
            "-c",
            RUN.replace("{wheel!r}", repr(str(self.wheel))),
            self.sha256,
            patch,
            *arguments,
        ]

    def __call__(self, *arguments, patch="", **options):
        command = self.command(*arguments, patch=patch)
        return subprocess.run(command, env=self.environ, capture_output=True, text=True, **options)

    def start(self, *arguments, patch):
        command = self.command(*arguments, patch=patch)
        return subprocess.Popen(command, env=self.environ, stderr=subprocess.PIPE, text=True)

    def files(self):
        """Return what there is beside an empty environment and the lock."""
        places = [*self.prefix.glob("share/shim/*"), *self.prefix.glob("lib/python*/site-packages/*cntk*")]
        return sorted(path.name for path in places if path.suffix != ".lock")


PIP = "_install._pip = pip"
INSTALLED = ["cntk-2.7.post2", "cntk-2.7.post2.dist-info", "cntk.py"]


@pytest.fixture
def scratch(tmp_path):
    return Scratch(tmp_path)


def test_install_status_remove(scratch):
    before = scratch("status", "--json")
    assert before.returncode == 1
    assert json.loads(before.stdout)["problem"].startswith("CNTK is not installed in this environment; run: ")
    first, second = scratch("install"), scratch("install", "--json")
    assert (first.returncode, first.stderr, second.returncode) == (0, "", 0)
    place = Path(json.loads(second.stdout)["folder"])
    assert place == scratch.prefix / "share" / "shim" / "cntk-2.7.post2"
    assert scratch.files() == INSTALLED
    assert not (place / "cntk" / "libs").exists()
    assert len(list((place / "stubs").iterdir())) == 3
    assert scratch("status").returncode == 0
    (place / "cntk" / "__init__.py").write_text("x = 2\n")
    assert f"{place}/cntk/__init__.py is altered; run" in scratch("status").stderr
    assert [scratch("remove").stdout, scratch("remove").stdout] == [
        "CNTK 2.7.post2 is removed\n",
        "there was no CNTK\n",
    ]
    assert scratch.files() == []


def test_the_environment_lists_it(scratch):
    scratch("install")
    code = "import importlib.metadata as m; print(m.version('cntk'), [str(f) for f in m.files('cntk')][0])"
    listed = subprocess.check_output([scratch.prefix / "bin" / "python", "-c", code], text=True)
    assert listed.split() == ["2.7.post2", "cntk.py"]


def test_import_without_this_package_is_a_clear_error(scratch):
    scratch("install")
    result = subprocess.run(
        [scratch.prefix / "bin" / "python", "-I", "-c", "import cntk"], capture_output=True, text=True
    )
    assert "ImportError: CNTK is loaded by the package shim, which is not installed here" in result.stderr


def test_a_wheel_with_another_checksum_is_refused_by_pip(scratch):
    assert scratch("install", patch=PIP).returncode == 0
    scratch("remove")
    scratch.sha256 = "0" * 64
    result = scratch("install", patch=PIP)
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: pip cannot download {_place.WHEEL}: ")
    assert "DO NOT MATCH THE HASHES" in result.stderr
    assert scratch.files() == []


def test_a_wheel_with_another_checksum_is_refused_without_pip(scratch):
    scratch.sha256 = "0" * 64
    result = scratch("install")
    assert result.returncode == 1
    assert f"error: {_place.WHEEL} has the SHA-256 " in result.stderr
    assert scratch.files() == []


def test_no_wheel_is_a_clear_error(scratch):
    scratch.wheel.unlink()
    result = scratch("install", "--json", patch=PIP)
    assert result.returncode == 1
    assert "No matching distribution found for cntk==2.7.post2" in json.loads(result.stdout)["problem"]
    assert scratch.files() == []


def test_a_cntk_that_does_not_load_is_not_installed(scratch):
    result = scratch("install", patch="_install._fails = lambda site: 'CNTK cannot be loaded: x + 1 is wrong'")
    assert (result.returncode, result.stderr) == (1, "error: CNTK cannot be loaded: x + 1 is wrong\n")
    assert scratch.files() == []


def small_files():
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))


@pytest.mark.parametrize("patch", ["", PIP])
def test_a_full_disk_leaves_nothing(scratch, patch):
    result = scratch("install", patch=patch, preexec_fn=small_files)
    assert result.returncode == 1
    assert "File too large" in result.stderr
    assert scratch.files() == []
    free = "_install.shutil.disk_usage = lambda path: type('', (), {'free': 1_000_000})"
    assert "has 1 MB left, and 450 MB are needed" in scratch("install", patch=free).stderr
    assert scratch("install").returncode == 0


def test_a_folder_that_cannot_be_written_is_a_clear_error(scratch):
    (scratch.prefix / "share").write_text("a file")
    result = scratch("install")
    assert (result.returncode, "Traceback" in result.stderr) == (1, False)
    assert str(scratch.prefix / "share") in result.stderr


def test_a_package_of_the_same_name_stays(scratch):
    (site,) = scratch.prefix.glob("lib/python*/site-packages")
    (site / "cntk").mkdir()
    (site / "cntk" / "__init__.py").touch()
    result = scratch("install")
    assert f"{site / 'cntk'} is there already and does not come from shim" in result.stderr
    assert scratch("remove").stdout == "there was no CNTK\n"
    assert (site / "cntk" / "__init__.py").exists()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("when", ["downloading", "publishing"])
def test_a_killed_installation_leaves_nothing_that_counts(scratch, tmp_path, how, when):
    started = tmp_path / "started"
    wait = f"open({str(started)!r}, 'w').close(); import time; time.sleep(60)"
    patches = {
        "downloading": f"_install._pip = lambda: [sys.executable, '-c', {wait!r}]",
        "publishing": f"_install._publish = lambda: exec({wait!r})",
    }
    process = scratch.start("install", patch=patches[when])
    deadline = time.monotonic() + 30
    while not started.exists():
        assert time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.01)
    if how == signal.SIGKILL and when == "downloading":
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGKILL)
    process.send_signal(how)
    assert process.wait(30) != 0
    process.stderr.close()
    status = scratch("status")
    assert status.returncode == 1
    assert "-m shim.cntk install" in status.stderr
    if how != signal.SIGKILL and when == "downloading":
        assert scratch.files() == []
    assert scratch("install").returncode == 0
    assert scratch.files() == INSTALLED


@pytest.mark.parametrize(
    ("patches", "problem"),
    [
        ({"sys.platform": "darwin"}, "exists for Linux on x86-64, and this is darwin"),
        ({"sys.version_info": (3, 14, 0)}, "can be loaded by CPython 3.8 to 3.13, and this is cpython 3.14.0"),
        ({"sys.version_info": (3, 7, 9)}, "can be loaded by CPython 3.8 to 3.13, and this is cpython 3.7.9"),
        ({"sys.abiflags": "t"}, "needs the ordinary build of Python"),
        ({"os.confstr": lambda name: None}, "needs the GNU C library"),
        ({"os.uname": lambda: type("", (), {"machine": "aarch64"})}, "and this is linux on aarch64"),
    ],
)
def test_other_systems_are_refused(monkeypatch, capsys, patches, problem):
    for name, value in patches.items():
        monkeypatch.setattr(name, value)
    found = _place.unsupported()
    with pytest.raises(ImportError) as error:
        _place.checked()
    assert main(["install"]) == 1
    output = capsys.readouterr()
    monkeypatch.undo()
    assert problem in found
    assert str(error.value) == found
    assert output.err == f"error: {found}\n"


def test_only_one_version_is_offered(capsys):
    assert main(["install", "--version", "2.6", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["problem"].startswith("CNTK 2.6 is not offered, only 2.7.post2")


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "python -m shim.cntk status --json" in capsys.readouterr().out


def test_importing_needs_only_the_standard_library():
    code = (
        "import sys; before = {*sys.modules}; import shim.cntk; print(*{m.split('.')[0] for m in sys.modules} - before)"
    )
    out = subprocess.check_output([sys.executable, "-I", "-c", f"import sys; sys.path.append({str(SOURCE)!r}); {code}"])
    assert {*out.decode().split()} - {*sys.stdlib_module_names} == {"shim"}


@pytest.mark.parametrize("name", _edits.EDITS)
def test_an_edit_replaces_text_that_occurs_once_and_moves_no_line(name):
    text = "\n".join(["first\n", *(old for old, _ in _edits.EDITS[name]), "last\n"])
    result = _edits.edited(_edits.EDITS[name], text, "file.py")
    assert all(new in result for _, new in _edits.EDITS[name])
    assert result.count("\n") == text.count("\n")


@pytest.mark.parametrize("name", _edits.EDITS)
def test_other_text_is_refused(name):
    old = _edits.EDITS[name][0][0]
    for text in ("nothing\n", f"{old}{old}"):
        with pytest.raises(_slots.UnexpectedContent, match=r"^file\.py is not the file of CNTK 2\.7: "):
            _edits.edited(_edits.EDITS[name], text, "file.py")


def test_an_error_ends_before_the_stack_of_cplusplus():
    error = RuntimeError("Times: shapes [3] and [2]\n\n[CALL STACK]\n[0x7f]  + 0x1\n")
    assert _errors.plain_message(error) == "Times: shapes [3] and [2]"
    with pytest.raises(RuntimeError, match=r"^Times: shapes \[3\] and \[2\]$") as caught, _errors.errors():
        raise error
    assert caught.value.__suppress_context__
    with pytest.raises(ValueError, match=r"^plain$"), _errors.errors():
        raise ValueError("plain")


def test_only_noise_is_left_out_of_stderr(capfd):
    noise = "\nAbout to throw exception 'Times: shapes\n [3] and [2]'\n"
    with _errors.quiet():
        os.write(2, f"one\nSelected CPU as the process wide default device.\ntwo\n{noise}three\n".encode())
    assert capfd.readouterr().err == "one\ntwo\nthree\n"
