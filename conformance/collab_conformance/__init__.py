"""The conformance suite: holds compressed models on every engine and device to a reference.

Page: docs/conformance.md.
"""
