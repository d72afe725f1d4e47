"""Conversations: rendering by the model's own template in a helper process, channel markers, exact replay of replies."""
