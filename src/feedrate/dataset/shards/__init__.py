"""Packed data: the format of a shard, its index, and the cache."""
