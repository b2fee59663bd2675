"""An independent reference: a plain float64 decoder of the trained families, read from the GGUF alone."""
