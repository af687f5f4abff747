"""The threads of calls: which pool a method runs in, and how long a call may hold a thread.

gRPC's own way is one pool for everything, in which a call holds a thread from its headers to its
status. Here short calls, uploads and diagnoses have a pool each. A call that waits for a message is
ended after some time, and earlier if its caller has many such calls. A block that waits for its
turn holds no thread at all: see :class:`Later`.

Requests that are no messages, or say what no host can mean, end in INVALID_ARGUMENT, with one line
in the log. gRPC's own way is INTERNAL, a traceback, and some 16 KB of memory for each.
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
"""Messages come with the headers of honest calls, or soon after."""
_BYTES_PER_S = 10_000
"""A slower sender is ended, once it has used up what its pool allows it beyond that."""
_SEND_S = 60.0
"""A client that takes no answer for so long has gone. One that still renews its lease may be busy,
and takes its block's result later."""


class Pool(NamedTuple):
    """Threads for some methods.

    Attributes:
        first_s: a call's first message comes within so long.
        allowance_s: all its messages come at ``_BYTES_PER_S``, and so much time beyond that.
        most_silent: calls of one caller that wait for a message at a time; of more, those that
            have waited longest are ended.
        most_calls: of one caller at a time; further ones are told to come again.
    """

    name: str
    threads: int
    first_s: float
    allowance_s: float
    most_silent: int
    most_calls: int


# Threads are started as they are needed. One caller never holds all of those that work for long.
SHORT = Pool("esm-rpc", 64, first_s=5.0, allowance_s=5.0, most_silent=8, most_calls=64)
RECEIVE = Pool("esm-receive", 256, first_s=20.0, allowance_s=60.0, most_silent=32, most_calls=192)
DIAGNOSE = Pool("esm-diagnose", 16, first_s=5.0, allowance_s=5.0, most_silent=4, most_calls=8)
_SEND_THREADS = 256
_MOST_UNTAKEN = 64
"""Results that one caller lets lie for longer than ``_SEND_S``, a thread each."""

_POOLS = {
    "/esm.v1.Profiler/MeasureBlock": RECEIVE,
    "/esm.v1.Profiler/Upload": RECEIVE,
    "/esm.v1.Profiler/Diagnose": DIAGNOSE,
}
"""Of all other methods: SHORT."""


class Call:
    """One call, which ends once: by its handler, or by the watch over silent callers.

    Attributes:
        wanted: while it gives False, the call is of no use any more.
        may_take_its_time: whether its client may leave the answer for later.
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
        """True for the first who asks, who then has to end the call."""
        with self._lock:
            ended, self._ended = self._ended, True
            return not ended

    def send(self, message: Any) -> None:
        """Waits until the client can take it; does nothing once the call has ended."""
        self._send(message)

    def finish(self, code: grpc.StatusCode = grpc.StatusCode.OK, details: str = "") -> bool:
        """Ends the call; False where that has happened already."""
        if not self.claim():
            return False
        if code is not grpc.StatusCode.OK:
            self.context.set_code(code)
            self.context.set_details(details)
        self._send(None)
        return True


class Incoming(Iterator[Any]):
    """The messages of one call, as they come."""

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
        """Why the call is to be ended; None while it may go on."""
        if not self.call.wanted():
            return _UNWANTED
        if self._received is None:
            if now - self._began > self.pool.first_s:
                return f"nothing came for {self.pool.first_s:g} s"
        elif now - self._began > self.pool.allowance_s + self._received / _BYTES_PER_S:
            return f"too little came: {self._received} bytes in {now - self._began:.0f} s"
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
            self._refuse(f"the request makes no sense: {error}")
        except Exception:  # whatever else protobuf may raise: it is the client's fault
            self._refuse("the request is no message of this method")
        return message

    def _refuse(self, reason: str) -> NoReturn:
        self._refused(self.call, grpc.StatusCode.INVALID_ARGUMENT, reason)
        self.call.context.abort(grpc.StatusCode.INVALID_ARGUMENT, reason)
        raise AssertionError  # abort() raises; this tells type checkers so


class Source(Protocol):
    """The answer to a call, in pieces that come at any time."""

    def listen(self, ready: Callable[[], None]) -> None:
        """Calls ``ready`` when there is something to take, from any thread, also at once."""

    def take(self) -> Any:
        """Return the next piece; None where there is none yet."""


class Later:
    """A stream's answer that comes later: no thread waits for it.

    Args:
        source: of events.
        messages: of an event; raises what the call ends with.
        is_last: whether an event is the last one.
        status: of an error.
        close: called once when the call has ended.
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
        """Sends what there is; only one thread at a time is in here."""
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
        finally:  # whatever fails, the block is not kept open
            if last:
                self._over = True
                self._close()


class Calls(grpc.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """Runs methods in their pools and watches over those who keep silent.

    Args:
        caller_of: the name under which the calls of a caller are counted.
        metrics: counts refusals.
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
        """Once the server has stopped."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._watch.join()
        for pool in (*self._pools.values(), self._senders):
            pool.shutdown(wait=False)

    def submit(self, work: Callable[[], None]) -> None:
        """Runs what sends, on a thread of its own."""
        with contextlib.suppress(RuntimeError):  # the agent stops: nobody is there to send to
            self._senders.submit(work)

    @contextmanager
    def sending(self, call: Call) -> Iterator[None]:
        """Within, the call waits for its client to take a message, which must not take long."""
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
        """Fits methods of every kind. As a stream in both directions, nothing is read before the
        method asks for it."""
        method = (
            handler.unary_unary
            or handler.unary_stream
            or handler.stream_unary
            or handler.stream_stream
        )

        def run(messages: Iterator[bytes], context: grpc.ServicerContext, send: Any) -> None:
            call = Call(context, self._caller_of(context), send)
            incoming = Incoming(call, pool, messages, handler.request_deserializer, self._tell)
            if not self._add(incoming):
                self._refuse(call, f"{pool.most_calls} such calls of this caller run already")
                return
            try:
                reply = method(incoming if handler.request_streaming else _only(incoming), context)
                if isinstance(reply, Later):
                    reply.start(call, self)
                    return
                for message in reply if handler.response_streaming else (reply,):
                    with self.sending(call):
                        call.send(message)
            except Exception:
                if call.claim():
                    raise
                return  # it was ended from elsewhere, which this is the echo of
            finally:
                self._remove(incoming)
            call.finish()

        # What lets gRPC's health service answer without a thread. Where gRPC should not know
        # these any more every call would fail, and so would all tests.
        run.experimental_non_blocking = True  # type: ignore[attr-defined]
        run.experimental_thread_pool = self._pools[pool]  # type: ignore[attr-defined]
        return grpc.stream_stream_rpc_method_handler(
            run, response_serializer=handler.response_serializer
        )

    def _add(self, incoming: Incoming) -> bool:
        """False where its caller has too many already."""
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
        """Asleep while there is nobody to wait for: the device may be measuring."""
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
        # ABORTED: nothing is wrong with the call, and the host tries again.
        if call.finish(grpc.StatusCode.ABORTED, reason):
            self._tell(call, grpc.StatusCode.ABORTED, reason)

    def _tell(self, call: Call, code: grpc.StatusCode, reason: str) -> None:
        self._metrics.refused(code.name)
        peer = call.context.peer()
        logs.sparing(log, logging.WARNING, "refused", reason=reason, code=code.name, peer=peer)


def keep_while(messages: Iterator[Any], wanted: Callable[[], bool]) -> None:
    """Ends the call that the messages are of as soon as ``wanted`` gives False."""
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
            yield each, f"more than {pool.most_silent} calls of this caller send nothing"


def _untaken(sending: list[tuple[Call, float]], now: float) -> Iterator[Call]:
    """Calls whose clients take no answer and are not to be waited for."""
    lying: defaultdict[str, list[Call]] = defaultdict(list)
    for call, since in sending:  # the oldest first
        if now - since <= _SEND_S:
            continue
        if call.may_take_its_time and call.wanted():
            lying[call.caller].append(call)
        else:
            yield call
    for calls in lying.values():
        yield from calls[: max(len(calls) - _MOST_UNTAKEN, 0)]


def _attempt(end: Callable[[], object]) -> None:
    """End one call; what goes wrong with it does not end the watch over the others."""
    try:
        end()
    except Exception:
        log.exception("a call could not be ended")


def _only(incoming: Incoming) -> Any:
    message = next(incoming, None)
    if message is None:
        incoming.call.context.abort(
            grpc.StatusCode.INVALID_ARGUMENT, "the call came without a request"
        )
    return message


def _threads(pool: Pool) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(pool.threads, thread_name_prefix=pool.name)
