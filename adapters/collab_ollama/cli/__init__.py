"""The commands: `export ollama` and `ollama ...`, one file each."""
