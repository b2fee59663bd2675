"""The Ollama adapter: Modelfiles, models created over HTTP, servers with a placement of the experts."""
