"""The only package that imports DeepSpeed: process start, devices, the ZeRO engine and the state it holds."""

import logging

from toolkit.library_messages import passes

# Its warnings are about its own API and about a device it did not find; what matters we check and say ourselves. A filter,
# here, acts before DeepSpeed is imported, when it says the first of them, and outlives the level that it sets then.
logging.getLogger("DeepSpeed").addFilter(passes)
