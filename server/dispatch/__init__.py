"""Which engine computes which sequence, and when: the queue, its shares, admission and waits."""
