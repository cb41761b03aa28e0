"""The line that every table of the training benchmarks opens with: machine, versions, date."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path

import numpy as np
import scipy

import elbotree as et


def machine() -> str:
    """Processor, cores that this process may use, versions, day."""
    name = platform.processor() or platform.machine()
    about = Path("/proc/cpuinfo")
    if about.exists():
        models = [
            line.split(":", 1)[1].strip() for line in about.read_text().splitlines() if line.startswith("model name")
        ]
        name = models[0] if models else name
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"{name}, {cores} cores; Python {platform.python_version()}, numpy {np.__version__}, scipy {scipy.__version__}, "
        f"elbotree {et.__version__}; {datetime.date.today().isoformat()}"
    )
