"""Programs that use the host the way a user would. Each runs against a real small model in the tests."""
