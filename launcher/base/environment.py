"""The variables that a llama-server gets from its caller's environment: a short list, by name. Pure.

llama-server reads some two hundred variables as flags (`LLAMA_ARG_*`, `LLAMA_API_KEY`, `HF_TOKEN`; its `--help` names
them), and ggml reads `GGML_*` as settings that change memory. A plan knows nothing of those that a shell happens to
set, so none is passed on; config sets them in `env:`, where they are checked.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

PASSED_ON = frozenset(
    {
        *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TERM", "TMPDIR", "TEMP", "TMP"),
        *("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR", "XDG_STATE_HOME"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "LD_LIBRARY_PATH"),
        *("CUDA_HOME", "CUDA_PATH", "CUDA_CACHE_PATH", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"),
        *("NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES"),
        *("ROCM_PATH", "HIP_PATH", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HSA_OVERRIDE_GFX_VERSION"),
        *("VULKAN_SDK", "VK_DRIVER_FILES", "VK_ICD_FILENAMES", "VK_LAYER_PATH", "VK_ADD_LAYER_PATH"),
        *("ONEAPI_ROOT", "ONEAPI_DEVICE_SELECTOR", "ZE_AFFINITY_MASK"),
    }
)
"""Variables by which programs and drivers find their files, and the GPUs that a job scheduler assigned."""
DEVICE_VARIABLES = frozenset(
    {
        *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"),
        *("GPU_DEVICE_ORDINAL", "GGML_VK_VISIBLE_DEVICES", "ONEAPI_DEVICE_SELECTOR", "ZE_AFFINITY_MASK"),
        *("MTMD_BACKEND_DEVICE", "GGML_VK_DEVICE"),
    }
)
"""Variables by which drivers and backends hide devices or renumber them."""
PREFIXES = ("LC_", "LAUNCH_")
"""Locale categories, and launch's own variables."""
READ_BY_ENGINES = ("LLAMA_", "GGML_", "MTMD_")
"""Prefixes of variables that llama-server and its libraries read, whether or not the help lists them."""


def passed_on(caller: Mapping[str, str]) -> dict[str, str]:
    """The variables that a server inherits from its caller; those of its config's `env` are added to them."""
    return {name: value for name, value in caller.items() if name in PASSED_ON or name.startswith(PREFIXES)}


def libraries(folders: Sequence[str]) -> dict[str, str]:
    """The environment with an engine's library path, for its servers and for probing it; {} for no folders."""
    return {"LD_LIBRARY_PATH": ":".join(folders)} if folders else {}


def withheld(caller: Mapping[str, str], flag_names: Collection[str]) -> tuple[str, ...]:
    """Names in `caller` that an engine would read as flags or settings and that are not passed on, sorted.

    `flag_names`: the variables that the builds in use document.
    """
    kept = passed_on(caller)
    return tuple(sorted(n for n in caller if n not in kept and (n in flag_names or n.startswith(READ_BY_ENGINES))))
