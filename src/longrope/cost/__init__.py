"""Memory, FLOPs and time of a forward pass, a search or a plan, estimated from the model's config."""
