"""llama.cpp through ctypes: the only package that imports `llama_cpp`, and the only place where `Any` is at home.

library.py     the import, the functions needed, the log, the abort flag
loading.py     a model file → a model; options → context parameters
facts.py       what the model says about itself
vocabulary.py  tokens and text (thread-safe)
context.py     one context: batches, decode, logits
sequences.py   sharing, cutting, retaining what is in it
blob.py        the layout of a stored piece, read back to check it (pure)
pieces.py      packing and restoring pieces
sampling.py    chains; json_schema.py: schemas as grammars
adapters.py, embedding.py, backend.py
"""
