"""What a run will need before it starts: memory, time, and which strategy to take. No weights, no device, no process group."""
