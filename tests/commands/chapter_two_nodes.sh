# Node 0 (head)
torchrun \
    --nproc_per_node=8 \
    --nnodes=2 \
    --node_rank=0 \
    --master_addr=<head-node-ip> \
    --master_port=29500 \
    vllm/entrypoints/api_server.py \
    --model meta-llama/Llama-2-70b-hf \
    --tensor-parallel-size 8
