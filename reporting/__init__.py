"""Show runs on one HTML page: curves, configuration, scores, films, samples, history."""
