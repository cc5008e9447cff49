"""How a loader fetches batches: in the training loop's thread, in threads, in processes; and the choice of `auto`."""
