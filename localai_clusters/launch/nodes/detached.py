"""A process that outlives the command that starts it, once that command has said ``keep``.

Until then it watches its standard input: if the command dies halfway, the kernel closes the pipe and the process ends.
It answers one line of JSON when it is ready or says why it cannot be.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from localai_clusters.launch.nodes.state import NodesError, Process

SECONDS_TO_START, SECONDS_TO_END = 20.0, 2.0


class Starting:
    """A started process that has not said yet whether it is ready. ``module`` is run with ``token`` and ``spec``."""

    def __init__(self, module: str, token: str, spec: dict[str, Any]):
        self._name = module
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.{module}", token, json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def ready(self) -> Process:
        """Wait until it says that it is. Raises ``NodesError`` with its words if it is not."""
        said, deadline = b"", time.monotonic() + SECONDS_TO_START
        while not said.endswith(b"\n") or not said.splitlines()[-1].startswith(b"{"):
            if not select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise NodesError(f"the {self._name} did not start within {SECONDS_TO_START:.0f} s")
            got = os.read(self._process.stdout.fileno(), 65536)
            said += got
            if not got:
                raise NodesError(f"the {self._name} did not start: {said.decode(errors='replace').strip()[-500:]}")
        answer = json.loads(said.splitlines()[-1])
        if "error" in answer:
            raise NodesError(answer["error"])
        return Process.of(answer["pid"])

    def keep(self) -> None:
        """Let it live on its own."""
        with contextlib.suppress(OSError):  # it died; whoever looks will see that
            self._process.stdin.write(b"keep\n")
            self._process.stdin.flush()
        self.close()

    def close(self) -> None:
        """Close the pipes, which ends it unless it was told to keep on."""
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(timeout=SECONDS_TO_END)  # of two processes the first: the other has no parent here
        except subprocess.TimeoutExpired:  # it hangs before it forked
            self._process.kill()
            self._process.wait()


def live(prepare: Callable[[dict[str, Any]], Callable[[], Any]]) -> None:
    """The process itself: ``prepare(spec)`` makes what it is for and returns what it does from then on."""
    if os.fork():  # the one that stays is nobody's child: no launcher waits for it or kills it with its own
        os._exit(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        work = prepare(json.loads(sys.argv[2]))
    except OSError as error:
        say(error=str(error.strerror or error))
        return
    say(pid=os.getpid())
    if sys.stdin.readline() != "keep\n":
        return
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(nowhere, standard)
    os.close(nowhere)
    work()


def say(**facts: Any) -> None:
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps(facts), flush=True)
