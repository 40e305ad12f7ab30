"""Failures on purpose: plans tried although they cannot work, ranks killed while they serve, models that do not fit.

    tried = attempt(ServePlan(model="smollm2-135m-published", tensor_parallel_size=2), "heads", for_real=True)
    print(tried)                       # what preflight says, and what vLLM says without it

Everything is real: what is shown was done just now by torchrun and vLLM, and nothing of it is left afterwards.
"""

from localai_clusters.breaking.attempting import Attempt, attempt
from localai_clusters.breaking.changed_models import changed_model
from localai_clusters.breaking.killing import Loss, kill_rank
from localai_clusters.breaking.mysteries import Mystery, mystery

__all__ = ["Attempt", "Loss", "Mystery", "attempt", "changed_model", "kill_rank", "mystery"]
