"""Classes and numbers of texts, and of the words in them."""
