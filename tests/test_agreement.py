"""preflight and vLLM on the same plans: what one refuses the other refuses too, for the same cause.

The plans are agreement/plans.py's. vLLM's side is real: torchrun, our ranks, vLLM's configuration, engine and HTTP
server (agreement/judge.py). What it serves has answered a completion.
"""

import ast
import contextlib
import json
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from agreement.plans import CASES, SERVED, UNASKED, Case
from leftovers_of import assert_nothing_left

import localai_clusters as lac
from localai_clusters.launch import journal
from localai_clusters.launch.run import Run
from localai_clusters.plan import ServePlan
from localai_clusters.preflight import checks
from localai_clusters.preflight.report import Report

JUDGE = Path(__file__).parent / "agreement" / "judge.py"
# One OpenMP thread until a rank says otherwise: a pool does not survive a fork. The second is process.py's own.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}

Asked = Callable[[Case], tuple[Report, dict[str, Any]]]


def architectures(plan: ServePlan) -> list[str]:
    with contextlib.suppress(OSError, ValueError):
        return json.loads((Path(plan.model) / "config.json").read_text())["architectures"]
    return []


def test_a_plan_that_passes_comes_up_through_torchruns_own_command(tmp_path):
    """The others come up through torchrun's agent, which here is a command that starts an interpreter for each rank."""
    plan = next(case for case in SERVED if case.name == "two tensor-parallel ranks").plan(tmp_path, 0)
    with lac.serve(plan) as server:
        assert server.report.ok
        assert len(server.complete("Hello", max_tokens=3, ignore_eos=True).token_ids) == 3
    assert_nothing_left(server.run)


@pytest.fixture(scope="module")
def reports(request, tmp_path_factory) -> Iterator[dict[str, Report]]:
    """preflight's report on every plan whose test was selected, by the case's name."""
    items = [item for item in request.session.items if item.module is request.module]
    cases = [item.callspec.params["case"] for item in items if hasattr(item, "callspec")]
    folder = tmp_path_factory.mktemp("models")
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        yield {case.name: lac.preflight(case.plan(folder, port)) for case in cases}


@pytest.fixture(scope="module")
def asked(reports, tmp_path_factory) -> Iterator[Asked]:
    """(preflight's report, vLLM's answer) on a case; all plans are put to vLLM by one process, in their order."""
    folder = tmp_path_factory.mktemp("judge")
    plans, answers = folder / "plans.json", folder / "answers.jsonl"
    settled = {name: report.plan for name, report in reports.items()}
    rows = [{"name": n, "plan": p.to_dict(), "architectures": architectures(p)} for n, p in settled.items()]
    plans.write_text(json.dumps(rows))
    # A shell between guard and judge: the guard ends a run whose agent's children come and go.
    command = ["sh", "-c", '"$@"; exit $?', "sh", sys.executable, str(JUDGE), str(plans), str(answers)]
    run = Run(ServePlan(port=0, master_port=0), ENVIRONMENT, command)

    def ask(case: Case) -> tuple[Report, dict[str, Any]]:
        while True:
            running = run.is_running()
            for answer in journal.read(answers):
                if answer["name"] == case.name:
                    return reports[case.name], answer
            assert running, (run.dir / "node0.log").read_text()
            time.sleep(0.05)

    try:
        yield ask
    finally:
        run.stop()
    assert_nothing_left(run)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_preflight_and_vllm_agree(case, asked):
    report, answer = asked(case)
    assert {verdict.check for verdict in report.failed} == ({case.check} if case.check else set()), str(report)
    said = "\n".join(answer["said"])
    assert answer["served"] == (case.says is None), said
    assert case.says is None or re.search(case.says, said), said


def test_a_plan_is_refused_by_both_or_it_says_why_not():
    assert [case.name for case in CASES if bool(case.check) != bool(case.says) and not case.alone] == []
    assert len({case.name for case in CASES}) == len(CASES)


def test_every_check_that_can_refuse_refuses_a_plan_here_or_it_says_why_not():
    can_refuse = set()
    for module in Path(checks.__file__).parent.glob("*.py"):
        calls = [node for node in ast.walk(ast.parse(module.read_text())) if isinstance(node, ast.Call)]
        for call in (call for call in calls if ast.unparse(call.func) == "Verdict"):
            name, status = call.args[:2]
            if ast.unparse(status) not in ("PASS", "WARN", "UNKNOWN"):
                can_refuse.add(ast.literal_eval(name))
    assert can_refuse - {case.check for case in CASES} == UNASKED.keys()
