"""The fold loop and everything that it is made of."""
