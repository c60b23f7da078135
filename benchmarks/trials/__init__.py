"""Trials of a server under overload, faults and hostile requests, each with bounds that it must keep."""
