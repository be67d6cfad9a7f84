"""Ctrl-C and a request to terminate as a flag that a loop looks at, so that what is done is kept and nothing is torn."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """``pressed`` once a signal has come; a second one raises KeyboardInterrupt where it strikes."""

    pressed = False

    def _receive(self, *_: Any) -> None:
        if self.pressed:
            raise KeyboardInterrupt
        self.pressed = True


@contextmanager
def watch_interrupts() -> Iterator[Interrupts]:
    """Watches SIGINT and SIGTERM inside the body and gives the handlers back; only the main thread can.

    A signal that the caller ignores stays ignored.
    """
    flag = Interrupts()
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
