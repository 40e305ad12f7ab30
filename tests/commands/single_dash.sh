vllm serve Qwen/Qwen3-8B -language-model-only
