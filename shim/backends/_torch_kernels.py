"""Which library's kernel torch takes for an op."""

from __future__ import annotations

import re

import torch

from shim import contract


def name(case, device):
    """Name the kernel of an op in eager mode, by the conditions that torch itself goes by."""
    cuda, n = device.type == "cuda", dict(case.dims)
    if case.op == "dense":
        return f"{_product(case.dtype, device)} addmm"
    if case.op == "conv2d":
        x = torch.empty((n["N"], n["C"], n["H"], n["W"]), dtype=getattr(torch, case.dtype), device=device)
        w = x.new_empty((n["O"], n["C"], n["R"], n["S"]))
        chosen = torch._C._select_conv_backend(x, w, None, (1, 1), (0, 0), (1, 1), False, (0, 0), 1).name
        known = {"Mkldnn": "oneDNN convolution", "Cudnn": "cuDNN convolution", "Slow2d": "ATen im2col convolution"}
        return known.get(chosen, f"ATen convolution ({chosen})")
    if dict(case.options).get("recurrent_activation") == "hard_sigmoid":
        return f"loop over steps, {_product(case.dtype, device)} product"
    if case.op in ("lstm", "bilstm"):
        if cuda and torch.backends.cudnn.is_available() and torch.backends.cudnn.enabled:
            return "cuDNN LSTM"
        onednn = torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled
        taken = case.dtype == "float32" or _taken_by_onednn(case.dtype)
        return "oneDNN LSTM" if onednn and not cuda and taken else "ATen LSTM loop"
    return f"ATen {'embedding_bag' if case.op == 'embedding_average' else case.op}"


def _product(dtype, device):
    """Name whose matrix products torch calls."""
    if device.type == "cuda":
        return "cuBLAS"
    if dtype in contract.HALVES:
        return "oneDNN" if _taken_by_onednn(dtype) else "ATen"
    return built_with("BLAS_INFO=").upper()


def _taken_by_onednn(dtype):
    """Return whether oneDNN takes a dtype of 16 bits on this CPU."""
    known = {"float16": "_is_mkldnn_fp16_supported", "bfloat16": "_is_mkldnn_bf16_supported"}
    return dtype in known and getattr(torch.ops.mkldnn, known[dtype])()


def built_with(label):
    """Return what torch says it was built with, such as a version."""
    found = re.search(re.escape(label) + r"([\w.]+)", torch.__config__.show())
    return found[1] if found else "unknown"
