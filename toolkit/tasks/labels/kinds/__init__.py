"""What the label of a text may be: one class, any number of classes, or a number; one module each, told apart in `choice`."""
