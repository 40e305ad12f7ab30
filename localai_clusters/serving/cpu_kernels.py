"""vLLM's own fused CPU kernels, in the places where its CPU backend relies on a compiler to fuse.

With compilation, inductor fuses a norm or an activation into one kernel. Without it (which starts
seconds sooner, see rank.py) vLLM 0.32 runs them on a CPU as eight small torch operations each, 90
times per step of the built-in model, although its extension has them as single kernels. Both are put
in through vLLM's extension points: an implementation for its operator registry, and an out-of-tree
class for its activation.
"""

import torch
from torch import Tensor
from vllm import ir
from vllm.model_executor.custom_op import CustomOp
from vllm.model_executor.layers.activation import SiluAndMul

PROVIDER = "vllm_c_cpu"
IR_OP_PRIORITY = {"rms_norm": [PROVIDER], "fused_add_rms_norm": [PROVIDER]}


def register() -> None:
    """Make the kernels known to vLLM; called once per process, before the model is built."""
    kernels = torch.ops._C

    @ir.ops.rms_norm.register_impl(
        PROVIDER,
        supports_args=lambda x, weight, epsilon, variance_size=None: (
            variance_size is None and x.is_contiguous() and (weight is None or weight.dtype == x.dtype)
        ),
    )
    def rms_norm(x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None) -> Tensor:
        output = torch.empty_like(x)
        kernels.rms_norm(output, x, weight, epsilon)
        return output

    @ir.ops.fused_add_rms_norm.register_impl(
        PROVIDER,
        supports_args=lambda x, x_residual, weight, epsilon, variance_size=None: (
            variance_size is None and x.is_contiguous() and (weight is None or weight.dtype == x.dtype)
        ),
        inplace=True,
    )
    def fused_add_rms_norm(
        x: Tensor, x_residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
    ) -> tuple[Tensor, Tensor]:
        kernels.fused_add_rms_norm(x, x_residual, weight, epsilon)
        return x, x_residual

    @CustomOp.register_oot(name="SiluAndMul")
    class FusedSiluAndMul(SiluAndMul):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.op = kernels.silu_and_mul

        forward_oot = SiluAndMul.forward_cuda
        forward_cpu = SiluAndMul.forward_cuda
