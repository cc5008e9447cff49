"""Packed data: the format of a shard, its index, writing, packing, and the cache."""
