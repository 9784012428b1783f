"""The only package that imports DeepSpeed: process start, devices, the ZeRO engine and the state it holds."""
