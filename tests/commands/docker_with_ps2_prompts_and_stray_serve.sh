docker run -d \
>   --name vllm-production \
>   --gpus all \
>   --ipc=host \
>   -p 8001:8000 \
>   -v /home/me/models/Qwen/Qwen3-8B:/root/models/Qwen3-8B \
>   -e CUDA_VISIBLE_DEVICES=0,1 \
>   -e CUDA_DEVICE_ORDER=PCI_BUS_ID \
>   ee2917e260bb \
>   serve /root/models/Qwen3-8B \
>   --tensor-parallel-size 2 \
>   --max-model-len 16000 \
>   --gpu-memory-utilization 0.9 \
>   --served-model-name Qwen3-8B \
>   --api-key abcdefgh
