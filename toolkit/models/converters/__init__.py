"""Checkpoints in other formats -> ordinary Hugging Face directories; `toolkit fetch` names them in `toolkit.models.assets`."""
