torchrun \
    --nnodes=2 \     # two nodes
    --nproc-per-node=2 \    # two devices per node
    --no-python \   # run non-python application
    --master-addr ${ADDR_TO_HEAD} \
    --master-port 65123 \
lmdeploy serve api_server Meta-Llama-3-8B-Instruct --backend pytorch \
    --tp 4    # 2node x 2devices
