"""State dicts and random-number states as safetensors and JSON."""
