"""Who walks blocks of pairs: threads of this process, or any `concurrent.futures` executor.

Blocks go out as they are made and answers come back in the order of the blocks, whoever is done first: what is made of them does
not depend on how many workers there are. To an executor the law travels with the first blocks only; a worker that does
not know it (it joined late, or was started anew) says so, and gets it with the next one. A task that fails is tried again; an
executor that is lost ends the work with an `ExecutorError`.
"""

from __future__ import annotations

import logging
import os
import queue
import socket
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from threading import Lock
from types import TracebackType
from typing import Protocol, Self

from elbotree.runtime.errors import ElbotreeError, ExecutorError, InputError
from elbotree.runtime.pair_blocks import KEPT_BYTES, Answer, Block, LawData, Workbench
from elbotree.runtime.pair_lattices import BLaw

_AHEAD = 4096  # blocks that are out at once
_CARRYING = 16  # of the first blocks under a law that carry it, until one is answered
_TRIES = 3  # of a task that raises
_PAUSE = 0.02  # seconds before a worker that does not know the law answers, so that it does not empty the queue
_QUIET = 60.0  # seconds without an answer that are worth a word
_LAWS = 4  # that a worker remembers
_BENCHES = 4  # workbenches that a worker keeps, the newest ones

_log = logging.getLogger(__name__)


class Handle(Protocol):
    """A law as this process has it, and as it travels; `owner` tells the numbers of one engine's axes from another's."""

    @property
    def owner(self) -> str: ...
    @property
    def bench(self) -> Workbench: ...
    @property
    def data(self) -> LawData: ...


class Walk(Protocol):
    """Blocks under way: a context that ends them, and an iterator over their answers, in order."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def __iter__(self) -> Iterator[Answer]: ...


class Crew(Protocol):
    """Who walks blocks."""

    @property
    def ahead(self) -> bool:
        """Whether who walks a pair will be the one that is asked for more of it."""
        ...

    @property
    def workers(self) -> int:
        """How many walk at once; 1 where that is not known."""
        ...

    def walk(self, law: Handle, blocks: Iterator[Block]) -> Walk: ...
    def forecast(self, law: Handle, block: Block, vectors: bool) -> tuple[float, float]: ...


# ------------------------------------------------------------------ here


@dataclass(frozen=True)
class Threads:
    """Threads of this process; one does without."""

    workers: int
    ahead = True

    def walk(self, law: Handle, blocks: Iterator[Block]) -> Walk:
        return _InThreads(law.bench, blocks, self.workers)

    def forecast(self, law: Handle, block: Block, vectors: bool) -> tuple[float, float]:
        return law.bench.forecast(block, vectors)


class _InThreads:
    def __init__(self, bench: Workbench, blocks: Iterator[Block], threads: int) -> None:
        self._bench, self._blocks = bench, blocks
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None
        self._ahead = 4 * threads

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def __iter__(self) -> Iterator[Answer]:
        if self._pool is None:
            for block in self._blocks:
                yield self._bench.work(block)
            return
        for block in self._blocks:
            # the first one compiles the loops and fills the tables that the others share
            yield self._bench.work(block)
            break
        out: deque[Future[Answer]] = deque()
        for block in self._blocks:
            out.append(self._pool.submit(self._bench.work, block))
            if len(out) >= self._ahead:
                yield out.popleft().result()
        for future in out:
            yield future.result()


# ------------------------------------------------------------------ elsewhere


@dataclass(frozen=True)
class Job:
    """What travels to a worker: a block, or one to be forecast (`vectors` says for what), and the law where it may be new."""

    version: str
    owner: str
    key: str
    law: LawData | None
    block: Block
    vectors: bool | None = None


@dataclass(frozen=True)
class Unknown:
    """A worker's answer to a job whose law it does not know."""

    worker: str


_laws: OrderedDict[str, BLaw] = OrderedDict()
_benches: OrderedDict[tuple[str, str], Workbench] = OrderedDict()
_lock = Lock()


def work(job: Job) -> Answer | Unknown | tuple[float, float]:
    """What a worker does with a job. Raises ExecutorError where its version of elbotree is another."""
    if job.version != version():
        raise ExecutorError(
            f"a worker has elbotree {version()}, and this process {job.version}; install the same version for both"
        )
    bench = _bench(job)
    if bench is None:
        time.sleep(_PAUSE)
        return Unknown(f"{socket.gethostname()}:{os.getpid()}")
    if job.vectors is not None:
        return bench.forecast(job.block, job.vectors)
    with _lock:
        others = sum(other.bytes for other in _benches.values() if other is not bench)
        while others > KEPT_BYTES // 2 and len(_benches) > 1:
            others -= _benches.pop(next(at for at, other in _benches.items() if other is not bench)).bytes
    return bench.work(job.block, KEPT_BYTES - others)


def _bench(job: Job) -> Workbench | None:
    """The workbench of a job's engine and law; None where the law is not known."""
    at = job.owner, job.key
    with _lock:
        if at in _benches:
            _benches.move_to_end(at)
            return _benches[at]
        law = _laws.get(job.key)
    if law is None:
        if job.law is None:
            return None
        law = job.law.built()
    with _lock:
        _laws[job.key] = law
        _laws.move_to_end(job.key)
        while len(_laws) > _LAWS:
            _laws.popitem(last=False)
        bench = _benches.setdefault(at, Workbench(law))
        while len(_benches) > _BENCHES:
            _benches.popitem(last=False)
    return bench


def version() -> str:
    """The version of elbotree that runs here."""
    from elbotree import __version__

    return __version__


# how many jobs carried each law to an executor
_carried: weakref.WeakKeyDictionary[Executor, dict[str, int]] = weakref.WeakKeyDictionary()


class Elsewhere:
    """A `concurrent.futures` executor: processes, Dask's `client.get_executor()`, MPI.

    Raises InputError for anything else.
    """

    ahead = False
    workers = 1

    def __init__(self, executor: Executor) -> None:
        if not isinstance(executor, Executor):
            raise InputError(
                f"`executor` is a {type(executor).__name__}; it must be a concurrent.futures executor, such as "
                "ProcessPoolExecutor(), dask's client.get_executor(), or mpi4py's MPIPoolExecutor()"
            )
        self._executor = executor
        self._carried = _carried.setdefault(executor, {})

    def walk(self, law: Handle, blocks: Iterator[Block]) -> Walk:
        return _Sent(self._executor, self._carried, law, blocks)

    def forecast(self, law: Handle, block: Block, vectors: bool) -> tuple[float, float]:
        job = Job(version(), law.owner, law.data.key, law.data, block, vectors)
        try:
            answer = self._executor.submit(work, job).result()
        except ElbotreeError:
            raise
        except Exception as error:
            raise lost(self._executor, error, 0) from error
        assert isinstance(answer, tuple)
        return answer


def lost(executor: Executor, error: BaseException, done: int) -> ExecutorError:
    """The error that says which executor gave up, when, why, and what to do."""
    name = type(executor).__name__
    reason = f"{type(error).__name__}: {error}".removesuffix(": ")
    return ExecutorError(
        f"the executor {name} stopped working after {done} blocks of pairs ({reason}); look for workers that were killed, often "
        "for want of memory, or for a lost connection, make a new executor, and call again with it (a fit goes on from its "
        "checkpoint with resume=True)"
    )


class _Sent:
    """Blocks at an executor."""

    def __init__(self, executor: Executor, carried: dict[str, int], law: Handle, blocks: Iterator[Block]) -> None:
        self._executor, self._carried, self._law, self._blocks = executor, carried, law, blocks
        self._done: queue.SimpleQueue[Future[object]] = queue.SimpleQueue()
        self._out: dict[Future[object], int] = {}
        self._waiting: dict[int, Block] = {}
        self._tries: dict[int, int] = {}
        self._owed: dict[int, str] = {}  # blocks that carry the law to a worker that asked
        self._numbers = count()
        self._answered = 0

    def __enter__(self) -> Self:
        self._fill()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for future in self._out:
            future.cancel()

    def __iter__(self) -> Iterator[Answer]:
        early: dict[int, Answer] = {}
        following = 0
        while self._out:
            number, answer = self._next()
            if answer is None:
                continue
            del self._waiting[number]
            early[number] = answer
            self._carried[self._law.data.key] = _CARRYING  # it has arrived
            self._answered += 1
            self._fill()
            while following in early:
                yield early.pop(following)
                following += 1

    def _fill(self) -> None:
        while len(self._out) < _AHEAD:
            block = next(self._blocks, None)
            if block is None:
                return
            number = next(self._numbers)
            self._waiting[number] = block
            key = self._law.data.key
            self._carried[key] = self._carried.get(key, 0) + 1
            self._send(number, self._carried[key] <= _CARRYING)

    def _send(self, number: int, carry: bool) -> None:
        law = self._law.data
        job = Job(version(), self._law.owner, law.key, law if carry else None, self._waiting[number])
        try:
            future: Future[object] = self._executor.submit(work, job)
        except Exception as error:  # it is broken, or was shut down
            raise lost(self._executor, error, self._answered) from error
        self._out[future] = number
        future.add_done_callback(self._done.put)

    def _next(self) -> tuple[int, Answer | None]:
        """The next block that is done, with its answer; None where it had to be sent again."""
        while True:
            try:
                future = self._done.get(timeout=_QUIET)
                break
            except queue.Empty:
                _log.warning(
                    "no block of pairs came back from %s for %g s; %d are out, %d are done",
                    type(self._executor).__name__,
                    _QUIET,
                    len(self._out),
                    self._answered,
                )
        number = self._out.pop(future)
        worker = self._owed.pop(number, None)
        try:
            answer = future.result()
        except ElbotreeError:
            raise
        except (BrokenExecutor, CancelledError) as error:
            raise lost(self._executor, error, self._answered) from error
        except Exception as error:
            self._tries[number] = self._tries.get(number, 0) + 1
            if self._tries[number] >= _TRIES:
                raise lost(self._executor, error, self._answered) from error
            self._send(number, True)
            return number, None
        if isinstance(answer, Unknown):
            carry = answer.worker not in self._owed.values()
            if carry:
                self._owed[number] = answer.worker
            self._send(number, carry or worker is not None)
            return number, None
        assert isinstance(answer, Answer)
        return number, answer
