"""Thread pools of calls, with limits on the time for which a call holds a thread.

gRPC uses a single pool, in which a call holds a thread from its headers to its status. Here short
calls, uploads and diagnoses have a pool each. A call that waits for a message is ended after some
time, and earlier if its caller has many such calls. A block that waits for its turn holds no
thread (:class:`DeferredAnswer`).

An invalid request ends with INVALID_ARGUMENT and one line in the log. With gRPC alone it would
end with INTERNAL, a traceback, and about 16 KB of lost memory.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, NoReturn, Protocol

import grpc

from esm_agent.operation import logs
from esm_agent.operation.metrics import Metrics
from esm_protos.received import NonsenseError, check

log = logging.getLogger(__name__)

_UNWANTED = "the block's lease has ended"
_TICK_S = 0.5
_SILENT_S = 0.25
"""Time without a message after which a call counts as silent, seconds. The messages of a correct
client follow the headers at once."""
_BYTES_PER_S = 10_000
"""Minimum rate of a sender, after its pool's allowance is used up."""
_SEND_S = 60.0
"""Time after which a client that does not read an answer counts as gone, seconds. A client that
renews its lease may be busy, and can read its block's result later."""


class Pool(NamedTuple):
    """Thread pool of some methods, with limits of their calls.

    Attributes:
        name: Prefix of the threads' names.
        threads: Maximum number of threads.
        first_s: Maximum time until a call's first message, seconds.
        allowance_s: Extra time for all messages beyond the time at ``_BYTES_PER_S``, seconds.
        most_silent: Maximum number of silent calls of a caller; beyond it the oldest are ended.
        most_calls: Maximum number of calls of a caller; further ones are refused for now.
    """

    name: str
    threads: int
    first_s: float
    allowance_s: float
    most_silent: int
    most_calls: int


# Threads start on demand. The limits keep a single caller from using all threads of a pool.
SHORT = Pool("esm-rpc", 64, first_s=5.0, allowance_s=5.0, most_silent=8, most_calls=64)
RECEIVE = Pool("esm-receive", 256, first_s=20.0, allowance_s=60.0, most_silent=32, most_calls=192)
DIAGNOSE = Pool("esm-diagnose", 16, first_s=5.0, allowance_s=5.0, most_silent=4, most_calls=8)
_SEND_THREADS = 256
_MOST_UNTAKEN = 64
"""Maximum number of results that a caller leaves unread for longer than ``_SEND_S``; each holds a
thread."""

_POOLS = {
    "/esm.v1.Profiler/MeasureBlock": RECEIVE,
    "/esm.v1.Profiler/Upload": RECEIVE,
    "/esm.v1.Profiler/Diagnose": DIAGNOSE,
}
"""Pool of each method; all other methods use SHORT."""


class Call:
    """Call that ends once, by its handler or by the watch over silent calls.

    Attributes:
        wanted: Function that returns whether the call is still useful.
        may_take_its_time: Whether its client may read the answer late.
    """

    def __init__(
        self, context: grpc.ServicerContext, caller: str, send: Callable[[Any], None]
    ) -> None:
        self.context = context
        self.caller = caller
        self.wanted: Callable[[], bool] = lambda: True
        self.may_take_its_time = False
        self._send = send
        self._lock = threading.Lock()
        self._ended = False

    def claim(self) -> bool:
        """Return True to the first caller of this method, which must then end the call."""
        with self._lock:
            ended, self._ended = self._ended, True
            return not ended

    def send(self, message: Any) -> None:
        """Send a message when the client can read it; do nothing once the call has ended."""
        self._send(message)

    def finish(self, code: grpc.StatusCode = grpc.StatusCode.OK, details: str = "") -> bool:
        """End the call; return False if it has ended already."""
        if not self.claim():
            return False
        if code is not grpc.StatusCode.OK:
            self.context.set_code(code)
            self.context.set_details(details)
        self._send(None)
        return True


class Incoming(Iterator[Any]):
    """Messages of a call, in the order in which they arrive."""

    def __init__(
        self,
        call: Call,
        pool: Pool,
        messages: Iterator[bytes],
        parse: Any,
        refused: Callable[[Call, grpc.StatusCode, str], None],
    ) -> None:
        self.call = call
        self.pool = pool
        self.silent_since: float | None = None
        self._messages = messages
        self._parse = parse
        self._refused = refused
        self._began = time.monotonic()
        self._received: int | None = None

    def overdue(self, now: float) -> str | None:
        """Return why the call must end; None while it may continue."""
        if not self.call.wanted():
            return _UNWANTED
        if self._received is None:
            if now - self._began > self.pool.first_s:
                return f"no message for {self.pool.first_s:g} s"
        elif now - self._began > self.pool.allowance_s + self._received / _BYTES_PER_S:
            return f"too slow: {self._received} bytes in {now - self._began:.0f} s"
        return None

    def __next__(self) -> Any:
        if not self.call.wanted():
            self.call.context.abort(grpc.StatusCode.ABORTED, _UNWANTED)
        self.silent_since = time.monotonic()
        try:
            data = next(self._messages)
        finally:
            self.silent_since = None
        self._received = (self._received or 0) + len(data)
        try:
            message = self._parse(data)
            check(message)
        except NonsenseError as error:
            self._refuse(f"invalid request: {error}")
        except Exception:  # protobuf raises other errors for some invalid bytes
            self._refuse("the request is not a message of this method")
        return message

    def _refuse(self, reason: str) -> NoReturn:
        self._refused(self.call, grpc.StatusCode.INVALID_ARGUMENT, reason)
        self.call.context.abort(grpc.StatusCode.INVALID_ARGUMENT, reason)
        raise AssertionError  # for type checkers: abort() always raises


class Source(Protocol):
    """Source of events that become the answer to a call."""

    def listen(self, ready: Callable[[], None]) -> None:
        """Set a function to call, from any thread, when there is an event to take."""

    def take(self) -> Any:
        """Return the next event; None if there is none yet."""


class DeferredAnswer:
    """Answer that streams events as they occur, without a waiting thread.

    Args:
        source: Source of the events.
        messages: Function that yields the messages of an event, or raises the call's error.
        is_last: Function that returns whether an event is the last one.
        status: Function that returns the status of an error.
        close: Function to call once when the call has ended.
    """

    def __init__(
        self,
        source: Source,
        messages: Callable[[Any], Iterator[Any]],
        is_last: Callable[[Any], bool],
        status: Callable[[Exception], tuple[grpc.StatusCode, str]],
        close: Callable[[], None],
    ) -> None:
        self._source = source
        self._messages = messages
        self._is_last = is_last
        self._status = status
        self._close = close
        self._lock = threading.Lock()
        self._busy = self._again = self._over = False

    def start(self, call: Call, calls: Calls) -> None:
        call.may_take_its_time = True
        self._call = call
        self._calls = calls
        self._source.listen(self._ready)

    def _ready(self) -> None:
        with self._lock:
            self._again = True
            if self._busy or self._over:
                return
            self._busy = True
        self._calls.submit(self._work)

    def _work(self) -> None:
        """Send the events that have occurred; only one thread at a time runs this."""
        while True:
            with self._lock:
                self._again = False
            while not self._over and (event := self._source.take()) is not None:
                self._pass_on(event)
            with self._lock:
                if self._over or not self._again:
                    self._busy = False
                    return

    def _pass_on(self, event: Any) -> None:
        last = True
        try:
            for message in self._messages(event):
                with self._calls.sending(self._call):
                    self._call.send(message)
            last = self._is_last(event)
            if last:
                self._call.finish()
        except Exception as error:
            self._call.finish(*self._status(error))
        finally:  # also after an error, so that the block does not stay open
            if last:
                self._over = True
                self._close()


class Calls(grpc.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """Interceptor that runs methods in their pools and ends calls of silent clients.

    Args:
        caller_of: Function that returns the name under which a caller's calls are counted.
        metrics: Counters of refused calls.
    """

    def __init__(
        self,
        caller_of: Callable[[grpc.ServicerContext], str],
        metrics: Metrics | None = None,
    ) -> None:
        self._caller_of = caller_of
        self._metrics = metrics or Metrics()
        self.short = _threads(SHORT)
        self._pools = {pool: _threads(pool) for pool in (RECEIVE, DIAGNOSE)} | {SHORT: self.short}
        self._senders = ThreadPoolExecutor(_SEND_THREADS, thread_name_prefix="esm-send")
        self._handlers: dict[str, grpc.RpcMethodHandler] = {}
        self._incoming: set[Incoming] = set()
        self._running: Counter[tuple[Pool, str]] = Counter()
        self._sending: dict[Call, float] = {}
        self._changed = threading.Condition()
        self._stopped = False
        self._watch = threading.Thread(target=self._look, name="esm-calls", daemon=True)
        self._watch.start()

    def stop(self) -> None:
        """End the threads, after the server has stopped."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._watch.join()
        for pool in (*self._pools.values(), self._senders):
            pool.shutdown(wait=False)

    def submit(self, work: Callable[[], None]) -> None:
        """Run a function that sends messages, on a thread of its own."""
        with contextlib.suppress(RuntimeError):  # the agent is stopping
            self._senders.submit(work)

    @contextmanager
    def sending(self, call: Call) -> Iterator[None]:
        """Limit the time for which a call waits until its client reads a message."""
        with self._changed:
            self._sending[call] = time.monotonic()
            self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                del self._sending[call]

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = continuation(details)
        if handler is None:
            return None
        if details.method not in self._handlers:
            self._handlers[details.method] = self._handler(
                handler, _POOLS.get(details.method, SHORT)
            )
        return self._handlers[details.method]

    def _handler(self, handler: grpc.RpcMethodHandler, pool: Pool) -> grpc.RpcMethodHandler:
        """Return a handler that runs a method of any kind in its pool.

        It streams in both directions, so messages are read only when the method needs them.
        """
        method = (
            handler.unary_unary
            or handler.unary_stream
            or handler.stream_unary
            or handler.stream_stream
        )

        def run(messages: Iterator[bytes], context: grpc.ServicerContext, send: Any) -> None:
            call = Call(context, self._caller_of(context), send)
            incoming = Incoming(call, pool, messages, handler.request_deserializer, self._report)
            if not self._add(incoming):
                self._refuse(call, f"this caller has {pool.most_calls} such calls running already")
                return
            try:
                reply = method(incoming if handler.request_streaming else _only(incoming), context)
                if isinstance(reply, DeferredAnswer):
                    reply.start(call, self)
                    return
                for message in reply if handler.response_streaming else (reply,):
                    with self.sending(call):
                        call.send(message)
            except Exception:
                if call.claim():
                    raise
                return  # the call had ended already, which caused this error
            finally:
                self._remove(incoming)
            call.finish()

        # gRPC's own health service uses these attributes to answer without a thread. If gRPC drops
        # them, every call and all tests fail.
        run.experimental_non_blocking = True  # type: ignore[attr-defined]
        run.experimental_thread_pool = self._pools[pool]  # type: ignore[attr-defined]
        return grpc.stream_stream_rpc_method_handler(
            run, response_serializer=handler.response_serializer
        )

    def _add(self, incoming: Incoming) -> bool:
        """Add a call; return False if its caller has the maximum number."""
        key = incoming.pool, incoming.call.caller
        with self._changed:
            if self._running[key] >= incoming.pool.most_calls:
                return False
            self._running[key] += 1
            self._incoming.add(incoming)
            self._changed.notify()
            return True

    def _remove(self, incoming: Incoming) -> None:
        key = incoming.pool, incoming.call.caller
        with self._changed:
            self._incoming.discard(incoming)
            self._running[key] -= 1
            if not self._running[key]:
                del self._running[key]

    def _look(self) -> None:
        """Watch the calls; sleep while there are none, because the device may be measuring."""
        while True:
            with self._changed:
                while not (self._incoming or self._sending or self._stopped):
                    self._changed.wait()
                if self._stopped:
                    return
                self._changed.wait(_TICK_S)
                incoming, sending = list(self._incoming), list(self._sending.items())
            now = time.monotonic()
            for call in _untaken(sending, now):
                _attempt(call.context.cancel)
            for each, reason in _overdue(incoming, now):
                _attempt(partial(self._refuse, each.call, reason))

    def _refuse(self, call: Call, reason: str) -> None:
        # ABORTED: the call is valid, and the host can try again.
        if call.finish(grpc.StatusCode.ABORTED, reason):
            self._report(call, grpc.StatusCode.ABORTED, reason)

    def _report(self, call: Call, code: grpc.StatusCode, reason: str) -> None:
        self._metrics.refused(code.name)
        peer = call.context.peer()
        logs.limited_event(
            log, logging.WARNING, "refused", reason=reason, code=code.name, peer=peer
        )


def keep_while(messages: Iterator[Any], wanted: Callable[[], bool]) -> None:
    """End the call of these messages as soon as ``wanted`` returns False."""
    if isinstance(messages, Incoming):
        messages.call.wanted = wanted


def _overdue(incoming: list[Incoming], now: float) -> Iterator[tuple[Incoming, str]]:
    silent: defaultdict[tuple[Pool, str], list[tuple[float, Incoming]]] = defaultdict(list)
    for each in incoming:
        since = each.silent_since
        if since is None:
            continue
        if (reason := each.overdue(now)) is not None:
            yield each, reason
        elif now - since > _SILENT_S:
            silent[each.pool, each.call.caller].append((since, each))
    for (pool, _), waiting in silent.items():
        waiting.sort(key=lambda pair: pair[0])
        for _, each in waiting[: max(len(waiting) - pool.most_silent, 0)]:
            yield each, f"this caller has more than {pool.most_silent} silent calls"


def _untaken(sending: list[tuple[Call, float]], now: float) -> Iterator[Call]:
    """Yield the calls to end because their clients do not read the answer."""
    unread: defaultdict[str, list[Call]] = defaultdict(list)
    for call, since in sending:  # the oldest first
        if now - since <= _SEND_S:
            continue
        if call.may_take_its_time and call.wanted():
            unread[call.caller].append(call)
        else:
            yield call
    for calls in unread.values():
        yield from calls[: max(len(calls) - _MOST_UNTAKEN, 0)]


def _attempt(end: Callable[[], object]) -> None:
    """End a call; log an error instead of raising it, so that the watch continues."""
    try:
        end()
    except Exception:
        log.exception("a call could not be ended")


def _only(incoming: Incoming) -> Any:
    message = next(incoming, None)
    if message is None:
        incoming.call.context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the call has no request")
    return message


def _threads(pool: Pool) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(pool.threads, thread_name_prefix=pool.name)
