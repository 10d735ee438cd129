"""The server's side: checkpoints now; strategy and the record of a run with federated training."""
