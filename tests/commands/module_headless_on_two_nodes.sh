python3 -m vllm.entrypoints.openai.api_server \ 
    --distributed-executor-backend mp \
    --pipeline-parallel-size 2 \
    --nnodes 2 \
    --node-rank 0 \
    --master-addr $MASTER_IP_ADDR

python3 -m vllm.entrypoints.openai.api_server \
    --distributed-executor-backend mp \
    --pipeline-parallel-size 2 \
    --nnodes 2 \
    --node-rank 1 \
    --master-addr $MASTER_IP_ADDR \
    --headless
