"""What a server holds while it serves: a thread that looks at its ranks' memory and at vLLM's own figures.

A sample is one read of /proc (or NVML) per rank and one of the server's ``/metrics``, cut down by ``name[]`` to the
five figures wanted here.
"""

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx

from localai_clusters import observe
from localai_clusters.observed import MAX_POINTS, Timeline

if TYPE_CHECKING:
    from localai_clusters.plots import Figure
    from localai_clusters.server import Server

METRICS = "/metrics/"  # with the slash it is prometheus_client's own endpoint, which takes name[]; without, all 50 kB
SECONDS_TO_ANSWER = 5.0  # of /metrics; a server in a long step answers late
RUNNING, WAITING = "vllm:num_requests_running", "vllm:num_requests_waiting"
KV_USAGE, GENERATED = "vllm:kv_cache_usage_perc", "vllm:generation_tokens_total"
HITS = "vllm:prefix_cache_hits_total"
FIGURES = (RUNNING, WAITING, KV_USAGE, GENERATED, HITS)


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at a server. By rank: bytes of RAM (VmRSS) and of GPU memory (NVML), None for a rank that is gone,
    on another machine, or without a GPU. The rest is vLLM's, None where it did not answer.

    ``kv_blocks_used`` are held by requests; a block that only prefix caching remembers counts as free. Every rank
    has as many, for each keeps its own layers or heads of the same tokens.
    """

    seconds: float  # since the run was started
    resident: tuple[int | None, ...]
    gpu: tuple[int | None, ...]
    kv_blocks_used: int | None = None
    kv_blocks: int | None = None  # that requests can hold: one less than there are
    running: int | None = None  # requests
    waiting: int | None = None
    generated: int | None = None  # tokens since the server started
    prefix_hits: int | None = None  # prompt tokens that were found in the cache, since the server started


class Watch:
    """A ``with`` block in which the server is looked at ``every`` so many seconds, from a thread.

    Ends with the block or with the server, whichever is first; a server that dies meanwhile is no error.
    """

    def __init__(self, server: "Server", every: float = 0.25):
        if not 0.02 <= every <= 60:
            raise ValueError(f"every is {every}; it is the seconds between two looks, 0.02 to 60")
        self.server, self.every = server, every
        self.samples: list[Sample] = []
        self.marks: list[tuple[float, str]] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work, name="watch", daemon=True)

    @property
    def latest(self) -> Sample | None:
        return self.samples[-1] if self.samples else None

    def start(self) -> "Watch":
        self._thread.start()
        return self

    def stop(self) -> None:
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def __enter__(self) -> "Watch":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _work(self) -> None:
        with Probe(self.server) as probe:
            while self.server.is_running():
                begun = time.monotonic()
                self.samples.append(probe.look())
                if self._end.wait(max(0.0, self.every - (time.monotonic() - begun))):
                    break
            if self.server.is_running() and self._end.is_set():
                self.samples.append(probe.look())  # the state at the end of the block

    def timelines(self) -> tuple[Timeline, ...]:
        """For the record: resident (or GPU) bytes of each rank, and the KV blocks in use."""
        return tuple(timelines(self.server.run.id, self.samples))

    def mark(self, what: str) -> None:
        """Note that ``what`` happens now; the figures show it."""
        self.marks.append((time.time() - self.server.run.started_at, what))

    def most_blocks(self) -> int | None:
        """The most KV blocks that requests held at one look."""
        return max((s.kv_blocks_used for s in self.samples if s.kv_blocks_used is not None), default=None)

    def blocks(self) -> "Figure":
        """The KV blocks that requests held, and the requests that ran and waited, as a figure."""
        from localai_clusters import plots

        series = {
            "blocks in use": [(s.seconds, s.kv_blocks_used) for s in self.samples],
            "requests running": [(s.seconds, s.running) for s in self.samples],
            "requests waiting": [(s.seconds, s.waiting) for s in self.samples],
        }
        capacity = next((s.kv_blocks for s in self.samples if s.kv_blocks is not None), None)
        levels = {} if capacity is None else {f"all {capacity} blocks": capacity}
        title, x = "Blocks of the KV cache", "seconds since the run was started"
        return plots.steps(title, series, x=x, y="blocks, requests", levels=levels, marks=self.marks)

    def memory(self) -> "Figure":
        """What each rank held, in MiB, as a figure: GPU memory of ranks on GPUs, else resident memory."""
        from localai_clusters import plots

        on_gpu = any(value is not None for s in self.samples for value in s.gpu)
        what = "GPU" if on_gpu else "resident"
        ranks = range(max((len(s.resident) for s in self.samples), default=0))
        series = {
            f"rank {rank}": [(s.seconds, _mib((s.gpu if on_gpu else s.resident)[rank])) for s in self.samples]
            for rank in ranks
        }
        title, x = f"{what[0].upper()}{what[1:]} memory of each rank", "seconds since the run was started"
        return plots.steps(title, series, x=x, y="MiB", marks=self.marks)

    def __len__(self) -> int:
        return len(self.samples)

    def __str__(self) -> str:
        if not self.samples:
            return "nothing seen yet"
        last = self.samples[-1]
        held = ", ".join("gone" if value is None else f"{value / observe.MIB:.0f} MiB" for value in last.resident)
        return (
            f"{len(self)} looks, the last {last.seconds:.1f} s after the start: resident {held}; "
            f"KV blocks {last.kv_blocks_used} of {last.kv_blocks}; {last.running} requests run, {last.waiting} wait"
        )

    __repr__ = __str__

    def _repr_html_(self) -> str:
        if not self.samples:
            return f"<p>{self}</p>"
        return self.blocks()._repr_html_() + self.memory()._repr_html_()


class Probe:
    """Looks at one server; holds the connection and, on GPUs, NVML open meanwhile."""

    def __init__(self, server: "Server"):
        ranks = server.ranks()
        self._run = server.run
        self._pids = [rank.pid for rank in ranks]
        self._on_gpu = [rank.facts.get("device", "cpu").startswith("cuda") for rank in ranks]
        blocks = ranks[0].facts.get("kv_cache_blocks") if ranks else None
        self._blocks = blocks - 1 if blocks else None  # vLLM keeps one back as the null block
        self._nvml = False
        self._client = httpx.Client(base_url=server.url, headers=server._headers(), timeout=SECONDS_TO_ANSWER)

    def __enter__(self) -> "Probe":
        if any(self._on_gpu):
            import pynvml

            try:  # it counts how often it was opened: the looks need not open the driver each time
                pynvml.nvmlInit()
                self._nvml = True
            except pynvml.NVMLError:
                pass
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()
        if self._nvml:
            import pynvml

            pynvml.nvmlShutdown()

    def look(self) -> Sample:
        seconds = time.time() - self._run.started_at
        figures = self._figures()
        usage = figures.get(KV_USAGE)
        return Sample(
            seconds=seconds,
            resident=tuple(observe.resident_bytes(pid)[0] if pid else None for pid in self._pids),
            gpu=tuple(
                observe.gpu_bytes(pid) if pid and on_gpu and self._nvml else None
                for pid, on_gpu in zip(self._pids, self._on_gpu, strict=True)
            ),
            kv_blocks_used=None if usage is None or self._blocks is None else round(usage * self._blocks),
            kv_blocks=self._blocks,
            running=_whole(figures.get(RUNNING)),
            waiting=_whole(figures.get(WAITING)),
            generated=_whole(figures.get(GENERATED)),
            prefix_hits=_whole(figures.get(HITS)),
        )

    def _figures(self) -> dict[str, float]:
        """vLLM's figures by name; none from a server that does not answer."""
        try:
            answer = self._client.get(METRICS, params=[("name[]", name) for name in FIGURES])
        except (httpx.HTTPError, RuntimeError):  # RuntimeError: closed meanwhile
            return {}
        return read_metrics(answer.text, FIGURES) if answer.status_code == 200 else {}


def read_metrics(text: str, names: Iterable[str]) -> dict[str, float]:
    """name -> value, summed over labels, from Prometheus's text format; what is not there is left out."""
    from prometheus_client.parser import text_string_to_metric_families

    wanted, found = set(names), {}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name in wanted:
                    found[sample.name] = found.get(sample.name, 0.0) + sample.value
    except ValueError:  # half an answer
        pass
    return found


def _mib(count: int | None) -> float | None:
    return None if count is None else count / observe.MIB


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def timelines(run_id: str, samples: Iterable[Sample]) -> list[Timeline]:
    samples = list(samples)
    found = []
    for quantity in ("resident", "gpu"):
        for rank in range(max((len(s.resident) for s in samples), default=0)):
            points = [(s.seconds, value) for s in samples if (value := getattr(s, quantity)[rank]) is not None]
            if points:
                found.append(Timeline(run_id, rank, quantity, "bytes", thinned(points)))
    blocks = [(s.seconds, s.kv_blocks_used) for s in samples if s.kv_blocks_used is not None]
    if blocks:
        capacity = next(s.kv_blocks for s in samples if s.kv_blocks is not None)
        found.append(Timeline(run_id, None, "kv-blocks", "blocks", thinned(blocks), capacity))
    return found


def thinned(points: list[tuple[float, int]], most: int = MAX_POINTS) -> tuple[tuple[float, int], ...]:
    """At most ``most`` of ``points``: from each of ``most / 2`` equal stretches its lowest and its highest value."""
    if len(points) <= most:
        return tuple(points)
    stretches, kept = most // 2, []
    for number in range(stretches):
        part = points[number * len(points) // stretches : (number + 1) * len(points) // stretches]
        low, high = min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])
        kept += sorted({low, high})
    return tuple(kept)
