#!/bin/bash
# Serve an exported folder in SGLang, and ask the server which factors it computes with.
set -euo pipefail
python -m sglang.launch_server --model-path extended --context-length 32768 --port 30000 &
server=$!
until curl -sf http://localhost:30000/health; do
    kill -0 $server # ends the script if the server has ended
    sleep 5
done
longrope probe http://localhost:30000 --checkpoint extended
longrope eval extended --server http://localhost:30000 --lengths 8k,32k --retrieval passkey -o served
wait
