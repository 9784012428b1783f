"""A recipe, scaled down, under every strategy on CPU ranks, against plain PyTorch in one process"""
