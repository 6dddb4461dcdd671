"""What only the backend jax has: names for what XLA leaves to libraries, read off a compiled program."""

from __future__ import annotations

from shim.backends import jax as backend


def test_calls_of_libraries_are_named():
    text = """
ENTRY %main (x: f32[3,5]) -> f32[3,5] {
  %a = (f32[3]) custom-call(%x), custom_call_target="__cudnn$convForward"
  %b = (f32[3]) custom-call(%a), custom_call_target="__cublas$lt$matmul"
  %c = (f32[3]) custom-call(%b), custom_call_target="Sharding"
}"""
    assert backend._path(text) == "XLA: convolution by cuDNN, dot by cuBLAS"
