"""From the machine to node 0: ``python -m localai_clusters.launch.nodes.forward PORT TO_PORT [TOKEN]``.

A socket stays in the network in which it was made. So this process listens on 127.0.0.1:PORT of the machine, then moves
to node 0's network, where it connects to TO_PORT for every client: no interface joins the two. It ends with its parent.
"""

import asyncio
import contextlib
import os
import socket
import sys

from localai_clusters.launch import processes
from localai_clusters.launch.nodes import namespaces, state
from localai_clusters.launch.nodes.enter import node_of
from localai_clusters.launch.nodes.state import NodesError

CHUNK_BYTES = 1 << 16


async def serve(listener: socket.socket, addresses: tuple[str, ...], port: int) -> None:
    async def on_client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there = await connect(addresses, port)
        except OSError:  # nothing listens there yet: the client sees its connection close
            writer.transport.abort()
            return
        await asyncio.gather(copy(reader, there[1], writer), copy(there[0], writer, there[1]))
        for side in (writer, there[1]):
            side.close()

    async with await asyncio.start_server(on_client, sock=listener) as server:
        await server.serve_forever()


async def connect(addresses: tuple[str, ...], port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """To the first of ``addresses`` that listens: a server may be bound to the node's address or to its loopback."""
    for address in addresses[:-1]:
        with contextlib.suppress(ConnectionRefusedError):
            return await asyncio.open_connection(address, port)
    return await asyncio.open_connection(addresses[-1], port)


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, back: asyncio.StreamWriter) -> None:
    """Pass on bytes, then the end; if either side breaks, both are cut off at once (``back`` is the reader's own)."""
    try:
        while chunk := await reader.read(CHUNK_BYTES):
            writer.write(chunk)
            await writer.drain()
        writer.write_eof()
    except OSError:
        writer.transport.abort()
        back.transport.abort()


def main() -> int:
    port, to_port, parent = int(sys.argv[1]), int(sys.argv[2]), os.getppid()
    processes.die_with_parent()
    try:
        node = node_of(state.read_complete(), 0)
        listener = socket.create_server(("127.0.0.1", port), backlog=512)
        namespaces.join(node.pid, ["user", "net"])
    except (NodesError, OSError) as error:
        print(f"localai-clusters: cannot forward port {port} to node 0: {error}", file=sys.stderr)
        return 1
    if os.getppid() != parent:
        return 1
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(listener, (node.address, "127.0.0.1"), to_port))
    return 0


if __name__ == "__main__":
    sys.exit(main())
