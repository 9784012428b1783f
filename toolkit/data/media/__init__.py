"""Images and sound in rows: where their bytes are, and what they hold. Files are decoded when examples are collated."""
