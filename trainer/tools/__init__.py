"""Command-line tools that read a run's folder; they import only storage."""
