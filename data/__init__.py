"""Kinds of data, one module each: reading, caching, statistics and mixing, ending in a `Bundle`."""
