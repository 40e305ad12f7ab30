"""What can be wrong with a pasted command: small functions that yield findings, for one program or one deployment."""

from collections.abc import Callable, Iterator

from localai_clusters.command.checks import container, exposure, flags, model, program, split, values, variables
from localai_clusters.command.deployment import Deployment
from localai_clusters.command.findings import Finding
from localai_clusters.command.launch import Launch

LaunchCheck = Callable[[Launch], Iterator[Finding]]
DeploymentCheck = Callable[[Deployment], Iterator[Finding]]

LAUNCH_CHECKS: tuple[LaunchCheck, ...] = (
    program.check_launcher,
    program.check_program,
    program.check_words,
    flags.check_torchrun_flags,
    flags.check_flags,
    values.check_values,
    flags.check_repeats,
    flags.check_pairs,
    variables.check_variables,
    container.check_devices,
    container.check_shared_memory,
    container.check_ports,
    container.check_image,
    container.check_folders,
)
DEPLOYMENT_CHECKS: tuple[DeploymentCheck, ...] = (
    split.check_world_size,
    split.check_visible_devices,
    split.check_across_nodes,
    split.check_node_ranks,
    split.check_meeting_point,
    split.check_ray,
    split.check_data_parallel,
    exposure.check_listening,
    exposure.check_secrets,
    exposure.check_remote_code,
    model.check_model,
    model.check_heads,
    model.check_memory,
)
