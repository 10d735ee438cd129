"""The client's side: its images, and local training and evaluation."""
