"""What this process was given of the machine."""

import os
import resource
import sys
from pathlib import Path

# When this is imported, that is before anything that a real module would import here.
_AT_IMPORT = {
    "cpus": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
    "nice": os.nice(0),
    "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    "oom_score": int(Path("/proc/self/oom_score_adj").read_text()) if sys.platform == "linux" else None,
    "threads": os.environ.get("OMP_NUM_THREADS"),
    "mkl_threads": os.environ.get("MKL_NUM_THREADS"),
    "arenas": os.environ.get("MALLOC_ARENA_MAX"),
}


def given():
    return _AT_IMPORT
