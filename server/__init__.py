"""The server's side: the Flower ServerApp, its strategy, checkpoints, and the record of a run."""
