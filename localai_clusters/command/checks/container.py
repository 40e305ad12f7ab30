"""docker run: devices, shared memory, ports, the image, folders."""

import re
from collections.abc import Iterator

from localai_clusters.command.checks.exposure import has_key, in_own_network
from localai_clusters.command.checks.program import contradiction
from localai_clusters.command.findings import ADVICE, NOTE, UNSAFE, WRONG, Finding
from localai_clusters.command.launch import Launch
from localai_clusters.command.values import whole_number
from localai_clusters.plan import is_loopback

PUBLISHED = re.compile(
    r"(?:(?P<host>\[[0-9a-fA-F:]+\]|[\d.]+|localhost):)?(?:(?P<outside>\d{1,6})?:)?(?P<inside>\d{1,6})(?:/\w+)?"
)


def ranks_of(launch: Launch) -> int:
    """Ranks on this machine, as far as one command tells."""
    sizes = [
        whole_number(launch.args.text(f"--{name}-parallel-size") or "1") or 1 for name in ("tensor", "pipeline", "data")
    ]
    nodes = max(1, whole_number(launch.args.text("--nnodes") or "1") or 1)
    return max(1, sizes[0] * sizes[1] * sizes[2] // nodes)


def check_devices(launch: Launch) -> Iterator[Finding]:
    if not launch.serves or launch.container is None:
        return
    args, image = launch.container.args, launch.container.image
    gpus = args.last("--gpus")
    others = [word.text for word in (*launch.container.values("--device"), *launch.container.values("--runtime"))]
    if gpus is None and not others and not args.last("--privileged") and image and not re.search("(?i)cpu", image.text):
        message = "the container sees no GPU"
        yield contradiction(
            "no-gpus", message, "--gpus all", launch.container.engine.start, launch.container.engine.end
        )
    if gpus is None or gpus.value is None or gpus.value.unknown:
        return
    text, place = gpus.value.text, (gpus.start, gpus.end)
    listed = re.fullmatch(r"\"?device=([^\"]*)\"?", text)
    if listed and "," in listed[1] and not text.startswith('"'):
        message = "docker splits the list at the comma, and refuses it: it wants quotes around it that reach docker"
        yield Finding(WRONG, "gpus-quoting", message, f"--gpus '\"device={listed[1]}\"'", *place)
    count = whole_number(text) if not listed else len([part for part in listed[1].split(",") if part])
    ranks = ranks_of(launch)
    if count is not None and 0 <= count < ranks:
        message = f"{ranks} ranks, but --gpus gives the container {count} GPU{'s' * (count != 1)}"
        yield contradiction("gpus", message, f"--gpus {ranks}, or --gpus all", *place)


def check_shared_memory(launch: Launch) -> Iterator[Finding]:
    if not launch.serves or launch.container is None or ranks_of(launch) < 2:
        return
    if any(launch.container.args.last(name) for name in ("--ipc", "--shm-size")):
        return
    message = f"{ranks_of(launch)} ranks exchange data through /dev/shm, and docker gives a container 64 MiB of it"
    yield contradiction(
        "no-shared-memory",
        message,
        "--ipc=host, or --shm-size=16g",
        launch.container.engine.start,
        launch.container.engine.end,
    )


def check_ports(launch: Launch) -> Iterator[Finding]:
    if not launch.serves or launch.container is None:
        return
    published = [given for given in launch.container.args.given if given.name == "--publish" and given.value]
    if not in_own_network(launch):
        for given in published:
            yield Finding(
                NOTE, "publish-ignored", "with --network host, -p does nothing", "leave -p out", given.start, given.end
            )
        return
    port = whole_number(launch.args.text("--port") or "8000")
    host = launch.args.text("--host")
    leads_in = False
    for given in published:
        found = None if given.value.unknown else PUBLISHED.fullmatch(given.value.text)
        if given.value.unknown or found is None:
            leads_in = True
            continue
        leads_in = leads_in or int(found["inside"]) == port
        if not has_key(launch) and not is_loopback((found["host"] or "0.0.0.0").strip("[]")):
            message = (
                f"-p {given.value.text} opens the port to other machines (docker's rules come before a firewall's), "
                "and nobody is asked for a key"
            )
            fix = f"-p 127.0.0.1:{found['outside'] or found['inside']}:{found['inside']}, or a key: -e VLLM_API_KEY"
            yield Finding(UNSAFE, "published-port", message, fix, given.start, given.end)
    if published and not leads_in and port is not None:
        given = published[0]
        outside = given.value.text.split(":")[-2] if ":" in given.value.text else given.value.text
        message = f"no -p leads to port {port}, where the server listens inside the container"
        yield contradiction("port-mismatch", message, f"-p {outside}:{port}", given.start, given.end)
    if published and host is not None and is_loopback(host):
        given = launch.args.last("--host")
        message = f"--host {host} inside a container: -p cannot reach it"
        yield contradiction(
            "host-inside", message, "--host 0.0.0.0 inside, -p 127.0.0.1:8000:8000 outside", given.start, given.end
        )
    if not published and not launch.container.args.last("--publish-all"):
        message, engine = (
            "no port of the container is published: nothing outside it reaches the server",
            launch.container.engine,
        )
        yield Finding(
            ADVICE, "no-port", message, f"-p 127.0.0.1:{port or 8000}:{port or 8000}", engine.start, engine.end
        )


def check_image(launch: Launch) -> Iterator[Finding]:
    if not launch.serves or launch.container is None or launch.container.image is None:
        return
    image = launch.container.image
    tag = re.search(r":v?(\d+)\.(\d+)[\w.+-]*$", image.text)
    if tag and (int(tag[1]), int(tag[2])) < (0, 32):
        message = f"the image holds vLLM {tag[1]}.{tag[2]}; what is said here is about 0.32"
        yield Finding(NOTE, "old-image", message, "vllm/vllm-openai:v0.32.0", image.start, image.end)
    elif re.search(r"vllm-openai(?::latest)?$", image.text):
        message = "the image's version is not said: tomorrow it may be another"
        yield Finding(NOTE, "no-version", message, "vllm/vllm-openai:v0.32.0", image.start, image.end)


def check_folders(launch: Launch) -> Iterator[Finding]:
    """A model's folder, or the cache of downloads, that the container does not see."""
    if not launch.serves or launch.container is None or launch.model is None or launch.model.unknown:
        return
    engine = launch.container.engine
    volumes = launch.container.values("--volume") + launch.container.values("--mount")
    inside = [
        folder
        for word in volumes
        for folder in re.findall(r"(?:^[^:]*:|(?:target|dst|destination)=)([^:,]+)", word.text)
    ]
    model = launch.model.text
    if any(word.unknown for word in volumes):
        return
    if model.startswith("/"):
        if not any(model.rstrip("/").startswith(folder.rstrip("/")) for folder in inside):
            message = f"{model} is a folder inside the container, and no -v puts one there"
            fix = f"-v /where/it/is:{model}:ro, unless the image has it"
            yield Finding(ADVICE, "folder-not-mounted", message, fix, launch.model.start, launch.model.end)
    elif (
        "/" in model
        and not model.startswith((".", "~", "<"))
        and not any("huggingface" in v.text or "HF_HOME" in v.text for v in volumes)
        and not volumes
    ):
        message = "the download goes into the container and is gone with it"
        fix = "-v ~/.cache/huggingface:/root/.cache/huggingface"
        yield Finding(ADVICE, "cache-not-mounted", message, fix, engine.start, engine.end)
