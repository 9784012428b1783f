"""The stages of gpu.py: each module has the rows it measures and the part of the page that shows them."""
