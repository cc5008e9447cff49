"""How the bytes of a file become a sample: .pt, .npy and tables; reading a batch of files at once."""
