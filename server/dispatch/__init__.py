"""Which engine computes which sequence, and when: the queue, fair shares, admission and wait times."""
