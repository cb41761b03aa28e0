"""One thread for BLAS while threads or processes of ours have all cores: its threads would wait for a core, many times as long as
a small product takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any

_lock = Lock()
_within = 0  # contexts of this process; the first one sets the limit, the last one takes it away
_limit: Any = None


@cache
def _controller() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


@contextmanager
def one_thread() -> Iterator[None]:
    """BLAS has one thread in this process, until the last context of this kind ends."""
    global _within, _limit
    with _lock:
        if _within == 0:
            _limit = _controller().limit(limits=1, user_api="blas")
        _within += 1
    try:
        yield
    finally:
        with _lock:
            _within -= 1
            if _within == 0:
                _limit.restore_original_limits()
