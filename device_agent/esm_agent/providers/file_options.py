"""Options of execution providers that name files or addresses, which clients may not give."""

from __future__ import annotations

import re

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
"""Word of ``cache_dir``, ``cacheDir`` or ``CACHE_DIR``."""
_WORDS = frozenset(
    {
        *("dir", "dirs", "directory", "folder", "path", "paths", "file", "files", "filename"),
        *("lib", "libs", "library", "libraries", "package", "packages", "dump", "dumps"),
        "bytestream",
    }
)
"""Words in names of options whose value names a file, code or memory, or that write files."""
_KNOWN = frozenset(
    {
        # TensorRT: files in the working folder
        *("trt_engine_cache_enable", "trt_engine_cache_prefix", "trt_timing_cache_enable"),
        "trt_int8_calibration_table_name",
        # MIGraphX
        *("migraphx_int8_calibration_table_name", "migraphx_save_compiled_model"),
        "migraphx_load_compiled_model",
        # VitisAI
        *("cachekey", "cache_key", "xclbin"),
        # Functions and objects by their address: of CUDA, ROCm, TensorRT and WebGPU
        *("gpu_external_alloc", "gpu_external_free", "gpu_external_empty_cache"),
        *("user_compute_stream", "user_aux_stream_array"),
        *("dawnproctable", "webgpudevice", "webgpuinstance"),
    }
)
"""Other such options of ONNX Runtime's providers, in lower case."""
_KEY = re.compile(r'"([^"]*)"\s*:')
"""Key of JSON in a value, as in ``load_config`` of OpenVINO."""


def names_files(name: str, value: str) -> bool:
    """Return whether an option names files or addresses, or makes the provider write files."""
    names = [name, *_KEY.findall(value)]
    return any(mark in value for mark in "/\\") or any(map(_is_known, names))


def _is_known(name: str) -> bool:
    words = {word.lower() for word in _WORD.findall(name)}
    return name.lower() in _KNOWN or not words.isdisjoint(_WORDS)
