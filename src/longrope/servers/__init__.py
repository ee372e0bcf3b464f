"""Running servers that speak OpenAI's protocol: which factors they compute with, and how they score."""
