#!/bin/bash
#SBATCH --job-name=vllm-serve
#SBATCH --gpus=4

module load brics/nccl
source .venv/bin/activate

YAML_CONFIG="/projects/public/GPT-OSS_Hopper.yaml"
HF_HOME=/projects/public/hf
MODEL_PATH=$HF_HOME/hub/models--openai--gpt-oss-120b/snapshots/b5c939de/
MODEL_NAME="openai/gpt-oss-120b"

srun \
    --nodes=$SLURM_NNODES \
    --gpus=$SLURM_GPUS \
    --cpus-per-task 72 \
    vllm serve $MODEL_PATH \
    --served-model-name $MODEL_NAME \
    --config $YAML_CONFIG \
    --host 0.0.0.0 \
    --port 8000 \
    --tensor_parallel_size=4
