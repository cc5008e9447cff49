"""Where the bytes of samples lie: the local file system."""
