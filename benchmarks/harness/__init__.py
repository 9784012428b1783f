"""What the benchmark scripts share: results pages, and starting a script as several ranks."""
