"""What lies on disk: files whole or absent, checkpoints that prove it, one run in a folder. It needs no torch."""
