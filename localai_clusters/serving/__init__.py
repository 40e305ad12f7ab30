"""What each torchrun rank runs: vLLM's engine in lockstep, and on rank 0 vLLM's own OpenAI server.

The only package here that imports vLLM; nothing outside it does.
"""
