"""Whether a plan can run, answered before anything is launched.

Checks (checks.py) are small functions over data: a plan, the model's shape, the machine. A report
(report.py) holds their verdicts and shows itself in a terminal and in a notebook.
"""


def preflight(plan, *, api_key: str | None = None):
    """Every check of ``plan`` on this machine, as a ``Report``; downloads, builds and starts nothing."""
    from localai_clusters.preflight.checks import CHECKS
    from localai_clusters.preflight.report import Report
    from localai_clusters.preflight.situation import examine

    situation = examine(plan, has_api_key=bool(api_key))
    return Report(situation.plan, tuple(verdict for check in CHECKS for verdict in check(situation)))
