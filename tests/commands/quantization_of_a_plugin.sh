vllm serve /home/models/obs-r1-w8a8 \
--host 0.0.0.0 \
--port 8004 \
--tensor-parallel-size 4 \
--max-model-len 32768 \
--quantization ascend \
--max-num-batched-tokens 4096
