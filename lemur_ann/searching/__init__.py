"""What an index holds at one moment, and how that is asked."""
