torchrun \
    --nproc_per_node=2 \
    --nnodes=1 \
    vllm/entrypoints/api_server.py \
    --model meta-llama/Llama-2-70b-hf \
    --tensor-parallel-size 2 \
    --host 0.0.0.0 \
    --port 8000
