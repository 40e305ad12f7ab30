"""The course companion for "Local AI Clusters": real vLLM over real torchrun ranks, and a record of what happened.

    import localai_clusters as lac
    plan = lac.ServePlan(model="smollm2-135m", tensor_parallel_size=2)
    lac.preflight(plan)
    with lac.serve(plan) as server:
        server.chat("What is tensor parallelism?")

Importing it costs no torch and no vLLM; the names below are loaded when they are first used.
"""

from localai_clusters import lazy

# Not lazily: the function's name is its package's too, and whichever is bound last wins.
from localai_clusters.preflight import preflight

__version__ = "0.1.0"

_WHERE = {
    "ServePlan": "plan",
    "Machine": "machine",
    "explain_command": "command.explaining",
    "live": "launch.live.probe",
    "serve": "server",
    "join": "server",
    "Server": "server",
    "explain_log": "diagnose.runs",
    "record": "recording",
    "prompts_for": "prompts",
    "open_lab": "exercises.opened",
    "agreement": "comparison",
    "split_map": "picture",
    "console": "widgets.console",
    "cluster": "widgets.views",
    "watch_view": "widgets.views",
    "chat_view": "widgets.chat",
    "log_view": "widgets.logs",
    "attempt": "breaking",
    "kill_rank": "breaking",
    "changed_model": "breaking",
    "mystery": "breaking",
    "sweep": "sweeping",
    "Case": "sweeping",
    "communication": "decode_time",
    "DecodeTime": "decode_time",
    "where_it_goes": "decode_time",
    "traffic": "wire",
}
__all__ = [*_WHERE, "preflight", "__version__"]
__getattr__, __dir__ = lazy.names(__name__, _WHERE, "preflight", "__version__")
