"""A plan tried for real: what preflight says of it, and, past preflight, what torchrun and vLLM say."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import httpx

from localai_clusters import diagnose
from localai_clusters.breaking.logs import LogTails, log_tails
from localai_clusters.breaking.views import Telling, telling_html, telling_text
from localai_clusters.diagnose.runs import files_of
from localai_clusters.errors import PlainError
from localai_clusters.launch.ready import following, serving, wait_until_ready
from localai_clusters.launch.run import LaunchError, Run
from localai_clusters.launch.why import MOST_FIXES, Ended, how_it_ended
from localai_clusters.models import ModelError
from localai_clusters.observed import Failure
from localai_clusters.plan import ServePlan
from localai_clusters.preflight import preflight
from localai_clusters.preflight.report import FAIL, PreflightError, Report, Verdict
from localai_clusters.progress import ProgressLine, startup_text
from localai_clusters.server import base_url, prepare

SECONDS_TO_FAIL = 180.0
UNEXPLAINED = "unexplained"


class NothingFailed(PlainError, ValueError):
    """The attempt did not fail: preflight lets the plan through, or it served."""


@dataclass(slots=True)
class Attempt:
    """What came of one plan. ``preflight_seconds`` and ``launch_seconds`` are until it was known that it cannot work.

    Without ``run`` nothing was launched. ``rank`` is the first that failed, None where torchrun's agent failed or
    nobody did; ``by_themselves`` are all ranks that failed without having lost another one.
    """

    name: str
    plan: ServePlan
    report: Report
    preflight_seconds: float
    run: Run | None = None
    launch_seconds: float = 0.0
    served: bool = False
    said: str = ""
    rank: int | None = None
    by_themselves: tuple[int, ...] = ()
    explained: diagnose.Report | None = None
    repaired_run_id: str | None = None

    @property
    def how(self) -> str:
        """``refused by preflight``, ``launch failed``, ``served``, or ``passes preflight`` when it was not launched."""
        if self.run is not None:
            return "served" if self.served else "launch failed"
        return "passes preflight" if self.report.ok else "refused by preflight"

    @property
    def failed(self) -> bool:
        return self.how in ("refused by preflight", "launch failed")

    @property
    def cause(self) -> str:
        """The preflight check that refused it, or the cause that its log shows."""
        if self.run is None:
            return self.report.failed[0].check if self.report.failed else ""
        best = self.explained.best if self.explained else None
        return best.id if best else UNEXPLAINED

    def repaired(self, server) -> "Attempt":
        """Note the server that works after the repair."""
        self.repaired_run_id = server.run.id
        return self

    def failure(self) -> Failure:
        """For the record. Raises ``NothingFailed`` if the plan did not fail."""
        if not self.failed:
            raise NothingFailed(f"{self.name}: the plan {self.how}; only what failed can be recorded as a failure")
        refused = self.run is None
        return Failure(
            name=self.name,
            how=self.how,
            cause=self.cause,
            message="\n".join(verdict.message for verdict in self.report.failed) if refused else self.said,
            seconds=self.preflight_seconds if refused else self.launch_seconds,
            plan=self.plan,
            rank=self.rank,
            run_id=None if refused else self.run.id,
            repaired_run_id=self.repaired_run_id,
        )

    def tail(self, lines: int = 8) -> LogTails:
        """The last ``lines`` of each log as they are. Raises ``NothingFailed`` if nothing was launched."""
        if self.run is None:
            raise NothingFailed(f"{self.name} was not launched, so it has no log; attempt(..., for_real=True)")
        return log_tails(self.run.dir, lines)

    def tellings(self) -> list[Telling]:
        """Who said what, after how long, and what to type; preflight first."""
        failed = self.report.failed
        told = [Telling("preflight", self.preflight_seconds, _joined(failed), tuple(v.fix for v in failed if v.fix))]
        if self.run is not None:
            best = self.explained.best if self.explained and not self.served else None
            fixes = best.fixes[:MOST_FIXES] if best else ()
            told.append(Telling(self._who(), self.launch_seconds, self.said, fixes, best.title if best else ""))
        return told

    def _who(self) -> str:
        if self.served or self.rank is None:
            return "launch"
        others = [rank for rank in range(self.plan.world_size) if rank not in self.by_themselves]
        if len(self.by_themselves) > 1:
            return f"launch: ranks {', '.join(map(str, self.by_themselves))}, each by itself"
        echoes = f"; rank{'s' * (len(others) > 1)} {', '.join(map(str, others))} only followed" if others else ""
        return f"launch: rank {self.rank}{echoes}"

    @property
    def title(self) -> str:
        return f"{self.name}: {self.plan.model}, {self.plan.label}: {self.how}"

    def __str__(self) -> str:
        return telling_text(self.title, self.tellings())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return telling_html(self.title, self.tellings())


def attempt(
    plan: ServePlan,
    name: str = "attempt",
    *,
    for_real: bool = False,
    skip_checks: Sequence[str] | None = None,
    node_rank: int = 0,
    seconds: float = SECONDS_TO_FAIL,
    on_progress: Callable[[str], None] | None = None,
) -> Attempt:
    """Try ``plan``, which is expected to fail: ask preflight, and ``for_real`` launch it whatever preflight says.

    ``name`` is the experiment's, as it is recorded (letters, digits, - and _). ``skip_checks`` names the checks to be
    passed over in a launch; all that fail unless given, and with another one failing nothing is launched. ``node_rank``
    is the node of the plan that this machine plays. A launch that is not ready after ``seconds`` counts as failed. One
    that serves is stopped again. A plan's failure raises nothing; ``ValueError`` is for a check that does not exist.
    """
    began = time.perf_counter()
    report = preflight(plan, node_rank=node_rank)
    tried = Attempt(name, plan, report, time.perf_counter() - began)
    skip = tuple({verdict.check for verdict in report.failed} if skip_checks is None else skip_checks)
    try:
        report.raise_if_failed(skip)
    except PreflightError:
        return tried
    if for_real:
        _launch(tried, skip, node_rank, seconds, on_progress)
    return tried


def _launch(tried: Attempt, skip: tuple[str, ...], node_rank: int, seconds: float, on_progress) -> None:
    line = ProgressLine()
    show = on_progress or line
    try:
        plan, _, _ = prepare(tried.plan, show, skip, node_rank=node_rank)
    except ModelError as error:  # found out by looking for the model: preflight's answer, and nothing to launch
        verdict = Verdict("model", FAIL, str(error))
        tried.report = Report(tried.plan, (*tried.report.verdicts, verdict)) if tried.report.ok else tried.report
        return
    run = tried.run = Run(plan, node_rank=node_rank)
    try:
        with httpx.Client(base_url=base_url(plan), timeout=60) as client:
            is_ready = following if node_rank else serving(client, plan.served_name)
            wait_until_ready(run, is_ready, lambda ranks, since: show(startup_text(ranks, since, plan)), seconds)
        tried.served, tried.said = True, "it serves: nothing failed"
    except LaunchError as error:
        gave_up = run.is_running()
        ended = Ended(str(error).partition("\n")[0]) if gave_up else how_it_ended(run)
        tried.said, tried.rank = in_short(ended.cause, run), ended.rank
        tried.explained = explained(run, ended)
        if gave_up and tried.explained.best:  # who waits has not failed; what it waits for stands in its log
            tried.said += f"\n{tried.explained.best.evidence[0].short}"
    finally:
        tried.launch_seconds = time.time() - run.started_at
        run.stop()
        if on_progress is None:
            line.done(f"{tried.name}: {'served' if tried.served else 'ended'} after {tried.launch_seconds:.1f} s")
    tried.by_themselves = tuple(rank.rank for rank in run.ranks() if failed_by_itself(rank, tried.rank))


def failed_by_itself(rank, first: int | None) -> bool:
    return rank.rank == first or ("error" in rank.facts and not rank.facts.get("lost"))


def explained(run: Run, ended: Ended) -> diagnose.Report:
    """The logs of whoever failed by itself, explained; all of the run's where that is not known."""
    return diagnose.explain_files([log for log in ended.logs if log.exists()] or files_of(run.dir))


def in_short(text: str, run: Run) -> str:
    """``text`` without what holds for launches that preflight let through, and without the folder of the run."""
    lines = [line for line in text.splitlines() if "taken after the checks" not in line]
    return "\n".join(lines).replace(str(run.dir), "LOGS")


def _joined(failed: Sequence[Verdict]) -> str:
    return "\n".join(f"{v.check}: {v.message}" for v in failed) or "nothing to object to"
