"""Objective, update, loop and what a run leaves behind."""
