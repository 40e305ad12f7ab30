root@autodl-container-aa4d48ac02:~# python -m vllm.entrypoints.api_server --model /root/models/Qwen15_14B_Chat_sft --tensor-parallel-size 2  --max-model-len 12800 --port 8080  --api-key token-temp
