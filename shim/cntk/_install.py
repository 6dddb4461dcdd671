"""Put CNTK 2.7's wheel into the environment of the Python that runs this, whole or not at all.

No package installer takes the wheel on a later Python than 3.6, but pip downloads it. It is unpacked beside its place,
the libraries of :mod:`shim.cntk._stubs` are written, a fresh process loads it and evaluates something, and only then
the folder is renamed into place. Last, ``cntk.py`` in site-packages makes ``import cntk`` work, and a ``.dist-info``
folder lets ``pip list`` show it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from shim.cntk import _place, _stubs
from shim.cntk._place import SHA256, VERSION, WHEEL

_NEEDED = 450_000_000  # bytes on disk while installing: the wheel and what is unpacked from it
#: plug-ins for images and binary convolution, which need other libraries of 2015
_LEFT_OUT = (
    "cntk/libs/libopencv",
    "cntk/libs/libzip",
    "cntk/libs/Cntk.Deserializers.Image",
    "cntk/libs/Cntk.DelayLoaded",
    "cntk/libs/Cntk.BinaryConvolution",
)
_PACKAGES = Path(__file__).resolve().parents[2]  # the folder in which this package lies
_LOAD = "import sys, pathlib, shim.cntk; shim.cntk.load(pathlib.Path(sys.argv[1]))"

_REDIRECT = '''"""CNTK 2.7, loaded by shim.cntk. Written by `python -m shim.cntk install`, which see."""

import sys

try:
    from shim.cntk import load
except ModuleNotFoundError as error:
    raise ImportError(f"CNTK is loaded by the package shim, which is not installed here ({error})") from None
sys.modules.pop(__name__, None)
load()
'''
_METADATA = f"""Metadata-Version: 2.1
Name: cntk
Version: {VERSION}
Summary: CNTK 2.7, unpacked by `python -m shim.cntk install` and loaded by shim.cntk
"""


class InstallError(RuntimeError):
    """CNTK could not be installed or removed; the message is the reason."""


def install(version: str = VERSION) -> Path:
    """Install CNTK into this environment unless it is there, and return its folder; raise :class:`InstallError`."""
    if version != VERSION:
        raise InstallError(f"CNTK {version} is not offered, only {VERSION}: its memory is changed at known places")
    problem = _place.unsupported()
    if problem:
        raise InstallError(problem)
    _check_environment()
    place = _place.folder()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with _locked(place) as lock:
            if not _is_current(place):
                _unpack(place, lock)
            _publish()
    except OSError as error:
        raise InstallError(_reason(error)) from None
    return place


def remove() -> bool:
    """Delete CNTK from this environment; return whether there was anything."""
    place = _place.folder()
    published = [path for path in (_redirect(), _dist_info()) if path.exists() and _is_ours(path)]
    if not (place.exists() or published or list(_leftovers(place))):
        return False
    try:
        with _locked(place):
            for path in published:
                _delete(path)
            _delete(place / _place.RECORD)  # first, so that half a deletion does not look like an installation
            _delete(place)
    except OSError as error:
        raise InstallError(_reason(error)) from None
    return True


def status() -> dict[str, Any]:
    """Return what is known of CNTK here: ``problem`` is None if it is installed, unaltered, and loads and evaluates.

    The checksums of all files are compared with those taken at the installation, which takes about a second.
    """
    place = _place.folder()
    found: dict[str, Any] = {
        "version": VERSION,
        "folder": str(place),
        "installed": _place.record(place) is not None,
        "python": ".".join(map(str, sys.version_info[:3])),
        "numpy": _version("numpy"),
        "problem": _place.unsupported(),
    }
    if found["problem"] is None:
        try:
            _place.checked(place)
            found["problem"] = _altered(place) or _fails(place)
        except ImportError as error:
            found["problem"] = str(error)
    if found["problem"] is None and not (_redirect().exists() and _dist_info().exists()):
        found["problem"] = f"`import cntk` does not find it; run: {sys.executable} -m shim.cntk install"
    return found


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _unpack(place: Path, lock: int) -> None:
    free = shutil.disk_usage(place.parent).free
    if free < _NEEDED:
        raise InstallError(f"{place.parent} has {free / 1e6:.0f} MB left, and {_NEEDED / 1e6:.0f} MB are needed")
    with tempfile.TemporaryDirectory(prefix=f"{place.name}.", dir=place.parent) as name:
        temporary = Path(name)
        wheel = _download(temporary, lock)
        fresh = temporary / "new"
        with zipfile.ZipFile(wheel) as archive:  # it checks the CRC of each file
            archive.extractall(fresh, [name for name in archive.namelist() if not name.startswith(_LEFT_OUT)])
        wheel.unlink()
        _stubs.write_all(fresh / _place.STUBS)
        record = {**_place.CONTENT, "files": _checksums(fresh)}
        (fresh / _place.RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        problem = _fails(fresh)
        if problem:
            raise InstallError(problem)
        _delete(place)
        fresh.rename(place)


def _download(temporary: Path, lock: int) -> Path:
    """Return the wheel that pip puts into ``temporary`` with this machine's settings, its SHA-256 checked."""
    requirement = temporary / "requirements.txt"
    requirement.write_text(f"cntk=={VERSION} --hash=sha256:{SHA256}\n", encoding="utf-8")
    command = [*_pip(), "download", "--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    command += ["--python-version", "36", "--implementation", "cp", "--abi", "cp36m", "--platform", "manylinux1_x86_64"]
    command += ["--requirement", str(requirement), "--dest", str(temporary)]
    environ = {**_environ(), "TMPDIR": str(temporary), "PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    # pip inherits the lock: should only this process be killed, no other one starts while pip is still writing
    result = subprocess.run(
        command,
        env=environ,
        pass_fds=(lock,),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    wheel = temporary / WHEEL
    if result.returncode or not wheel.is_file():
        raise InstallError(f"pip cannot download {WHEEL}: {_last_lines(result.stdout, result.returncode)}")
    found = _sha256(wheel)
    if found != SHA256:
        raise InstallError(f"{WHEEL} has the SHA-256 {found} instead of {SHA256}")
    return wheel


def _pip() -> list[str]:
    """Return the command of pip: that of this environment, else the one that comes with Python for making others."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    try:
        import ensurepip
    except ImportError:
        folders = []
    else:
        chosen = sysconfig.get_config_var("WHEEL_PKG_DIR")
        folders = [Path(ensurepip.__file__).parent / "_bundled", *([Path(chosen)] if chosen else [])]
    wheels = [wheel for folder in folders for wheel in sorted(folder.glob("pip-*.whl"))]
    if not wheels:
        raise InstallError(f"pip is needed for the download; install it for {sys.executable}")
    return [sys.executable, str(wheels[-1] / "pip")]


def _fails(site: Path) -> str | None:
    """Return why a fresh process cannot load the CNTK in ``site`` and evaluate, or None if it can."""
    result = subprocess.run(
        [sys.executable, "-c", _LOAD, str(site)],
        cwd=str(site / _place.STUBS),
        env=_environ(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    if result.returncode == 0:
        return None
    return f"CNTK cannot be loaded: {_last_lines(result.stdout, result.returncode)}"


def _environ() -> dict[str, str]:
    paths = [str(_PACKAGES), os.environ.get("PYTHONPATH")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def _last_lines(text: str, status: int) -> str:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith(("WARNING:", "[notice]"))]
    errors = [line for line in lines if line.startswith("ERROR:") and line != "ERROR: Exception:"]  # then a traceback
    said = " ".join((errors or lines)[-2:]) or "no message"
    return f"{said} (it was killed by signal {-status})" if status < 0 else said


def _altered(place: Path) -> str | None:
    """Return which file is not as it was installed, or None."""
    for name, digest in (_place.record(place) or {})["files"].items():
        path = place / name
        if not path.is_file() or _sha256(path) != digest:
            state = "altered" if path.is_file() else "missing"
            return f"{path} is {state}; run: {sys.executable} -m shim.cntk remove, and then install"
    return None


def _checksums(site: Path) -> dict[str, str]:
    """Return the SHA-256 of each file under ``site`` that Python does not make anew itself."""
    files = (path for path in sorted(site.rglob("*")) if path.is_file() and path.suffix != ".pyc")
    return {str(path.relative_to(site)): _sha256(path) for path in files}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def _is_current(place: Path) -> bool:
    found = _place.record(place)
    return found is not None and all(found.get(key) == value for key, value in _place.CONTENT.items())


def _check_environment() -> None:
    marker = Path(sysconfig.get_path("stdlib")) / "EXTERNALLY-MANAGED"
    if sys.prefix == sys.base_prefix and marker.exists():
        raise InstallError(f"{sys.prefix} belongs to the system's package manager; use a virtual environment")
    for path in (_redirect(), _redirect().with_suffix(""), _dist_info()):
        if path.exists() and not _is_ours(path):
            raise InstallError(f"{path} is there already and does not come from shim")


def _publish() -> None:
    """Write ``cntk.py`` and the metadata into site-packages, each at once."""
    info = _dist_info()
    name = info.name
    files = {"INSTALLER": "shim.cntk\n", "METADATA": _METADATA}
    listed = ["cntk.py", *(f"{name}/{file}" for file in [*files, "RECORD"])]
    files["RECORD"] = "".join(f"{path},,\n" for path in listed)
    info.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".cntk.", dir=info.parent) as temporary:
        fresh = Path(temporary, name)
        fresh.mkdir()
        for file, text in files.items():
            (fresh / file).write_text(text, encoding="utf-8")
        if not info.exists():
            fresh.rename(info)
        redirect = Path(temporary, "cntk.py")
        redirect.write_text(_REDIRECT, encoding="utf-8")
        redirect.replace(_redirect())


def _redirect() -> Path:
    return Path(sysconfig.get_path("purelib")) / "cntk.py"


def _dist_info() -> Path:
    return _redirect().parent / f"cntk-{VERSION}.dist-info"


def _is_ours(path: Path) -> bool:
    try:
        text = (path / "INSTALLER" if path.is_dir() else path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return "shim.cntk" in text


@contextlib.contextmanager
def _locked(place: Path) -> Iterator[int]:
    """Hold the lock of an installation, give its descriptor, and clear away what a killed installation left."""
    lock = os.open(place.parent / f"{place.name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for path in _leftovers(place):
            _delete(path)
        yield lock
    finally:
        os.close(lock)


def _leftovers(place: Path) -> Sequence[Path]:
    return [path for path in place.parent.glob(f"{place.name}.*") if path.is_dir()]


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()


def _reason(error: OSError) -> str:
    return f"{error.filename or _place.folder()}: {error.strerror or error}"
