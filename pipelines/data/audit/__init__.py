"""What the loss will see, and what is wrong with it."""
