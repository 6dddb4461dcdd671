"""Change what a loaded x86-64 library calls: its own slots for imported functions, and bytes of its code.

Nothing else in the process changes, and nothing is written unless the memory holds what is expected there.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_RELA, _DYNSYM = 4, 11  # types of sections
_IMPORTED = (6, 7)  # R_X86_64_GLOB_DAT, R_X86_64_JUMP_SLOT: the word becomes the address of a function
_PAGE = 4096


class UnexpectedContent(ImportError):
    """A file or its memory is not that of CNTK 2.7, so it is left as it is."""


def address(function: Any) -> int:
    """Return the address of a function that ctypes found."""
    return ctypes.cast(function, ctypes.c_void_p).value or 0


class Library:
    """A shared object that is loaded from ``path``, and where its addresses start in this process."""

    def __init__(self, path: Path, handle: ctypes.CDLL, exported: str) -> None:
        self._path = path
        self._symbols, self._imports = _tables(path)
        self._start = address(getattr(handle, exported)) - self._symbols[exported]

    def address(self, at: int) -> int:
        """Return where in memory the address ``at`` of the file is."""
        return self._start + at

    def redirect(self, name: str, old: int, new: int) -> None:
        """Let this library call the function at ``new`` where it called ``name``, which is at ``old``."""
        slots = [ctypes.c_uint64.from_address(self._start + at) for at in self._imports.get(name, ())]
        if not slots or any(slot.value != old for slot in slots):
            raise UnexpectedContent(f"{self._path} does not import {name} as CNTK 2.7 does")
        for slot in slots:
            slot.value = new

    def replace(self, places: Mapping[int, tuple[bytes, bytes]]) -> None:
        """Replace code: for each address in the file the old bytes and as many new ones."""
        for at, (old, _) in places.items():
            if ctypes.string_at(self._start + at, len(old)) != old:
                raise UnexpectedContent(f"{self._path} does not have the code of CNTK 2.7 at {at:#x}")
        for at, (_, new) in places.items():
            with _Writable(self._start + at, len(new)):
                ctypes.memmove(self._start + at, new, len(new))


class _Writable:
    """Make the pages of some code writable for a while; meanwhile they cannot be executed."""

    def __init__(self, start: int, size: int) -> None:
        first = start // _PAGE * _PAGE
        self._pages = ctypes.c_void_p(first), ctypes.c_size_t(start + size - first)

    def __enter__(self) -> None:
        self._protect(3)  # PROT_READ | PROT_WRITE

    def __exit__(self, *_: object) -> None:
        self._protect(5)  # PROT_READ | PROT_EXEC

    def _protect(self, how: int) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mprotect(*self._pages, how):
            problem = os.strerror(ctypes.get_errno())
            raise ImportError(f"the system forbids to change code in memory ({problem}), which NumPy 2 makes necessary")


def _tables(path: Path) -> tuple[dict[str, int], dict[str, list[int]]]:
    """Return the addresses of the exported symbols, and for each imported one the addresses of its slots."""
    symbols: dict[str, int] = {}
    imports: dict[str, list[int]] = {}
    with path.open("rb") as file:

        def read(at: int, size: int) -> bytes:
            file.seek(at)
            return file.read(size)

        header = read(0, 64)
        (table,) = struct.unpack_from("<Q", header, 40)
        size, count = struct.unpack_from("<HH", header, 58)
        sections = list(struct.iter_unpack("<IIQQQQIIQQ", read(table, size * count)))
        (dynamic,) = (section for section in sections if section[1] == _DYNSYM)
        strings = read(*sections[dynamic[6]][4:6])
        names = []
        for at, _, _, section, value, _ in struct.iter_unpack("<IBBHQQ", read(*dynamic[4:6])):
            names.append(strings[at : strings.index(b"\0", at)].decode())
            if section:
                symbols[names[-1]] = value
        for section in sections:
            if section[1] == _RELA and sections[section[6]] is dynamic:
                for slot, info, _ in struct.iter_unpack("<QQq", read(*section[4:6])):
                    if info & 0xFFFFFFFF in _IMPORTED:
                        imports.setdefault(names[info >> 32], []).append(slot)
    return symbols, imports
