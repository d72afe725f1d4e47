"""The KV cache's arithmetic: keys, segment files, save policy. Pure: no I/O, no clock, no sockets."""
