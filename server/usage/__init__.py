"""What has been used, by key: counters for Prometheus and a log for billing."""
