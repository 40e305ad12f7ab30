"""Models: their shape from a config.json, the built-in one, and finding any of them on this machine.

    find("smollm2-135m")                  the built-in model, de-quantized into the user's cache on first use
    find("./my-model")                    a local Hugging Face folder
    find("Qwen/Qwen2.5-0.5B-Instruct")    a Hugging Face id: the local cache first, then the hub

Importing this module costs no torch, transformers or vLLM, and neither does anything in it: de-quantizing runs in a
process of its own. Whatever is wrong with a name, a folder, a cache or the network is a ModelError.
"""

from localai_clusters.models.built_in import BUILT_IN, BuiltIn
from localai_clusters.models.cache import cache_folder, sha256_cached
from localai_clusters.models.errors import ModelError
from localai_clusters.models.finding import find, look_up
from localai_clusters.models.folder import Model
from localai_clusters.models.shape import ModelShape

__all__ = [
    "BUILT_IN",
    "BuiltIn",
    "Model",
    "ModelError",
    "ModelShape",
    "cache_folder",
    "find",
    "look_up",
    "sha256_cached",
]
