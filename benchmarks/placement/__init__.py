"""Where experts lie: policies on traces, files larger than memory, forecasts against runs (docs/placement.md)."""
