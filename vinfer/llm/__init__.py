"""`vinfer.load`: the engine and the routes of the server in the caller's process, without a port.

Requests go through the same app as those of clients, so there is no second set of fields and rules.
"""
