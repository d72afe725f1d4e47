"""The controller: which models should exist, what becomes of them, and the one endpoint for clients."""
