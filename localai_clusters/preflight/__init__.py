"""Whether a plan can run, answered before anything is launched.

Checks (checks/) are small functions over data: a plan, the model's shape, the machine. A report
(report.py) holds their verdicts and shows itself in a terminal and in a notebook.
"""


def preflight(plan, *, api_key: str | None = None, node_rank: int = 0, nodes_here: int = 1, link=None):
    """Every check of ``plan`` on this machine, as a ``Report``; downloads, builds and starts nothing.

    The machine is the plan's node ``node_rank``, or, with ``nodes_here`` above 1, holds that many of its nodes, joined
    by ``link`` (``links.Link``; ``launch.placing.place_of`` gives both of nodes that are up).
    """
    from localai_clusters.preflight.checks import CHECKS
    from localai_clusters.preflight.report import Report
    from localai_clusters.preflight.situation import examine

    situation = examine(plan, bool(api_key), node_rank, nodes_here, link)
    return Report(situation.plan, tuple(verdict for check in CHECKS for verdict in check(situation)))
