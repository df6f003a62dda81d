"""YAML files and flags become one `RunConfig`, in which every value knows the file and line that set it.

Nothing in this package imports torch before a run is resolved, so `--help` and `--check` answer at once.
"""
