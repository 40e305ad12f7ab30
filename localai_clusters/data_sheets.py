"""What NVIDIA's data sheets say of a GPU's bandwidths."""

import re
from typing import NamedTuple


class Bandwidths(NamedTuple):
    """Bytes per second: of the GPU's memory, and of its links in one direction. 0: it has no such link."""

    memory: float
    nvlink: float
    pcie: float


GEN3, GEN4, GEN5 = 15.8, 31.5, 63  # PCIe x16, GB/s
# Words of the name that NVML gives: GB/s of memory, NVLink, PCIe. The first that fits counts.
GPUS = {
    "GB200": (8000, 900, GEN5),
    "B200": (8000, 900, GEN5),
    "H200": (4800, 450, GEN5),
    "H100 PCIe": (2000, 300, GEN5),
    "H100 NVL": (3900, 300, GEN5),
    "H100": (3350, 450, GEN5),
    "A100-SXM4-80GB": (2039, 300, GEN4),
    "A100 80GB PCIe": (1935, 300, GEN4),
    "A100-SXM4-40GB": (1555, 300, GEN4),
    "A100-PCIE-40GB": (1555, 300, GEN4),
    "A40": (696, 56.25, GEN4),
    "A10": (600, 0, GEN4),
    "A10G": (600, 0, GEN4),
    "L40S": (864, 0, GEN4),
    "L40": (864, 0, GEN4),
    "L4": (300, 0, GEN4),
    "V100": (900, 150, GEN3),
    "V100-SXM2-16GB": (900, 150, GEN3),
    "V100-SXM2-32GB": (900, 150, GEN3),
    "V100-PCIE-16GB": (900, 0, GEN3),
    "V100-PCIE-32GB": (900, 0, GEN3),
    "T4": (320, 0, GEN3),
    "RTX 4090": (1008, 0, GEN4),
    "RTX 3090": (936, 56.25, GEN4),
}


def bandwidths(name: str) -> Bandwidths:
    """Of the GPU that NVML calls ``name``. Raises ``ValueError`` for one that is not in ``GPUS``."""
    for words, figures in GPUS.items():
        if re.search(rf"(?<![\w-]){re.escape(words)}(?![\w-])", name):
            return Bandwidths(*(figure * 1e9 for figure in figures))
    raise ValueError(f"no bandwidths are known for {name}")
