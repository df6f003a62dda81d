"""From layers to one typed RunConfig: precedence, derived values, types."""
