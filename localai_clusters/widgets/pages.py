"""What was seen, as text and as HTML for light and dark pages: a state is a word and a sign, never a colour alone."""

import html

from localai_clusters.observe import MIB
from localai_clusters.plots import COLOURS
from localai_clusters.tables import as_text, mib
from localai_clusters.widgets.seen import ENDED, FAILED, READY, RUNNING, STARTING, STOPPED, STOPPING, RankSeen, Seen

# Okabe and Ito's colours, each with a sign.
SIGNS = {
    READY: ("●", "#009e73"),
    RUNNING: ("●", "#009e73"),
    STARTING: ("◐", "#56b4e9"),
    STOPPING: ("◐", "#e69f00"),
    FAILED: ("✗", "#d55e00"),
    ENDED: ("■", "#999999"),
    STOPPED: ("○", "#999999"),
}
# As plots.py draws the first three parts of a bar.
WEIGHTS = COLOURS[0]
KV_CACHE = f"repeating-linear-gradient(135deg,{COLOURS[1]} 0 5px,#a34700 5px 7px)"
REST = f"radial-gradient(#00523c 1px,transparent 1.4px) 0 0/5px 5px,{COLOURS[2]}"
LINE = "1px solid var(--jp-border-color1, #8888)"
TEXT = "color:var(--jp-ui-font-color1, inherit);font-size:var(--jp-ui-font-size1, 13px);line-height:1.45"
BOX = f"border:{LINE};border-radius:6px;padding:6px 10px;min-width:12em"
QUIET = "opacity:.75"
TRACK = f"height:12px;border:{LINE};border-radius:3px;overflow:hidden;display:flex;position:relative"


def status_text(seen: Seen) -> str:
    return f"{seen.title}: {seen.state}" + (f" ({seen.message})" if seen.message else "")


def status_html(seen: Seen) -> str:
    message = f" <span style='{QUIET};white-space:pre-wrap'>{html.escape(seen.message)}</span>" if seen.message else ""
    if seen.state == FAILED:
        message = f"<pre style='white-space:pre-wrap;margin:4px 0 0'>{html.escape(seen.message)}</pre>"
    title = html.escape(seen.title)
    return f"<div role='status' style='{TEXT}'><b>{title}</b> {sign(seen.state)} {message}</div>"


def sign(state: str, word: str | None = None) -> str:
    """The state in its colour's sign and in words; the words have the page's colour, which can always be read."""
    mark, colour = SIGNS.get(state, ("○", "#999999"))
    return f"<span style='color:{colour}' aria-hidden='true'>{mark}</span> {html.escape(word or state)}"


# The cluster: nodes, their ranks, what each holds, how far it is


def cluster_text(seen: Seen) -> str:
    lines = []
    for node, ranks in nodes_of(seen):
        lines.append(f"  {node}")
        for rank in ranks:
            lines.append(f"    rank {rank.rank}: {', '.join([rank.step, *holds(rank)])}")
    return "\n".join(lines)


def cluster_html(seen: Seen) -> str:
    nodes = []
    for node, ranks in nodes_of(seen):
        boxes = "".join(rank_box(rank) for rank in ranks)
        name = html.escape(node)
        nodes.append(
            f"<div role='group' aria-label='{name}' style='border:{LINE};border-radius:8px;padding:8px 10px'>"
            f"<div style='{QUIET};padding-bottom:6px'>{name}</div>"
            f"<div style='display:flex;flex-wrap:wrap;gap:8px'>{boxes}</div></div>"
        )
    return f"<div style='{TEXT};display:flex;flex-wrap:wrap;gap:10px'>{''.join(nodes)}</div>"


def rank_box(rank: RankSeen) -> str:
    lines = "<br>".join(html.escape(line) for line in holds(rank))
    moving = bar(f"start of rank {rank.rank}", rank.done) if rank.state == STARTING else "<br>"
    return f"<div style='{BOX}'><b>rank {rank.rank}</b> {sign(rank.state, rank.step)}{moving}{lines}</div>"


def holds(rank: RankSeen) -> list[str]:
    weights = rank.weights if rank.weights is not None else rank.weights_predicted
    ahead = "" if rank.weights is not None else " expected"
    return [
        *filter(None, (rank.device, rank.layers, rank.heads)),
        *([] if weights is None else [f"weights {mib(weights)} MiB{ahead}"]),
        *([] if rank.kv_cache is None else [f"KV cache {mib(rank.kv_cache)} MiB"]),
    ]


def nodes_of(seen: Seen) -> list[tuple[str, list[RankSeen]]]:
    nodes: dict[str, list[RankSeen]] = {}
    for rank in seen.ranks:
        nodes.setdefault(rank.node, []).append(rank)
    return list(nodes.items())


def bar(name: str, share: float, colour: str = "#56b4e9") -> str:
    percent = round(100 * min(1.0, max(0.0, share)))
    return (
        f"<div role='progressbar' aria-label='{html.escape(name)}' aria-valuemin='0' aria-valuemax='100' "
        f"aria-valuenow='{percent}' style='{TRACK}'>{part(percent, colour)}</div>"
    )


def part(percent: float, background: str, title: str = "") -> str:
    return f"<div title='{html.escape(title)}' style='width:{percent:.2f}%;background:{background}'></div>"


# Memory, rank by rank


def parts_of(rank: RankSeen) -> tuple[int, int, int] | None:
    """(weights, KV cache, the rest) of what the process holds; pages of the KV cache that no token has touched are not
    in RAM, so its part is at most what is left beside the weights."""
    if rank.held is None or rank.weights is None:
        return None
    weights = min(rank.weights, rank.held)
    kv_cache = min(rank.kv_cache or 0, rank.held - weights)
    return weights, kv_cache, rank.held - weights - kv_cache


def memory_text(seen: Seen) -> str:
    if all(rank.held is None for rank in seen.ranks):
        return ""
    where = "on its GPU" if seen.on_gpu else "in RAM"
    header = ("rank", "weights", "KV cache", "the rest", f"all {where}")
    rows = []
    for rank in seen.ranks:
        parts = parts_of(rank)
        rows.append((str(rank.rank), *(mib(value) for value in parts or (None,) * 3), mib(rank.held)))
    return f"memory per rank now, in MiB\n{as_text(header, rows)}"


def memory_html(seen: Seen) -> str:
    known = [rank for rank in seen.ranks if rank.held is not None]
    if not known:
        return ""
    scale = max(rank.held for rank in known) * 1.05
    if seen.on_gpu:
        scale = max([scale, *(rank.limit for rank in known if rank.limit)])
    rows = "".join(memory_row(rank, scale) for rank in known)
    keys = " &nbsp; ".join(
        f"<span style='display:inline-block;width:1em;height:.7em;border:{LINE};background:{colour}'></span> {name}"
        for name, colour in (("weights", WEIGHTS), ("KV cache", KV_CACHE), ("the rest: Python, torch, vLLM", REST))
    )
    note = ""
    if not seen.on_gpu and known[0].limit:
        together = sum(rank.held for rank in known)
        note = f"; {together / (1 << 30):.2f} of this machine's {known[0].limit / (1 << 30):.1f} GiB RAM"
    where = "on each GPU" if seen.on_gpu else "in RAM"
    return (
        f"<div role='group' aria-label='memory of each rank' style='{TEXT}'><b>Memory</b> {where}, MiB"
        f"<span style='{QUIET}'>{note}</span>{rows}<div style='{QUIET}'>{keys}</div></div>"
    )


def memory_row(rank: RankSeen, scale: float) -> str:
    names, colours = ("weights", "KV cache", "the rest"), (WEIGHTS, KV_CACHE, REST)
    parts = parts_of(rank) or (0, 0, rank.held)
    told = ", ".join(f"{name} {mib(value)}" for name, value in zip(names, parts, strict=True) if value)
    pieces = "".join(
        part(100 * value / scale, colour, f"{name} {mib(value)} MiB")
        for value, name, colour in zip(parts, names, colours, strict=True)
    )
    limit = f" of {rank.limit / MIB:,.0f}" if rank.limit and scale >= rank.limit else ""
    return (
        f"<div style='display:grid;grid-template-columns:4em minmax(8em,1fr) 17em;gap:8px;align-items:center'>"
        f"<span>rank {rank.rank}</span><div role='img' aria-label='rank {rank.rank}: {told} MiB' "
        f"style='{TRACK};height:16px'>{pieces}</div><span><b>{mib(rank.held)}</b>{limit} "
        f"<span style='{QUIET}'>({mib(parts[0])} + {mib(parts[1])} + {mib(parts[2])})</span></span></div>"
    )


# The blocks of the KV cache


def blocks_told(seen: Seen) -> str:
    size = f" of {seen.kv_block_tokens} tokens" if seen.kv_block_tokens else ""
    told = [f"{seen.kv_used} of {seen.kv_blocks} KV blocks{size} in use"]
    if seen.running is not None:
        told.append(f"{seen.running} request{'s' * (seen.running != 1)} running, {seen.waiting or 0} waiting")
    if seen.generated is not None:
        told.append(f"{seen.generated:,} tokens generated")
    return "; ".join(told)


def blocks_text(seen: Seen) -> str:
    return "" if seen.kv_used is None or not seen.kv_blocks else blocks_told(seen)


def blocks_html(seen: Seen) -> str:
    if seen.kv_used is None or not seen.kv_blocks:
        return ""
    filled = bar("KV blocks in use", seen.kv_used / seen.kv_blocks, KV_CACHE)
    told = f"<span style='{QUIET}'>{html.escape(blocks_told(seen))}</span>"
    return f"<div style='{TEXT}'><b>KV cache</b> {told}{filled}</div>"
