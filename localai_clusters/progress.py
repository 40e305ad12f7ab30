"""One line that says how far a launch is: rewritten in place where that can be done, in a pipe a line per change."""

import re
import shutil
import sys
from collections.abc import Sequence

from localai_clusters.launch.run import Rank
from localai_clusters.launch.why import describe
from localai_clusters.plan import ServePlan

SECONDS = re.compile(r"^ *\d+ s  ")  # what startup_text begins with


def in_notebook() -> bool:
    """Whether a Jupyter kernel shows what this process displays."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and hasattr(shell, "kernel")


class ProgressLine:
    """``line(text)`` shows ``text`` in place of what was shown before; ``line.done(text)`` leaves it there."""

    def __init__(self, stream=None):
        self._stream = stream or sys.stderr
        self._display = None
        self._last = ""
        self._in_notebook = stream is None and in_notebook()

    def __call__(self, text: str) -> None:
        if self._in_notebook:
            self._show_in_notebook(text)
        elif self._stream.isatty():
            width = shutil.get_terminal_size().columns - 1
            self._stream.write("\r\x1b[2K" + text[:width])
            self._stream.flush()
        elif SECONDS.sub("", text) != SECONDS.sub("", self._last):  # the same steps, later: not worth a line
            self._stream.write(text + "\n")
            self._stream.flush()
        self._last = text

    def done(self, text: str) -> None:
        self(text)
        if not self._in_notebook and self._stream.isatty():
            self._stream.write("\n")

    def _show_in_notebook(self, text: str) -> None:
        from IPython.display import display

        bundle = {"text/plain": text}
        if self._display is None:
            self._display = display(bundle, raw=True, display_id=True)
        else:
            self._display.update(bundle, raw=True)


def startup_text(ranks: Sequence[Rank], seconds: float, plan: ServePlan | None = None) -> str:
    """``  7 s  rank 0: loading its weights · rank 1: loading its weights``"""
    shown = [f"rank {rank.rank}: {describe(rank)}" for rank in ranks]
    if plan and plan.nnodes > 1 and all(rank.step is None for rank in ranks):
        shown = [f"waiting until all {plan.nnodes} nodes have joined at {plan.master_addr}:{plan.master_port}"]
    return f"{seconds:3.0f} s  " + " · ".join(shown)
