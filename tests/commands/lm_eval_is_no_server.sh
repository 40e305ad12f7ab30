torchrun --nproc-per-node=8 --no-python  lm_eval --model vllm --model_args "pretrained=/data/models/DeepSeek-R1,tensor_parallel_size=1"
