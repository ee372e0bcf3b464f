"""Write GGUF files that llama.cpp runs with the factors."""
