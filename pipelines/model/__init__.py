"""The frozen base, the adapter on it, and what the two become when merged. Knows nothing of Ray or of distribution."""
