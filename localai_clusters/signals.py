"""SIGTERM and SIGHUP as a KeyboardInterrupt, so that a launcher that is asked to end tidies up as after Ctrl-C."""

import contextlib
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def as_interrupt() -> Iterator[None]:
    def interrupt(_signum, _frame):
        raise KeyboardInterrupt

    before = {signum: signal.signal(signum, interrupt) for signum in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
