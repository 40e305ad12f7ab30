# Install vLLM
pip install vllm

# Start server with Qwen 7B model
vllm serve Qwen/Qwen2.5-7B-Instruct --host 0.0.0.0 --port 8000

# Test the server with a completion request
curl -X POST http://localhost:8000/v1/completions \
  -H "Content-Type: application/json" \
  -d '{
    "model": "Qwen/Qwen2.5-7B-Instruct",
    "prompt": "Hello, my name is",
    "max_tokens": 50
  }'
