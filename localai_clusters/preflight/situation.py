"""All that the checks look at, gathered once: the plan, the model, the machine, the ports."""

from dataclasses import dataclass

from localai_clusters.kv_cache import cpu_kv_cache_bytes
from localai_clusters.links import Link
from localai_clusters.machine import Machine, is_own_address, port_holder
from localai_clusters.models import ModelShape
from localai_clusters.models.adapter import Adapter, read_adapters
from localai_clusters.models.facts import ModelFacts, look_at
from localai_clusters.plan import ANY_FREE_PORT, ServePlan
from localai_clusters.sizing import RankSize, can_predict, rank_sizes


@dataclass(frozen=True, slots=True)
class Situation:
    plan: ServePlan
    machine: Machine
    shape: ModelShape | None  # None: not known without a download
    model_error: str | None = None
    busy_ports: tuple[tuple[int, str], ...] = ()  # (port, who holds it)
    has_api_key: bool = False
    node_rank: int = 0  # which node of the plan this machine is
    nodes_here: int = 1  # how many of the plan's nodes share this machine (launch.nodes)
    foreign_hosts: tuple[str, ...] = ()  # of --host and --master-addr, those that would have to be this machine's
    facts: ModelFacts | None = None  # of the model beside its shape; None: nobody looked
    adapters: tuple[Adapter, ...] = ()  # of --lora-modules
    link: Link | None = None  # that joins the nodes of this machine; None: its own network, or one that is not known

    @property
    def ranks_here(self) -> int:
        return self.plan.nproc_per_node * self.nodes_here

    @property
    def sizes(self) -> list[RankSize] | None:
        """What each rank would hold; None if the model's shape is unknown or not one that sizing knows."""
        if self.shape is None or not can_predict(self.shape):
            return None
        return rank_sizes(self.plan, self.shape)


def examine(
    plan: ServePlan, has_api_key: bool = False, node_rank: int = 0, nodes_here: int = 1, link: Link | None = None
) -> Situation:
    """Look at the model and at this machine, and fill in what the plan leaves to the machine."""
    plan.check_node_rank(node_rank)
    machine = Machine.now()
    facts = look_at(plan.model)
    plan = settle(plan, facts.shape, machine)
    wanted = [(plan.host, plan.port), (plan.master_addr, plan.master_port)]
    if nodes_here > 1:  # the rendezvous is inside the nodes, and a forwarder of ours takes the server's port
        wanted = wanted[:1]
    elif node_rank > 0:  # server and rendezvous are on node 0
        wanted = []
    holders = [(port, port_holder(host, port)) for host, port in wanted if port != ANY_FREE_PORT]
    busy = tuple((port, holder) for port, holder in holders if holder)
    foreign = tuple(dict.fromkeys(host for host, _ in wanted if not is_own_address(host)))
    return Situation(
        plan, machine, facts.shape, facts.problem, busy, has_api_key, node_rank, nodes_here, foreign, facts,
        read_adapters(plan.extra_args), link,
    )  # fmt: skip


def settle(plan: ServePlan, shape: ModelShape | None, machine: Machine) -> ServePlan:
    """``plan`` with the KV cache that a CPU rank would get. On a GPU vLLM measures what is left."""
    if plan.kv_cache_memory_bytes is None and shape is not None and machine.backend == "cpu":
        return plan.with_(kv_cache_memory_bytes=cpu_kv_cache_bytes(plan, shape))
    return plan
