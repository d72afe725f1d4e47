"""One module per kind of generated documentation; each returns Markdown."""
