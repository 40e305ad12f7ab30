"""Kills a server that runs, in ways drawn from a seed, and says whether everyone was told and everything is gone.

    python tests/kills.py --seed 7 --count 50           a soak; exit code 1 and the failed kills at the end
    python tests/kills.py --seed 7 --only 12            kill 12 of that soak again

The launcher is a ``localai-clusters serve`` process of its own. After a kill,

- every client has got an error within 10 s: no hang, and no cut answer that looks whole,
- the launcher has ended within 10 s, with an exit code other than 0 and a message that names what died and how,
- 5 s later no process, port or shared memory of the run is left.
"""

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx
from leftovers_of import SECONDS_TO_END, leftovers_of, mapped_segments, segments_here

from localai_clusters.launch import journal, processes
from localai_clusters.launch import nodes as local_nodes
from localai_clusters.launch.nodes import Nodes
from localai_clusters.launch.run import Rank, read_rank, runs_dir

CLI = str(Path(sys.executable).with_name("localai-clusters"))
SECONDS_TO_ANSWER = 10.0  # from the kill until every client has got an error
SECONDS_TO_SAY_WHY = 10.0  # from the kill until the launcher has ended with its message
SECONDS_TO_MEET = 40.0  # in place of that where nodes wait for each other and have not met once
SECONDS_TO_GIVE_UP = 30.0  # after that, to learn how long it takes when it takes too long
SECONDS_UNTIL_READY = 120.0
SECONDS_OF_IMPORT = 5.0  # half of a start passes between this step and the next
TOKENS = 450  # of one answer: some 15 s of work, so that a kill meets it half-way

TENSOR, PIPELINE, NODES = "TP=2", "PP=2", "TP=2 on 2 nodes"
START_UP, IDLE, LOAD = "start-up", "idle", "under load"
STARTED = "started"  # torchrun's agents run and no rank has said anything yet
RANK_STEPS = ("python", "import", "rendezvous", "weights", "weights-loaded", "kv-cache", "engine")
CUT_SHORT = "a cut answer that looks whole"


@dataclass(frozen=True, slots=True)
class Kill:
    """``target``: rank K, agent (of node) K, node K, guard, launcher or link; ``signal``: a signal's name, or "cut".

    It is carried out ``delay`` seconds after the moment began: for start-up, after rank ``of_rank`` reached ``step``.
    """

    target: str
    moment: str
    signal: str = "SIGKILL"
    split: str = TENSOR
    delay: float = 0.5
    step: str = ""
    of_rank: int = 0

    def __str__(self) -> str:
        when = f"start-up, {self.step} of rank {self.of_rank}" if self.moment == START_UP else self.moment
        return f"{self.signal} {self.target}, {when} +{self.delay:.2f} s, {self.split}"


@dataclass(slots=True)
class Outcome:
    """What followed from a kill. Seconds count from the kill; None: there was nobody to answer, or it never came."""

    kill: Kill
    run_id: str = ""
    clients: list[str] = field(default_factory=list)  # how each one's last request ended
    answered: float | None = None
    said: float | None = None
    gone: float | None = None
    exit_code: int | None = None
    message: str = ""
    problems: list[str] = field(default_factory=list)


def random_kill(rng: random.Random) -> Kill:
    split = rng.choices((TENSOR, PIPELINE, NODES), (4, 3, 3))[0]
    moment = rng.choices((START_UP, IDLE, LOAD), (3, 2, 4))[0]
    targets = ["rank 0", "rank 1", "agent 0", "guard", "launcher"]
    if split == NODES:
        targets += ["agent 1", "node 0", "node 1", "link"]
    target = rng.choice(targets)
    signals = {
        "rank 0": ("SIGKILL", "SIGSTOP"),
        "rank 1": ("SIGKILL", "SIGSTOP", "SIGTERM"),
        "agent 0": ("SIGKILL", "SIGSTOP"),
        "agent 1": ("SIGKILL", "SIGSTOP"),
        "launcher": ("SIGKILL", "SIGTERM", "SIGINT"),
        "link": ("cut",),
    }
    signum = rng.choice(signals.get(target, ("SIGKILL",)))
    delay = round(rng.uniform(0, 1), 2)
    if moment != START_UP:
        return Kill(target, moment, signum, split, delay)
    of_rank, step = rng.choice([(rank, step) for rank in (0, 1) for step in RANK_STEPS] + [(0, STARTED)])
    if target.startswith("rank"):  # its pid is known from what it said
        of_rank, step = int(target[-1]), rng.choice(RANK_STEPS)
    if step == "import":
        delay = round(delay * SECONDS_OF_IMPORT, 2)
    return Kill(target, moment, signum, split, delay, step, of_rank)


def numbered(seed: int, number: int) -> Kill:
    """Kill ``number`` of the soak with this seed, whatever was drawn before."""
    return random_kill(random.Random(f"{seed}/{number}"))


def expected(kill: Kill) -> tuple[int, str]:
    """The launcher's exit code, and a pattern for its message."""
    name, _, number = kill.target.partition(" ")
    node = rf" on node {number} \(node{number}\)" if kill.split == NODES else ""
    if name == "launcher":
        return (-signal.SIGKILL, "^$") if kill.signal == "SIGKILL" else (130, "^localai-clusters: stopped$")
    if kill.signal == "SIGSTOP":
        who = f"rank {number}{node}" if name == "rank" else rf"agent on node {number} .*"
        return 1, rf"{who} was stopped \(SIGSTOP\)"
    if name == "rank":
        return 1, rf"rank {number}{node} .*{kill.signal}"
    if never_met(kill):
        return 1, "the nodes have not met|out of reach: the network between the nodes does not answer"
    known = {
        "agent": rf"agent on node {number} (.* )?(exited with -9|was killed by SIGKILL)",
        "node": f"node {number}",
        "guard": "guard (died|was killed)",
        "link": "out of reach: the network between the nodes does not answer",
    }
    return 1, known[name]


def never_met(kill: Kill) -> bool:
    """Whether the link may be cut before the agents have met over it."""
    return kill.target == "link" and kill.step == STARTED


class Launcher:
    """``localai-clusters serve`` as a process of its own, and the run that it started."""

    def __init__(self, split: str, folder: Path):
        self.stdout, self.stderr = folder / "stdout", folder / "stderr"
        self._before = runs()
        flags = {TENSOR: ["-tp", "2"], PIPELINE: ["-pp", "2"], NODES: ["-tp", "2", "--on-nodes"]}[split]
        flags += ["--dtype", "float32", "--max-model-len", "512", "--port", "0", "--master-port", "0", "--json"]
        with open(self.stdout, "w") as out, open(self.stderr, "w") as err:
            self.process = subprocess.Popen([CLI, "serve", *flags], stdout=out, stderr=err, start_new_session=True)

    def wait_until(self, condition: Callable[[], object], seconds: float = SECONDS_UNTIL_READY) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None:
                raise RuntimeError(f"the launcher ended before the kill:\n{self.stderr.read_text()}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"not reached in {seconds:.0f} s:\n{self.stderr.read_text()}")
            time.sleep(0.01)

    @property
    def run_id(self) -> str:
        return next(iter(runs() - self._before), "")

    @property
    def run_dir(self) -> Path:
        return runs_dir() / self.run_id

    def started(self) -> dict:
        """What the guard said when torchrun's agents ran; empty before."""
        events = journal.read(self.run_dir / "guard.jsonl") if self.run_id else []
        return next((event for event in events if event["event"] == "started"), {})

    def rank(self, rank: int) -> Rank:
        return read_rank(self.run_dir, rank)

    def is_ready(self) -> bool:
        return self.stdout.read_text().endswith("\n")

    def url(self) -> str:
        return json.loads(self.stdout.read_text())["url"]

    def message(self) -> str:
        """What it said last; what came before is how far the start was."""
        found = re.search(r"^localai-clusters: .*", self.stderr.read_text(), re.MULTILINE | re.DOTALL)
        return found[0].strip() if found else ""

    def __enter__(self) -> "Launcher":
        return self

    def __exit__(self, *_) -> None:
        self.process.kill()
        self.process.wait()


def runs() -> set[str]:
    return {path.name for path in runs_dir().iterdir()} if runs_dir().is_dir() else set()


class Client(threading.Thread):
    """Asks for one long answer after the other until one is not whole; ``ending`` says how that one ended."""

    def __init__(self, url: str, path: str, stream: bool):
        super().__init__(daemon=True)
        self.http = httpx.Client(base_url=url, timeout=SECONDS_UNTIL_READY)
        self.path, self.stream = path, stream
        self.under_way = threading.Event()
        self.ending: str | None = None
        self.ended_at: float | None = None

    def run(self) -> None:
        body = {"model": "smollm2-135m", "max_tokens": TOKENS, "ignore_eos": True, "stream": self.stream}
        body |= {"prompt": "Once"} if "chat" not in self.path else {"messages": [{"role": "user", "content": "Hi"}]}
        if self.stream:
            body["stream_options"] = {"include_usage": True}
        ending = None
        while ending is None:
            try:
                ending = self._streamed(body) if self.stream else self._at_once(body)
            except httpx.TransportError as error:
                ending = f"{type(error).__name__}: {error}"
        self.ended_at, self.ending = time.monotonic(), ending

    def _at_once(self, body: dict) -> str | None:
        self.under_way.set()
        answer = self.http.post(self.path, json=body)
        if answer.status_code != 200:
            return f"{answer.status_code}: {answer.text[:200]}"
        return whole(answer.json().get("usage"))

    def _streamed(self, body: dict) -> str | None:
        usage = None
        with self.http.stream("POST", self.path, json=body) as answer:
            if answer.status_code != 200:
                return f"{answer.status_code}: {answer.read().decode()[:200]}"
            for line in answer.iter_lines():
                data = line.removeprefix("data: ")
                if not data.startswith("{"):
                    continue
                event = json.loads(data)
                if "error" in event:
                    return f"error event: {str(event['error'])[:200]}"
                self.under_way.set()
                usage = event.get("usage") or usage
        return whole(usage)


def whole(usage: dict | None) -> str | None:
    """None if all tokens came, as were asked for; else what is wrong, for no error was shown."""
    tokens = (usage or {}).get("completion_tokens")
    return None if tokens == TOKENS else f"{CUT_SHORT}: {tokens} of {TOKENS} tokens"


CLIENTS = (("/v1/completions", True), ("/v1/completions", False), ("/v1/chat/completions", True))


def carry_out(kill: Kill, keep_in: Path | None = None) -> Outcome:
    """Start a server, do the kill, and see what follows."""
    outcome = Outcome(kill)
    folder = Path(tempfile.mkdtemp(prefix="kills-", dir=keep_in))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        nodes = stack.enter_context(local_nodes.up(2)) if kill.split == NODES else None
        segments = segments_here()
        launcher = stack.enter_context(Launcher(kill.split, folder))
        clients = until_the_moment(kill, launcher)
        outcome.run_id = launcher.run_id
        killed_at = time.monotonic()
        strike(kill, launcher, nodes)
        if kill.moment == IDLE:
            clients = [Client(launcher.url(), *CLIENTS[1])]
            clients[0].start()
        watch_the_launcher(outcome, launcher, killed_at)
        watch_the_clients(outcome, clients, killed_at)
        if outcome.said is not None:
            watch_what_is_left(outcome, segments, killed_at)
    return outcome


def until_the_moment(kill: Kill, launcher: Launcher) -> list[Client]:
    clients: list[Client] = []
    if kill.moment == START_UP:
        launcher.wait_until(launcher.started)
        if kill.step != STARTED:
            launcher.wait_until(lambda: kill.step in launcher.rank(kill.of_rank).times)
    else:
        launcher.wait_until(launcher.is_ready)
    if kill.moment == LOAD:
        clients = [Client(launcher.url(), *how) for how in CLIENTS]
        for client in clients:
            client.start()
        launcher.wait_until(lambda: all(client.under_way.is_set() for client in clients), 30)
    time.sleep(kill.delay)
    return clients


def strike(kill: Kill, launcher: Launcher, nodes: Nodes | None) -> None:
    name, _, number = kill.target.partition(" ")
    started = launcher.started()
    if name == "link":
        nodes.cut()
        return
    if name == "node":
        for pid in processes_of_node(nodes, int(number)):
            processes.send([pid], signal.SIGKILL)
        return
    if name == "rank":
        pid = launcher.rank(int(number)).pid
    elif name == "agent":
        pid = next(int(pid) for pid, node in started["agents"].items() if node == int(number))
    else:
        pid = {"guard": started["pid"], "launcher": launcher.process.pid}[name]
    os.kill(pid, signal.Signals[kill.signal])


def processes_of_node(nodes: Nodes, node: int) -> Iterator[int]:
    """Its holder first, then every program in its network."""
    holder = nodes.nodes[node].pid
    network = os.stat(f"/proc/{holder}/ns/net").st_ino
    # The forwarder too is in node 0's network; it stands for the cable to the client and goes with the node.
    inside = [pid for pid in processes.parents() if network_of(pid) == network and pid != holder]
    return iter([holder, *inside])


def network_of(pid: int) -> int | None:
    with contextlib.suppress(OSError):
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    return None


def watch_the_launcher(outcome: Outcome, launcher: Launcher, killed_at: float) -> None:
    code, pattern = expected(outcome.kill)
    seconds = SECONDS_TO_MEET if never_met(outcome.kill) else SECONDS_TO_SAY_WHY
    try:
        launcher.process.wait(timeout=max(0.0, killed_at + seconds - time.monotonic()))
    except subprocess.TimeoutExpired:
        outcome.problems.append(f"the launcher still runs {seconds:.0f} s after the kill")
        try:
            launcher.process.wait(timeout=SECONDS_TO_GIVE_UP)
        except subprocess.TimeoutExpired:
            outcome.problems.append(f"and {SECONDS_TO_GIVE_UP:.0f} s later:\n{launcher.stderr.read_text()}")
            return
    outcome.said = time.monotonic() - killed_at
    outcome.exit_code, outcome.message = launcher.process.returncode, launcher.message()
    if outcome.exit_code != code:
        outcome.problems.append(f"the launcher's exit code is {outcome.exit_code}, not {code}")
    if not re.search(pattern, outcome.message):
        outcome.problems.append(f"the launcher does not say {pattern!r}:\n{launcher.stderr.read_text()}")
    if "Traceback" in launcher.stderr.read_text() + launcher.stdout.read_text():
        outcome.problems.append(f"a traceback:\n{launcher.stderr.read_text()}")


def watch_the_clients(outcome: Outcome, clients: list[Client], killed_at: float) -> None:
    for client in clients:
        client.join(timeout=max(0.0, killed_at + SECONDS_TO_ANSWER - time.monotonic()))
        ending = client.ending or f"no answer {SECONDS_TO_ANSWER:.0f} s after the kill"
        outcome.clients.append(ending)
        if client.ending is None or ending.startswith(CUT_SHORT):
            outcome.problems.append(f"{client.path}, {'streamed' if client.stream else 'at once'}: {ending}")
        elif client.ended_at < killed_at:
            outcome.problems.append(f"a client got an error before the kill: {ending}")
        elif client.ended_at - killed_at > SECONDS_TO_ANSWER:
            outcome.problems.append(f"a client waited {client.ended_at - killed_at:.1f} s for: {ending}")
    ended = [client.ended_at for client in clients if client.ended_at]
    outcome.answered = max(ended) - killed_at if ended else None


def watch_what_is_left(outcome: Outcome, segments_before: set[str], killed_at: float) -> None:
    """Also shared memory that no rank has reported: new since the start, and mapped by nobody."""
    deadline = time.monotonic() + SECONDS_TO_END
    while True:
        left = leftovers_of(outcome.run_id)
        unowned = segments_here() - segments_before
        left["unowned shared memory"] = sorted(unowned - mapped_segments()) if unowned else []
        if not any(left.values()):
            outcome.gone = time.monotonic() - killed_at
            return
        if time.monotonic() > deadline:
            outcome.problems.append(f"left {SECONDS_TO_END:.0f} s after the launcher ended: {left}")
            return
        time.sleep(0.05)


def table(outcomes: list[Outcome]) -> str:
    """Per target, signal and moment: how many, how many failed, and the most seconds of each kind."""
    groups: dict[tuple[str, str, str], list[Outcome]] = {}
    for outcome in outcomes:
        kill = outcome.kill
        groups.setdefault((kill.target, kill.signal, kill.moment), []).append(outcome)
    lines = [f"{'target':10}{'signal':9}{'moment':11}{'kills':>6}{'failed':>7}{'answered':>9}{'said':>6}{'gone':>6}  s"]
    for (target, signum, moment), group in sorted(groups.items()):
        failed = sum(bool(outcome.problems) for outcome in group)
        seconds = [most(group, name) for name in ("answered", "said", "gone")]
        lines.append(
            f"{target:10}{signum:9}{moment:11}{len(group):6}{failed:7}{seconds[0]:>9}{seconds[1]:>6}{seconds[2]:>6}"
        )
    seconds = [most(outcomes, name) for name in ("answered", "said", "gone")]
    failed = sum(bool(outcome.problems) for outcome in outcomes)
    lines.append(f"{'all':30}{len(outcomes):6}{failed:7}{seconds[0]:>9}{seconds[1]:>6}{seconds[2]:>6}")
    return "\n".join(lines)


def most(outcomes: list[Outcome], name: str) -> str:
    found = [seconds for outcome in outcomes if (seconds := getattr(outcome, name)) is not None]
    return f"{max(found):.1f}" if found else "-"


def show(number: int, outcome: Outcome) -> None:
    seconds = [f"{name} {most([outcome], name)}" for name in ("answered", "said", "gone")]
    verdict = "FAILED" if outcome.problems else "ok"
    print(f"{number:4} {verdict:6} {outcome.kill}   {', '.join(seconds)}   {outcome.run_id}", flush=True)
    for problem in outcome.problems:
        print(*(f"       {line}" for line in problem.splitlines()), sep="\n", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of all kills; a new one without it")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--only", type=int, nargs="+", metavar="NUMBER", help="only these kills of the seed")
    parser.add_argument("--json", action="store_true", help="the outcomes as JSON on stdout, progress on stderr")
    args = parser.parse_args()
    state = Path(tempfile.mkdtemp(prefix="kills-state-"))
    os.environ["XDG_STATE_HOME"] = str(state)  # whoever serves on this machine is left alone
    numbers = args.only or range(1, args.count + 1)
    outcomes: list[Outcome] = []
    with contextlib.redirect_stdout(sys.stderr if args.json else sys.stdout):
        print(f"seed {args.seed}, {len(numbers)} kills; runs in {runs_dir()}")
        with contextlib.suppress(KeyboardInterrupt):
            for number in numbers:
                outcomes.append(attempt(numbered(args.seed, number)))
                show(number, outcomes[-1])
        print(f"\n{table(outcomes)}")
        failed = [number for number, outcome in zip(numbers, outcomes, strict=False) if outcome.problems]
        if failed:
            again = f"python {sys.argv[0]} --seed {args.seed} --only {' '.join(map(str, failed))}"
            print(f"\n{len(failed)} failed; again: {again}")
    if args.json:
        print(json.dumps({"seed": args.seed, "outcomes": [asdict(outcome) for outcome in outcomes]}, indent=1))
    if not failed:
        shutil.rmtree(state, ignore_errors=True)
    return 1 if failed or len(outcomes) < len(numbers) else 0


def attempt(kill: Kill) -> Outcome:
    """As ``carry_out``; a start that fails by itself is a failure too, and not the end of the soak."""
    try:
        return carry_out(kill)
    except (RuntimeError, OSError) as error:
        return Outcome(kill, problems=[f"{type(error).__name__}: {error}"])


if __name__ == "__main__":
    sys.exit(main())
