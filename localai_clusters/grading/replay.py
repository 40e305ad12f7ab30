"""Replay: a record's tokens through the recorded model once. Is each what greedy decoding would have said?

    for replayed in replay([(path, read(path)) for path in paths]):
        print(replayed)

How it decides, and what it cannot show: docs/replay.md.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from localai_clusters.checkpoint import Checkpoint, plain_text
from localai_clusters.checkpoint.summary import count
from localai_clusters.grading.replay_models import NotHere, end_tokens, model_of, special_tokens
from localai_clusters.grading.replay_record import Replayed, Stage, dtype_for, lengths_of, not_replayable, replay_record
from localai_clusters.grading.replay_server import Ask, ServerGone, once, talk
from localai_clusters.launch.run import LaunchError
from localai_clusters.launch.why import why_it_ended
from localai_clusters.models import Model, ModelError, find
from localai_clusters.plan import ServePlan
from localai_clusters.preflight.report import PreflightError
from localai_clusters.progress import ProgressLine
from localai_clusters.server import Server, serve

RECORDS_AT_ONCE = 16
LONGEST = 8192  # tokens of one prompt with its completion, where the plan does not say
SECONDS_BETWEEN_LINES = 2.0
SECONDS_TO_DIE = 15.0  # from a request that failed until the launcher knows why

Record = tuple[Path | str, Checkpoint]
Show = Callable[[str], None]


def replay(
    records: Sequence[Record],
    *,
    plan: ServePlan | None = None,
    models: Sequence[str] = (),
    on_progress: Show | None = None,
) -> list[Replayed]:
    """Replay ``records``, each with the path it is called by, in their order; one server for all records of a model.

    ``plan`` says how the models are served (its model is not looked at): TP=1, in each record's own dtype, without it.
    ``models`` names folders or Hugging Face ids in which recorded weights may lie. A record whose model is not on this
    machine, or whose server does not start or dies, is not replayable and says why. ``records`` may read its items
    when they are asked for: each is asked for twice, and at most ``RECORDS_AT_ONCE`` are held. Raises ``ModelError``
    for one of ``models`` that cannot be found.
    """
    line = ProgressLine()
    show = on_progress or line
    given = [find(name, on_progress=show) for name in models]
    plan, found = plan or ServePlan(), {}
    known: dict[tuple, Model | NotHere] = {}
    of_name: dict[str, Model] = {}
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    longest: dict[tuple[str, str], int] = defaultdict(int)
    for number, (path, record) in enumerate(records):
        recorded = record.data.model, *sorted(record.data.weights_sha256.items())
        if recorded not in known:
            known[recorded] = _model_or_why(record, given)
        if isinstance(model := known[recorded], NotHere):
            found[number] = not_replayable(path, plain_text(str(model)))
            continue
        group = model.name, dtype_for(record, model) if plan.dtype == "auto" else plan.dtype
        of_name[model.name] = model
        groups[group].append(number)
        longest[group] = max(longest[group], *lengths_of(record), 0)
    for (name, dtype), numbers in groups.items():
        stage = stage_for(of_name[name], plan.with_(dtype=dtype), longest[name, dtype])
        found |= replay_served(stage, records, numbers, show)
    if not on_progress:
        line.done(f"replayed {count(len(found), 'record')}")
    return [found[number] for number in range(len(records))]


def _model_or_why(record: Checkpoint, given: Sequence[Model]) -> Model | NotHere:
    try:
        return model_of(record.data, given)
    except NotHere as error:
        return error


def stage_for(model: Model, plan: ServePlan, longest: int) -> Stage:
    """``plan`` for ``model``, with a context that holds ``longest`` tokens unless it says how many."""
    context = plan.max_model_len
    if context is None:  # vLLM takes a request only where one token more fits
        context = min(LONGEST, model.shape.default_max_model_len, -(-(longest + 1) // 256) * 256)
    plan = plan.with_(model=model.name, max_model_len=context, port=0, master_port=0)
    return Stage(model, plan, special_tokens(model), end_tokens(model))


def replay_served(stage: Stage, records: Sequence[Record], numbers: Sequence[int], show: Show) -> dict[int, Replayed]:
    """Serve the stage's plan and replay the ``numbers`` of ``records`` there: number -> replay, of every one."""
    found: dict[int, Replayed] = {}
    why = ""
    try:
        with serve(stage.plan, on_progress=show) as server:
            try:
                replay_on(server, stage, records, numbers, found, show)
            except ServerGone as error:
                why = f"the server is gone: {_cause_of_death(server) or error}"
    except (LaunchError, PreflightError, ModelError) as error:
        why = f"{stage.model.name} could not be served: {error}"
    return found | {n: not_replayable(records[n][0], plain_text(why)) for n in numbers if n not in found}


def replay_on(
    server: Server,
    stage: Stage,
    records: Sequence[Record],
    numbers: Sequence[int],
    found: dict[int, Replayed],
    show: Show,
) -> None:
    """Replay on a server that runs; each result is put into ``found`` as it comes. Raises ``ServerGone``."""
    key = {"Authorization": f"Bearer {server.api_key}"} if server.api_key else {}
    waiting, started, said = iter(numbers), time.monotonic(), 0.0

    async def one_after_another(ask: Ask) -> None:
        nonlocal said
        for number in waiting:
            path, record = records[number]
            found[number] = await replay_record(once(ask), path, record, stage)
            seconds = time.monotonic() - started
            if len(found) in (1, len(numbers)) or seconds - said > SECONDS_BETWEEN_LINES:
                said = seconds
                show(
                    f"{seconds:3.0f} s  replayed {len(found)} of {len(numbers)} records of {stage.model.name}, "
                    f"{60 * len(found) / seconds:.0f} a minute"
                )

    async def several(ask: Ask) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(RECORDS_AT_ONCE):
                    tasks.create_task(one_after_another(ask))
        except ExceptionGroup as errors:  # of ServerGone, or of what reading a record met
            raise errors.exceptions[0] from None

    talk(server.url, key, several)


def _cause_of_death(server: Server) -> str | None:
    """Why its run ended; None while it still runs."""
    deadline = time.monotonic() + SECONDS_TO_DIE
    while server.is_running() and time.monotonic() < deadline:
        time.sleep(0.1)
    return None if server.is_running() else why_it_ended(server.run)
