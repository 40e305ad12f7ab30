vllm serve llm/qwen/Qwen2-0.5B-Instruct --tensor-parallel-size 2
