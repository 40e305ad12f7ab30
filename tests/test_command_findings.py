"""command/checks: every finding from a command that has it, none from one that has not, at its place in the text."""

import pytest

from localai_clusters.command import explain_command
from localai_clusters.command.findings import ADDS_UP, ADVICE, FILL_IN, NOTE, REMOVED, SEVERITIES, UNSAFE, WRONG

HERE = "--host 127.0.0.1"
TWO = "vllm serve m -tp 2 --nnodes 2 --master-addr 10.0.0.1 " + HERE
DOCKER = (
    "docker run --gpus all --ipc=host -p 127.0.0.1:8000:8000 -v ~/.cache/huggingface:/root/.cache/huggingface {} {}"
)
IMAGE = "vllm/vllm-openai:v0.32.0"

# (command, severity, code, the part of the text it is about, words in what is said, words in what is to be typed)
FOUND = [
    # The program and its launcher
    ("python -m vllm.entrypoints.api_server --model m", REMOVED, "removed-module", "vllm.entrypoints.api_server",
     "since vLLM 0.25.0", "vllm serve"),
    ("python vllm/entrypoints/api_server.py --model m", REMOVED, "removed-module", "vllm/entrypoints/api_server.py",
     "does not exist", "vllm serve"),
    ("python -m vllm.entrypoints.openai.api_server --model m", NOTE, "deprecated-module", "api_server", "deprecated",
     "vllm serve"),
    ("python -m vllm.entrypoints.openai.api_server org/m", WRONG, "model-ignored", "org/m", "Qwen/Qwen3-0.6B",
     "--model org/m"),
    ("python -m torch.distributed.run --nproc-per-node 2 -m vllm.entrypoints.openai.api_server --model m -tp 2", WRONG,
     "server-per-rank", "torch.distributed.run", "once per rank (2", "localai-clusters serve"),
    ("torchrun --nproc-per-node 2 --no-python vllm serve m -tp 2", WRONG, "server-per-rank", "torchrun",
     "once per rank", "vllm serve"),
    ("python -m torch.distributed.launch --nproc_per_node=2 -m localai_clusters.serving.rank --model m -tp 2", NOTE,
     "deprecated-launcher", "torch.distributed.launch", "deprecated", "torchrun"),
    ("mpirun -np 2 python -m vllm.entrypoints.openai.api_server --model m", WRONG, "launcher", "mpirun",
     "starts its own", "leave mpirun out"),
    ("deepspeed --num_gpus 2 vllm/entrypoints/openai/api_server.py --model m", WRONG, "launcher", "deepspeed",
     "starts its own", "leave deepspeed out"),
    ("vllm server m", WRONG, "stray-word", "server", "not one of vllm's commands", "vllm serve MODEL"),
    ("vllm serve m extra", WRONG, "stray-word", "extra", "nothing says", "leave it out"),
    ("vllm serve", NOTE, "no-model", "", "Qwen/Qwen3-0.6B", "vllm serve MODEL"),
    ("vllm serve --model m", NOTE, "model-flag", "--model m", "first word", "vllm serve MODEL"),
    # Flags
    ("vllm serve m --swap-space 4", REMOVED, "removed-flag", "--swap-space 4", "since 0.18.0 (vLLM 0.17.1 had it)",
     "leave it out"),
    ("vllm serve m --worker-use-ray", REMOVED, "removed-flag", "--worker-use-ray", "before 0.9", "leave it out"),
    ("vllm serve m --cuda-graph-sizes 1", REMOVED, "removed-flag", "--cuda-graph-sizes 1", "another name",
     "--cudagraph-capture-sizes 1"),
    ("vllm serve m --guided-decoding-backend xgrammar", REMOVED, "removed-flag", "--guided-decoding-backend xgrammar",
     "structured outputs", "--structured-outputs-config.backend xgrammar"),
    ("vllm serve m --task classify", REMOVED, "removed-flag", "--task classify", "--runner", "--convert classify"),
    ("vllm serve m --tp 2", WRONG, "unknown-flag", "--tp 2", "other servers do", "--tensor-parallel-size 2"),
    ("vllm serve m --max-modl-len 2", WRONG, "unknown-flag", "--max-modl-len 2", "has no", "--max-model-len?"),
    ("vllm serve m --omni", WRONG, "unknown-flag", "--omni", "vllm-omni", "install vllm-omni"),
    ("vllm serve m --data-parallel 2", WRONG, "unknown-flag", "--data-parallel 2", "several flags",
     "--data-parallel-size"),
    ("vllm serve m -port 1", WRONG, "single-dash", "-port 1", "one dash", "--port"),
    ("vllm serve m '--port 8001'", WRONG, "quoted-together", "'--port 8001'", "one word", "--port 8001"),
    ("vllm serve m --port", WRONG, "missing-value", "--port", "needs a value", "--port VALUE"),
    ("vllm serve m --enforce-eager true", WRONG, "takes-no-value", "true", "switch", "--enforce-eager"),
    ("vllm serve m --enable-chunked-prefill false", WRONG, "takes-no-value", "false", "switch",
     "--no-enable-chunked-prefill"),
    ("vllm serve m --headless=false", WRONG, "takes-no-value", "--headless=false", "switch", "--headless"),
    ("vllm serve m --seed 1 --seed 2", ADDS_UP, "given-twice", "--seed 2", "the last one counts", "once"),
    ("vllm serve m --seed 1 --seed 1", NOTE, "given-twice", "--seed 1", "twice", "leave one out"),
    ("vllm serve m --enable-prefix-caching", NOTE, "default", "--enable-prefix-caching", "by itself", "leave"),
    ("vllm serve m --enable-auto-tool-choice", WRONG, "needs", "--enable-auto-tool-choice", "--tool-call-parser",
     "--tool-call-parser"),
    ("vllm serve m --lora-modules a=b", WRONG, "needs", "--lora-modules a=b", "--enable-lora", "--enable-lora"),
    ("vllm serve m --config x.yaml", NOTE, "config-file", "--config x.yaml", "not known here", ""),
    ("torchrun --nprocs 2 -m localai_clusters.serving.rank --model m", WRONG, "unknown-flag", "--nprocs 2",
     "torchrun has no", ""),
    # Values
    ("vllm serve m -tp two", WRONG, "wrong-type", "two", "a whole number", ""),
    ("vllm serve m --max-model-len 32,768", WRONG, "wrong-type", "32,768", "tokens", "--max-model-len 32768"),
    ("vllm serve m --hf-overrides.x 1 --speculative-config x", WRONG, "wrong-type", "x", "JSON", "'{"),
    ("vllm serve m -tp 0", WRONG, "out-of-range", "0", "at least 1", "--tensor-parallel-size 1"),
    ("vllm serve m --gpu-memory-utilization 90", WRONG, "out-of-range", "90", "share", "--gpu-memory-utilization 0.9"),
    ("vllm serve m --gpu-memory-utilization 95%", WRONG, "wrong-type", "95%", "a number", "0.95"),
    ("vllm serve m --port 80000", WRONG, "out-of-range", "80000", "65535", "--port 8000"),
    ("vllm serve m --port 80", ADVICE, "low-port", "80", "root", "--port 8000"),
    ("vllm serve m --dtype fp16", WRONG, "not-a-choice", "fp16", "no dtype", "--dtype float16"),
    ("vllm serve m --dtype BFLOAT16", WRONG, "not-a-choice", "BFLOAT16", "no dtype", "--dtype bfloat16"),
    ("vllm serve m --kv-cache-dtype fp7", WRONG, "not-a-choice", "fp7", "cannot be", "fp8"),
    ("vllm serve m --quantization AWQ", WRONG, "not-a-choice", "AWQ", "no quantization", "--quantization awq"),
    ("vllm serve m -q gptq-marlin", WRONG, "not-a-choice", "gptq-marlin", "no quantization", "gptq_marlin"),
    ("vllm serve m -q bitsandbytes", REMOVED, "removed-value", "bitsandbytes", "since 0.28.0 (0.24.0 had it)", "awq"),
    ("vllm serve m -q squeezellm", REMOVED, "removed-value", "squeezellm", "before 0.9", "awq"),
    ("vllm serve m --tool-call-parser hermess", WRONG, "not-a-choice", "hermess", "no parser", "hermes"),
    ("vllm serve m --model=~/x", WRONG, "tilde", "~/x", "beginning of a word", "--model ~/x"),
    # The split
    ("torchrun --nnodes 2 --nproc-per-node 8 --node-rank 0 --master-addr h -m localai_clusters.serving.rank "
     "--model m -tp 8", ADDS_UP, "world-size", "--nproc-per-node 8", "= 16 ranks", "--pipeline-parallel-size 2"),
    ("torchrun --nproc-per-node 4 -m localai_clusters.serving.rank --model m -tp 2", ADDS_UP, "world-size",
     "--nproc-per-node 4", "1 x 4 = 4 ranks", "--nproc-per-node=2"),
    ("vllm serve m -tp 3 --nnodes 2 --master-addr h", ADDS_UP, "world-size", "--nnodes 2", "do not divide", ""),
    ("vllm serve m -tp 9999", ADDS_UP, "world-size", "-tp 9999", "4096", ""),
    ("vllm serve m -tp 16", ADVICE, "many-ranks", "-tp 16", "few machines", "--nnodes"),
    ("CUDA_VISIBLE_DEVICES=0,1 vllm serve m -tp 4", ADDS_UP, "visible-devices", "0,1", "4 ranks", "0,1,2,3"),
    ("CUDA_VISIBLE_DEVICES=0,0 vllm serve m -tp 2", ADDS_UP, "visible-devices", "0,0", "twice", "=0"),
    ("CUDA_VISIBLE_DEVICES= vllm serve m", ADDS_UP, "visible-devices", "", "hides every GPU", "=0"),
    ("CUDA_VISIBLE_DEVICES=0,1 torchrun --nproc-per-node 3 -m localai_clusters.serving.rank --model m -tp 3", ADDS_UP,
     "visible-devices", "0,1", "3 ranks", "0,1,2"),
    ("CUDA_VISIBLE_DEVICES=0,1 vllm serve m", NOTE, "visible-devices", "0,1", "1 of them", ""),
    ("CUDA_VISIBLE_DEVICES=0\nvllm serve m", ADDS_UP, "not-exported", "0", "without export", "export"),
    (TWO.replace("-tp 2", "-tp 16"), ADVICE, "tensor-parallel-across-nodes", "-tp 16", "waits for the network",
     "--tensor-parallel-size 8 --pipeline-parallel-size 2"),
    ("vllm serve Qwen/Qwen2.5-7B-Instruct -tp 8", ADDS_UP, "heads", "-tp 8", "28 attention heads",
     "--tensor-parallel-size 4"),
    ("vllm serve gpt2 -pp 16", ADDS_UP, "layers", "-pp 16", "12 layers", "--pipeline-parallel-size 12"),
    ("vllm serve m -dp 2", NOTE, "data-parallel", "-dp 2", "2 copies", "vllm serve"),
    # Nodes
    (TWO, ADVICE, "node-missing", "--nnodes 2", "node 1 is missing", "its own --node-rank"),
    (f"{TWO}\n{TWO}", ADDS_UP, "node-rank-same", "", "two nodes have --node-rank 0", "--node-rank 1"),
    (f"{TWO} --node-rank 2", ADDS_UP, "node-rank-range", "--node-rank 2", "from 0 to 1", "--node-rank 1"),
    (f"{TWO} --node-rank 1", WRONG, "needs-headless", "--node-rank 1", "without --headless", "--headless"),
    (f"{TWO}\n{TWO.replace('-tp 2', '-tp 4')} --node-rank 1 --headless", ADDS_UP, "nodes-disagree", "-tp 4",
     "2 on one node and 4 on another", "--tensor-parallel-size 2"),
    (f"{TWO}\n{TWO.replace('serve m', 'serve n')} --node-rank 1 --headless", ADDS_UP, "nodes-disagree", "n",
     "one node serves m, another n", "m"),
    ("torchrun --nnodes=2 --nproc-per-node=1 --master-addr=h -m localai_clusters.serving.rank --model m -tp 2", ADDS_UP,
     "node-rank-missing", "--nnodes=2", "every node would be node 0", "--node-rank=0"),
    ("vllm serve m -pp 2 --nnodes 2", ADDS_UP, "meeting-point", "--nnodes 2", "not given", "--master-addr"),
    ("vllm serve m -pp 2 --nnodes 2 --master-addr 127.0.0.1", ADDS_UP, "meeting-point", "--master-addr 127.0.0.1",
     "every machine's own", "--master-addr"),
    ("vllm serve m -pp 2 --nnodes 2 --master-addr 0.0.0.0", ADDS_UP, "meeting-point", "--master-addr 0.0.0.0",
     "to listen on", "--master-addr"),
    (f"{TWO} --master-port 8000", ADDS_UP, "same-port", "--master-port 8000", "both on port 8000", "29500"),
    ("torchrun --rdzv-backend c10d --nnodes 2 --nproc-per-node 1 -m localai_clusters.serving.rank --model m -tp 2",
     ADDS_UP, "meeting-point", "--nnodes 2", "--rdzv-endpoint", "--rdzv-endpoint"),
    ("vllm serve m -tp 2 --distributed-executor-backend ray", NOTE, "ray", "--distributed-executor-backend ray",
     "Ray starts the ranks", "without Ray"),
    ("python -m vllm.entrypoints.openai.api_server --model m --headless", WRONG, "headless-ignored", "--headless",
     "never looks", "vllm serve"),
    # Who can reach it, and whose code it runs
    ("vllm serve m", UNSAFE, "open-to-all", "vllm serve", "listens on all networks", "--host 127.0.0.1"),
    ("vllm serve m --host 0.0.0.0", UNSAFE, "open-to-all", "--host 0.0.0.0", "nobody is asked", "VLLM_API_KEY"),
    ("vllm serve m --api-key abc", UNSAFE, "key-in-clear", "abc", "in ps", "VLLM_API_KEY"),
    ("vllm serve m --api-key $KEY", UNSAFE, "key-in-clear", "$KEY", "in ps", "VLLM_API_KEY"),
    ("vllm serve m --hf-token hf_abcdefghijklmnopqrst", UNSAFE, "token-in-clear", "hf_abcdefghijklmnopqrst", "revoke",
     "hf auth login"),
    ("HF_TOKEN=hf_abcdefghijklmnopqrst vllm serve m", UNSAFE, "token-in-clear", "hf_abcdefghijklmnopqrst", "revoke",
     "hf auth login"),
    ("AWS_SECRET_ACCESS_KEY=x vllm serve m", UNSAFE, "secret-in-clear", "x", "history", "file"),
    ("vllm serve m --trust-remote-code", UNSAFE, "trust-remote-code", "--trust-remote-code", "code that comes with m",
     "--revision"),
    # Containers
    ("docker run --gpus all -p 8000:8000 " + IMAGE + " m", UNSAFE, "published-port", "-p 8000:8000", "other machines",
     "-p 127.0.0.1:8000:8000"),
    ("docker run --gpus all " + IMAGE + " m -tp 2", ADDS_UP, "no-shared-memory", "docker", "64 MiB", "--ipc=host"),
    ("docker run --ipc=host " + IMAGE + " m", ADDS_UP, "no-gpus", "docker", "no GPU", "--gpus all"),
    ("docker run --gpus 1 --ipc=host " + IMAGE + " m -tp 2", ADDS_UP, "gpus", "--gpus 1", "2 ranks", "--gpus 2"),
    ("docker run --gpus '\"device=0\"' --ipc=host " + IMAGE + " m -tp 2", ADDS_UP, "gpus", "", "1 GPU", "--gpus"),
    ("docker run --gpus device=0,1 --ipc=host " + IMAGE + " m -tp 2", WRONG, "gpus-quoting", "--gpus device=0,1",
     "comma", "'\"device=0,1\"'"),
    ("docker run --gpus all -p 127.0.0.1:8000:8000 " + IMAGE + " m --port 9000", ADDS_UP, "port-mismatch",
     "-p 127.0.0.1:8000:8000", "port 9000", "-p 8000:9000"),
    (DOCKER.format(IMAGE, "m --host 127.0.0.1"), ADDS_UP, "host-inside", "--host 127.0.0.1", "inside a container", ""),
    ("docker run --gpus all --network host -p 8000:8000 " + IMAGE + " m", NOTE, "publish-ignored", "-p 8000:8000",
     "does nothing", "leave -p out"),
    ("docker run --gpus all --network host " + IMAGE + " m", UNSAFE, "open-to-all", IMAGE, "all networks", "--host"),
    ("docker run --gpus all " + IMAGE + " m", ADVICE, "no-port", "docker", "no port", "-p 127.0.0.1:8000:8000"),
    (DOCKER.format("vllm/vllm-openai", "m"), NOTE, "no-version", "vllm/vllm-openai", "version is not said", "v0.32.0"),
    (DOCKER.format("vllm/vllm-openai:v0.6.4", "m"), NOTE, "old-image", "vllm/vllm-openai:v0.6.4", "vLLM 0.6",
     "v0.32.0"),
    (DOCKER.format(IMAGE, "vllm serve m"), WRONG, "stray-word", "serve", "by itself", "leave it out"),
    (DOCKER.format(IMAGE, "/models/x"), ADVICE, "folder-not-mounted", "/models/x", "no -v", "-v "),
    ("docker run --gpus all " + IMAGE + " org/m", ADVICE, "cache-not-mounted", "docker", "gone with it", "-v ~/.cache"),
    # The model
    ("vllm serve meta-llama/Llama-3.1-8B-Instruct", NOTE, "gated", "meta-llama/Llama-3.1-8B-Instruct", "gated",
     "hf auth login"),
    ("vllm serve meta-llama/Llama-2-70b-hf -tp 2", ADVICE, "memory", "meta-llama/Llama-2-70b-hf", "69 GB on each of 2",
     "--tensor-parallel-size 4"),
    ("vllm serve mistralai/Mistral-7B-v0.1", ADVICE, "no-chat-template", "mistralai/Mistral-7B-v0.1", "base model",
     "Mistral-7B-Instruct-v0.3"),
    # What only the user can know
    ("vllm serve <model>", FILL_IN, "placeholder", "<model>", "reads < and > as files", "<model>"),
    ("vllm serve /path/to/model", FILL_IN, "placeholder", "/path/to/model", "something of yours", ""),
    ("vllm serve [MODEL]", FILL_IN, "placeholder", "[MODEL]", "something of yours", ""),
    ("vllm serve YOUR_MODEL", FILL_IN, "placeholder", "YOUR_MODEL", "something of yours", ""),
    ("vllm serve {{model}}", FILL_IN, "placeholder", "{{model}}", "something of yours", ""),
    ("vllm serve m -pp 2 --nnodes 2 --master-addr HEAD_IP", FILL_IN, "placeholder", "HEAD_IP", "yours", "ip -4 addr"),
    ("vllm serve m -pp 2 --nnodes 2 --master-addr 192.168.x.x", FILL_IN, "placeholder", "192.168.x.x", "yours", ""),
    ("vllm serve m --port <port>", FILL_IN, "placeholder", "<port>", "yours", ""),
    ("docker run -e HF_TOKEN=<token> --gpus all " + IMAGE + " m", FILL_IN, "placeholder", "<token>", "yours", ""),
    ("vllm serve $MODEL", NOTE, "variable-not-set", "$MODEL", "not set", "export MODEL"),
    # Variables
    ("VLLM_USE_V1=1 vllm serve m", NOTE, "variable-not-read", "1", "since 0.11.2", "leave it out"),
    ("VLLM_NO_SUCH_THING=1 vllm serve m", NOTE, "variable-not-read", "1", "does not read", "leave it out"),
    # The text
    ("vllm serve m\r\n", NOTE, "crlf", "", "Windows", "sed"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "severity", "code", "part", "said", "typed"),
    FOUND,
    ids=[f"{case[2]}: {case[0][:60]}" for case in FOUND],
)
def test_a_finding(text, severity, code, part, said, typed):
    report = explain_command(text)
    matching = [found for found in report.findings if found.code == code]
    assert matching, [(found.code, found.message) for found in report.findings]
    found = matching[-1] if part and code == "stray-word" else matching[0]
    assert found.severity == severity
    assert said in found.message
    assert typed in found.fix
    if part:
        assert part in text[found.start : found.end]
        assert len(text[found.start : found.end]) <= len(part) + 40


CLEAN = [
    f"vllm serve m {HERE}",
    f"vllm serve m -tp 8 -pp 2 {HERE} --nnodes 2 --master-addr 10.0.0.1\n"
    f"vllm serve m -tp 8 -pp 2 {HERE} --nnodes 2 --node-rank 1 --master-addr 10.0.0.1 --headless",
    "export VLLM_API_KEY=\"$(openssl rand -hex 32)\"\nvllm serve m --host 0.0.0.0",
    "localai-clusters serve --model m -tp 2",
    "localai-clusters serve --model m -tp 2 --host 0.0.0.0 -- --enforce-eager",
    "torchrun --nproc-per-node=2 -m localai_clusters.serving.rank --model m -tp 2",
    "torchrun --nnodes=1 --nproc-per-node=gpu -m localai_clusters.serving.rank --model m",
    DOCKER.format(IMAGE, "org/m -tp 2"),
    f"vllm serve m {HERE} --dtype half --max-model-len 32k --gpu-memory-utilization 1.0 -q awq",
    f"sudo -E env CUDA_VISIBLE_DEVICES=2,3 nohup vllm serve m -tp 2 {HERE} > out.log 2>&1 &",
    f"ssh gpu1 'cd /srv && vllm serve m {HERE}'",
    f"tmux new-session -d -s serve 'vllm serve m {HERE}'",
    f"uv run --with vllm vllm serve m {HERE}",
    f"timeout 600 taskset -c 0-3 vllm serve m {HERE}",
]  # fmt: skip


@pytest.mark.parametrize("text", CLEAN)
def test_nothing_is_said_of_a_command_that_is_right(text):
    report = explain_command(text)
    assert report.findings == ()
    assert report.works is True
    assert not report.is_unsafe


def test_findings_come_worst_first():
    report = explain_command(
        "vllm serve <m> --swap-space 1 --tp 2 --trust-remote-code --port 80 -tp 2 -pp 2 --nnodes 3"
    )
    order = [SEVERITIES.index(found.severity) for found in report.findings]
    assert order == sorted(order) and len(set(order)) >= 5


@pytest.mark.parametrize("launcher", ["mpirun -np 2", "deepspeed --num_gpus 2", "horovodrun -np 2"])
def test_a_launcher_that_starts_vllm_wrongly_still_gives_its_plan(launcher):
    report = explain_command(f"{launcher} python -m vllm.entrypoints.openai.api_server --model m -tp 2")
    assert [plan.tensor_parallel_size for plan in report.plans] == [2]
