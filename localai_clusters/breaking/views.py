"""How an attempt and a loss are shown: who said what, after how long, and what to type, one beside the other."""

import html
from dataclasses import dataclass

LONGEST_LINE = 220  # characters of what somebody said


@dataclass(frozen=True, slots=True)
class Telling:
    """``meaning`` is what the words mean where they do not say it themselves; ``fixes`` what to type."""

    who: str
    seconds: float
    said: str
    fixes: tuple[str, ...] = ()
    meaning: str = ""


def duration(seconds: float) -> str:
    """``7 ms``, ``8.4 s``."""
    return f"{seconds * 1000:.0f} ms" if seconds < 0.9995 else f"{seconds:.1f} s"


def shortened(line: str, longest: int = LONGEST_LINE) -> str:
    """The middle of a long line left out: what happened stands first, the numbers often last."""
    return line if len(line) <= longest else f"{line[: longest * 3 // 4]} ... {line[-longest // 4 :]}"


def telling_text(title: str, tellings: list[Telling]) -> str:
    lines = [title]
    for told in tellings:
        lines.append(f"  {told.who}, after {duration(told.seconds)}:")
        lines += [f"      {shortened(line)}" for line in told.said.splitlines()]
        lines += [f"    = {told.meaning}"] if told.meaning else []
        lines += [f"    → {line}" for fix in told.fixes for line in fix.splitlines()]
    return "\n".join(lines)


def telling_html(title: str, tellings: list[Telling]) -> str:
    cell = "<td style='text-align:left;vertical-align:top;white-space:pre-wrap;overflow-wrap:anywhere;{}'>"
    heads = "".join(f"<th style='text-align:left'>{name}</th>" for name in ("who", "after", "what it says"))
    rows = []
    for told in tellings:
        words = html.escape("\n".join(shortened(line) for line in told.said.splitlines()))
        said = f"<code style='background:none;padding:0'>{words}</code>"
        meaning = f"<div>{html.escape(told.meaning)}</div>" if told.meaning else ""
        fixes = "".join(f"<div><b>→ {html.escape(fix)}</b></div>" for fix in told.fixes)
        rows.append(
            f"<tr>{cell.format('max-width:11em')}{html.escape(told.who)}</td>"
            f"{cell.format('white-space:nowrap')}{duration(told.seconds)}</td>"
            f"{cell.format('max-width:52em')}{said}{meaning}{fixes}</td></tr>"
        )
    return f"<p><b>{html.escape(title)}</b></p><table><tr>{heads}</tr>{''.join(rows)}</table>"
