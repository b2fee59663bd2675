"""What the adapter registers with collab-plugin. Importing this must stay cheap: vLLM is loaded on first use."""
