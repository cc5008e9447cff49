"""Writing data sets: src/prepare.py splits one big file, src/pack.py packs samples into shards."""
