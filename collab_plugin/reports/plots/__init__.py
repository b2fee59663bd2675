"""Plots of a report. Only loaded when matplotlib is there."""
