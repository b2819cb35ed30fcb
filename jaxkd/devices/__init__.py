"""Processes, mesh, what lies where, and what compiled programs cost."""
