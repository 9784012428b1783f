"""What a row means: the forms of training text, and tokens with labels made of them."""
