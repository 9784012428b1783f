"""A recipe, scaled down, through its own start on CPU ranks: two steps, a checkpoint, a resume that has to be the unbroken run."""
