"""The checks: each takes a Situation and yields verdicts that hold the number that is wrong and the one that fits."""

from collections.abc import Callable, Iterator

from localai_clusters.preflight.checks.advice import check_over_decomposition, check_split_over_nodes
from localai_clusters.preflight.checks.gpus import (
    check_busy_gpus,
    check_compute_capability,
    check_dtype,
    check_gpu_links,
    check_mig,
    check_mixed_gpus,
    check_visible_gpus,
)
from localai_clusters.preflight.checks.machine import (
    check_cores,
    check_devices,
    check_driver,
    check_limits,
    check_shared_memory,
    check_versions,
)
from localai_clusters.preflight.checks.memory import check_context, check_memory
from localai_clusters.preflight.checks.model import (
    check_architecture,
    check_chat_template,
    check_lora,
    check_model,
    check_model_dtype,
)
from localai_clusters.preflight.checks.network import (
    check_exposure,
    check_interfaces,
    check_master_address,
    check_ports,
)
from localai_clusters.preflight.checks.quantization import check_quantization
from localai_clusters.preflight.checks.split import check_heads, check_layers, check_world_size
from localai_clusters.preflight.report import Verdict
from localai_clusters.preflight.situation import Situation

Check = Callable[[Situation], Iterator[Verdict]]

CHECKS: tuple[Check, ...] = (
    check_versions,
    check_driver,
    check_model,
    check_architecture,
    check_world_size,
    check_heads,
    check_layers,
    check_quantization,
    check_model_dtype,
    check_compute_capability,
    check_dtype,
    check_visible_gpus,
    check_devices,
    check_cores,
    check_mig,
    check_mixed_gpus,
    check_busy_gpus,
    check_gpu_links,
    check_memory,
    check_context,
    check_chat_template,
    check_lora,
    check_shared_memory,
    check_limits,
    check_ports,
    check_master_address,
    check_interfaces,
    check_exposure,
    check_split_over_nodes,
    check_over_decomposition,
)
