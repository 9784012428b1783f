"""Speech recognition: by a decoder that writes (Whisper), and by an encoder's frames (CTC)."""
