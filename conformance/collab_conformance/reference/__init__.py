"""An independent reference: a plain float64 decoder, read from the GGUF alone."""
