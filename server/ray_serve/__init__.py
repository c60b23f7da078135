"""Distaff on Ray Serve: `app` is what `serve run` and `serve deploy` start.

Two deployments. An *ingress* holds the clients' connections (`ingress`, `relay`, `marks`); a *replica* is one
whole Distaff server on its node's devices, supervised by an actor (`replica`, `child`, `followers`). Between
them Ray Serve's request router chooses the replica (`prefix_router`, `placement`, `routing_key`). Only this
folder imports ray and aiohttp, which the extra `ray` installs; no other folder imports this one.
"""
