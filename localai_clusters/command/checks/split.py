"""Whether ranks, devices and nodes add up."""

import re
from collections.abc import Iterator

from localai_clusters.command.checks.program import contradiction
from localai_clusters.command.deployment import Deployment
from localai_clusters.command.findings import ADVICE, NOTE, WRONG, Finding
from localai_clusters.command.flags import Given
from localai_clusters.command.launch import OURS, SERVE
from localai_clusters.command.mending import mended
from localai_clusters.command.values import whole_number
from localai_clusters.plan import MAX_RANKS, is_loopback

GPUS_OF_A_MACHINE = 8  # few have more


def place(*given: Given | None) -> tuple[int, int]:
    there = [one for one in given if one is not None]
    return (there[0].start, there[0].end) if there else (0, 0)


def check_world_size(d: Deployment) -> Iterator[Finding]:
    ranks = d.tensor.value * d.pipeline.value
    if max(ranks, d.nnodes.value, d.nproc.value if d.nproc else 0) > MAX_RANKS:
        message = f"{max(ranks, d.nnodes.value)} ranks or nodes; at most {MAX_RANKS} can be planned"
        yield contradiction("world-size", message, mended(d).flags, *place(d.tensor.given, d.nnodes.given))
        return
    if min(d.tensor.value, d.pipeline.value, d.nnodes.value) < 1 or d.tensor.unknown or d.nnodes.unknown:
        return
    split, better = f"tensor {d.tensor.value} x pipeline {d.pipeline.value} = {ranks}", mended(d)
    if d.nproc is not None and d.nproc.value > 0:
        world = d.nnodes.value * d.nproc.value
        if world != ranks:
            message = (
                f"torchrun starts {d.nnodes.value} x {d.nproc.value} = {world} ranks, but the model is split "
                f"{ranks} ways ({split})"
            )
            fix = better.flags if better.tensor * better.pipeline == world else f"--nproc-per-node={better.nproc}"
            yield contradiction("world-size", message, fix, *place(d.nproc.given, d.nnodes.given, d.tensor.given))
    elif d.nnodes.value > 1 and ranks % d.nnodes.value:
        message = f"{split} ranks do not divide over {d.nnodes.value} nodes"
        yield contradiction("world-size", message, better.flags, *place(d.nnodes.given))
    elif d.nnodes.value == 1 and not d.uses_ray and not d.is_ours and ranks > GPUS_OF_A_MACHINE:
        message = f"{split} ranks on one machine: each needs a GPU of its own, and few machines have more than 8"
        yield Finding(
            ADVICE, "many-ranks", message, "--nnodes N, with a command on each machine", *place(d.tensor.given)
        )


def check_visible_devices(d: Deployment) -> Iterator[Finding]:
    """CUDA_VISIBLE_DEVICES against the ranks of one machine."""
    launch = d.first
    visible = launch.variable("CUDA_VISIBLE_DEVICES")
    if visible is None or visible.unknown:
        return
    shown = [part for part in re.split(r"[,\s]+", visible.text.strip()) if part]
    here = d.nproc.value if d.nproc else mended(d).nproc * d.data.value
    where = visible.start, visible.end
    if not shown or shown == ["-1"]:
        message = "CUDA_VISIBLE_DEVICES hides every GPU"
        yield contradiction("visible-devices", message, "leave it out, or CUDA_VISIBLE_DEVICES=0", *where)
    elif len(set(shown)) < len(shown):
        message = f"CUDA_VISIBLE_DEVICES names a GPU twice: {visible.text[:60]}"
        yield contradiction(
            "visible-devices", message, "CUDA_VISIBLE_DEVICES=" + ",".join(dict.fromkeys(shown)), *where
        )
    elif here > len(shown) and not d.uses_ray:
        message = (
            f"{here} ranks on this machine, but CUDA_VISIBLE_DEVICES shows {len(shown)} GPU{'s' * (len(shown) > 1)}"
        )
        fix = "CUDA_VISIBLE_DEVICES=" + ",".join(str(number) for number in range(min(here, 64)))
        yield contradiction("visible-devices", message, fix, *where)
    elif 0 < here < len(shown):
        message = f"CUDA_VISIBLE_DEVICES shows {len(shown)} GPUs, and {here} of them {'are' if here > 1 else 'is'} used"
        yield Finding(NOTE, "visible-devices", message, "", *where)


def check_across_nodes(d: Deployment) -> Iterator[Finding]:
    """Tensor parallel ranks that meet over the network, twice in every layer."""
    split = mended(d)
    tensor, nnodes = split.tensor, split.nnodes
    if d.tensor.value != tensor or nnodes < 2 or tensor <= split.nproc or tensor % nnodes:
        return
    message = (
        f"tensor parallel {tensor} over {nnodes} nodes with {split.nproc} ranks each: every layer waits for the "
        "network twice. Pipeline parallel across nodes and tensor parallel inside them sends far less"
    )
    fix = f"--tensor-parallel-size {tensor // nnodes} --pipeline-parallel-size {d.pipeline.value * nnodes}"
    yield Finding(ADVICE, "tensor-parallel-across-nodes", message, fix, *place(d.tensor.given, d.nnodes.given))


def check_node_ranks(d: Deployment) -> Iterator[Finding]:
    nnodes = d.nnodes.value
    launch = d.first
    for one, rank in zip(d.launches, d.node_ranks, strict=True):
        if rank.given and not rank.unknown and rank.value >= nnodes:
            message = f"--node-rank is {rank.value}; with --nnodes {nnodes} it runs from 0 to {nnodes - 1}"
            yield contradiction("node-rank-range", message, f"--node-rank {nnodes - 1}", *place(rank.given))
        if (
            nnodes > 1
            and one.program == SERVE
            and not one.launcher
            and rank.value > 0
            and not one.meant.last("--headless")
        ):
            message = (
                "a node other than 0 starts ranks only; without --headless it also starts an API server, and fails"
            )
            yield Finding(WRONG, "needs-headless", message, "--headless", *place(rank.given))
    if nnodes < 2:
        return
    static = launch.launcher_args.text("--rdzv-backend") in (None, "static") if launch.is_torchrun else True
    ranks = [rank.value for rank in d.node_ranks if not rank.unknown]
    if static and len(set(ranks)) < len(ranks):
        given = d.node_ranks[-1].given
        message = f"two nodes have --node-rank {ranks[-1]}; each needs its own"
        yield contradiction("node-rank-same", message, f"--node-rank {len(ranks) - 1}", *place(given))
    elif launch.is_torchrun and static and not d.node_ranks[0].given and len(d.launches) == 1:
        message = f"--nnodes={nnodes} without --node-rank: every node would be node 0"
        yield contradiction(
            "node-rank-missing", message, "--node-rank=0 here, 1 on the next node", *place(d.nnodes.given)
        )
    missing = sorted(set(range(min(nnodes, MAX_RANKS))) - set(ranks))
    if (
        len(d.launches) < nnodes
        and missing
        and launch.program != OURS
        and not any(rank.unknown for rank in d.node_ranks)
    ):
        which = f"node {missing[0]}" if len(missing) == 1 else f"nodes {missing[0]} to {missing[-1]}"
        message = f"the command for {which} is missing; the others wait for it until they give up"
        yield Finding(
            ADVICE, "node-missing", message, "the same command there, with its own --node-rank", *place(d.nnodes.given)
        )
    for one in d.launches[1:]:
        for name in ("--tensor-parallel-size", "--pipeline-parallel-size"):
            here, there = launch.meant.text(name) or "1", one.meant.text(name) or "1"
            if here != there:
                message = f"{name} is {here} on one node and {there} on another; all nodes need the same"
                yield contradiction("nodes-disagree", message, f"{name} {here}", *place(one.meant.last(name)))
        if one.model and launch.model and one.model.text != launch.model.text:
            message = f"one node serves {launch.model.text}, another {one.model.text}"
            yield contradiction("nodes-disagree", message, launch.model.text, one.model.start, one.model.end)


def check_meeting_point(d: Deployment) -> Iterator[Finding]:
    """Address and port where the nodes meet, and the API's port beside them."""
    address, port = d.master
    if d.nnodes.value > 1:
        backend = d.first.launcher_args.text("--rdzv-backend")
        where = d.given("--rdzv-endpoint") or d.given("--master-addr")
        if address is None or is_loopback(address):
            said = (
                "is not given, so it is this machine's own" if address is None else f"{address} is every machine's own"
            )
            flag = "--rdzv-endpoint" if backend not in (None, "static") else "--master-addr"
            message = f"{flag} {said}: no other node would find node 0 there"
            fix = f"{flag} ADDRESS_OF_NODE_0; there: ip -4 addr"
            yield contradiction("meeting-point", message, fix, *place(where, d.nnodes.given))
        elif address in ("0.0.0.0", "::"):
            message = f"{address} is an address to listen on, not one to reach node 0 at"
            yield contradiction(
                "meeting-point", message, "--master-addr ADDRESS_OF_NODE_0; there: ip -4 addr", *place(where)
            )
        elif d.port.value == port.value:
            message = f"the API and the ranks' meeting point are both on port {port.value}; each needs one"
            other = 29500 if d.port.value != 29500 else 29501
            yield contradiction("same-port", message, f"--master-port {other}", *place(port.given, d.port.given))
    elif d.first.is_torchrun and d.port.value == port.value and port.given and port.value:
        message = f"--port and --master-port are both {port.value}; the server and torchrun need one each"
        yield contradiction("same-port", message, "--master-port 29500", *place(port.given))


def check_ray(d: Deployment) -> Iterator[Finding]:
    if not d.uses_ray:
        return
    backend = d.first.meant.last("--distributed-executor-backend")
    message = "Ray starts the ranks here. vLLM no longer installs Ray, and several nodes need none: --nnodes does it"
    there = place(backend) if backend else (d.by_ray[0].named[0].start, d.by_ray[0].named[-1].end)
    yield Finding(NOTE, "ray", message, "the commands below, one per node, without Ray", *there)
    if backend is None:
        counts = [whole_number(ray.args.text("--num-gpus") or "") for ray in d.by_ray]
        message = (
            f"{d.split_size} ranks, and Ray is not asked for: vLLM starts them all on this machine, and refuses "
            "when it has fewer GPUs"
        )
        if counts and all(count is not None and count < d.split_size for count in counts):
            message += f" ({counts[0]}, says ray start)"
        if d.split_size > 1:
            fix = "--distributed-executor-backend ray"
            yield contradiction("ray-not-asked-for", message, fix, *place(d.tensor.given, d.pipeline.given))


def check_data_parallel(d: Deployment) -> Iterator[Finding]:
    if d.data.value > 1 and not d.data.unknown:
        message = f"{d.data.value} copies of the model, {d.split_size * d.data.value} ranks in all"
        fix = "localai-clusters serves one copy; the vllm serve command below keeps all of them"
        yield Finding(NOTE, "data-parallel", message, fix, *place(d.data.given))
        if d.first.is_torchrun:
            world = d.nnodes.value * (d.nproc.value if d.nproc else 1)
            message = f"torchrun with --data-parallel-size {d.data.value}: each of its {world} ranks starts all copies"
            yield Finding(
                WRONG, "data-parallel-torchrun", message, "vllm serve, without torchrun", *place(d.data.given)
            )
