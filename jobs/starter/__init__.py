"""A first recipe: what rows and machine look like, and the file that is written for them."""
