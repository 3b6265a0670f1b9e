"""What a caller does when an attempt fails: pure decisions, carried out by `client`."""
