"""The environment of workers: which variables of this process they inherit.

A worker runs code that may print its environment, send it with an error report, or hand it to programs that it starts.
So it inherits what Python and numeric libraries need, and an application's secrets only where the runner names them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping

from runners.spec import WorkerSpec

#: Sets the number of threads of numeric libraries.
THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "RAYON_NUM_THREADS",
)
#: What every worker inherits. A trailing ``*`` only where no variable of the family is known to hold a secret:
#: ``HF_TOKEN``, ``NVIDIA_API_KEY``, ``OTEL_EXPORTER_OTLP_HEADERS`` and the URLs of proxies do.
INHERITED = (
    # the system
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "TMPDIR", "TEMP", "TMP", "TZ", "TZDIR", "LANG", "LANGUAGE", "LC_*",
    "XDG_CACHE_HOME", "XDG_CONFIG_DIRS", "XDG_CONFIG_HOME", "XDG_DATA_DIRS", "XDG_DATA_HOME", "XDG_RUNTIME_DIR",
    "XDG_STATE_HOME", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
    # the loader and the allocator
    "LD_LIBRARY_PATH", "LD_PRELOAD", "DYLD_*", "GLIBC_TUNABLES", "MALLOC_*", "MIMALLOC_*", "TCMALLOC_*",
    # Python, and coverage of subprocesses
    "PYTHON*", "VIRTUAL_ENV", "CONDA_PREFIX", "COVERAGE_*",
    # numeric libraries and their threads
    "OMP_*", "GOMP_*", "KMP_*", "MKL_*", "OPENBLAS_*", "GOTO_*", "BLIS_*", "VECLIB_*", "NUMEXPR_*", "RAYON_*",
    "NUMBA_*", "DNNL_*", "ONEDNN_*", "ORT_*", "GGML_*", "TOKENIZERS_PARALLELISM",
    # accelerators
    "CUDA_*", "CUDNN_*", "CUBLAS_*", "NCCL_*", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES",
    "NVIDIA_TF32_OVERRIDE", "HIP_*", "ROCR_*", "ROCM_*", "HSA_*", "GPU_DEVICE_ORDINAL",
    # folders of models, and offline switches
    "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "TRANSFORMERS_CACHE",
    # tracing, and runners in a worker
    "TRACEPARENT", "TRACESTATE", "RUNNERS_STATUS",
)  # fmt: skip
_WORD = re.compile(r"\w{2,}")


def as_inherited(names: Iterable[str] | bool) -> tuple[str, ...]:  # noqa: FBT001 - the value of a keyword
    """What `inherit_environment` names, checked; ``("*",)`` for all variables.

    Raises:
        TypeError: it is neither True nor names.
        ValueError: one can be no name of a variable.
    """
    if names is True:
        return ("*",)
    if isinstance(names, str | bytes | Mapping) or not isinstance(names, Iterable):
        msg = f"inherit_environment takes names of variables, as in ('DATABASE_URL', 'AWS_*'), or True, not {names!r}"
        raise TypeError(msg)
    checked = tuple(names)
    for name in checked:
        if not isinstance(name, str):
            msg = f"inherit_environment takes names of variables, not {name!r}"
            raise TypeError(msg)
        if not name or "*" in name[:-1] or "=" in name or "\0" in name:
            msg = f"inherit_environment takes names of variables, with a * only at the end, not {name!r}"
            raise ValueError(msg)
    return checked


def environment(spec: WorkerSpec, own: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables of a worker: what it inherits of this process's, and the spec's on top. Where neither says how many
    threads to use, the resources do.
    """
    threads = spec.resources.threads
    default = {} if threads is None else dict.fromkeys(THREADS, str(threads))
    inherited = {name: value for name, value in own.items() if inherits(spec, name)}
    return {**default, **inherited, **spec.environment}


def inherits(spec: WorkerSpec, name: str) -> bool:
    """Whether a worker gets the variable of that name from this process."""
    return any(
        name.startswith(allowed[:-1]) if allowed.endswith("*") else name == allowed
        for allowed in (*INHERITED, *spec.inherit_environment)
    )


def missing_hint(spec: WorkerSpec, message: str, own: Mapping[str, str] = os.environ) -> str:
    """What to add to the error of a worker that could not load: the variables that it names, and does not inherit."""
    names = dict.fromkeys(_WORD.findall(message))
    missing = [n for n in names if n in own and n not in spec.environment and not inherits(spec, n)]
    if not missing:
        return ""
    return (
        f"; workers do not inherit this process's {', '.join(missing)}: "
        f"if it needs them, pass inherit_environment={tuple(missing)!r}"
    )
