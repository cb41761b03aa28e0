"""Who walks blocks of pairs: threads of this process, or any `concurrent.futures` executor, which takes single features too.

Blocks go out as they are made and answers come back in the order of the blocks, whoever is done first: what is made of them does
not depend on how many workers there are. What nobody has taken up when this process has nothing else to do it takes back, the
last ones first, so that it works too: with one worker there are two who work. To an executor the law travels with the first
blocks only; a worker that does not know it (it joined late, or was started anew) says so, and gets it with the next one. A task
that fails is tried again; an executor that is lost, or that is known to have no workers for too long, ends the work with an
`ExecutorError`.
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
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import count, islice
from threading import Lock
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar, cast

from elbotree.runtime.blas import one_thread
from elbotree.runtime.errors import ElbotreeError, ExecutorError, InputError
from elbotree.runtime.frames import Sums
from elbotree.runtime.pair_blocks import KEPT_BYTES, Answer, Block, BuiltLaw, LawData, Workbench
from elbotree.runtime.single_blocks import Single

_AHEAD = 4096  # blocks that are out at once
_CARRYING = 16  # of the first blocks under a law that carry it, until one is answered
_TRIES = 3  # of a task that raises
_PAUSE = 0.02  # seconds before a worker that does not know the law answers, so that it does not empty the queue
_QUIET = 60.0  # seconds without an answer that are worth a word
_LOOK = 5.0  # seconds between looks at how many workers there are, while no answer comes
_PATIENCE = 300.0  # seconds without a worker after which the work is given up
PATIENCE = "ELBOTREE_WORKER_TIMEOUT"
"""The environment variable that sets these seconds."""
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
    def singles(
        self, law: LawData, singles: Iterator[Single]
    ) -> AbstractContextManager[Iterator[tuple[int, Sums | None]]]:
        """Single features, each by its number with its sums, in any order; None for one that this process is to make meanwhile.
        Those that do not come up are made when they are read."""
        ...

    def forecast(self, law: Handle, block: Block, vectors: bool) -> tuple[float, float]: ...


# ------------------------------------------------------------------ here


@dataclass(frozen=True)
class Threads:
    """Threads of this process; one does without."""

    workers: int
    ahead = True

    def walk(self, law: Handle, blocks: Iterator[Block]) -> Walk:
        return _InThreads(law.bench, blocks, self.workers)

    def singles(
        self, law: LawData, singles: Iterator[Single]
    ) -> AbstractContextManager[Iterator[tuple[int, Sums | None]]]:
        for _ in singles:  # each is found out about, and made when it is read
            pass
        return nullcontext(iter(()))

    def forecast(self, law: Handle, block: Block, vectors: bool) -> tuple[float, float]:
        return law.bench.forecast(block, vectors)


class _InThreads:
    def __init__(self, bench: Workbench, blocks: Iterator[Block], threads: int) -> None:
        self._bench, self._blocks = bench, blocks
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None
        self._most = 16 * threads
        self._out: deque[Future[Answer]] = deque()

    def __enter__(self) -> Self:
        if self._pool is None:
            return self
        for block in self._blocks:
            # the first one compiles the loops and fills the tables that the others share
            first: Future[Answer] = Future()
            first.set_result(self._bench.work(block))
            self._out.append(first)
            break
        try:
            self._submit(self._pool)
        except BaseException:  # a block that cannot be made: `__exit__` will not be called
            self._pool.shutdown(cancel_futures=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def __iter__(self) -> Iterator[Answer]:
        if self._pool is None:
            yield from map(self._bench.work, self._blocks)
            return
        while self._out:
            answer = self._out.popleft().result()
            self._submit(self._pool)
            yield answer

    def _submit(self, pool: ThreadPoolExecutor) -> None:
        for block in islice(self._blocks, self._most - len(self._out)):
            self._out.append(pool.submit(self._bench.work, block))


# ------------------------------------------------------------------ elsewhere


@dataclass(frozen=True)
class Job:
    """What travels to a worker: a block of pairs, one to be forecast (`vectors` says for what), or a single feature; and the law
    where it may be new."""

    version: str
    owner: str
    key: str
    law: LawData | None
    block: Block | Single
    vectors: bool | None = None


@dataclass(frozen=True)
class Unknown:
    """A worker's answer to a job whose law it does not know."""

    worker: str


_laws: OrderedDict[str, BuiltLaw] = OrderedDict()
_benches: OrderedDict[tuple[str, str], Workbench] = OrderedDict()
_lock = Lock()


def work(job: Job) -> Answer | Sums | Unknown | tuple[float, float]:
    """What a worker does with a job. Raises ExecutorError where its version of elbotree is another."""
    if job.version != version():
        raise ExecutorError(
            f"a worker has elbotree {version()}, and this process {job.version}; install the same version for both"
        )
    with one_thread():
        return _worked(job)


def _worked(job: Job) -> Answer | Sums | Unknown | tuple[float, float]:
    law = _law(job)
    if law is None:
        time.sleep(_PAUSE)
        return Unknown(f"{socket.gethostname()}:{os.getpid()}")
    if isinstance(job.block, Single):
        return job.block.made(law)
    bench = _bench(job, law)
    if job.vectors is not None:
        return bench.forecast(job.block, job.vectors)
    with _lock:
        others = sum(other.bytes for other in _benches.values() if other is not bench)
        while others > KEPT_BYTES // 2 and len(_benches) > 1:
            others -= _benches.pop(next(at for at, other in _benches.items() if other is not bench)).bytes
    return bench.work(job.block, KEPT_BYTES - others)


def _law(job: Job) -> BuiltLaw | None:
    """The law of a job; None where it is not known."""
    with _lock:
        law = _laws.get(job.key)
    if law is None:
        if job.law is None:
            return None
        law = job.law.built()
    with _lock:
        law = _laws.setdefault(job.key, law)
        _laws.move_to_end(job.key)
        while len(_laws) > _LAWS:
            _laws.popitem(last=False)
    return law


def _bench(job: Job, law: BuiltLaw) -> Workbench:
    """The workbench of a job's engine and law."""
    at = job.owner, job.key
    with _lock:
        bench = _benches.get(at)
    if bench is None:
        bench = Workbench(law.pairs)
    with _lock:
        bench = _benches.setdefault(at, bench)
        _benches.move_to_end(at)
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
        return _Pairs(self._executor, self._carried, law, blocks)

    def singles(
        self, law: LawData, singles: Iterator[Single]
    ) -> AbstractContextManager[Iterator[tuple[int, Sums | None]]]:
        return _Singles(self._executor, self._carried, "", law, singles)

    def forecast(self, law: Handle, block: Block, vectors: bool) -> tuple[float, float]:
        job = Job(version(), law.owner, law.data.key, law.data, block, vectors)
        watch = _Watch(self._executor, patience())
        try:
            future = self._executor.submit(work, job)
            while not wait([future], watch.pause).done:
                watch.look(0)
            answer = future.result()
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


Asked = TypeVar("Asked", Block, Single)
Found = TypeVar("Found", Answer, Sums)


def patience() -> float:
    """Seconds without a worker after which work is given up. Raises InputError where `PATIENCE` is no positive number."""
    text = os.environ.get(PATIENCE, str(_PATIENCE))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise InputError(f"{PATIENCE} is {text!r}; it must be a positive number of seconds, such as 300")
    return seconds


def workers_of(executor: Executor) -> int | None:
    """How many threads the workers have, of an executor that has a client to ask: Dask's, whose workers may come and go. None of
    any other; 0 where the client does not find out, for what it is connected to is lost, or does not answer."""
    client = getattr(executor, "_client", None)
    if client is None or not hasattr(client, "nthreads"):
        return None
    try:
        return int(sum(client.nthreads(asynchronous=False, callback_timeout=_LOOK).values()))
    except Exception:  # whatever a lost connection raises
        return 0


class _Watch:
    """Of an executor that is waited for: raises ExecutorError once it has had no workers for too long."""

    def __init__(self, executor: Executor, patience: float) -> None:
        self._executor, self._patience = executor, patience
        self._alone: float | None = None
        self.pause = min(_QUIET, _LOOK, patience)

    def look(self, answered: int) -> None:
        now = time.monotonic()
        if workers_of(self._executor) != 0:
            self._alone = None
            return
        self._alone = now if self._alone is None else self._alone
        if now - self._alone >= self._patience:
            reason = TimeoutError(f"it had no worker for {self._patience:g} s; {PATIENCE} sets how long is waited")
            raise lost(self._executor, reason, answered) from None


class _Sent(Generic[Asked, Found]):
    """Work at an executor: what is out, and what became of it."""

    def __init__(
        self, executor: Executor, carried: dict[str, int], owner: str, law: LawData, blocks: Iterator[Asked]
    ) -> None:
        self._executor, self._carried, self._owner, self._law = executor, carried, owner, law
        self._blocks: Iterator[Asked] = blocks
        self._done: queue.SimpleQueue[Future[object]] = queue.SimpleQueue()
        self._out: dict[Future[object], int] = {}
        self._waiting: dict[int, Asked] = {}
        self._tries: dict[int, int] = {}
        self._owed: dict[int, str] = {}  # blocks that carry the law to a worker that asked
        self._numbers = count()
        self._answered = 0
        self._patience = patience()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for future in self._out:
            future.cancel()

    def _fill(self) -> None:
        while len(self._out) < _AHEAD:
            block = next(self._blocks, None)
            if block is None:
                return
            number = next(self._numbers)
            self._waiting[number] = block
            key = self._law.key
            self._carried[key] = self._carried.get(key, 0) + 1
            self._send(number, self._carried[key] <= _CARRYING)

    def _send(self, number: int, carry: bool) -> None:
        law = self._law
        job = Job(version(), self._owner, law.key, law if carry else None, self._waiting[number])
        try:
            future: Future[object] = self._executor.submit(work, job)
        except Exception as error:  # it is broken, or was shut down
            raise lost(self._executor, error, self._answered) from error
        self._out[future] = number
        future.add_done_callback(self._done.put)

    def _taken_back(self) -> tuple[int, Asked] | None:
        """The last of the blocks that nobody has begun, which is no longer out, with its number; None where all are begun. One
        that is done (a lost connection cancels what is out) is left to be read."""
        for future, number in reversed(self._out.items()):
            if not future.done() and future.cancel():
                del self._out[future]
                self._owed.pop(number, None)
                return number, self._waiting.pop(number)
        return None

    def _ready(self) -> Future[object] | None:
        """One that is done, if there is one."""
        while not self._done.empty():
            future = self._done.get()
            if future in self._out:  # and was not taken back
                return future
        return None

    def _awaited(self) -> Future[object]:
        """The next one that is done, with a word where none is for long. Raises ExecutorError where there are no workers."""
        since = told = time.monotonic()
        watch = _Watch(self._executor, self._patience)
        while True:
            try:
                future = self._done.get(timeout=watch.pause)
            except queue.Empty:
                now = time.monotonic()
                if now - told >= _QUIET:
                    told = now
                    name, out, done = type(self._executor).__name__, len(self._out), self._answered
                    _log.warning("no answer from %s for %g s; %d are out, %d are done", name, now - since, out, done)
                watch.look(self._answered)
            else:
                if future in self._out:
                    return future

    def _answer(self, future: Future[object]) -> tuple[int, Found | None]:
        """The number and the answer of one that is done; None where it had to be sent again."""
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
        del self._waiting[number]
        self._carried[self._law.key] = _CARRYING  # it has arrived
        self._answered += 1
        return number, cast(Found, answer)


class _Pairs(_Sent[Block, Answer]):
    """Blocks of pairs: their answers in order, the last ones being made here while none comes."""

    def __init__(self, executor: Executor, carried: dict[str, int], law: Handle, blocks: Iterator[Block]) -> None:
        super().__init__(executor, carried, law.owner, law.data, blocks)
        self._here = law

    def __enter__(self) -> Self:
        self._fill()
        return self

    @cached_property
    def _hands(self) -> int | None:
        return workers_of(self._executor)

    def _spare(self) -> bool:
        """Whether there may be blocks that nobody has begun. Dask's futures do not say: there, as many as its workers have
        threads are left to them; and where it has no worker, this process does not do all of their work alone."""
        return self._hands is None or 0 < self._hands < len(self._out)

    def __iter__(self) -> Iterator[Answer]:
        early: dict[int, Answer] = {}
        following = 0
        while self._out:
            future = self._ready()
            if future is None and self._spare() and (back := self._taken_back()) is not None:
                number, block = back
                answer = self._here.bench.work(block)
            else:
                number, found = self._answer(future or self._awaited())
                if found is None:
                    continue
                answer = found
            early[number] = answer
            self._fill()
            while following in early:
                yield early.pop(following)
                following += 1


class _Singles(_Sent[Single, Sums]):
    """Single features: their sums as they come, the last ones being taken back while none comes."""

    def __enter__(self) -> Iterator[tuple[int, Sums | None]]:
        self._fill()
        return self._found()

    def _found(self) -> Iterator[tuple[int, Sums | None]]:
        while self._out:
            future = self._ready()
            if future is None and (back := self._taken_back()) is not None:
                self._fill()
                yield back[0], None
                continue
            number, sums = self._answer(future or self._awaited())
            if sums is not None:
                self._fill()
                yield number, sums
