"""The split that a deployment should have: its own where it adds up, else the nearest to what was asked."""

from dataclasses import dataclass

from localai_clusters.command.deployment import Deployment
from localai_clusters.command.tables import known_model
from localai_clusters.plan import MAX_RANKS


@dataclass(frozen=True, slots=True)
class Split:
    tensor: int
    pipeline: int
    nnodes: int
    assumed: tuple[str, ...] = ()  # what was not to be read from the command

    @property
    def nproc(self) -> int:
        return self.tensor * self.pipeline // self.nnodes

    @property
    def flags(self) -> str:
        return f"--tensor-parallel-size {self.tensor} --pipeline-parallel-size {self.pipeline}"


def mended(deployment: Deployment) -> Split:
    """Whole numbers of at least 1 whose ranks divide over the nodes."""
    d, assumed = deployment, []
    tensor, pipeline, nnodes = (max(1, min(n.value, MAX_RANKS)) for n in (d.tensor, d.pipeline, d.nnodes))
    nproc = min(d.nproc.value, MAX_RANKS) if d.nproc and d.nproc.value > 0 else None
    if d.uses_ray and nnodes == 1:
        nnodes, said = _nodes_of_ray(d, tensor, pipeline)
        assumed += said
    for number, flag in (
        (d.tensor, "--tensor-parallel-size"),
        (d.pipeline, "--pipeline-parallel-size"),
        (d.nnodes, "--nnodes"),
    ):
        if number.unknown:
            assumed.append(f"{flag} 1, for {number.unknown} is not known here")
    if d.tensor.unknown and nproc:
        tensor = nproc
        assumed[-1:] = [f"--tensor-parallel-size {tensor}, as many as --nproc-per-node"]
    if nproc is not None and nnodes * nproc != tensor * pipeline:
        tensor, pipeline = _for_world(d, tensor, pipeline, nnodes, nproc)
    tensor, pipeline = _for_model(d, tensor, pipeline)
    if tensor * pipeline % nnodes:  # a stage per node
        tensor, pipeline = (tensor // nnodes or 1, nnodes) if tensor % nnodes == 0 else (tensor, pipeline * nnodes)
    if tensor * pipeline > MAX_RANKS or _for_model(d, tensor, pipeline) != (
        tensor,
        pipeline,
    ):  # more nodes than it fills
        tensor, pipeline, nnodes = _for_model(d, min(tensor, 8), 1)[0], 1, 1
    return Split(tensor, pipeline, nnodes, tuple(assumed))


def tensor_sizes(facts: dict, most: int) -> list[int]:
    """Tensor parallel sizes up to ``most`` among which a known model's heads and KV heads can be shared equally."""
    heads, kv_heads = facts["heads"], facts["kv_heads"]
    return [n for n in range(1, most + 1) if heads % n == 0 and (kv_heads % n == 0 or n % kv_heads == 0)]


def _for_model(d: Deployment, tensor: int, pipeline: int) -> tuple[int, int]:
    """A smaller split where a well-known model cannot be split as asked."""
    facts = known_model(d.model)
    if facts is None:
        return tensor, pipeline
    return tensor_sizes(facts, tensor)[-1], min(pipeline, facts["layers"])


def _for_world(d: Deployment, tensor: int, pipeline: int, nnodes: int, nproc: int) -> tuple[int, int]:
    """torchrun starts nnodes x nproc ranks: what to change so that the split needs as many."""
    world = nnodes * nproc
    if not d.tensor.is_given and not d.pipeline.is_given:
        return nproc, nnodes
    if nnodes == 1 or (d.pipeline.is_given and pipeline > 1 and tensor * pipeline % nnodes == 0):
        return tensor, pipeline  # the split is what was asked for; torchrun's number follows
    if world % tensor == 0 and nproc % tensor == 0:
        return tensor, world // tensor
    if tensor * pipeline % nnodes == 0 and tensor * pipeline < world:
        return tensor, pipeline
    return nproc, nnodes


def _nodes_of_ray(d: Deployment, tensor: int, pipeline: int) -> tuple[int, list[str]]:
    started = len(d.by_ray)
    if started > 1 and tensor * pipeline % started == 0:
        return started, [f"{started} nodes, one for each ray start"]
    if pipeline > 1:
        return pipeline, [f"{pipeline} nodes, one for each pipeline stage; Ray would say how many there are"]
    return 1, ["one node; Ray would say how many there are"]
