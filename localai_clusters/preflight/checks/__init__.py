"""The checks: each takes a Situation and yields verdicts that hold the number that is wrong and the one that fits."""

from collections.abc import Callable, Iterator

from localai_clusters.preflight.checks.machine import check_devices, check_dtype, check_shared_memory, check_versions
from localai_clusters.preflight.checks.memory import check_context, check_memory
from localai_clusters.preflight.checks.model import check_model, check_quantization
from localai_clusters.preflight.checks.network import check_exposure, check_master_address, check_ports
from localai_clusters.preflight.checks.split import check_heads, check_layers, check_world_size
from localai_clusters.preflight.report import Verdict
from localai_clusters.preflight.situation import Situation

Check = Callable[[Situation], Iterator[Verdict]]

CHECKS: tuple[Check, ...] = (
    check_versions,
    check_model,
    check_world_size,
    check_heads,
    check_layers,
    check_quantization,
    check_dtype,
    check_devices,
    check_memory,
    check_context,
    check_shared_memory,
    check_ports,
    check_master_address,
    check_exposure,
)
