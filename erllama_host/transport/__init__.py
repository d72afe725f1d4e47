"""ZeroMQ sockets, endpoints, keys; what processes of the host share of them."""
