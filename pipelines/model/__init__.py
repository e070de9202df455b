"""The frozen base, its adapter, and the merged model. Knows nothing about Ray or distribution."""
