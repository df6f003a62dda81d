"""Files on disk: atomic writes, checkpoint folders and their manifests, run locks. Standard library only."""
