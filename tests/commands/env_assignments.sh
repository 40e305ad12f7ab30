VLLM_USE_V1=0 TRANSFORMERS_OFFLINE=1 PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True vllm serve deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B --max-model-len 2000 --gpu_memory_utilization=0.9
