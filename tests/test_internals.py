"""Every vLLM internal that serving/ leans on, named. After an upgrade of vLLM, this is where it fails first."""

import inspect

import pytest
import torch

from localai_clusters.machine import SUPPORTED_VLLM, versions


def parameters(function) -> set[str]:
    return set(inspect.signature(function).parameters)


def test_the_supported_version_is_the_one_installed():
    assert versions()["vllm"].split("+")[0] == SUPPORTED_VLLM


def test_command_line_of_the_server():
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser())
    arguments = parser.parse_args(["--model", "m", "--kv-cache-memory-bytes", "1024", "--tensor-parallel-size", "2"])
    for name in ("distributed_executor_backend", "compilation_config", "ir_op_priority", "served_model_name"):
        assert hasattr(arguments, name)
    assert callable(validate_parsed_serve_args)


def test_the_server_is_built_on_a_client_that_can_be_put_in_its_place():
    from vllm.entrypoints.launchers.api_server.entry import run_server
    from vllm.v1.engine import async_llm
    from vllm.v1.engine.core_client import EngineCoreClient

    assert inspect.iscoroutinefunction(run_server)
    wanted = {"vllm_config", "executor_class", "log_stats", "renderer"}
    assert wanted <= parameters(EngineCoreClient.make_async_mp_client)
    assert "EngineCoreClient.make_async_mp_client(" in inspect.getsource(async_llm.AsyncLLM.__init__)


def test_every_call_of_the_async_client_ends_in_a_method_that_lockstep_overrides():
    from vllm.v1.engine.core_client import AsyncMPClient

    from localai_clusters.serving.client import LockstepClient

    for name in ("get_output_async", "add_request_async", "abort_requests_async", "_call_utility_async", "shutdown"):
        assert name in vars(LockstepClient) and hasattr(AsyncMPClient, name), name
    for name, method in vars(AsyncMPClient).items():
        if name.endswith("_async") and name not in vars(LockstepClient) and inspect.iscoroutinefunction(method):
            assert "_utility" in inspect.getsource(method), f"{name} reaches the engine by another way"


def test_the_engine_core_can_be_stepped_by_hand():
    from vllm.v1.engine.core import EngineCore

    steps = ("step", "step_with_batch_queue", "post_step")
    for name in ("preprocess_add_request", "add_request", "abort_requests", *steps):
        assert hasattr(EngineCore, name), name
    assert {"vllm_config", "executor_class", "log_stats"} <= parameters(EngineCore.__init__)


def test_the_torchrun_executor_can_be_told_where_to_meet():
    from vllm.v1.executor.uniproc_executor import ExecutorWithExternalLauncher, UniProcExecutor

    assert "_distributed_args" in vars(ExecutorWithExternalLauncher)
    source = inspect.getsource(UniProcExecutor._init_executor)
    assert source.index("_distributed_args") < source.index("load_model()")
    assert "determine_available_memory" in vars(ExecutorWithExternalLauncher)


def test_shared_memory_is_named_after_the_last_colon_of_the_init_method():
    from vllm.v1.worker.cpu_worker import CPUWorker

    assert 'init_method.split(":")[-1]' in inspect.getsource(CPUWorker.init_device)


def test_pythons_shared_memory_can_be_named_after_the_run(monkeypatch):
    from multiprocessing import shared_memory

    from localai_clusters.serving.process import name_shared_memory

    for name in ("_SHM_NAME_PREFIX", "_SHM_SAFE_NAME_LENGTH"):
        monkeypatch.setattr(shared_memory, name, getattr(shared_memory, name))  # put back afterwards
    name_shared_memory("1123-120000-abc123")
    segments = [shared_memory.SharedMemory(create=True, size=1) for _ in range(2)]
    for segment in segments:
        segment.close()
        segment.unlink()
        assert segment.name.startswith("lac-1123-120000-abc123-")
    assert segments[0].name != segments[1].name


def test_weights_can_be_counted_before_they_are_packed():
    from vllm.model_executor.model_loader import base_loader

    assert "process_weights_after_loading(model" in inspect.getsource(base_loader.BaseModelLoader.load_model)


def test_a_pipeline_stage_takes_its_buffers_from_the_model():
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    assert "self.model.make_empty_intermediate_tensors(" in inspect.getsource(GPUModelRunner._dummy_run)


def test_a_stage_sends_its_hidden_states_unless_its_runner_has_broadcast_the_logits():
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner
    from vllm.v1.worker.gpu_worker import Worker

    runner, worker = inspect.getsource(GPUModelRunner.execute_model), inspect.getsource(Worker.execute_model)
    assert "if not self.broadcast_pp_output:" in runner
    assert 'parallel_config.distributed_executor_backend != "external_launcher"' in worker
    assert "get_pp_group().isend_tensor_dict(" in worker
    sampling = inspect.getsource(GPUModelRunner.sample_tokens)
    assert "if self.execute_model_state is None:" in sampling  # an earlier stage has nothing to sample


def test_an_earlier_stage_learns_the_tokens_from_the_scheduler():
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    assert "if self.use_pp and not self.scheduler_config.async_scheduling:" in inspect.getsource(
        Scheduler._make_cached_request_data
    )
    assert "req_data.new_token_ids[i]" in inspect.getsource(GPUModelRunner._update_states)


def test_what_is_scheduled_can_be_told_on_every_rank():
    from dataclasses import fields

    from vllm.v1.core.sched.output import CachedRequestData, NewRequestData, SchedulerOutput

    def names(kind) -> set[str]:
        return {field.name for field in fields(kind)}

    assert {"num_scheduled_tokens", "scheduled_new_reqs", "scheduled_cached_reqs"} <= names(SchedulerOutput)
    assert "block_ids" in names(NewRequestData) and "new_block_ids" in names(CachedRequestData)


def test_a_regex_may_take_as_long_as_it_needs_where_the_limit_is_0():
    import vllm.envs

    assert "VLLM_REGEX_COMPILATION_TIMEOUT_S" in vllm.envs.environment_variables


@pytest.fixture(scope="module")
def fused_kernels():
    import vllm._custom_ops  # noqa: F401  loads the extension

    from localai_clusters.serving import cpu_kernels

    cpu_kernels.register()
    return cpu_kernels


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_fused_cpu_kernels_compute_what_the_operators_say(fused_kernels, dtype):
    from vllm import ir
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.model_executor.layers.activation import SiluAndMul

    generator = torch.Generator().manual_seed(0)
    x, residual = (torch.randn(5, 576, generator=generator).to(dtype) for _ in range(2))
    weight = torch.randn(576, generator=generator).to(dtype)
    close = {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}

    norm = ir.ops.rms_norm.impls
    torch.testing.assert_close(
        norm[fused_kernels.PROVIDER].impl_fn(x, weight, 1e-5), norm["native"].impl_fn(x, weight, 1e-5), **close
    )
    fused = ir.ops.fused_add_rms_norm.impls
    expected = fused["native"].impl_fn(x, residual, weight, 1e-5)
    found = fused[fused_kernels.PROVIDER].impl_fn(x.clone(), residual.clone(), weight, 1e-5)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **close)

    with set_current_vllm_config(VllmConfig()):
        activation = SiluAndMul()
    assert type(activation).__name__ == "FusedSiluAndMul"
    torch.testing.assert_close(activation.forward_oot(x), SiluAndMul.forward_native(x), **close)


def test_layers_say_how_they_are_cut():
    """serving/weights.py writes the classes down, matrices.py goes by their names."""
    from vllm.model_executor.layers import linear, vocab_parallel_embedding
    from vllm.model_executor.models.llama import LlamaForCausalLM

    for name in ("ColumnParallelLinear", "RowParallelLinear", "QKVParallelLinear", "MergedColumnParallelLinear"):
        assert hasattr(linear, name)
    assert issubclass(linear.QKVParallelLinear, linear.ColumnParallelLinear)
    assert hasattr(vocab_parallel_embedding, "VocabParallelEmbedding")
    assert LlamaForCausalLM.packed_modules_mapping["qkv_proj"] == ["q_proj", "k_proj", "v_proj"]
