"""What `toolkit doctor` looks at: this host, its GPU, and the hosts of a cluster."""
