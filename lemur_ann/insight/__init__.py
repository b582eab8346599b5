"""What an index says of itself: recall and latency, settings to choose, health, memory, and why a document is found or not."""
