"""A policy behind a WebSocket; `python predict.py --checkpoint OUT --serve PORT` connects it to a model."""
