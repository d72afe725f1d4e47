"""`erllama doctor`: looks at what really goes wrong on machines, says what to do, and mends what is harmless.

gather(paths) → Context → examine(context) → findings, each of which may carry a `fix`
"""
