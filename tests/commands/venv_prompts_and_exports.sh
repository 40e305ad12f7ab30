(evalscope) root@ai66:/workspace# export NCCL_SOCKET_IFNAME=ens5f0
(evalscope) root@ai66:/workspace# export GLOO_SOCKET_IFNAME=ens5f0
(evalscope) root@ai66:/workspace# CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=0,1 vllm serve /root/models/Qwen/Qwen2.5-1.5B-Instruct --disable-log-requests --tensor-parallel-size 2 --port 45526 --gpu_memory_utilization 0.9 --host 127.0.0.1
