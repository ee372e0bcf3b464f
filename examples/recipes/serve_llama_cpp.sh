#!/bin/bash
# Serve a GGUF file (Llama, Mistral, Phi-3) in llama.cpp, and ask the server which factors it computes with.
set -euo pipefail
longrope export extended --to gguf -o extended.gguf # pip install 'longrope[gguf]'
llama-server -m extended.gguf -c 32768 -np 1 --port 8080 & # with -np N, -c is N times the length
server=$!
until curl -sf http://localhost:8080/health; do
    kill -0 $server # ends the script if the server has ended
    sleep 5
done
longrope probe http://localhost:8080 --checkpoint extended
longrope eval extended --server http://localhost:8080 --lengths 8k,32k --retrieval passkey -o served
wait
