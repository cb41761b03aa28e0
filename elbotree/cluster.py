"""A Dask cluster as an executor, for the command line. In Python any `concurrent.futures` executor does, with or without this."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from urllib.parse import urlsplit

from elbotree.runtime.errors import InputError

SECONDS = 10.0
"""How long a scheduler may take to answer, and to have a worker."""


@contextmanager
def scheduler(address: str, seconds: float | None = None) -> Iterator[Executor]:
    """The executor of the Dask scheduler at an address such as tcp://host:8786.

    Raises InputError where Dask is not installed, where no scheduler answers within `seconds` (`SECONDS`), and where it has
    no worker by then.
    """
    seconds = SECONDS if seconds is None else seconds
    try:
        from distributed import Client
    except ModuleNotFoundError:
        raise InputError(
            "a scheduler needs Dask, which is not installed: pip install 'elbotree[cluster]', here and where the workers run"
        ) from None
    try:
        parts = urlsplit(address)  # before Dask, which would look for such a scheduler, and fail while it cleans up
        if not (parts.scheme and parts.hostname and parts.port):
            raise ValueError("no address of the form protocol://host:port")
        client = Client(address, timeout=seconds, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"no Dask scheduler at {address!r} ({reason}); start one with `dask scheduler`, and give the address that it prints, "
            "such as tcp://host:8786"
        ) from None
    with client:
        try:
            client.wait_for_workers(1, timeout=seconds)
        except TimeoutError:
            raise InputError(
                f"the Dask scheduler at {address} has no worker; start some with `dask worker {address}`"
            ) from None
        yield client.get_executor()
