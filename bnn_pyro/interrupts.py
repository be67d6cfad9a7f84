"""Ctrl-C and a request to terminate as a flag that a loop looks at, so that what is done is kept and nothing is torn."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_STOP_FILE: ContextVar[Path | None] = ContextVar("stop_file", default=None)


class Interrupts:
    """``pressed`` once a signal has come, or a stop file is there; a second signal raises KeyboardInterrupt where it strikes.

    Args:
        then: Called when the first signal comes.
    """

    def __init__(self, then: Callable[[], object] | None = None):
        self._came, self._then = False, then
        self._stop_file = _STOP_FILE.get()

    @property
    def pressed(self) -> bool:
        return self._came or (self._stop_file is not None and self._stop_file.exists())

    def _receive(self, *_: Any) -> None:
        if self._came:
            raise KeyboardInterrupt
        self._came = True
        if self._then is not None:
            self._then()


@contextmanager
def watch_interrupts(then: Callable[[], object] | None = None) -> Iterator[Interrupts]:
    """Watches SIGINT and SIGTERM inside the body and gives the handlers back; only the main thread can.

    A signal that the caller ignores stays ignored.
    """
    flag = Interrupts(then)
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    before = {s: signal.getsignal(s) for s in SIGNALS}
    try:
        for s, handler in before.items():
            if handler not in (signal.SIG_IGN, None):
                signal.signal(s, flag._receive)
        yield flag
    finally:
        for s, handler in before.items():
            if handler is not None:
                signal.signal(s, handler)


@contextmanager
def stopped_by(file: Path) -> Iterator[None]:
    """Inside it, an interrupt of this thread's work is a file that another process makes."""
    token = _STOP_FILE.set(file)
    try:
        yield
    finally:
        _STOP_FILE.reset(token)
