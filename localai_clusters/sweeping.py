"""Several splits of one model, each served in turn and put under the same load: which is faster, and when.

    found = sweep([ServePlan(), ServePlan(tensor_parallel_size=2)], concurrency=(1, 16))
    print(found)                     # a table
    found.best(16)                   # "TP=2"

One server runs at a time. A split that cannot be served stands in the table with its reason, and the others go on.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from localai_clusters.errors import PlainError
from localai_clusters.machine import physical_cores
from localai_clusters.plan import ServePlan, check_size, is_number
from localai_clusters.progress import SECONDS, ProgressLine
from localai_clusters.server import Server, serve
from localai_clusters.sweep_result import Row, Sweep

WARM_UP_TOKENS = 4
LEAST_TOKENS = 4
TOKENS_OF_AN_ANSWER = 8
BAR = 12  # characters


@dataclass(frozen=True, slots=True)
class Case:
    """One line of a sweep. ``cores``: how many of this machine's cores its ranks may use, None for all of them.

    With fewer cores than the machine has, a split can be compared with one rank on as many cores as one of its own
    ranks has. It means something on CPUs only.
    """

    plan: ServePlan
    name: str = ""
    cores: int | None = None

    def __post_init__(self) -> None:
        if self.cores is not None:
            check_size("cores", self.cores)
        if not self.name:
            limit = f" on {self.cores} core{'s' * (self.cores > 1)}" if self.cores else ""
            object.__setattr__(self, "name", self.plan.label + limit)


@dataclass
class _Work:
    """What is measured for each server, and how far it is."""

    cases: Sequence[Case]
    concurrency: tuple[int, ...]
    requests: int | None
    max_tokens: int
    longest: float
    rounds: int
    prompts: tuple[str, ...]
    show: Callable[[str], None]
    started: float = field(default_factory=time.monotonic)
    steps: int = 0

    def say(self, what: str) -> None:
        """``  41 s  [####........] TP=2: 16 requests at a time``"""
        of = self.rounds * len(self.cases) * (1 + len(self.concurrency))
        done = round(BAR * min(1.0, self.steps / of))
        bar = "#" * done + "." * (BAR - done)
        self.show(f"{time.monotonic() - self.started:3.0f} s  [{bar}] {what}")


def sweep(
    plans: Sequence[ServePlan | Case],
    concurrency: Sequence[int] = (1, 4, 16),
    *,
    requests: int | None = None,
    max_tokens: int = 32,
    rounds: int = 1,
    longest: float = 20.0,
    prompts: Sequence[str] = (),
    skip_checks: Sequence[str] = (),
    on_progress: Callable[[str], None] | None = None,
) -> Sweep:
    """Serve each plan, load it with ``concurrency`` requests at a time, stop it; the same ``rounds`` times.

    Each load is ``requests`` requests of ``max_tokens`` tokens (not given: two for each that runs at a time, four at
    least), after a warm-up that is not counted. One that would take longer than ``longest`` seconds, by its warm-up, is
    made of shorter requests. Every second round goes through the plans backwards, so that what else the machine does
    falls on all; figures are medians over the rounds. ``prompts`` are asked of each server first (``Server.chat``), so
    that a record shows whether the splits say the same.

    ``skip_checks`` names preflight checks whose failure is to be met for real. A plan that is refused, does not come up
    or breaks under load is kept with the reason. Ctrl-C stops the server and returns what was measured so far, marked
    ``interrupted``. Raises ``ValueError`` for no plans, two of one name, plans of different models, or a size below 1.
    """
    cases = [plan if isinstance(plan, Case) else Case(plan) for plan in plans]
    check(cases, concurrency, requests, max_tokens, rounds, longest)
    line = ProgressLine()
    work = _Work(cases, tuple(concurrency), requests, max_tokens, longest, rounds, tuple(prompts),
                 on_progress or line)  # fmt: skip
    rows = {case.name: Row(case.name, case.plan, case.cores) for case in cases}
    interrupted = False
    try:
        for number in range(rounds):
            for case in cases if number % 2 == 0 else reversed(cases):
                measure(case, rows[case.name], work, number, skip_checks)
    except KeyboardInterrupt:
        interrupted = True
    found = Sweep(tuple(rows.values()), work.concurrency, rounds, interrupted)
    if on_progress is None:
        how = "stopped by Ctrl-C after" if interrupted else "measured"
        line.done(f"{how} {sum(bool(row.loads) for row in found.rows)} of {len(cases)} splits "
                  f"in {time.monotonic() - work.started:.0f} s")  # fmt: skip
    return found


def measure(case: Case, row: Row, work: _Work, number: int, skip_checks: Sequence[str]) -> None:
    """One server of one case: every load, each in ``row`` as soon as it is known."""
    of_rounds = f"round {number + 1}, " if work.rounds > 1 else ""
    name = of_rounds + case.name
    starting = lambda text: work.say(f"{name}: {SECONDS.sub('', text)}")  # noqa: E731
    work.steps = (number * len(work.cases) + work.cases.index(case)) * (1 + len(work.concurrency))
    if number % 2:
        work.steps = ((number + 1) * len(work.cases) - 1 - work.cases.index(case)) * (1 + len(work.concurrency))
    work.say(f"{name}: starting")
    try:
        plan = case.plan.with_(port=0, master_port=0)
        with on_cores(case.cores):
            server = serve(plan, skip_checks=known(skip_checks, plan), on_progress=starting)
        row.servers.append(server)
        with server:
            server.memory()
            for prompt in work.prompts if number == 0 else ():
                work.say(f"{name}: a prompt")
                server.chat(prompt, max_tokens=TOKENS_OF_AN_ANSWER)
            for many in work.concurrency:
                work.steps += 1
                work.say(f"{name}: {many} request{'s' * (many > 1)} at a time")
                measured = put_under_load(server, many, work)
                row.loads.setdefault(many, []).append(measured)
    except (PlainError, OSError) as error:
        row.reason = str(error)


def put_under_load(server: Server, many: int, work: _Work):
    """A ``bench.Load`` after a warm-up, with answers so short that it takes about ``work.longest`` seconds at most."""
    warm = server.bench(concurrency=many, requests=many, max_tokens=WARM_UP_TOKENS)
    server.loads.remove(warm)  # the first requests of their kind are slower
    requests = work.requests or max(4, 2 * many)
    tokens = int(work.longest * warm.tokens_per_second / requests)
    return server.bench(concurrency=many, requests=requests, max_tokens=max(LEAST_TOKENS, min(work.max_tokens, tokens)))


@contextlib.contextmanager
def on_cores(count: int | None) -> Iterator[None]:
    """What is started here may use ``count`` of the cores that this process may use; the process itself keeps all."""
    if count is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, [cpu for core in physical_cores()[:count] for cpu in core])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def known(skip_checks: Sequence[str], plan: ServePlan) -> tuple[str, ...]:
    """Those of ``skip_checks`` that preflight makes for this plan: not every plan meets every check."""
    from localai_clusters.preflight import preflight

    made = {verdict.check for verdict in preflight(plan).verdicts}
    return tuple(name for name in skip_checks if name in made)


def splits(text: str, plan: ServePlan | None = None) -> list[Case]:
    """``tp1,tp2,pp2,tp2pp2`` as cases of ``plan``; ``tp1@1`` is TP=1 on one core. ``ValueError`` names what is none."""
    import re

    plan, found = plan or ServePlan(), []
    for word in filter(None, (word.strip() for word in text.split(","))):
        match = re.fullmatch(r"(?:tp(\d{1,4}))?(?:pp(\d{1,4}))?(?:@(\d{1,4}))?", word.lower())
        if match is None or not (match[1] or match[2]):
            raise ValueError(f"{word!r} is no split; write tp2, pp2, tp2pp2, or tp1@1 for one core")
        sizes = {"tensor_parallel_size": int(match[1] or 1), "pipeline_parallel_size": int(match[2] or 1)}
        found.append(Case(plan.with_(**sizes), cores=int(match[3]) if match[3] else None))
    return found


def check(cases: Sequence[Case], concurrency: Sequence[int], requests, max_tokens, rounds, longest) -> None:
    if not cases:
        raise ValueError("a sweep needs plans to serve: lac.sweep([lac.ServePlan(), ...])")
    names = [case.name for case in cases]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"two lines of this sweep are called {twice}; give them names: lac.Case(plan, name='...')")
    if len(models := {case.plan.model for case in cases}) > 1:
        raise ValueError(f"a sweep compares splits of one model; these plans serve {', '.join(sorted(models))}")
    if not concurrency:
        raise ValueError("concurrency is empty; say how many requests run at a time: concurrency=(1, 16)")
    if any(case.plan.nnodes > 1 for case in cases):
        raise ValueError("a sweep runs on one node; lac.serve(plan, nodes=two) and server.bench() measure two")
    for many in concurrency:
        check_size("concurrency", many)
    for name, value in (("requests", requests), ("max_tokens", max_tokens), ("rounds", rounds)):
        if value is not None:
            check_size(name, value)
    if not (is_number(longest) and longest > 0):
        raise ValueError(f"longest is {longest!r}; it is a number of seconds above 0")
