"""Consensus between ranks, sharded tensors, and checks of the launch."""
