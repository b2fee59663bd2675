"""The report of `verify`: its document, and the ways to show it."""
