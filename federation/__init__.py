"""What client and server agree on: recipes, the images and their shards, the messages."""
