 VLLM_HOST_IP=HEAD-IP vllm serve NousResearch/Meta-Llama-3.1-8B-Instruct --max-model-len 8192  --tensor-parallel-size 2 --distributed-executor-backend ray
