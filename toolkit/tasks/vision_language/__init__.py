"""Vision-language tuning: conversations with images, through a checkpoint's own processor."""
