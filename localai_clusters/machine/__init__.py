"""The machine as found now: GPUs, cores, memory, limits, network, versions. Data, so that it can be saved and made up.

Asks the operating system and NVML only; torch and vLLM are looked up in the package metadata, never imported.
"""

from localai_clusters.machine.cores import Core, assign_cores, physical_cores
from localai_clusters.machine.facts import Gpu, GpuLink, GpuProcess, Interface, Limits, MigDevice
from localai_clusters.machine.machine import Machine
from localai_clusters.machine.network import free_port, interface_towards, is_own_address, port_holder
from localai_clusters.machine.system import SUPPORTED_VLLM, installed_backend, versions
from localai_clusters.machine.visible import VisibleGpus, visible_gpus

__all__ = [
    "SUPPORTED_VLLM",
    "Core",
    "Gpu",
    "GpuLink",
    "GpuProcess",
    "Interface",
    "Limits",
    "Machine",
    "MigDevice",
    "VisibleGpus",
    "assign_cores",
    "free_port",
    "installed_backend",
    "interface_towards",
    "is_own_address",
    "physical_cores",
    "port_holder",
    "versions",
    "visible_gpus",
]
