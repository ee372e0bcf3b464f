#!/bin/bash
# Serve an exported folder in vLLM, and ask the server which factors it computes with.
set -euo pipefail
vllm serve extended --max-model-len 32768 --port 8000 & # without --max-model-len it starts for L0 tokens
server=$!
until curl -sf http://localhost:8000/health; do
    kill -0 $server # ends the script if the server has ended
    sleep 5
done
longrope probe http://localhost:8000 --checkpoint extended
longrope eval extended --server http://localhost:8000 --lengths 8k,32k --retrieval passkey -o served
wait
