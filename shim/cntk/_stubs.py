"""The three libraries that CNTK 2.7 was linked with and that no modern system has, written without a compiler.

``libmpi.so.12`` has the names of Open MPI. A process on its own never calls them, but the loader wants to see them.
Three answer as an MPI would that cannot start, so that using CNTK's communicator is an error in Python; any other one
writes its name to stderr and aborts. ``libmpi_cxx.so.1`` is there for its name only. ``libpython3.6m.so.1.0`` has what
the running Python lacks: ``PyUnicode_AsUnicode``, and :data:`AS_LONG`.

A file is laid out as the System V ABI for x86-64 describes: header, hash table, symbols, strings, texts and code in one
read-only segment; the dynamic section and zeroed data in a second one. It needs no library and no relocation, and the
same names give the same bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

from shim.cntk._names import DATA, FUNCTIONS

#: ``long cntk_as_long(PyObject *)``: a float is truncated, as ``PyLong_AsLong`` did up to Python 3.9
AS_LONG = "cntk_as_long"
#: its table of addresses: ``float``, ``PyLong_AsLong`` and another float type, ``numpy.float64``
AS_LONG_TABLE = "cntk_as_long_table"

SONAMES = ("libmpi.so.12", "libmpi_cxx.so.1", "libpython3.6m.so.1.0")

_REASON = "MPI is not available here; CNTK runs in one process"
_SLOT = 64  # bytes of code for each function
_OBJECT = 2048  # bytes for each data object, more than any of Open MPI's
_PAGE = 4096


def write_all(folder: Path) -> None:
    """Write the three libraries into ``folder``, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    mpi, mpi_cxx, python = SONAMES
    (folder / mpi).write_bytes(shared_object(mpi, FUNCTIONS, DATA))
    (folder / mpi_cxx).write_bytes(shared_object(mpi_cxx))
    (folder / python).write_bytes(shared_object(python, ("PyUnicode_AsUnicode", AS_LONG), (AS_LONG_TABLE,)))


def shared_object(soname: str, functions: Sequence[str] = (), data: Sequence[str] = ()) -> bytes:
    """Return an x86-64 ELF shared object that defines these functions and these zeroed data objects."""
    names = [*functions, *data]
    strings, offsets = _packed([soname, *names])
    texts, text_offsets = _packed([_text(name) for name in functions])

    hash_table = _hash_table(names)
    at_hash = 64 + 4 * 56
    at_symbols = _align(at_hash + len(hash_table), 8)
    at_strings = at_symbols + 24 * (1 + len(names))
    at_texts = at_strings + len(strings)
    at_code = _align(at_texts + len(texts), _SLOT)
    end = at_code + _SLOT * len(functions)
    at_dynamic = _align(end, _PAGE)
    dynamic = _dynamic(offsets[0], at_hash, at_strings, at_symbols, len(strings))
    at_data = _align(at_dynamic + len(dynamic), 64)

    symbols = bytes(24)
    code = b""
    for k, name in enumerate(functions):
        where = at_code + _SLOT * k
        symbols += struct.pack("<IBBHQQ", offsets[1 + k], 0x12, 0, 1, where, _SLOT)  # a global function
        body = _code(name, where, at_texts + text_offsets[k], at_data)
        assert len(body) <= _SLOT, name
        code += body.ljust(_SLOT, b"\xcc")
    for k in range(len(data)):
        name_at = offsets[1 + len(functions) + k]
        symbols += struct.pack("<IBBHQQ", name_at, 0x11, 0, 2, at_data + _OBJECT * k, _OBJECT)  # a global object

    image = bytearray(at_dynamic)
    headers = _headers(end, at_dynamic, len(dynamic), at_data + _OBJECT * len(data))
    for at, part in (
        (0, headers),
        (at_hash, hash_table),
        (at_symbols, symbols),
        (at_strings, strings),
        (at_texts, texts),
        (at_code, code),
    ):
        image[at : at + len(part)] = part
    return bytes(image) + dynamic


def _text(name: str) -> str:
    return _REASON if name == "MPI_Error_string" else f"CNTK called {name}: {_REASON}\n"


def _code(name: str, where: int, text: int, data: int) -> bytes:
    """Return the machine code of a function at ``where``; its text and the data lie at the other addresses."""
    length = struct.pack("<i", len(_text(name)))
    if name == "MPI_Initialized":  # (int *flag): not initialized; MPI_SUCCESS
        return bytes.fromhex("c707 00000000  31c0 c3")  # mov dword [rdi], 0; xor eax, eax; ret
    if name == "MPI_Init_thread":  # (argc, argv, required, provided): MPI_ERR_OTHER
        return bytes.fromhex("b8 10000000  c3")  # mov eax, 16; ret
    if name == "MPI_Error_string":  # (int code, char *text, int *length)
        code = bytes.fromhex("4889f7  c702") + length  # mov rdi, rsi; mov dword [rdx], length
        code += _relative("488d35", where + len(code), text)  # lea rsi, [text]
        code += b"\xb9" + struct.pack("<i", len(_text(name)) + 1)  # mov ecx, length + 1
        return code + bytes.fromhex("fc f3a4  31c0 c3")  # cld; rep movsb; xor eax, eax; ret
    if name == AS_LONG:
        return _as_long(where, data)
    if name.startswith("Py"):
        return bytes.fromhex("31c0 c3")  # xor eax, eax; ret: a null pointer
    code = bytes.fromhex("bf 02000000")  # mov edi, 2
    code += _relative("488d35", where + len(code), text)  # lea rsi, [text]
    code += b"\xba" + length  # mov edx, length
    code += bytes.fromhex("b8 01000000  0f05")  # write(2, text, length)
    code += bytes.fromhex("b8 27000000  0f05  89c7")  # edi = getpid()
    code += bytes.fromhex("be 06000000  b8 3e000000  0f05")  # kill(edi, SIGABRT)
    return code + bytes.fromhex("bf 86000000  b8 e7000000  0f05  0f0b")  # should it go on: exit_group(134)


def _as_long(where: int, table: int) -> bytes:
    """Return the code of :data:`AS_LONG`; what no long can hold goes to ``PyLong_AsLong``, which raises."""
    code = bytes.fromhex("488b4708")  # mov rax, [rdi+8]: the object's type
    code += _relative("483b05", where + len(code), table) + b"\x74\x09"  # cmp rax, [table]; je float
    code += _relative("483b05", where + len(code), table + 16) + b"\x75\x16"  # cmp rax, [table+16]; jne other
    code += bytes.fromhex("f2480f2c4710")  # float: cvttsd2si rax, [rdi+16]
    code += bytes.fromhex("48b9 0000000000000080  4839c8")  # mov rcx, 1 << 63; cmp rax, rcx
    code += b"\x74\x01\xc3"  # je other; ret
    return code + _relative("ff25", where + len(code), table + 8)  # other: jmp [table+8]


def _relative(opcode: str, where: int, target: int) -> bytes:
    """Return an instruction at ``where`` that ends with the 32-bit distance from its end to ``target``."""
    start = bytes.fromhex(opcode)
    return start + struct.pack("<i", target - (where + len(start) + 4))


def _headers(end: int, at_dynamic: int, dynamic: int, end_of_data: int) -> bytes:
    identity = b"\x7fELF\x02\x01\x01" + bytes(9)  # 64 bits, little-endian
    header = struct.pack("<16sHHIQQQIHHHHHH", identity, 3, 62, 1, 0, 64, 0, 0, 64, 56, 4, 64, 0, 0)
    size = end_of_data - at_dynamic
    segments = (
        (1, 5, 0, end, end, _PAGE),  # loaded, readable and executable
        (1, 6, at_dynamic, dynamic, size, _PAGE),  # loaded, readable and writable
        (2, 6, at_dynamic, dynamic, dynamic, 8),  # the dynamic section
        (0x6474E551, 6, 0, 0, 0, 16),  # the stack is not executable
    )
    for kind, flags, at, in_file, in_memory, align in segments:
        header += struct.pack("<IIQQQQQQ", kind, flags, at, at, at, in_file, in_memory, align)
    return header


def _dynamic(soname: int, at_hash: int, at_strings: int, at_symbols: int, strings: int) -> bytes:
    # DT_SONAME, DT_HASH, DT_STRTAB, DT_SYMTAB, DT_STRSZ, DT_SYMENT, DT_NULL
    entries = ((14, soname), (4, at_hash), (5, at_strings), (6, at_symbols), (10, strings), (11, 24), (0, 0))
    return b"".join(struct.pack("<QQ", *entry) for entry in entries)


def _hash_table(names: Sequence[str]) -> bytes:
    """Return the table of DT_HASH: a chain of symbols for each bucket; symbol 0 is none and ends a chain."""
    buckets = [0] * max(1, len(names))
    chain = [0] * (1 + len(names))
    for k, name in enumerate(names, 1):
        bucket = _elf_hash(name) % len(buckets)
        chain[k], buckets[bucket] = buckets[bucket], k
    words = [len(buckets), len(chain), *buckets, *chain]
    return struct.pack(f"<{len(words)}I", *words)


def _elf_hash(name: str) -> int:
    value = 0
    for byte in name.encode():
        value = (value << 4) + byte
        high = value & 0xF0000000
        value = (value ^ high >> 24) & ~high
    return value


def _packed(texts: Sequence[str]) -> tuple[bytes, list[int]]:
    """Return the texts behind an empty one, each ended by a zero byte, and where each of them starts."""
    packed, offsets = b"\0", []
    for text in texts:
        offsets.append(len(packed))
        packed += text.encode() + b"\0"
    return packed, offsets


def _align(value: int, to: int) -> int:
    return -(-value // to) * to
