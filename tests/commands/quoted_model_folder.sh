vllm serve "/hpcwork/me/models/Meta-Llama-3.1-8B-Instruct" --port 6379
